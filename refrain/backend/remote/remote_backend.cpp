// Everything is passed on with allocations and programs exchanged for the inner ones.
#include "refrain/backend/remote/remote_backend.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "refrain/core/error.h"

namespace refrain::backend {
namespace remote {
namespace {

// Little enough that tests see copies of several pieces.
constexpr size_t kStagingBytes = size_t{64} << 10;

struct RemoteMemory : Allocation {
  RemoteMemory() = default;
  RemoteMemory(const RemoteMemory&) = delete;
  RemoteMemory& operator=(const RemoteMemory&) = delete;
  ~RemoteMemory() {
    if (pages != nullptr) munmap(pages, bytes);
  }

  /// From now on it has addresses that nobody may touch, and none of the host.
  void hide(const BufferSpec& spec) {
    void* mapped = mmap(nullptr, spec.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) {
      throw DeviceError("remote: no addresses left: " + std::to_string(spec.bytes) + " bytes wanted for '" +
                        spec.label + "'");
    }
    pages = mapped;
    host = nullptr;
    device_address = reinterpret_cast<uintptr_t>(pages);
  }

  const Allocation* inner = nullptr;
  void* pages = nullptr;
};

BufferView inner_view(BufferView view) {
  if (view.allocation != nullptr) view.allocation = static_cast<const RemoteMemory*>(view.allocation)->inner;
  return view;
}

struct RemoteExecutable final : Executable {
  PlanData plan;  // of the inner allocations; outlives `inner`
  std::unique_ptr<Executable> inner;
};

DeviceInfo describe(DeviceInfo info) {
  info.name = info.backend + " out of reach: " + info.name;
  info.backend = "remote";
  info.host_memory = false;
  return info;
}

// Memory through which one copy goes, and its end.
class Staging {
 public:
  Staging(Backend& device, size_t bytes)
      : device_(device),
        memory_(device.allocate({std::min(bytes, kStagingBytes), "staging", MemoryKind::host})) {}
  ~Staging() { device_.release(memory_); }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// Calls `copy` for each piece of `bytes` bytes with its offset and its place in the staging memory.
  template <class Copy>
  void pieces(size_t bytes, const Copy& copy) const {
    for (size_t at = 0; at < bytes; at += memory_->bytes) {
      copy(at, std::span(static_cast<std::byte*>(memory_->host), std::min(memory_->bytes, bytes - at)));
    }
  }

 private:
  Backend& device_;
  const Allocation* memory_;
};

/// What a submission names, to be changed: a few without an allocation.
template <class T>
class Copy {
 public:
  explicit Copy(std::span<const T> from) : count_(from.size()) {
    if (count_ > few_.size())
      many_.assign(from.begin(), from.end());
    else
      std::ranges::copy(from, few_.begin());
  }
  std::span<T> all() { return many_.empty() ? std::span(few_).first(count_) : std::span(many_); }

 private:
  size_t count_;
  std::array<T, 16> few_{};
  std::vector<T> many_;
};

class RemoteBackend final : public Backend {
 public:
  explicit RemoteBackend(std::unique_ptr<Backend> inner)
      : Backend(describe(inner->info), {inner->kernels, inner->group_kernels, inner->rewrites}),
        inner_(std::move(inner)) {}

  const Allocation* allocate(const BufferSpec& spec) override {
    if (spec.kind == MemoryKind::import_device) {
      throw DeviceError("remote: address " + std::to_string(spec.device_address) + " of '" + spec.label +
                        "' is no memory of another owner on this device");
    }
    auto memory = std::make_unique<RemoteMemory>();
    const Allocation* result = memory.get();
    const std::lock_guard lock(mutex_);
    const Allocation* inner = inner_->allocate(spec);
    try {
      memory->inner = inner;
      memory->id = inner->id;
      memory->bytes = inner->bytes;
      memory->host = inner->host;
      memory->device_address = inner->device_address;
      if (spec.kind == MemoryKind::device) memory->hide(spec);
      memory_.emplace(result, std::move(memory));
    } catch (...) {
      inner_->release(inner);
      throw;
    }
    return result;
  }

  void release(const Allocation* allocation) noexcept override {
    const std::lock_guard lock(mutex_);
    const auto found = memory_.find(allocation);
    if (found == memory_.end()) return;
    inner_->release(found->second->inner);
    memory_.erase(found);
  }

