// Recording: an encoder takes down ops and what they are bound to; nothing runs until it is committed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "refrain/graph/compute_graph.h"
#include "refrain/stream/buffer.h"
#include "refrain/stream/weight.h"

namespace refrain {

class CommandEncoder;
struct DeviceState;
using device::Point;

/// A value of a recording, not memory: readable only by later commands of the same recording. Plans give it
/// memory, share that memory, or let a fused kernel keep it in registers.
class Temp {
 public:
  Temp() = default;  ///< none; may not be bound

  explicit operator bool() const { return recording_ != nullptr; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  /// The same value with another shape of as many elements and, where its rows are counted live, of as many
  /// rows. Throws InvalidArgument otherwise.
  Temp view(Shape shape) const;

 private:
  friend class CommandEncoder;
  std::shared_ptr<const void>
      recording_;  // names it: no other has this address as long as one of its temps lives
  uint32_t id_ = 0;
  DType dtype_ = DType::f32;
  Shape shape_;
  device::BufferView live_;
};

/// One argument of a dispatch: a Buffer, a Temp, a Weight, or nothing for an optional one. A reference: it is
/// made and used within one call expression, and does not keep what it names alive.
class Operand {
 public:
  Operand() = default;
  Operand(const Buffer& buffer) : buffer_(buffer ? &buffer : nullptr) {}  // NOLINT: implicit on purpose
  Operand(const Temp& temp) : temp_(temp ? &temp : nullptr) {}            // NOLINT
  Operand(const Weight& weight) : weight_(weight ? &weight : nullptr) {}  // NOLINT

  explicit operator bool() const { return buffer_ != nullptr || temp_ != nullptr || weight_ != nullptr; }
  /// Shape of what is bound; rank 0 when nothing is.
  const Shape& shape() const;
  WeightFormat format() const { return weight_ != nullptr ? weight_->format() : WeightFormat::plain; }
  /// What the bound weight is; null when it is no weight.
  const device::WeightInfo* weight_info() const {
    return weight_ != nullptr ? &weight_->state()->info : nullptr;
  }

 private:
  friend class CommandEncoder;
  const Buffer* buffer_ = nullptr;
  const Temp* temp_ = nullptr;
  const Weight* weight_ = nullptr;
};

/// One command: an op, what its arguments are bound to (in the order of its schema), its constants struct.
struct Dispatch {
  const device::OpSchema* op = nullptr;
  std::span<const Operand> args;
  std::span<const std::byte> constants;
};

struct CommitOptions {
  std::string label;
  uint32_t queue = 0;
};

/// Made by Device::encoder. Used by one thread at a time. After commit or finish it is spent: every further
/// call throws InvalidArgument. Dropping it drops the recording.
class CommandEncoder {
 public:
  explicit CommandEncoder(std::shared_ptr<DeviceState> device);
  ~CommandEncoder();
  CommandEncoder(CommandEncoder&&) noexcept;
  CommandEncoder& operator=(CommandEncoder&&) noexcept;

  /// A value of this recording. `dtype` may be DType::activation, which the plan's mode decides.
  Temp temp(DType dtype, Shape shape);
  /// As above; the first dimension counts rows of which `live_rows` (u32, one element) are live.
  Temp temp(DType dtype, Shape shape, const Buffer& live_rows);

  /// Appends a command. The op's schema says what it reads and writes; the kernel is chosen later. An output
  /// shares bytes with no other argument and not with the live count, except where the schema allows it in
  /// place. Throws InvalidArgument, `[op] argument: expected …, got …`, and records nothing then.
  void dispatch(const Dispatch& dispatch);

  /// Nothing recorded after it begins before everything recorded before it has completed. No pass moves a
  /// command across. Never needed for correctness of what goes through dispatch().
  void barrier();

  /// Commands recorded from here on carry `label` (for traces and errors) until the next call; an empty one
  /// stands for the label given to commit.
  void label(std::string_view label);

  /// The recording as a graph. Nothing has run.
  ComputeGraph finish();

  /// Plans, prepares and submits what was recorded, in order.
  Point commit(const CommitOptions& options = {});

 private:
  struct Recording;
  Recording& recording();
  void bind(const device::OpSchema& op, size_t index, const Operand& operand);
  /// Keeps `owner` alive as long as the graph.
  template <class T>
  void retain(const std::shared_ptr<T>& owner);

  std::shared_ptr<DeviceState> device_;
  std::unique_ptr<Recording> recording_;
};

/// Appends `op` with its constants; the shared last line of every op's front.
template <class Constants>
void dispatch(CommandEncoder& encoder, const device::OpSchema& op, std::span<const Operand> args,
              const Constants& constants) {
  encoder.dispatch({&op, args, std::as_bytes(std::span(&constants, 1))});
}

}  // namespace refrain
