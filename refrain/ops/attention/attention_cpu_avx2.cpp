// Attention, AVX2: for each block of 64 positions all rows and query heads that share it, two heads at a
// time. What a row computes, and in which order, does not depend on the rows and heads beside it.
#include <algorithm>
#include <limits>

#include "refrain/backend/features.h"
#include "refrain/core/checked.h"
#include "refrain/ops/attention/attention.h"
#include "refrain/ops/simd_avx2.h"
#include "refrain/ops/step_row.h"

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

/// Greatest score and sum so far, one for each row and query head of a tile.
struct Running {
  float max;
  float sum;
};

/// One block of positions for kHeads query heads of one row.
template <int kHeads>
struct Block {
  const float* query;   ///< [kHeads, head_dim]
  const float* keys;    ///< [count, head_dim]
  const float* values;  ///< [count, head_dim]
  float* output;        ///< [kHeads, head_dim], the weighted values so far
  Running* running;     ///< [kHeads]
  size_t head_dim;
  size_t begin;  ///< the first position of the block that counts
  size_t count;  ///< begin + 1 to 64
  float scale;
};

/// scores[h][j] for the positions from begin to count, minus infinity before them and after them up to 64: a
/// position has the same lane whatever the window leaves out.
template <int kHeads>
REFRAIN_AVX2_INLINE void compute_scores(const Block<kHeads>& block, float (*scores)[kPagePositions]) {
  const size_t dim = block.head_dim;
  const size_t whole = dim / kLanes * kLanes;
  for (size_t j = block.begin / 4 * 4; j < block.count; j += 4) {
    const float* keys[4];
    for (size_t i = 0; i < 4; ++i) {
      keys[i] = block.keys + std::clamp(j + i, block.begin, block.count - 1) * dim;
    }
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
    std::fill(scores[h], scores[h] + block.begin, -std::numeric_limits<float>::infinity());
    std::fill(scores[h] + block.count, scores[h] + kPagePositions, -std::numeric_limits<float>::infinity());
  }
}

/// scores become e^(score - greatest).
REFRAIN_AVX2_INLINE Running exponentiate(float* scores) {
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

/// output = output * old_scale + (weighted values of the block) * new_scale, for up to kVectors vectors from
/// `d` on.
template <int kHeads, int kVectors>
REFRAIN_AVX2_INLINE void add_values(const Block<kHeads>& block, const float (*weights)[kPagePositions],
                                    const float* old_scale, const float* new_scale, size_t d,
                                    size_t last_lanes) {
  __m256 sums[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) sums[h][v] = _mm256_setzero_ps();
  }
  for (size_t j = block.begin; j < block.count; ++j) {
    const float* from = block.values + j * block.head_dim + d;
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
          block.output + static_cast<size_t>(h) * block.head_dim + d + static_cast<size_t>(v) * kLanes;
      const __m256 old = last_lanes == kLanes ? avx2::load8(to) : avx2::load_first(to, last_lanes);
      const __m256 joint = _mm256_fmadd_ps(sums[h][v], _mm256_set1_ps(new_scale[h]),
                                           _mm256_mul_ps(old, _mm256_set1_ps(old_scale[h])));
      if (last_lanes == kLanes) {
        _mm256_storeu_ps(to, joint);
      } else {
        avx2::store_first(to, joint, last_lanes);
      }
    }
  }
}

template <int kHeads>
REFRAIN_AVX2 void add_block(const Block<kHeads>& block) {
  float scores[kHeads][kPagePositions];
  compute_scores<kHeads>(block, scores);
  float old_scale[kHeads], new_scale[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    const Running added = exponentiate(scores[h]);
    Running& running = block.running[h];
    const float max = std::max(running.max, added.max);
    alignas(32) float factors[kLanes];
    _mm256_store_ps(factors, avx2::exp(_mm256_setr_ps(running.max - max, added.max - max, 0, 0, 0, 0, 0, 0)));
    old_scale[h] = factors[0];
    new_scale[h] = factors[1];
    running.max = max;
    running.sum = running.sum * old_scale[h] + added.sum * new_scale[h];
  }
  constexpr size_t kWide = 4 * kLanes;
  size_t d = 0;
  for (; d + kWide <= block.head_dim; d += kWide) {
    add_values<kHeads, 4>(block, scores, old_scale, new_scale, d, kLanes);
  }
  for (; d < block.head_dim; d += kLanes) {
    add_values<kHeads, 1>(block, scores, old_scale, new_scale, d, std::min(kLanes, block.head_dim - d));
  }
}

