// Device::pack: a weight as it lies in a file becomes what kernels read, in the device's memory.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "refrain/core/checked.h"
#include "refrain/device/device_state.h"

namespace refrain {
namespace {

// Of the packed form, at once: little beside any weight that matters, much beside what a copy costs to begin.
constexpr size_t kPartBytes = size_t{4} << 20;
constexpr size_t kMostThreads = 4;  // as many copies keep the memory of most machines busy

/// The way of packed bytes to memory that the host cannot reach: each piece is filled in staging memory, and
/// copied when the next is asked for.
class Staging {
 public:
  Staging(DeviceState& device, const backend::Allocation& to)
      : device_(device), to_(to), memory_(device.staging.take()) {}
  ~Staging() {
    device_.staging.keep(std::move(memory_), [](const auto& a, const auto&) { return a != nullptr; });
  }

  std::span<std::byte> next(size_t offset_bytes, size_t bytes) {
    flush();
    if (memory_ == nullptr || memory_->allocation().bytes < bytes) {
      memory_.reset();
      memory_ = device_.allocate({std::max(bytes, kPartBytes), "staging", MemoryKind::host});
    }
    piece_ = {&to_, offset_bytes, bytes};
    return {host(), bytes};
  }
  void flush() {
    const auto piece = std::exchange(piece_, {});
    if (piece.bytes != 0) device_.write(piece, {host(), piece.bytes});
  }

 private:
  std::byte* host() const { return static_cast<std::byte*>(memory_->allocation().host); }

  DeviceState& device_;
  const backend::Allocation& to_;
  std::shared_ptr<const AllocationHandle> memory_;
  backend::BufferView piece_;
};

/// Packs one part after the other, with a few threads where there are as many parts.
class Packing {
 public:
  Packing(DeviceState& device, const TensorSource& source, const Weight::State& weight)
      : device_(device),
        source_(source),
        weight_(weight),
        rows_(backend::row_count(weight.info.shape)),
        part_rows_(
            std::max<size_t>(kPartBytes / ceil_div(weight.bytes, rows_) / weight.layout->pack_rows, 1) *
            weight.layout->pack_rows) {}

  /// `progress` is called by this thread alone.
  void run(const PackProgress& progress) {
    const size_t wanted =
        device_.options.threads != 0 ? device_.options.threads : std::thread::hardware_concurrency();
    const size_t count = std::min({wanted, kMostThreads, ceil_div(rows_, part_rows_)});
    std::vector<std::thread> helpers;
    helpers.reserve(count);
    try {
      while (helpers.size() + 1 < count) helpers.emplace_back([this] { take_parts({}); });
    } catch (const std::exception&) {
      // No thread or no memory for one: those that there are do it.
    }
    take_parts(progress);
    for (std::thread& helper : helpers) helper.join();
    if (failure_ != nullptr) std::rethrow_exception(failure_);
    if (progress && helpers.size() > 0) progress(weight_.bytes, weight_.bytes);
  }

 private:
  void take_parts(const PackProgress& progress) try {
    const backend::Allocation& to = weight_.memory->allocation();
    Staging staging(device_, to);
    const backend::PackedBytes packed = [&](size_t offset_bytes, size_t bytes) {
      if (to.host == nullptr) return staging.next(offset_bytes, bytes);
      return std::span(static_cast<std::byte*>(to.host) + offset_bytes, bytes);
    };
    for (size_t begin; (begin = next_.fetch_add(part_rows_)) < rows_;) {
      const size_t end = std::min(begin + part_rows_, rows_);
      weight_.layout->pack(source_, weight_.info, {begin, end}, packed);
      staging.flush();
      const size_t done = done_.fetch_add(end - begin) + end - begin;
      if (progress) progress(weight_.bytes * done / rows_, weight_.bytes);
    }
  } catch (...) {
    next_ = rows_;  // nothing more is begun
    const std::lock_guard lock(mutex_);
    if (failure_ == nullptr) failure_ = std::current_exception();
  }

  DeviceState& device_;
  const TensorSource& source_;
  const Weight::State& weight_;
  const size_t rows_;
  const size_t part_rows_;
  std::atomic<size_t> next_{0}, done_{0};  // rows
  std::mutex mutex_;
  std::exception_ptr failure_;  // the first
};

}  // namespace

Weight Device::pack(const TensorSource& source, Uses uses, const PackOptions& options) {
  const PackProgress& progress = options.progress;
  const uint64_t features = graph::granted(info().features, options.mode);
  DeviceState& device = live();
  auto state = std::make_shared<Weight::State>();
  state->name = source.name;
  state->info = {source.format, source.shape};
  if (source.format == nullptr)
    throw InvalidArgument(fmt::format("[pack] {}: expected a format, got none", source.name));
  for (const backend::WeightLayout& layout : device.layouts) {
    if ((layout.needs & ~features) == 0 && layout.accepts(state->info, uses)) {
      state->layout = &layout;
      break;
    }
  }
  if (state->layout == nullptr) {
    throw InvalidArgument(fmt::format("[pack] {}: device {} has no layout for {}{} with the uses asked for",
                                      source.name, info().backend, source.format->name,
                                      to_string(source.shape)));
  }
  state->bytes = state->layout->packed_bytes(state->info);
  if (state->bytes == 0)
    throw InvalidArgument(fmt::format("[pack] {}: expected elements, got none", source.name));

  if (source.segments.empty())
    throw InvalidArgument(fmt::format("[pack] {}: expected segments, got none", source.name));
  const TensorSegment& first = source.segments[0];
  const std::span<const std::byte> file =
      source.file != nullptr ? source.file->bytes() : std::span<const std::byte>();
  state->in_place = state->layout->as_stored && info().host_memory && first.bytes.size() == state->bytes &&
                    std::less_equal<>()(file.data(), first.bytes.data()) &&
                    std::less_equal<>()(first.bytes.data() + first.bytes.size(), file.data() + file.size()) &&
                    reinterpret_cast<uintptr_t>(first.bytes.data()) % kInPlaceAlignmentBytes == 0;
  if (state->in_place) {
    // The whole file: its weights are views of one allocation.
    auto [memory, offset_bytes] =
        device.imports->get(device, file, source.file, source.file->path().string());
    state->memory = std::move(memory);
    state->offset_bytes = offset_bytes + static_cast<size_t>(first.bytes.data() - file.data());
    if (progress) progress(state->bytes, state->bytes);
  } else {
    state->memory = device.allocate({state->bytes, source.name});
    Packing(device, source, *state).run(progress);
  }
  return Weight(std::move(state));
}

}  // namespace refrain
