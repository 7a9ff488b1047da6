// What the CPU kernels of attention, attention_part and attention_merge share: which positions the rows of a tile see, and in
// which order they are joined. How a block is computed and two parts are joined is each instruction set's own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>

#include "refrain/backend/kernel.h"
#include "refrain/ops/attention/attention.h"

namespace refrain::ops {

/// Of some positions, for one row and query head: the greatest score, and the sum of e^(score - max). What belongs to it are
/// the values weighted by these, [head_dim].
struct AttentionSums {
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0;
};

/// A block of positions for those query heads of a row that share a key-value head.
struct AttentionBlock {
  const float* query;   ///< [heads, head_dim]
  const void* keys;     ///< [64, head_dim], of cache_type
  const void* values;   ///< [64, head_dim], of cache_type
  AttentionSums* sums;  ///< [heads], of the positions so far
  float* weighted;      ///< [heads, head_dim], the values that belong to them
  uint32_t heads;
  uint32_t head_dim;
  uint32_t begin;  ///< positions [begin, end) of the block count
  uint32_t end;
  float scale;
  float softcap;
  DType cache_type;
};

struct AttentionArithmetic {
  /// Joins a block to block.sums and block.weighted.
  void (*add_block)(const AttentionBlock& block) = nullptr;
  /// Joins a later part to `total`.
  void (*join)(uint32_t head_dim, AttentionSums& total, float* weighted, const AttentionSums& part,
               const float* part_weighted) = nullptr;
  /// weighted becomes weighted / sum.
  void (*divide)(uint32_t head_dim, float* weighted, float sum) = nullptr;
};
extern const AttentionArithmetic attention_cpu;
extern const AttentionArithmetic attention_cpu_avx2;

// Of the kernels of all three ops: they give the same bits.
inline constexpr std::string_view kAttentionNumerics = "exact, scalar f32, blocks of 64 in chunks of 256";
inline constexpr std::string_view kAttentionAvx2Numerics =
    "exact, AVX2 FMA, 8 lanes, blocks of 64 in chunks of 256";

/// Tiles of `attention`: a block of rows and a key-value head each.
void attention_tiles(const AttentionArithmetic& arithmetic, const backend::TileArgs& args, uint32_t begin,
                     uint32_t end);
backend::Launch attention_launch(const backend::OpCall& call, const backend::DeviceInfo& info);

/// Tiles of `attention_part`: a block of rows, a part and a key-value head each.
void attention_part_tiles(const AttentionArithmetic& arithmetic, const backend::TileArgs& args,
                          uint32_t begin, uint32_t end);
/// Tiles of `attention_merge`: a query head of a row each; and whole rows, its one unit.
void attention_merge_tiles(const AttentionArithmetic& arithmetic, const backend::TileArgs& args,
                           uint32_t begin, uint32_t end);
void attention_merge_rows(const AttentionArithmetic& arithmetic, const backend::TileArgs& args,
                          uint32_t row_begin, uint32_t row_end);

}  // namespace refrain::ops