REFRAIN_AVX2 void run_tile(const backend::TileArgs& args, const PageTable& table, uint32_t tile) {
  const auto& c = args.constants_as<AttentionConstants>();
  const CacheGeometry geometry = {c.pages, c.kv_heads, c.head_dim};
  const float* cache = args.arg<const float>(3);
  const uint32_t group = c.heads / c.kv_heads;
  const uint32_t kv_head = tile % c.kv_heads;
  const uint32_t block_rows = attention_rows_per_block(c);
  const size_t first = size_t{tile / c.kv_heads} * block_rows;
  const size_t rows = std::min<size_t>(block_rows, args.live_rows - first);
  Running* running = reinterpret_cast<Running*>(args.scratch);  // [rows, group]

  CheckedRow checked[kAttentionMaxBlockRows];
  uint32_t begins[kAttentionMaxBlockRows];  // the first position of each row
  uint32_t first_page = UINT32_MAX, pages = 0;
  for (size_t r = 0; r < rows; ++r) {
    const StepRow& row = args.arg<const StepRow>(1)[first + r];
    begins[r] = c.first_position(row.position);
    checked[r] = check_row(row, table, begins[r]);
    const size_t offset = ((first + r) * c.heads + size_t{kv_head} * group) * c.head_dim;
    std::fill_n(args.arg<float>(5) + offset, size_t{group} * c.head_dim, 0.0f);
    std::fill_n(running + r * group, group, Running{-std::numeric_limits<float>::infinity(), 0.0f});
    if (checked[r].pages == nullptr) {
      raise_status(args.arg<uint32_t>(4), checked[r].status_word, checked[r].status_bits);
    } else {
      first_page = std::min(first_page, begins[r] / kPagePositions);
      pages = std::max(pages, checked[r].position / kPagePositions + 1);
    }
  }
  for (uint32_t page = first_page; page < pages; ++page) {
    const uint32_t first_position = page * kPagePositions;
    for (size_t r = 0; r < rows; ++r) {
      const CheckedRow& row = checked[r];
      if (row.pages == nullptr || row.position < first_position || begins[r] / kPagePositions > page)
        continue;
      const uint32_t begin = std::max(begins[r], first_position) - first_position;
      const uint32_t count = std::min(kPagePositions, row.position - first_position + 1);
      const float* keys = cache + geometry.unit_offset(0, row.pages[page], kv_head);
      const float* values = cache + geometry.unit_offset(1, row.pages[page], kv_head);
      uint32_t h = 0;
      for (; h + 2 <= group; h += 2) {
        const size_t offset = ((first + r) * c.heads + size_t{kv_head} * group + h) * c.head_dim;
        add_block<2>({args.arg<const float>(0) + offset, keys, values, args.arg<float>(5) + offset,
                      running + r * group + h, c.head_dim, begin, count, c.scale});
      }
      if (h < group) {
        const size_t offset = ((first + r) * c.heads + size_t{kv_head} * group + h) * c.head_dim;
        add_block<1>({args.arg<const float>(0) + offset, keys, values, args.arg<float>(5) + offset,
                      running + r * group + h, c.head_dim, begin, count, c.scale});
      }
    }
  }
  for (size_t r = 0; r < rows; ++r) {
    if (checked[r].pages == nullptr) continue;
    for (uint32_t h = 0; h < group; ++h) {
      const float sum = running[r * group + h].sum;
      float* output = args.arg<float>(5) + ((first + r) * c.heads + size_t{kv_head} * group + h) * c.head_dim;
      for (uint32_t d = 0; d < c.head_dim; ++d) output[d] /= sum;
    }
  }
}

void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<AttentionConstants>();
  const PageTable table = {
      .ids = args.arg<const uint32_t>(2),
      .slots = c.slots,
      .pages_per_slot = c.pages_per_slot,
      .cache_pages = c.pages,
  };
  for (uint32_t tile = begin; tile < end; ++tile) run_tile(args, table, tile);
}

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& c = call.constants_as<AttentionConstants>();
  const uint32_t block_rows = attention_rows_per_block(c);
  return {
      .rows = c.rows,
      .rows_per_block = block_rows,
      .tiles_per_block = c.kv_heads,
      .scratch_bytes = align_up(size_t{block_rows} * (c.heads / c.kv_heads) * sizeof(Running), 64),
  };
}

constexpr backend::TileKernel kTiles = {.tiles = tiles};

}  // namespace

std::span<const backend::Kernel> attention_cpu_avx2_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "attention_f32_avx2",
      .op = &attention_schema,
      .numerics = "exact, AVX2 FMA, 8 lanes, blocks of 64 positions",
      .needs = backend::kFeatureAvx2,
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = launch,
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
