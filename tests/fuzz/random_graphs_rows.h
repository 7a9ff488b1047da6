// Random commands over rows that fusing can make groups of, and an oracle that computes each as it is recorded.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "tests/fuzz/random_graphs_world.h"

namespace refrain::null_tests {

class RandomRows : public RandomState {
 protected:
  RandomRows(World& world, uint32_t seed) : RandomState(world, seed) {}

  /// Begins a recording.
  void forget_rows() { rows_.clear(); }

  /// A command, or products and what takes on their values.
  void record_rows() {
    const Kind kind = below(4) == 0   ? (below(2) == 0 ? all_of_four : all_of_eight)
                      : below(4) == 0 ? second_count
                                      : first_count;
    constexpr uint32_t kColumns[] = {2, 6, 12}, kMostly = 6;
    const uint32_t columns = below(3) == 0 ? kColumns[below(3)] : kMostly;
    try {
      if (below(8) == 0 && below(4) == 0) return record_count();
      if (below(3) != 0) return record_rows_op(kind, columns);
      record_products(kind, columns);
      for (uint32_t i = below(5); i != 0; --i) record_rows_op(kind, columns);
    } catch (const InvalidArgument&) {
      // Overlapping outputs: nothing was recorded.
    }
  }

 private:
  /// Rows of which a count is live, counts[kind]; or all of four, or of eight half as long.
  enum Kind : uint32_t { first_count, second_count, all_of_four, all_of_eight };
  struct RowValue {
    Temp temp;
    Kind kind = first_count;
    uint32_t columns = 0;
    DType dtype = DType::u32;
    std::vector<uint64_t> storage;
    bool written = false;
  };
  /// Rows to bind, and where the oracle keeps them.
  struct Rows {
    Buffer buffer;
    Temp temp;
    void* values = nullptr;
    RowValue* value = nullptr;  // null: a buffer
    Operand operand() const { return buffer ? Operand(buffer) : Operand(temp); }
  };

  static int64_t capacity(Kind kind) { return kind == all_of_four ? 4 : World::kRows; }
  static bool counted(Kind kind) { return kind < all_of_four; }
  uint32_t live_rows(Kind kind) const {
    return counted(kind) ? live_[kind] : static_cast<uint32_t>(capacity(kind));
  }

  Rows new_rows(Kind kind, uint32_t columns, DType dtype = DType::u32) {
    if (dtype == DType::u32 && below(6) == 0) return rows_in_buffer(kind, columns);
    auto value = std::make_unique<RowValue>();
    value->kind = kind;
    value->columns = columns;
    value->dtype = dtype;
    const Shape shape{capacity(kind), columns};
    value->temp =
        counted(kind) ? encoder_->temp(dtype, shape, world_.counts[kind]) : encoder_->temp(dtype, shape);
    value->storage.resize(static_cast<size_t>(shape.elements()));
    rows_.push_back(std::move(value));
    return rows_at(*rows_.back(), kind, columns);
  }
  static Rows rows_at(RowValue& value, Kind kind, uint32_t columns) {
    return {{}, value.temp.view({capacity(kind), columns}), value.storage.data(), &value};
  }
  Rows rows_in_buffer(Kind kind, uint32_t columns) {
    const World::Alias& alias = world_.aliases[below(2)];
    const auto elements = static_cast<uint32_t>(capacity(kind)) * columns;
    const uint32_t first = below(alias.elements - elements + 1);
    const Buffer view = alias.buffer.slice(first, elements).view(DType::u32, {capacity(kind), columns});
    return {counted(kind) ? view.with_live_rows(world_.counts[kind]) : view,
            {},
            memory_[alias.block].data() + alias.first + first,
            nullptr};
  }
  /// One that has been written, mostly one of the last few; a buffer when there is none.
  Rows old_rows(Kind kind, uint32_t columns, DType dtype = DType::u32) {
    std::vector<RowValue*> fitting;
    for (size_t i = rows_.size(); i-- > 0 && fitting.size() < 6;) {
      RowValue& value = *rows_[i];
      const bool same = counted(kind) ? value.kind == kind && value.columns == columns
                                      : !counted(value.kind) &&
                                            capacity(value.kind) * value.columns == capacity(kind) * columns;
      if (same && value.written && value.dtype == dtype) fitting.push_back(&value);
    }
    if (fitting.empty() || (dtype == DType::u32 && below(12) == 0)) return rows_in_buffer(kind, columns);
    const auto count = static_cast<uint32_t>(fitting.size());
    return rows_at(*fitting[std::min(below(count), below(count))], kind, columns);
  }

