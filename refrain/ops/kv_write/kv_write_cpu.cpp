// Cache write, portable kernels: one copy a head, rounded where the cache is of f16.
#include <algorithm>

#include "refrain/core/half.h"
#include "refrain/ops/elementwise.h"
#include "refrain/ops/kv_write/kv_write.h"
#include "refrain/ops/step_row.h"

namespace refrain::ops {
namespace {

uint32_t rows_per_block(const KvWriteConstants& c) {
  return rows_of_block(uint64_t{c.kv_heads} * c.head_dim, c.rows);
}

void store(float* to, const float* from, uint32_t count) { std::copy_n(from, count, to); }
void store(f16* to, const float* from, uint32_t count) {
  std::transform(from, from + count, to, f16::saturated);
}

template <class T>
void region(const backend::TileArgs& args, uint32_t row_begin, uint32_t row_end, uint32_t unit_begin,
            uint32_t unit_end) {
  const auto& c = args.constants_as<KvWriteConstants>();
  const float* sources[2] = {args.arg<const float>(0), args.arg<const float>(1)};
  const StepRow* rows = args.arg<const StepRow>(2);
  T* cache = args.arg<T>(4);
  const PageTable table = {
      .ids = args.arg<const uint32_t>(3),
      .slots = c.slots,
      .pages_per_slot = c.pages_per_slot,
      .cache_pages = c.pages,
  };
  const CacheGeometry geometry = {c.pages, c.kv_heads, c.head_dim};
  for (size_t r = row_begin; r < row_end; ++r) {
    const CheckedRow row = check_row(rows[r], table, rows[r].position);
    if (row.pages == nullptr) {
      raise_status(args.arg<uint32_t>(5), row.status_word, row.status_bits);
      continue;
    }
    const uint32_t page = row.pages[row.position / kPagePositions];
    const size_t within = size_t{row.position % kPagePositions} * c.head_dim;
    for (uint32_t kind = 0; kind < 2; ++kind) {
      for (uint32_t h = unit_begin; h < unit_end; ++h) {
        store(cache + geometry.unit_offset(kind, page, h) + within,
              sources[kind] + (r * c.kv_heads + h) * c.head_dim, c.head_dim);
      }
    }
  }
}

template <class T>
void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<KvWriteConstants>();
  const uint32_t block = rows_per_block(c);
  region<T>(args, begin * block, std::min(end * block, args.live_rows), 0, c.kv_heads);
}

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& c = call.constants_as<KvWriteConstants>();
  return {.rows = c.rows, .rows_per_block = rows_per_block(c)};
}

template <class T>
backend::Kernel kernel(std::string_view name, std::string_view numerics) {
  static constexpr backend::TileKernel kTiles = {.tiles = tiles<T>, .region = region<T>};
  return {.name = name,
          .op = &kv_write_schema,
          .numerics = numerics,
          .accepts = [](const backend::OpCall& call) { return call.args[4].dtype == DTypeOf<T>::value; },
          .launch = launch,
          .entry = &kTiles,
          .regions = true};
}

}  // namespace

std::span<const backend::Kernel> kv_write_cpu_kernels() {
  static const backend::Kernel kKernels[] = {kernel<float>("kv_write_f32", "exact, copy"),
                                             kernel<f16>("kv_write_f16", kKvWriteF16Numerics)};
  return kKernels;
}

}  // namespace refrain::ops