  void advise(std::span<const BufferView> views, Advice advice) override {
    std::vector<BufferView> inner(views.size());
    std::ranges::transform(views, inner.begin(), inner_view);
    inner_->advise(inner, advice);
  }

  MemoryUsage memory() const override { return inner_->memory(); }

  const void* compile(const KernelSource& source) override { return inner_->compile(source); }

  void write(const BufferView& to, std::span<const std::byte> from) override {
    if (from.empty()) return;
    const BufferView view = inner_view(to);
    const Staging staging(*inner_, from.size());
    staging.pieces(from.size(), [&](size_t at, std::span<std::byte> piece) {
      std::ranges::copy(from.subspan(at, piece.size()), piece.begin());
      inner_->write({view.allocation, view.offset_bytes + at, piece.size()}, piece);
    });
    ++writes_;
    write_bytes_ += from.size();
  }

  void read(const BufferView& from, std::span<std::byte> to) const override {
    if (to.empty()) return;
    const BufferView view = inner_view(from);
    const Staging staging(*inner_, to.size());
    staging.pieces(to.size(), [&](size_t at, std::span<std::byte> piece) {
      inner_->read({view.allocation, view.offset_bytes + at, piece.size()}, piece);
      std::ranges::copy(piece, to.begin() + static_cast<std::ptrdiff_t>(at));
    });
    ++reads_;
    read_bytes_ += to.size();
  }

  std::unique_ptr<Executable> prepare(const PlanData& plan, const ExecutableOptions& options) override {
    auto program = std::make_unique<RemoteExecutable>();
    program->plan = plan;
    for (Argument& argument : program->plan.args) argument.view = inner_view(argument.view);
    ExecutableOptions inner_options = options;
    inner_options.arena = inner_view(options.arena);
    program->inner = inner_->prepare(program->plan, inner_options);
    return program;
  }

  Point submit(const Submission& submission) override {
    Copy<UpdateData> updates(submission.updates);
    for (UpdateData& update : updates.all()) {
      update.to = inner_view(update.to);
      ++updates_;
      update_bytes_ += update.from.size();
    }
    Copy<Point> waits(submission.waits), after(submission.after);
    for (Point& point : waits.all()) point.backend = inner_->id;
    for (Point& point : after.all()) point.backend = inner_->id;
    const auto& program = *static_cast<const RemoteExecutable*>(submission.program);
    const Point point = inner_->submit({program.inner.get(), updates.all(), waits.all(), after.all()});
    return {id, point.queue, point.value};
  }

  uint64_t completed(uint32_t queue) const override { return inner_->completed(queue); }

  bool wait(const Point& point, std::chrono::nanoseconds timeout) override {
    return inner_->wait({inner_->id, point.queue, point.value}, timeout);
  }

  void signal_host(uint64_t value) override { inner_->signal_host(value); }
  void end_host() noexcept override { inner_->end_host(); }
  void recover(uint32_t queue) noexcept override { inner_->recover(queue); }

  void timestamps(const Executable& program, std::span<TickSpan> spans) const override {
    inner_->timestamps(*static_cast<const RemoteExecutable&>(program).inner, spans);
  }

  RemoteCounters counters() const {
    return {writes_.load(),     write_bytes_.load(), reads_.load(),
            read_bytes_.load(), updates_.load(),     update_bytes_.load()};
  }

 private:
  const std::unique_ptr<Backend> inner_;
  std::mutex mutex_;
  std::unordered_map<const Allocation*, std::unique_ptr<RemoteMemory>> memory_;
  std::atomic<uint64_t> writes_{0}, write_bytes_{0}, updates_{0}, update_bytes_{0};
  mutable std::atomic<uint64_t> reads_{0}, read_bytes_{0};
};

}  // namespace
}  // namespace remote

std::unique_ptr<Backend> make_remote(std::unique_ptr<Backend> inner) {
  return std::make_unique<remote::RemoteBackend>(std::move(inner));
}

RemoteCounters remote_counters(const Backend& backend) {
  const auto* device = dynamic_cast<const remote::RemoteBackend*>(&backend);
  if (device == nullptr)
    throw InvalidArgument("[remote_counters] backend: expected remote, got " + backend.info.backend);
  return device->counters();
}

}  // namespace refrain::backend
