// A weight on a device: packed into the layout that the device's kernels read, sealed ever after.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "refrain/backend/op.h"
#include "refrain/core/error.h"
#include "refrain/device/buffer.h"

namespace refrain {

using backend::Use;
using backend::Uses;

/// Made by Device::pack. Copies share the memory.
class Weight {
 public:
  struct State {
    std::string name;
    backend::WeightInfo info;
    const backend::WeightLayout* layout = nullptr;
    std::shared_ptr<const AllocationHandle> memory;
    size_t offset_bytes = 0;
    size_t bytes = 0;
    bool in_place = false;  ///< the file's own bytes, no copy
  };

  Weight() = default;  ///< none; may not be bound
  explicit Weight(std::shared_ptr<const State> state) : state_(std::move(state)) {}

  explicit operator bool() const { return state_ != nullptr; }
  // The following throw InvalidArgument for a Weight() that is none.
  const std::string& name() const { return checked().name; }
  const WeightFormat& format() const { return *checked().info.format; }
  DType dtype() const { return format().dtype; }
  /// Logical, [rows, columns] for matrices.
  const Shape& shape() const { return checked().info.shape; }
  size_t bytes() const { return checked().bytes; }
  bool in_place() const { return checked().in_place; }

  /// Null for a Weight() that is none.
  const std::shared_ptr<const State>& state() const { return state_; }

 private:
  const State& checked() const {
    if (!state_) throw InvalidArgument("[weight] expected a packed weight, got none");
    return *state_;
  }

  std::shared_ptr<const State> state_;
};

}  // namespace refrain
