// Data for the tests of attention, attention_part and attention_merge. Only for *_test.cpp.
#pragma once

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "refrain/ops/attention/attention.h"
#include "refrain/ops/test_step.h"

namespace refrain::ops::attention_test {

using namespace harness;
using Positions = std::vector<TestStep::Position>;

struct Heads {
  uint32_t heads, kv_heads, head_dim;
};

inline constexpr DType kTypes[] = {DType::f32, DType::f16};  // of the cache

struct Data {
  Data(TestStep test_step, const Heads& shape, float range = 1, uint32_t positions_attended = 0,
       DType cache_type = DType::f32, float score_cap = 0)
      : step(std::move(test_step)),
        h(shape),
        window(positions_attended),
        type(cache_type),
        softcap(score_cap),
        scale(1 / std::sqrt(static_cast<float>(shape.head_dim))),
        query(step.rows.size() * shape.heads * shape.head_dim),
        cache(step.cache_elements(shape.kv_heads, shape.head_dim)),
        output(query.size(), -7.0f),
        cache_f16(cache.size()) {
    Random random(9);
    random.fill(query, -range, range);
    random.fill(cache, -range, range);
    if (type == DType::f16) round_cache();
  }
  /// Elements of the cache become values of f16.
  void round_cache() const {
    for (float& element : cache) element = f16::from_float(element).to_float();
  }

  uint32_t capacity() const { return static_cast<uint32_t>(step.rows.size()); }
  size_t row_elements() const { return size_t{h.heads} * h.head_dim; }
  Call call() const {
    const Shape shape{capacity(), h.heads, h.head_dim};
    Call result(attention_schema);
    result.tensor(shape, query).tensor(DType::u32, step.rows_shape(), step.rows.data());
    add_cache(result.tensor(step.table_shape(), step.page_table));
    result.tensor(step.status_shape(), step.status).tensor(shape, output);
    result.constants(constants());
    return result;
  }
  /// Adds the cache in its type, with what `cache` holds now.
  Call& add_cache(Call& call) const {
    const Shape shape = step.cache_shape(h.kv_heads, h.head_dim);
    if (type != DType::f16) return call.tensor(shape, cache);
    std::transform(cache.begin(), cache.end(), cache_f16.begin(), f16::from_float);
    return call.tensor(shape, cache_f16);
  }
  AttentionConstants constants() const {
    return {capacity(),       h.heads, h.kv_heads, h.head_dim, step.slots(), step.pages_per_slot,
            step.cache_pages, scale,   window,     type,       softcap};
  }
  const float* vector(uint32_t kind, const StepRow& row, uint32_t position, size_t kv_head) const {
    const uint32_t page = step.page(row.slot, position);
    return cache.data() +
           CacheGeometry{step.cache_pages, h.kv_heads, h.head_dim}.unit_offset(
               kind, page, static_cast<uint32_t>(kv_head)) +
           size_t{position % kPagePositions} * h.head_dim;
  }
  /// The first position that a row attends to.
  uint32_t begin(const StepRow& row) const {
    return window == 0 || row.position < window ? 0 : row.position - window + 1;
  }
  /// Positions of the pages that no row may look at become NaN.
  void poison_unused() const {
    Array<uint8_t> used(cache.size());
    for (const StepRow& row : step.rows) {
      if (row.slot >= step.slots()) continue;
      for (uint32_t p = begin(row); p <= row.position; ++p) {
        for (uint32_t kind = 0; kind < 2; ++kind) {
          for (uint32_t k = 0; k < h.kv_heads; ++k) {
            std::fill_n(used.data() + (vector(kind, row, p, k) - cache.data()), h.head_dim, uint8_t{1});
          }
        }
      }
    }
    for (size_t i = 0; i < cache.size(); ++i) {
      if (used[i] == 0) cache[i] = std::numeric_limits<float>::quiet_NaN();
    }
  }

  TestStep step;
  Heads h;
  uint32_t window;
  DType type;  // of the cache
  float softcap;
  float scale;
  Array<float> query, cache, output;
  Array<f16> cache_f16;  // what `cache` held when the last call was made, where that is the type
};

/// Of the kernels that take `call`, the one of the same numerics class.
inline const backend::Kernel& kernel_like(const backend::Kernel& other, const Call& call) {
  const std::vector<const backend::Kernel*> list = call.kernels();
  const auto found = std::ranges::find(list, other.numerics, &backend::Kernel::numerics);
  if (found == list.end()) throw InvalidArgument("no kernel is of the class " + std::string(other.numerics));
  return **found;
}

/// Positions at the edges of blocks and chunks of slots of 65, 300, 1 and 1100 positions.
inline Positions chunk_positions() {
  Positions positions;
  for (const uint32_t p : {0u, 63u, 64u, 255u, 256u, 257u, 511u, 512u, 513u, 767u, 1099u})
    positions.emplace_back(3, p);
  positions.emplace_back(1, 299);
  positions.emplace_back(2, 0);
  return positions;
}
inline const std::vector<uint32_t> kSlotLengths{65, 300, 1, 1100};
inline constexpr uint32_t kWindows[] = {0, 1, 255, 256, 257, 258, 300, 600, 5000};

/// The bound that the docstring of attention() states, for one row and head.
inline double tolerance(const Data& data, size_t row, size_t head) {
  const StepRow& step_row = data.step.rows[row];
  const size_t kv_head = head / (data.h.heads / data.h.kv_heads);
  const float* query = data.query.data() + row * data.row_elements() + head * data.h.head_dim;
  const auto cap = static_cast<double>(data.softcap);
  double largest_key = 0, largest_value = 0, query_norm = 0, least = INFINITY, greatest = -INFINITY;
  for (size_t d = 0; d < data.h.head_dim; ++d)
    query_norm += static_cast<double>(query[d]) * static_cast<double>(query[d]);
  for (uint32_t j = data.begin(step_row); j <= step_row.position; ++j) {
    const float* key = data.vector(0, step_row, j, kv_head);
    const float* value = data.vector(1, step_row, j, kv_head);
    double norm = 0, score = 0;
    for (size_t d = 0; d < data.h.head_dim; ++d) {
      norm += static_cast<double>(key[d]) * static_cast<double>(key[d]);
      score += static_cast<double>(key[d]) * static_cast<double>(query[d]) * static_cast<double>(data.scale);
      largest_value = std::max(largest_value, std::abs(static_cast<double>(value[d])));
    }
    if (cap != 0) score = cap * std::tanh(score / cap);
    largest_key = std::max(largest_key, norm);
    least = std::min(least, score);
    greatest = std::max(greatest, score);
  }
  // A dot product of D terms errs by at most (D + 1) e sum |q||k| <= (D + 1) e |q||k|, the scale rounds twice
  // more; a cap nine times at most, and it brings no scores apart. A score that errs by d, and rounds by e (max - min) when the greatest is taken off, changes its
  // weight by a factor 1 + d, and the quotient of two sums by 1 + 2 d. Within a block the sums round at most
  // 64 times, exp twice, a join six times, of which there are 4 in a chunk and p / 256 of chunks, in numerator and
  // denominator: 2 (64 + 4 + 24 + 6 p / 256 + ...) e.
  const double e = kUnitRoundoff;
  const double score_error =
      (data.h.head_dim + 4) * e * static_cast<double>(data.scale) * std::sqrt(query_norm * largest_key) +
      e * (greatest - least) + (cap != 0 ? 9 * e * std::max(greatest, -least) : 0);
  return (2 * score_error + (step_row.position / 20.0 + 200) * e) * largest_value;
}

}  // namespace refrain::ops::attention_test
