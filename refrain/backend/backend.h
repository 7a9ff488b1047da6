// The contract between the front (device/, which checks) and a backend (which trusts).
//
// The front hands a backend one immutable PlanData; the backend turns it into an Executable once and runs it many
// times. No command is a virtual call. A backend checks nothing: validate/ wraps any backend and checks the
// contract. Errors that only the device can see: DeviceError (refused, the device lives), DeviceLost
// (sticky).
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "refrain/backend/plan.h"

namespace refrain::backend {

/// Where memory lies, and who reaches it.
enum class MemoryKind : uint8_t {
  device,         ///< the device's own; the host reaches it in place only where info.host_memory says so
  host,           ///< the host's, pinned and visible to the device: for what passes between the two
  import_host,    ///< memory of the host that somebody else allocated, read-only mappings included
  import_device,  ///< memory of the device that somebody else allocated
};

inline bool is_import(MemoryKind kind) {
  return kind == MemoryKind::import_host || kind == MemoryKind::import_device;
}

struct BufferSpec {
  size_t bytes = 0;  ///< > 0
  std::string label = {};
  MemoryKind kind = MemoryKind::device;
  /// What import_host and import_device use in place: aligned to info.buffer_alignment_bytes, and no part of
  /// another allocation that lives.
  void* host = nullptr;
  uint64_t device_address = 0;
};

/// Where the bytes of a view are for the host, which reaches them in place.
inline std::byte* host_bytes(const BufferView& view) {
  return static_cast<std::byte*>(view.allocation->host) + view.offset_bytes;
}

struct MemoryUsage {
  size_t used_bytes = 0;    ///< allocated here, imports excluded
  size_t budget_bytes = 0;  ///< what the machine offers
  /// Of allocations and imports, what lies in physical memory now. A page may be shared with other memory.
  size_t resident_bytes = 0;
  size_t locked_bytes = 0;  ///< of these, what cannot be paged out until it is evictable again
};

enum class Advice : uint8_t {
  resident,   ///< brought into memory, and kept there as far as the system allows
  will_need,  ///< brought into memory
  evictable,  ///< the opposite of both; the bytes stay as they are
};

/// A backend's own form of a PlanData. Immutable apart from its replay state; used by one queue.
class Executable {
 public:
  virtual ~Executable() = default;
};

struct ExecutableOptions {
  uint32_t queue = 0;
  BufferView arena = {};    ///< plan.arena_bytes or more, zeroed; shared by the programs of one queue
  bool once = false;        ///< will be submitted one time
  bool timestamps = false;  ///< keep the begin and end of each command
  /// Worker of each command, for tests of ordering: all tiles of command i run on worker placement[i].
  std::span<const uint32_t> placement = {};
  std::string_view label = {};  ///< names the program's submissions in errors; valid during the call
};

/// A moment: when `queue` of a backend has completed `value` submissions. Values only grow. A submission that
/// failed has been reached as well.
struct Point {
  uint64_t backend = 0;  ///< Backend::id; 0: of none
  uint32_t queue = 0;
  uint64_t value = 0;
};

/// The timeline that only the host signals; it may be waited for before it is signalled, until it ends.
inline constexpr uint32_t kHostQueue = UINT32_MAX;

/// Bytes that a submission writes before its first command. Copied at submit.
struct UpdateData {
  BufferView to;                    ///< never of the arena
  std::span<const std::byte> from;  ///< as long as `to`
};

struct Submission {
  const Executable* program = nullptr;  ///< outlives the completion of the submission
  std::span<const UpdateData> updates;
  /// Points of this backend that submit() returned, or host points. It fails with them.
  std::span<const Point> waits;
  /// Points of this backend that submit() returned: it begins once they have been reached, however they ended.
  std::span<const Point> after = {};
};

struct TickSpan {
  uint64_t begin = 0;
  uint64_t ready =
      0;  ///< what it depends on has completed: later than `begin` where a command may begin before that
  uint64_t end = 0;
};

/// A kernel as source text, for a backend that compiles.
struct KernelSource {
  std::string_view name;   ///< of the kernel, for errors
  std::string_view text;   ///< in the backend's language: CUDA C++
  std::string_view entry;  ///< the function in it
};

class Backend {
 public:
  Backend(DeviceInfo device_info, const KernelTables& kernel_tables)
      : id(draw_id()),
        info(std::move(device_info)),
        kernels(kernel_tables.kernels),
        group_kernels(kernel_tables.groups),
        rewrites(kernel_tables.rewrites) {}
  virtual ~Backend() = default;  ///< waits for submitted work
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  /// Drawn at random, never 0: a point of a backend that has ended is not one of the next at its address.
  const uint64_t id;
  const DeviceInfo info;
  const std::span<const Kernel> kernels;
  const std::span<const GroupKernel> group_kernels;
  const std::span<const Rewrite> rewrites;

