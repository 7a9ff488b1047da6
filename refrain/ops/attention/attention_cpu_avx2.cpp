// Attention, AVX2: a block of 64 positions for the query heads that share it, two heads at a time. What a head
// computes, and in which order, does not depend on the one beside it. T: of the cache's elements.
#include <algorithm>
#include <cstring>
#include <limits>

#include "refrain/backend/features.h"
#include "refrain/ops/attention/attention_walk.h"
#include "refrain/ops/simd_avx2.h"
#include "refrain/ops/tanh.h"

namespace refrain::ops {
namespace {

using avx2::kLanes;

/// The upper half added to the lower.
REFRAIN_AVX2_INLINE __m128 fold(__m256 v) {
  return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}

/// horizontal_sum of four vectors.
REFRAIN_AVX2_INLINE __m128 horizontal_sums(__m256 a, __m256 b, __m256 c, __m256 d) {
  __m128 r0 = fold(a), r1 = fold(b), r2 = fold(c), r3 = fold(d);
  _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
  return _mm_add_ps(_mm_add_ps(r0, r2), _mm_add_ps(r1, r3));
}

/// Keeps scores[begin..end) within the block's cap: eight at a time, which the compiler makes vectors of.
REFRAIN_AVX2 void cap_scores(const AttentionBlock& block, float* scores) {
  const float cap = block.softcap;
  uint32_t j = block.begin;
  for (; j + kLanes <= block.end; j += kLanes) {
    float values[kLanes];
    for (size_t k = 0; k < kLanes; ++k) values[k] = cap * tanh_by_fma(scores[j + k] / cap);
    std::memcpy(scores + j, values, sizeof(values));
  }
  for (; j < block.end; ++j) scores[j] = cap * tanh_by_fma(scores[j] / cap);
}

/// scores[h][j] for the positions from begin to end, minus infinity before them and after them up to 64: a
/// position has the same lane whatever the window leaves out.
template <int kHeads, class T>
REFRAIN_AVX2_INLINE void compute_scores(const AttentionBlock& block, float (*scores)[kPagePositions]) {
  const size_t dim = block.head_dim;
  const size_t whole = dim / kLanes * kLanes;
  for (uint32_t j = block.begin / 4 * 4; j < block.end; j += 4) {
    const T* keys[4];
    for (uint32_t i = 0; i < 4; ++i)
      keys[i] = static_cast<const T*>(block.keys) + std::clamp(j + i, block.begin, block.end - 1) * dim;
    __m256 sums[kHeads][4];
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < 4; ++i) sums[h][i] = _mm256_setzero_ps();
    }
    for (size_t d = 0; d < whole; d += kLanes) {
      __m256 query[kHeads];
      for (int h = 0; h < kHeads; ++h) query[h] = avx2::load8(block.query + static_cast<size_t>(h) * dim + d);
      for (int i = 0; i < 4; ++i) {
        const __m256 key = avx2::load8(keys[i] + d);
        for (int h = 0; h < kHeads; ++h) sums[h][i] = _mm256_fmadd_ps(query[h], key, sums[h][i]);
      }
    }
    if (whole < dim) {
      for (int i = 0; i < 4; ++i) {
        const __m256 key = avx2::load_first(keys[i] + whole, dim - whole);
        for (int h = 0; h < kHeads; ++h) {
          const __m256 query =
              avx2::load_first(block.query + static_cast<size_t>(h) * dim + whole, dim - whole);
          sums[h][i] = _mm256_fmadd_ps(query, key, sums[h][i]);
        }
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      const __m128 dots = horizontal_sums(sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
      _mm_storeu_ps(scores[h] + j, _mm_mul_ps(dots, _mm_set1_ps(block.scale)));
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    if (block.softcap != 0) cap_scores(block, scores[h]);
    std::fill(scores[h], scores[h] + block.begin, -std::numeric_limits<float>::infinity());
    std::fill(scores[h] + block.end, scores[h] + kPagePositions, -std::numeric_limits<float>::infinity());
  }
}

/// scores become e^(score - greatest).
REFRAIN_AVX2_INLINE AttentionSums exponentiate(float* scores) {
  __m256 max = avx2::load8(scores);
  for (size_t j = kLanes; j < kPagePositions; j += kLanes) max = _mm256_max_ps(max, avx2::load8(scores + j));
  const float greatest = avx2::horizontal_max(max);
  __m256 sum = _mm256_setzero_ps();
  for (size_t j = 0; j < kPagePositions; j += kLanes) {
    const __m256 weight = avx2::exp(_mm256_sub_ps(avx2::load8(scores + j), _mm256_set1_ps(greatest)));
    _mm256_storeu_ps(scores + j, weight);
    sum = _mm256_add_ps(sum, weight);
  }
  return {greatest, avx2::horizontal_sum(sum)};
}

/// total * total_factor + part * part_factor, for all that joins.
REFRAIN_AVX2_INLINE __m256 joined(__m256 total, float total_factor, __m256 part, float part_factor) {
  return _mm256_fmadd_ps(part, _mm256_set1_ps(part_factor),
                         _mm256_mul_ps(total, _mm256_set1_ps(total_factor)));
}

/// Factors by which two parts count from now on.
struct Factors {
  float total, part;
};

REFRAIN_AVX2_INLINE Factors join_sums(AttentionSums& total, const AttentionSums& part) {
  const float max = std::max(total.max, part.max);
  alignas(32) float factors[kLanes];
  _mm256_store_ps(factors, avx2::exp(_mm256_setr_ps(total.max - max, part.max - max, 0, 0, 0, 0, 0, 0)));
  total = {max, total.sum * factors[0] + part.sum * factors[1]};
  return {factors[0], factors[1]};
}

/// Joins the values weighted by the block to those before, up to kVectors vectors from `d` on.
template <int kHeads, int kVectors, class T>
REFRAIN_AVX2_INLINE void add_values(const AttentionBlock& block, const float (*weights)[kPagePositions],
                                    const Factors* factors, size_t d, size_t last_lanes) {
  __m256 sums[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) sums[h][v] = _mm256_setzero_ps();
  }
  for (size_t j = block.begin; j < block.end; ++j) {
    const T* from = static_cast<const T*>(block.values) + j * block.head_dim + d;
    __m256 values[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const size_t at = static_cast<size_t>(v) * kLanes;
      values[v] = last_lanes == kLanes ? avx2::load8(from + at) : avx2::load_first(from + at, last_lanes);
    }
    for (int h = 0; h < kHeads; ++h) {
      const __m256 weight = _mm256_set1_ps(weights[h][j]);
      for (int v = 0; v < kVectors; ++v) sums[h][v] = _mm256_fmadd_ps(weight, values[v], sums[h][v]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) {
      float* to =
          block.weighted + static_cast<size_t>(h) * block.head_dim + d + static_cast<size_t>(v) * kLanes;
      const __m256 old = last_lanes == kLanes ? avx2::load8(to) : avx2::load_first(to, last_lanes);
      const __m256 joint = joined(old, factors[h].total, sums[h][v], factors[h].part);
      if (last_lanes == kLanes) {
        _mm256_storeu_ps(to, joint);
      } else {
        avx2::store_first(to, joint, last_lanes);
      }
    }
  }
}

template <int kHeads, class T>
REFRAIN_AVX2 void add_heads(const AttentionBlock& block) {
  float weights[kHeads][kPagePositions];  // scores at first
  compute_scores<kHeads, T>(block, weights);
  Factors factors[kHeads];
  for (int h = 0; h < kHeads; ++h) factors[h] = join_sums(block.sums[h], exponentiate(weights[h]));
  constexpr size_t kWide = 4 * kLanes;
  size_t d = 0;
  for (; d + kWide <= block.head_dim; d += kWide)
    add_values<kHeads, 4, T>(block, weights, factors, d, kLanes);
  for (; d < block.head_dim; d += kLanes)
    add_values<kHeads, 1, T>(block, weights, factors, d, std::min(kLanes, block.head_dim - d));
}

template <class T>
void add_block_of(const AttentionBlock& block) {
  AttentionBlock heads = block;
  for (uint32_t head = 0; head < block.heads; head += heads.heads) {
    heads.query = block.query + size_t{head} * block.head_dim;
    heads.weighted = block.weighted + size_t{head} * block.head_dim;
    heads.sums = block.sums + head;
    heads.heads = std::min(2u, block.heads - head);
    heads.heads == 2 ? add_heads<2, T>(heads) : add_heads<1, T>(heads);
  }
}

void add_block(const AttentionBlock& block) {
  block.cache_type == DType::f16 ? add_block_of<f16>(block) : add_block_of<float>(block);
}

REFRAIN_AVX2 void join(uint32_t head_dim, AttentionSums& total, float* weighted, const AttentionSums& part,
                       const float* part_weighted) {
  const Factors factors = join_sums(total, part);
  size_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    _mm256_storeu_ps(weighted + d, joined(avx2::load8(weighted + d), factors.total,
                                          avx2::load8(part_weighted + d), factors.part));
  }
  if (const size_t rest = head_dim - d; rest != 0) {
    avx2::store_first(weighted + d,
                      joined(avx2::load_first(weighted + d, rest), factors.total,
                             avx2::load_first(part_weighted + d, rest), factors.part),
                      rest);
  }
}

REFRAIN_AVX2 void divide(uint32_t head_dim, float* weighted, float sum) {
  for (uint32_t d = 0; d < head_dim; ++d) weighted[d] /= sum;
}

constexpr backend::TileKernel kTiles = {
    .tiles = [](const backend::TileArgs& args, uint32_t begin, uint32_t end) {
      attention_tiles(attention_cpu_avx2, args, begin, end);
    }};

}  // namespace

constinit const AttentionArithmetic attention_cpu_avx2 = {add_block, join, divide};

std::span<const backend::Kernel> attention_cpu_avx2_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "attention_f32_avx2",
      .op = &attention_schema,
      .numerics = kAttentionAvx2Numerics,
      .needs = backend::kFeatureAvx2,
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = attention_launch,
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
