// The user's device: buffers, weights, encoders, plans, programs, submissions.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "refrain/backend/backend.h"
#include "refrain/core/log.h"
#include "refrain/core/tensor_source.h"
#include "refrain/device/buffer.h"
#include "refrain/device/encoder.h"
#include "refrain/device/registry.h"
#include "refrain/device/weight.h"
#include "refrain/graph/plan_options.h"

namespace refrain {

using graph::PlanOptions;
using graph::PlanReport;

struct DeviceOptions {
  uint32_t threads = 0;  ///< workers of a CPU device; 0: the device decides
  bool portable_kernels =
      false;  ///< leave vector extensions unused (the bits of the portable numerics classes)
  /// Of queue 0, 1 and so on; queues past the end have 0. Among submissions that can run, one of the highest
  /// priority goes first, and queues of equal priority take turns. Nothing that runs is interrupted, and
  /// nothing ages: a queue of lower priority waits as long as those above have work. A hint, which devices may
  /// ignore. Throws InvalidArgument for more entries than the device has queues.
  std::vector<int32_t> queue_priorities = {};
  /// Check every call to the backend against its contract. Unset: in debug builds of the library.
  std::optional<bool> validate = std::nullopt;
  /// Most submissions of a queue in flight; 0: no bound. One more waits for the oldest, at most `patience`. A
  /// recording takes its place before it is planned, so that it is never lost: threads that commit at the same
  /// time may each go beyond by one, and so may the second part of a split.
  uint32_t in_flight_limit = 1024;
  std::chrono::nanoseconds patience = std::chrono::minutes(1);
  LogCallback log;
};

/// What happened on one device since it was opened. Each counts what has taken effect: a call that throws
/// counts nothing unless it says so. Take differences; nothing resets.
struct Counters {
  uint64_t allocations = 0;          ///< requests to the backend for memory, imports included
  uint64_t encoders = 0;             ///< recordings begun
  uint64_t dispatches_recorded = 0;  ///< counted when a recording ends; replays do not count
  uint64_t commits = 0;              ///< recordings submitted by commit or as a stage of a session
  uint64_t plans = 0;
  uint64_t programs_prepared = 0;
  uint64_t submissions = 0;
  uint64_t commands_submitted = 0;  ///< of all submissions, replays included, fences excluded
  uint64_t fences_submitted = 0;    ///< of all submissions, replays included: barrier()
  uint64_t updates = 0;             ///< of all submissions
  uint64_t update_bytes = 0;
  uint64_t writes = 0;  ///< copies to memory of the device: write, pack, pools that zero
  uint64_t write_bytes = 0;
  uint64_t reads = 0;  ///< copies from it
  uint64_t read_bytes = 0;
  uint64_t waits_given = 0;    ///< points that callers gave to submissions
  uint64_t waits_derived = 0;  ///< points that submissions wait for since they touch what another queue uses
  uint64_t host_waits = 0;     ///< waits of the host, those included that throw
  uint64_t timeouts = 0;       ///< of host_waits, those that ran out of time
  uint64_t failures = 0;       ///< submissions known to have failed
  uint64_t throttled = 0;      ///< times that a submission waited for a place in its queue
};

/// A planned graph with what it is bound to. Copies share it.
class Plan {
 public:
  Plan() = default;  ///< none; may not be prepared

  explicit operator bool() const { return data_ != nullptr; }
  /// Throws InvalidArgument for a Plan() that is none, as arena_bytes() does.
  const backend::PlanData& data() const;
  size_t arena_bytes() const { return data().arena_bytes; }

 private:
  friend struct DeviceState;
  std::shared_ptr<backend::Backend> backend_;  // whose kernels and memory the plan names
  std::shared_ptr<const backend::PlanData> data_;
  std::shared_ptr<const KernelTable> kernels_;
  std::shared_ptr<const std::vector<std::shared_ptr<const void>>> resources_;
};

struct PrepareOptions {
  uint32_t queue = 0;
  /// Scratch shared by the programs of one queue, plan.arena_bytes() or more, that no command is bound to;
  /// none: the program gets its own.
  Buffer arena = {};
  bool timestamps = false;  ///< keep the begin and end of each command
  std::string label = {};   ///< names its submissions in errors; empty: the label that commit was given
};

/// A plan made ready for one queue; submitted any number of times. Holds everything that it uses. Copies
/// share it.
class Program {
 public:
  struct State;
  Program() = default;  ///< none; may not be submitted

