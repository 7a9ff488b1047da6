// Attention, portable kernel: one row, one query head, one block of 64 positions after the other.
#include <algorithm>
#include <cmath>

#include "refrain/core/half.h"
#include "refrain/ops/attention/attention_walk.h"
#include "refrain/ops/tanh.h"

namespace refrain::ops {
namespace {

/// Factors by which two parts count from now on.
struct Factors {
  float total, part;
};

Factors join_sums(AttentionSums& total, const AttentionSums& part) {
  const float max = std::max(total.max, part.max);
  const Factors factors{std::exp(total.max - max), std::exp(part.max - max)};
  total = {max, total.sum * factors.total + part.sum * factors.part};
  return factors;
}

float widened(float element) { return element; }
float widened(f16 element) { return element.to_float(); }

/// T: of the cache.
template <class T>
void add_head(const AttentionBlock& block, uint32_t head) {
  const float* query = block.query + size_t{head} * block.head_dim;
  float* weighted = block.weighted + size_t{head} * block.head_dim;
  float weights[kPagePositions];  // scores at first
  AttentionSums part;
  for (uint32_t j = block.begin; j < block.end; ++j) {
    float dot = 0;
    const T* key = static_cast<const T*>(block.keys) + size_t{j} * block.head_dim;
    for (uint32_t d = 0; d < block.head_dim; ++d) dot += query[d] * widened(key[d]);
    weights[j] = dot * block.scale;
    if (block.softcap != 0) weights[j] = block.softcap * tanh_by_fma(weights[j] / block.softcap);
    part.max = std::max(part.max, weights[j]);
  }
  for (uint32_t j = block.begin; j < block.end; ++j) {
    weights[j] = std::exp(weights[j] - part.max);
    part.sum += weights[j];
  }
  const Factors factors = join_sums(block.sums[head], part);
  constexpr uint32_t kStrip = 64;
  for (uint32_t first = 0; first < block.head_dim; first += kStrip) {
    const uint32_t count = std::min(kStrip, block.head_dim - first);
    float sums[kStrip] = {};
    for (uint32_t j = block.begin; j < block.end; ++j) {
      const T* values = static_cast<const T*>(block.values) + size_t{j} * block.head_dim + first;
      for (uint32_t d = 0; d < count; ++d) sums[d] += weights[j] * widened(values[d]);
    }
    for (uint32_t d = 0; d < count; ++d)
      weighted[first + d] = weighted[first + d] * factors.total + sums[d] * factors.part;
  }
}

void add_block(const AttentionBlock& block) {
  const auto add = block.cache_type == DType::f16 ? add_head<f16> : add_head<float>;
  for (uint32_t head = 0; head < block.heads; ++head) add(block, head);
}

void join(uint32_t head_dim, AttentionSums& total, float* weighted, const AttentionSums& part,
          const float* part_weighted) {
  const Factors factors = join_sums(total, part);
  for (uint32_t d = 0; d < head_dim; ++d)
    weighted[d] = weighted[d] * factors.total + part_weighted[d] * factors.part;
}

void divide(uint32_t head_dim, float* weighted, float sum) {
  for (uint32_t d = 0; d < head_dim; ++d) weighted[d] /= sum;
}

constexpr backend::TileKernel kTiles = {
    .tiles = [](const backend::TileArgs& args, uint32_t begin, uint32_t end) {
      attention_tiles(attention_cpu, args, begin, end);
    }};

}  // namespace

constinit const AttentionArithmetic attention_cpu = {add_block, join, divide};

std::span<const backend::Kernel> attention_cpu_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "attention_f32",
      .op = &attention_schema,
      .numerics = kAttentionNumerics,
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = attention_launch,
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
