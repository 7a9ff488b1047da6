// Writes keys and values of new rows into the paged cache of one layer.
#pragma once

#include <cstdint>
#include <string_view>

#include "refrain/backend/kernel.h"
#include "refrain/device/encoder.h"

namespace refrain::ops {

struct KvWrite {
  Operand key;
  Operand value;
  Operand rows;
  Operand page_table;
  Operand cache;
  Operand status;
};

/// Copies the keys and values of each row to the place of its position in its slot's pages, rounded to the cache's type.
///
/// With page = page_table[slot, position / 64]:
///   cache[0, page, h, position % 64, :] = key[r, h, :],  cache[1, ...] = value[r, h, :].
///
/// key, value: f32 [R, KVH, D], rows. rows: u32 [R, 4], rows. page_table: u32 [S, P], of the layer's cache group.
/// cache: f32 or f16 [2, pages, KVH, 64, D], written in part. status: u32 [S + 1].
/// Two live rows for the same place of the cache are the caller's error: which of them stays is not
/// specified. Aliasing: none. Errors: InvalidArgument for shapes that do not fit. An idle row writes nothing; one
/// whose slot, position (64 P or more) or page is out of range writes nothing and raises its status bit.
/// Accuracy: exact in f32. In f16 rounded to nearest, ties to even: off by at most 2^-11 of the value, by 2^-25 below
/// 2^-14; magnitudes above 65504, infinities too, become 65504, so that the cache has none; a NaN stays one.
void kv_write(CommandEncoder& encoder, const KvWrite& args);

struct KvWriteConstants {
  uint32_t rows = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t slots = 0;           ///< S
  uint32_t pages_per_slot = 0;  ///< P
  uint32_t pages = 0;
  DType cache_type = DType::f32;
};

/// Of the kernels that write f16.
inline constexpr std::string_view kKvWriteF16Numerics = "rounded to f16, to nearest even, finite";

extern const backend::OpSchema kv_write_schema;
void kv_write_reference(const backend::TileArgs& args);

}  // namespace refrain::ops