  explicit operator bool() const { return state_ != nullptr; }
  /// These throw InvalidArgument for a Program() that is none.
  const Plan& plan() const;
  const std::string& label() const;

 private:
  friend class Device;
  friend struct DeviceState;
  std::shared_ptr<State> state_;
};

/// Bytes for a submission to write before its first command; copied by submit.
struct Update {
  Buffer to;                        ///< outside of the program's arena
  std::span<const std::byte> from;  ///< as long as `to`
};

/// What holds elements of a dtype one after the other: a vector, an array, a span.
template <class T>
concept Elements = requires(const T& values) {
  DTypeOf<typename T::value_type>::value;
  std::span<const typename T::value_type>(values);
};

/// When a command was under way, by the device's clock.
struct CommandTimes {
  double begin_ns = 0;
  double ready_ns =
      0;  ///< what it depends on had completed: later than the begin where a device begins ahead of that
  double end_ns = 0;
};

/// Told how much of a weight is packed, after each part. What it throws ends the packing.
using PackProgress = std::function<void(size_t done_bytes, size_t packed_bytes)>;

struct PackOptions {
  graph::Mode mode = graph::Mode::exact;  ///< of the plans that read it
  PackProgress progress = {};
};

/// A handle; copies are the same device. Any thread may use it; encoders and programs are for one thread at a
/// time. Every call throws InvalidArgument for a moved-from Device, and for what belongs to another device;
/// every call but info and counters throws DeviceLost once the device has been lost.
///
/// **Failure.** What a submission that fails would have changed is undefined until something writes it whole:
/// write(), an update, or an output of a submission (not one of which a live count says how many rows are
/// written). Who reads undefined bytes fails with the first failure that left them so: a submission that takes
/// them for an input or inout argument, read(), synchronize(), Buffer::span. It does not matter on which queue,
/// nor whether the failure was known when it was submitted; what it would have changed is undefined in turn. A
/// submission fails with the points that it was given to wait for, too. A queue stops with a submission that
/// failed while it ran: those behind it fail, until recover(). All else goes on. Not seen: memory that no
/// argument names (OpSchema::unknown_access).
class Device {
 public:
  /// "cpu" or "auto"; for tests "null", which computes nothing, and "remote", the CPU with memory that the host
  /// cannot reach. Throws InvalidArgument for an unknown name, DeviceError when it cannot be opened.
  static Device open(std::string_view name, const DeviceOptions& options = {});

  /// For those who bring their own backend: `layouts` are the weight layouts that its kernels read, best
  /// first.
  Device(std::shared_ptr<backend::Backend> backend, std::span<const backend::WeightLayout> layouts,
         const DeviceOptions& options);

  const backend::DeviceInfo& info() const;
  backend::MemoryUsage memory() const;
  Counters counters() const;

  /// New zeroed memory: the device's own, or of MemoryKind::host what both reach, for results that the host
  /// takes after each step. Throws InvalidArgument for DType::activation, no elements or another kind,
  /// DeviceError when refused.
  Buffer buffer(DType dtype, const Shape& shape, std::string_view label = {},
                MemoryKind kind = MemoryKind::device);

  /// Copies `from`, of as many bytes, to `to`, wherever its memory is; the bytes are there when it returns.
  /// Throws InvalidArgument for another number of bytes, another device's or a read-only buffer, elements of
  /// another dtype, and a submission in flight that uses the bytes (wait for it, or synchronize; what has been
  /// recorded but not submitted is not seen); DeviceError when the device refuses: the bytes of `to` are then
  /// undefined.
  void write(const Buffer& to, std::span<const std::byte> from);
  template <Elements T>
  void write(const Buffer& to, const T& from) {
    using Element = typename T::value_type;
    check_elements("write", to, DTypeOf<Element>::value);
    write(to, std::as_bytes(std::span<const Element>(from)));
  }
  /// The other way. Throws as write, for read-only buffers and submissions that only read excepted.
  void read(const Buffer& from, std::span<std::byte> to) const;
  template <class T>
  std::vector<T> read(const Buffer& from) const {
    check_elements("read", from, DTypeOf<T>::value);
    std::vector<T> values(from.bytes() / sizeof(T));
    read(from, std::as_writable_bytes(std::span(values)));
    return values;
  }

