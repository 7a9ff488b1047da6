// Attention, portable kernel: one row, one query head, one block of 64 positions after the other.
#include <algorithm>
#include <cmath>
#include <limits>

#include "refrain/core/checked.h"
#include "refrain/ops/attention/attention.h"
#include "refrain/ops/step_row.h"

namespace refrain::ops {
namespace {

/// Greatest score, sum and weighted values of the positions so far.
struct Running {
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0;
  float* values = nullptr;  // [head_dim]
};

/// Adds `count` positions, one block, to the running softmax. `block` is [head_dim].
void add_block(const AttentionConstants& c, const float* query, const float* keys, const float* values,
               uint32_t count, float* block, Running& running) {
  float scores[kPagePositions];
  float max = -std::numeric_limits<float>::infinity();
  for (uint32_t j = 0; j < count; ++j) {
    float dot = 0;
    for (uint32_t d = 0; d < c.head_dim; ++d) dot += query[d] * keys[size_t{j} * c.head_dim + d];
    scores[j] = dot * c.scale;
    max = std::max(max, scores[j]);
  }
  float sum = 0;
  std::fill_n(block, c.head_dim, 0.0f);
  for (uint32_t j = 0; j < count; ++j) {
    const float weight = std::exp(scores[j] - max);
    sum += weight;
    for (uint32_t d = 0; d < c.head_dim; ++d) block[d] += weight * values[size_t{j} * c.head_dim + d];
  }
  const float joint_max = std::max(running.max, max);
  const float old_scale = std::exp(running.max - joint_max);
  const float new_scale = std::exp(max - joint_max);
  running.max = joint_max;
  running.sum = running.sum * old_scale + sum * new_scale;
  for (uint32_t d = 0; d < c.head_dim; ++d) {
    running.values[d] = running.values[d] * old_scale + block[d] * new_scale;
  }
}

void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<AttentionConstants>();
  const StepRow* rows = args.arg<const StepRow>(1);
  const float* cache = args.arg<const float>(3);
  const PageTable table = {
      .ids = args.arg<const uint32_t>(2),
      .slots = c.slots,
      .pages_per_slot = c.pages_per_slot,
      .cache_pages = c.pages,
  };
  const CacheGeometry geometry = {c.pages, c.kv_heads, c.head_dim};
  const uint32_t group = c.heads / c.kv_heads;
  const uint32_t block_rows = attention_rows_per_block(c);
  float* block = reinterpret_cast<float*>(args.scratch);
  for (uint32_t tile = begin; tile < end; ++tile) {
    const uint32_t kv_head = tile % c.kv_heads;
    const size_t first = size_t{tile / c.kv_heads} * block_rows;
    const size_t last = std::min<size_t>(first + block_rows, args.live_rows);
    for (size_t r = first; r < last; ++r) {
      const uint32_t first_seen = c.first_position(rows[r].position);
      const CheckedRow row = check_row(rows[r], table, first_seen);
      const size_t offset = (r * c.heads + size_t{kv_head} * group) * c.head_dim;
      float* output = args.arg<float>(5) + offset;
      std::fill_n(output, size_t{group} * c.head_dim, 0.0f);
      if (row.pages == nullptr) {
        raise_status(args.arg<uint32_t>(4), row.status_word, row.status_bits);
        continue;
      }
      for (uint32_t h = 0; h < group; ++h) {
        Running running;
        running.values = output + size_t{h} * c.head_dim;
        for (uint32_t page = first_seen / kPagePositions; page <= row.position / kPagePositions; ++page) {
          const uint32_t first_position = page * kPagePositions;
          const uint32_t skipped = std::max(first_seen, first_position) - first_position;
          const uint32_t count = std::min(kPagePositions, row.position - first_position + 1) - skipped;
          const size_t at = size_t{skipped} * c.head_dim;
          add_block(c, args.arg<const float>(0) + offset + size_t{h} * c.head_dim,
                    cache + geometry.unit_offset(0, row.pages[page], kv_head) + at,
                    cache + geometry.unit_offset(1, row.pages[page], kv_head) + at, count, block, running);
        }
        for (uint32_t d = 0; d < c.head_dim; ++d) running.values[d] /= running.sum;
      }
    }
  }
}

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& c = call.constants_as<AttentionConstants>();
  return {
      .rows = c.rows,
      .rows_per_block = attention_rows_per_block(c),
      .tiles_per_block = c.kv_heads,
      .scratch_bytes = align_up(size_t{c.head_dim} * sizeof(float), 64),
  };
}

constexpr backend::TileKernel kTiles = {.tiles = tiles};

}  // namespace

std::span<const backend::Kernel> attention_cpu_kernels() {
  static const backend::Kernel kKernels[] = {{
      .name = "attention_f32",
      .op = &attention_schema,
      .numerics = "exact, scalar f32, blocks of 64 positions",
      .accepts = [](const backend::OpCall&) { return true; },
      .launch = launch,
      .entry = &kTiles,
  }};
  return kKernels;
}

}  // namespace refrain::ops