  // Any thread may call any function; submissions to one queue run in the order of their submit calls. Between
  // queues only waits give an order: priorities, which the options of a backend may give its queues, are a hint.
  //
  // Failure. A submission that fails has ended: it uses nothing any more, completed() counts it, what it
  // would have written is undefined. With it fail, without running, all that wait for it (Submission::waits)
  // and, if it failed while it ran, all later submissions of its queue until recover(). wait() names each with
  // the first failure. Nothing else fails: not what comes `after` it, nor other queues, nor the queue of a
  // submission that failed with what it waited for. Which bytes are undefined, and so what may not be taken
  // for a result, the front knows. A device that ends fails what can no longer run.
  //
  // Loss. Every submission that had not completed has failed, and every call throws the same DeviceLost, but
  // for five that never throw: release(), signal_host(), end_host() and recover() do nothing, completed()
  // counts all that was submitted.

  /// Memory aligned to info.buffer_alignment_bytes, zeroed unless imported. Of the kinds host and import_host it
  /// has Allocation::host. Throws DeviceError when refused, as an import may be by what the device is.
  virtual const Allocation* allocate(const BufferSpec& spec) = 0;
  /// No submission in flight uses it any more.
  virtual void release(const Allocation* allocation) noexcept = 0;
  /// A hint about residency.
  virtual void advise(std::span<const BufferView> views, Advice advice) {
    (void)views;
    (void)advice;
  }
  virtual MemoryUsage memory() const = 0;
  /// Copies `from` to the bytes of `to`, as many; they are there when it returns. No submission in flight uses
  /// them. What the host cannot reach is staged inside, piece by piece: DeviceError when there is no memory for
  /// that, or the device refuses; the bytes of `to` are then undefined.
  virtual void write(const BufferView& to, std::span<const std::byte> from) = 0;
  /// The other way. No submission in flight writes the bytes of `from`.
  virtual void read(const BufferView& from, std::span<std::byte> to) const = 0;
  /// What Kernel::entry is for a kernel made of `source`; it lives as long as the backend. Throws InvalidArgument for
  /// source that does not compile, and where the backend compiles none.
  virtual const void* compile(const KernelSource& source);
  /// The plan and what it names outlive the program.
  virtual std::unique_ptr<Executable> prepare(const PlanData& plan, const ExecutableOptions& options) = 0;
  /// Returns at once.
  virtual Point submit(const Submission& submission) = 0;
  /// How many submissions of `queue` have completed or failed (kHostQueue: the value last signalled).
  virtual uint64_t completed(uint32_t queue) const = 0;
  /// False when `timeout` passed first. Throws DeviceError with the failure of the submission, if it failed,
  /// each time.
  virtual bool wait(const Point& point, std::chrono::nanoseconds timeout) = 0;
  /// Raises the host timeline to `value`; lower values are ignored.
  virtual void signal_host(uint64_t value) = 0;
  /// The host signals no more: its points that have not been reached have failed, and what waits for them fails.
  virtual void end_host() noexcept = 0;
  /// What is submitted to `queue` from now on runs again, if it was stopped by a failure. What has failed stays so.
  virtual void recover(uint32_t queue) noexcept = 0;
  /// When each command was under way in the last completed submission of a program prepared with `timestamps`.
  virtual void timestamps(const Executable& program, std::span<TickSpan> spans) const = 0;

 private:
  static uint64_t draw_id();
};

}  // namespace refrain::backend