  /// One that can take values on unit by unit, if it has any to take.
  void record_rows_op(Kind kind, uint32_t columns) {
    const uint32_t heads = below(3) == 0 ? 1 : 2;
    const auto salt = [&] { return below(1 << 20); };
    switch (below(10)) {
      case 0:
        run<norm>(kNorm, kind, {salt(), columns, below(2) == 0 ? columns / 2 : heads, 0},
                  {old_rows(kind, columns), new_rows(kind, columns)});
        break;
      case 1: {  // in place
        const Rows rows = old_rows(kind, columns);
        run<norm>(kNorm, kind, {salt(), columns, heads, 0}, {rows, rows});
        break;
      }
      case 2:
      case 3:
      case 4: {
        const Rows a = old_rows(kind, columns), b = old_rows(kind, columns);
        const uint32_t place = below(6);
        run<blend>(kBlend, kind, {salt(), columns, columns, 0},
                   {a, b,
                    place == 0   ? a
                    : place == 1 ? b
                                 : new_rows(kind, columns)});
        break;
      }
      case 5:
        run<scale>(kScale, kind, {salt(), columns, columns, 2},
                   {old_rows(kind, columns), old_rows(kind, 2), new_rows(kind, columns)});
        break;
      case 6:
        run<accumulate>(kAccumulate, kind, {salt(), columns, columns, 0},
                        {old_rows(kind, columns), old_rows(kind, columns)});
        break;
      case 7:
        run<fork>(kFork, kind, {salt(), columns, heads, 0},
                  {old_rows(kind, columns), new_rows(kind, columns), new_rows(kind, columns)});
        break;
      case 8: {
        const World::Alias& alias = world_.aliases[below(2)];
        const Rows target{alias.buffer, {}, memory_[alias.block].data() + alias.first, nullptr};
        run<store>(kStore, kind, {salt(), columns, columns, World::kElements},
                   {old_rows(kind, columns), target});
        break;
      }
      default: {
        const Rows input = new_rows(kind, columns, DType::u64);
        run<widen>(kWiden, kind, {salt(), columns, columns, 0}, {old_rows(kind, columns), input});
        if (below(4) == 0) break;
        run<narrow>(kNarrow, kind, {salt(), columns, columns, 0}, {input, new_rows(kind, columns)});
        break;
      }
    }
  }

  /// One to three of one input, mostly behind a norm of it.
  void record_products(Kind kind, uint32_t columns) {
    const uint32_t inputs = below(2) == 0 ? 6 : 12;
    Rows input = old_rows(kind, inputs);
    if (below(3) != 0) {
      const Rows normed = new_rows(kind, inputs);
      if (below(6) == 0) {
        run<norm_sum>(kNormSum, kind, {below(1 << 20), inputs, 1, 2}, {input, normed, new_rows(kind, 2)});
      } else {
        run<norm>(kNorm, kind, {below(1 << 20), inputs, 1, 0}, {input, normed});
      }
      input = normed;
    }
    for (uint32_t i = 0; i <= below(3); ++i) {
      const World::Alias& weight = world_.aliases[below(8) == 0 ? 0 : 1];
      const uint32_t first = below(weight.elements);
      Rows bound{
          weight.buffer.slice(first, 1), {}, memory_[weight.block].data() + weight.first + first, nullptr};
      // Some read a value whole that others hand on by unit, or their own input once more.
      if (below(8) == 0) bound = below(2) == 0 ? input : old_rows(kind, columns);
      run<project>(kProject, kind, {below(1 << 20), columns, columns, inputs},
                   {input, bound, new_rows(kind, columns)});
    }
  }

  /// Values of the second kind end: rows that were dead may be live now.
  void record_count() {
    const World::Alias& alias = world_.aliases[below(2)];
    const uint32_t first = below(alias.elements);
    const RowConstants c{below(1 << 20), 0, 0, 0};
    dispatch(*encoder_, kCount, std::array{Operand(alias.buffer.slice(first, 1)), Operand(world_.counts[1])},
             c);
    live_[1] = 1 + memory_[alias.block][alias.first + first] % 8;
    std::erase_if(rows_, [](const auto& value) { return value->kind == second_count; });
  }

  template <void (*Run)(const Region&), size_t Count>
  void run(const OpSchema& op, Kind kind, const RowConstants& c, const Rows (&args)[Count]) {
    std::vector<Operand> operands;
    std::array<void*, 3> values{};
    for (size_t i = 0; i < Count; ++i) {
      operands.push_back(args[i].operand());
      values[i] = args[i].values;
    }
    encoder_->dispatch({&op, operands, std::as_bytes(std::span(&c, 1))});
    TileArgs tile;
    tile.args = values.data();
    tile.constants = reinterpret_cast<const std::byte*>(&c);
    Run({tile, 0, live_rows(kind), 0, c.units});
    for (size_t i = 0; i < Count; ++i) {
      if (args[i].value != nullptr && op.args[i].access != Access::in) args[i].value->written = true;
    }
  }

  std::vector<std::unique_ptr<RowValue>> rows_;
};

}  // namespace refrain::null_tests
