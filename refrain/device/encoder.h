// Recording: an encoder takes down ops and what they are bound to; nothing runs until it is committed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/device/buffer.h"
#include "refrain/device/weight.h"
#include "refrain/graph/compute_graph.h"
#include "refrain/graph/plan_options.h"

namespace refrain {

class CommandEncoder;
class Program;
struct DeviceState;
using backend::Point;

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
  uint32_t info_ = 0;  // what it is, in the recording's table; 0: to be looked up
  DType dtype_ = DType::f32;
  Shape shape_;
  backend::BufferView live_;
};

/// One argument of a dispatch: a Buffer, a Temp, a Weight, or nothing for an optional one. A reference: it is
/// made and used within one call expression, and does not keep what it names alive.
class Operand {
 public:
  Operand() = default;
  Operand(const Buffer& buffer) : Operand(buffer ? Kind::buffer : Kind::none, &buffer) {}  // NOLINT: implicit
  Operand(const Temp& temp) : Operand(temp ? Kind::temp : Kind::none, &temp) {}            // NOLINT
  Operand(const Weight& weight) : Operand(weight ? Kind::weight : Kind::none, &weight) {}  // NOLINT

  explicit operator bool() const { return kind_ != Kind::none; }
  /// Shape of what is bound; rank 0 when nothing is.
  const Shape& shape() const;
  /// Of the elements of a buffer or temp; f32 otherwise.
  DType dtype() const;
  /// Of the bound weight; null when it is no weight.
  const WeightFormat* format() const {
    return kind_ == Kind::weight ? weight().state()->info.format : nullptr;
  }

 private:
  friend class CommandEncoder;
  enum class Kind : uint8_t { none, buffer, temp, weight };
  Operand(Kind kind, const void* bound) : bound_(bound), kind_(kind) {}
  const Buffer& buffer() const { return *static_cast<const Buffer*>(bound_); }
  const Temp& temp() const { return *static_cast<const Temp*>(bound_); }
  const Weight& weight() const { return *static_cast<const Weight*>(bound_); }

  const void* bound_ = nullptr;
  Kind kind_ = Kind::none;
};

/// One command: an op, what its arguments are bound to (in the order of its schema), its constants struct.
struct Dispatch {
  const backend::OpSchema* op = nullptr;
  std::span<const Operand> args;
  std::span<const std::byte> constants;
};

struct CommitOptions {
  std::string label;  ///< names the submission in errors and traces
  uint32_t queue = 0;
  std::vector<Point> waits = {};  ///< reached before it begins; what the data asks for is found by itself
  graph::PlanOptions plan = {};
};

struct ExecuteOptions;
struct Report;

/// What has become of an encoder's recording. What has become of a commit, its Point says.
enum class EncoderState : uint8_t {
  recording,
  committed,
  finished,
  failed,  ///< commit threw while it planned or submitted; the recording is spent
  moved_from,
};

/// Made by Device::encoder, or lent by a session, which alone ends it. Used by one thread at a time. In any
/// state but recording it is spent: every call but state() throws InvalidArgument. Dropping it drops the
/// recording, of which the device's log is told when it held commands.
class CommandEncoder {
 private:
  struct Recording;

 public:
  /// Made by scope(); its end ends the scope. May outlive the encoder.
  class [[nodiscard]] Scope {
   public:
    Scope(Scope&&) noexcept = default;
    Scope& operator=(Scope&&) = delete;
    ~Scope();

   private:
    friend class CommandEncoder;
    Scope(std::weak_ptr<Recording*> recording, size_t depth, uint64_t serial)
        : recording_(std::move(recording)), depth_(depth), serial_(serial) {}
    std::weak_ptr<Recording*> recording_;  // where it is, while it is
    size_t depth_;
    uint64_t serial_;
  };

  explicit CommandEncoder(std::shared_ptr<DeviceState> device);
  ~CommandEncoder();
  /// These throw InvalidArgument, and move nothing, when either one is lent.
  CommandEncoder(CommandEncoder&& other);             // NOLINT(performance-noexcept-move-constructor)
  CommandEncoder& operator=(CommandEncoder&& other);  // NOLINT(performance-noexcept-move-constructor)

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

  /// Commands recorded from here on carry `label` (for traces and errors) until the next call, after those of
  /// the scopes around it; an empty one stands for the scopes alone, and outside of scopes for the label
  /// given to commit.
  void label(std::string_view label);
  /// Commands recorded until the result ends carry `label` after the scopes around it: "layer 3 / attention".
  Scope scope(std::string_view label);

  EncoderState state() const { return state_; }

  /// The recording as a graph. Nothing has run. `label` is for its submissions, as that of commit.
  ComputeGraph finish(std::string_view label = {});

  /// Plans, prepares and submits what was recorded, in order. Throws InvalidArgument, and goes on recording,
  /// when an option is refused.
  Point commit(const CommitOptions& options = {});

 private:
  friend class EncoderSession;
  friend Report execute(CommandEncoder& encoder, const ExecuteOptions& options);
  Recording& recording(const char* call) {
    if (recording_) return *recording_;
    refuse(call);
  }
  [[noreturn]] void refuse(const char* call) const;
  void check_own(const char* call) const;
  void check_options(uint32_t queue, std::span<const Point> waits) const;
  /// `timed` gets the program, which then keeps timestamps.
  Point submit(const CommitOptions& options, Program* timed = nullptr);
  ComputeGraph take(EncoderState next, std::string_view label);
  void drop() noexcept;
  const backend::BufferView* bind(const backend::OpSchema& op, size_t index, const Operand& operand);

  std::shared_ptr<DeviceState> device_;
  std::unique_ptr<Recording> recording_;
  EncoderState state_ = EncoderState::recording;
  bool lent_ = false;  // by a session, which alone may end it
};

/// Appends `op` with its constants; the shared last line of every op's front.
template <class Constants>
void dispatch(CommandEncoder& encoder, const backend::OpSchema& op, std::span<const Operand> args,
              const Constants& constants) {
  encoder.dispatch({&op, args, std::as_bytes(std::span(&constants, 1))});
}

}  // namespace refrain
