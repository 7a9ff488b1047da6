// Every function of the contract in its least form. Memory is real, so that the host can fill it.
#include "refrain/backend/null/null_backend.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"

namespace refrain::backend {
namespace {

constexpr uint32_t kQueueCount = 4;
constexpr size_t kBudgetBytes = size_t{1} << 39;  // what it claims to have: more than any test asks for

DeviceInfo describe(uint64_t features, uint32_t compute_units) {
  DeviceInfo info;
  info.backend = "null";
  info.name = "null, computes nothing";
  info.features = features;
  info.queue_count = kQueueCount;
  info.compute_units = compute_units;
  info.host_memory = true;
  info.composes = true;
  return info;
}

struct NullAllocation : Allocation {
  NullAllocation() = default;
  NullAllocation(const NullAllocation&) = delete;
  NullAllocation& operator=(const NullAllocation&) = delete;
  ~NullAllocation() {
    if (!imported) std::free(host);
  }

  bool imported = false;
};

class NullExecutable final : public Executable {
 public:
  NullExecutable(const PlanData& plan, const ExecutableOptions& options)
      : queue(options.queue), commands(plan.commands) {}

  const uint32_t queue;
  const std::vector<PlanCommand> commands;
};

class NullBackend final : public Backend {
 public:
  NullBackend(std::span<const Kernel> kernel_table, uint64_t features, uint32_t compute_units)
      : Backend(describe(features, compute_units), kernel_table) {}

  const Allocation* allocate(const BufferSpec& spec) override {
    auto allocation = std::make_unique<NullAllocation>();
    const std::lock_guard lock(mutex_);
    allocation->bytes = spec.bytes;
    allocation->imported = is_import(spec.kind);
    if (spec.kind == MemoryKind::import_host) allocation->host = spec.host;
    if (spec.kind == MemoryKind::import_device)
      allocation->host = reinterpret_cast<void*>(spec.device_address);
    if (!allocation->imported) {
      if (spec.bytes <= kBudgetBytes - used_bytes_) {
        allocation->host = std::aligned_alloc(info.buffer_alignment_bytes,
                                              align_up(spec.bytes, info.buffer_alignment_bytes));
      }
      if (allocation->host == nullptr) {
        throw DeviceError("null: out of memory: " + std::to_string(spec.bytes) + " bytes wanted for '" +
                          spec.label + "', " + std::to_string(used_bytes_) + " bytes in use");
      }
      std::memset(allocation->host, 0, spec.bytes);
    }
    allocation->id = ++last_id_;
    allocation->device_address = reinterpret_cast<uintptr_t>(allocation->host);
    const NullAllocation* result = allocation.get();
    allocations_.emplace(result, std::move(allocation));
    if (!result->imported) used_bytes_ += spec.bytes;
    return result;
  }

  void release(const Allocation* allocation) noexcept override {
    const std::lock_guard lock(mutex_);
    const auto found = allocations_.find(allocation);
    if (found == allocations_.end()) return;
    if (!found->second->imported) used_bytes_ -= allocation->bytes;
    allocations_.erase(found);
  }

  MemoryUsage memory() const override {
    const std::lock_guard lock(mutex_);
    return {used_bytes_, kBudgetBytes};
  }

  void write(const BufferView& to, std::span<const std::byte> from) override {
    std::ranges::copy(from, host_bytes(to));
  }

  void read(const BufferView& from, std::span<std::byte> to) const override {
    std::copy_n(host_bytes(from), to.size(), to.begin());
  }

  std::unique_ptr<Executable> prepare(const PlanData& plan, const ExecutableOptions& options) override {
    auto program = std::make_unique<NullExecutable>(plan, options);
    const std::lock_guard lock(mutex_);
    ++counters_.programs;
    return program;
  }

  Point submit(const Submission& submission) override {
    const auto& program = static_cast<const NullExecutable&>(*submission.program);
    uint64_t sum = 0;
    for (const PlanCommand& command : program.commands) {
      sum += static_cast<uint64_t>(command.kind) + reinterpret_cast<uintptr_t>(command.kernel) +
             command.launch.rows + command.launch.rows_per_block + command.launch.tiles_per_block +
             command.launch.scratch_bytes + command.args.first + command.args.count +
             command.constants.first + command.constants.count + command.deps.first + command.deps.count +
             command.live_arg + command.scratch_arg + command.level + command.label + command.group;
    }
    const std::lock_guard lock(mutex_);
    for (const UpdateData& update : submission.updates) counters_.update_bytes += update.from.size();
    counters_.updates += submission.updates.size();
    counters_.commands += program.commands.size();
    counters_.checksum += sum;
    ++counters_.submissions;
    return {id, program.queue, ++completed_[program.queue]};
  }

  uint64_t completed(uint32_t queue) const override {
    const std::lock_guard lock(mutex_);
    return queue == kHostQueue ? host_ : completed_[queue];
  }

  bool wait(const Point& point, std::chrono::nanoseconds) override {
    const std::lock_guard lock(mutex_);
    if (point.queue != kHostQueue) return completed_[point.queue] >= point.value;
    if (host_ended_ && host_ < point.value)
      throw DeviceError("null: the host's timeline ended before " + std::to_string(point.value) +
                        " was signalled");
    return host_ >= point.value;
  }

  void signal_host(uint64_t value) override {
    const std::lock_guard lock(mutex_);
    if (value > host_ && !host_ended_) host_ = value;
  }

  void end_host() noexcept override {
    const std::lock_guard lock(mutex_);
    host_ended_ = true;
  }

  void recover(uint32_t) noexcept override {}  // nothing fails

  void timestamps(const Executable&, std::span<TickSpan> spans) const override {
    for (TickSpan& span : spans) span = {};
  }

  NullCounters counters() const {
    const std::lock_guard lock(mutex_);
    return counters_;
  }

 private:
  mutable std::mutex mutex_;
  std::unordered_map<const Allocation*, std::unique_ptr<NullAllocation>> allocations_;
  uint64_t last_id_ = 0;
  size_t used_bytes_ = 0;
  uint64_t completed_[kQueueCount] = {};
  uint64_t host_ = 0;
  bool host_ended_ = false;
  NullCounters counters_;
};

}  // namespace

std::unique_ptr<Backend> make_null(std::span<const Kernel> kernels, uint64_t features,
                                   uint32_t compute_units) {
  return std::make_unique<NullBackend>(kernels, features, compute_units);
}

NullCounters null_counters(const Backend& backend) {
  const auto* null = dynamic_cast<const NullBackend*>(&backend);
  if (null == nullptr)
    throw InvalidArgument("[null_counters] backend: expected null, got " + backend.info.backend);
  return null->counters();
}

}  // namespace refrain::backend