  /// Memory of the host as a buffer, in place: `memory` holds the elements of `shape`, row-major. `owner`
  /// keeps it alive (none: the caller does) and is held until all views and submissions that use it are gone.
  /// Bytes within an import that lives become a view of it, so order is derived between the two. Not for
  /// memory that a Buffer gave out. Throws InvalidArgument for no memory, no elements, an address not aligned
  /// to info().buffer_alignment_bytes (within an import: to the dtype) and bytes that overlap an import in
  /// part; DeviceError when refused, as by a device that cannot use memory of the host.
  Buffer import_memory(void* memory, DType dtype, const Shape& shape, std::shared_ptr<const void> owner,
                       std::string_view label = {});
  /// The same of memory to read: what would write it through this buffer or a view of it is refused.
  Buffer import_memory(const void* memory, DType dtype, const Shape& shape, std::shared_ptr<const void> owner,
                       std::string_view label = {});

  /// The weight in the first layout that serves all `uses` in the mode; the file's own bytes in place where the layout,
  /// the device and their alignment (8 bytes) allow. Otherwise a part after the other is packed, to where the
  /// host reaches the memory or through staging. Throws InvalidArgument when no layout does or the source
  /// contradicts itself, DeviceError when the device refuses.
  Weight pack(const TensorSource& source, Uses uses, const PackOptions& options = {});

  CommandEncoder encoder();

  /// Runs the passes over a graph. The graph is spent.
  std::pair<Plan, PlanReport> plan(ComputeGraph graph, const PlanOptions& options = {});
  Program prepare(const Plan& plan, const PrepareOptions& options = {});

  /// Queues one run of `program` after `updates`, once all `waits` have been reached, and once what other
  /// queues have in flight on the same bytes has completed (reads share). It fails without running when one of
  /// `waits` has failed, its queue has stopped, or it is known to read undefined bytes; where that turns out
  /// later, it may have run on them. What throws has submitted nothing. Returns at once. In steady state
  /// allocates nothing (with up to 8 updates, of memory that the program is bound to, and 16 waits).
  Point submit(const Program& program, std::span<const Update> updates = {},
               std::span<const Point> waits = {});
  /// Returns once `point` has been reached; throws TimeoutError when `timeout` passes first (nothing is freed
  /// or cancelled then), the submission's own error, with its label, if it failed: at every call.
  void wait(const Point& point, std::chrono::nanoseconds timeout = std::chrono::minutes(10));
  /// True once `point` has been reached, also by a submission that failed.
  bool reached(const Point& point) const;
  /// Returns once no submission in flight touches the bytes of `buffer`, so that the host may read and write
  /// them. Throws TimeoutError as wait() does, DeviceError when a failure has left some of them undefined.
  void synchronize(const Buffer& buffer, std::chrono::nanoseconds timeout = std::chrono::minutes(10));
  /// Acknowledges that `queue` has stopped with a failure: what is submitted from now on runs. What has failed
  /// stays so, and what that left undefined. No effect on a queue that runs.
  void recover(uint32_t queue);
  /// Calls `function` once, on a thread of the device, when `point` has been reached: with null, or with the
  /// error that wait() throws; when the device is closed before, with a DeviceError. It may do all that any
  /// thread may, submitting and dropping the last handle included. One is called at a time, so one that
  /// blocks holds up the others; one that holds the device keeps it open. What it throws is logged. Throws
  /// InvalidArgument for no function, DeviceError when there is no thread to be had.
  void when_reached(const Point& point, std::function<void(std::exception_ptr)> function);
  /// A point of the host's timeline, later than all earlier ones; signalled by `signal`, with all before it. It
  /// fails when the last handle of the device goes before that.
  Point host_point();
  void signal(const Point& point);

  /// When each command of the program's last completed submission was under way, in ns of one clock. Throws
  /// InvalidArgument for a program prepared without timestamps.
  std::vector<CommandTimes> timestamps_ns(const Program& program) const;

  /// The user's own kernels, which plans made from now on choose among as among the built-in ones.
  KernelRegistry& kernels() const;

 private:
  friend class BufferPool;
  friend class CommandEncoder;
  friend class EncoderSession;
  friend class ResidencySet;
  DeviceState& checked() const;
  DeviceState& live() const;
  static void check_elements(const char* call, const Buffer& buffer, DType dtype);
  Buffer import(const void* memory, DType dtype, const Shape& shape, std::shared_ptr<const void> owner,
                std::string_view label);

  std::shared_ptr<DeviceState> state_;
};

}  // namespace refrain
