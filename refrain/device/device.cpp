#include "refrain/device/device.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "refrain/core/checked.h"
#include "refrain/core/deadline.h"
#include "refrain/core/error.h"
#include "refrain/device/device_state.h"

namespace refrain {
namespace {

// Bytes of a buffer to be made. Throws InvalidArgument for none and for too many.
size_t checked_bytes(const char* call, DType dtype, const Shape& shape, std::string_view label) {
  const int64_t elements = shape.elements();
  if (elements == 0 || size_bytes(dtype) == 0) {
    throw InvalidArgument(fmt::format("[{}] {}: expected elements of a known size, got {} {}", call, label,
                                      name(dtype), to_string(shape)));
  }
  const std::optional<size_t> bytes = checked_mul(static_cast<size_t>(elements), size_bytes(dtype));
  if (!bytes) throw InvalidArgument(fmt::format("[{}] {}: {} is too large", call, label, to_string(shape)));
  return *bytes;
}

}  // namespace

Device::Device(std::shared_ptr<backend::Backend> backend, std::span<const backend::WeightLayout> layouts,
               const DeviceOptions& options)
    : state_(std::make_shared<DeviceState>(std::move(backend), layouts, options)) {}

DeviceState& Device::checked() const {
  if (!state_) throw InvalidArgument("[device] expected an open device, got one that was moved from");
  return *state_;
}

DeviceState& Device::live() const {
  checked().check_live();
  return *state_;
}

const backend::DeviceInfo& Device::info() const { return checked().backend->info; }

backend::MemoryUsage Device::memory() const {
  DeviceState& state = live();
  return state.guarded([&] { return state.backend->memory(); });
}

Counters Device::counters() const {
  const DeviceState& state = checked();
  Counters counters = state.counters.get();
  counters.dispatches_recorded = state.dispatches_recorded.load(std::memory_order_relaxed);
  return counters;
}

KernelRegistry& Device::kernels() const { return live().registry; }

Buffer Device::buffer(DType dtype, const Shape& shape, std::string_view label, MemoryKind kind) {
  const size_t bytes = checked_bytes("buffer", dtype, shape, label);
  if (backend::is_import(kind))
    throw InvalidArgument(fmt::format("[buffer] {}: expected new memory, got the kind of an import", label));
  return Buffer(live().allocate({bytes, std::string(label), kind}), 0, dtype, shape);
}

Buffer Device::import(const void* memory, DType dtype, const Shape& shape, std::shared_ptr<const void> owner,
                      std::string_view label) {
  DeviceState& state = live();
  const size_t bytes = checked_bytes("import_memory", dtype, shape, label);
  auto [handle, offset_bytes] = state.imports->get(state, {static_cast<const std::byte*>(memory), bytes},
                                                   std::move(owner), std::string(label));
  return Buffer(std::move(handle), offset_bytes, dtype, shape);
}

Buffer Device::import_memory(void* memory, DType dtype, const Shape& shape, std::shared_ptr<const void> owner,
                             std::string_view label) {
  return import(memory, dtype, shape, std::move(owner), label);
}

Buffer Device::import_memory(const void* memory, DType dtype, const Shape& shape,
                             std::shared_ptr<const void> owner, std::string_view label) {
  Buffer buffer = import(memory, dtype, shape, std::move(owner), label);
  buffer.read_only_ = true;
  return buffer;
}

CommandEncoder Device::encoder() {
  live();
  return CommandEncoder(state_);
}

std::pair<Plan, PlanReport> Device::plan(ComputeGraph graph, const PlanOptions& options) {
  return checked().plan(std::move(graph), options);
}

Program Device::prepare(const Plan& plan, const PrepareOptions& options) {
  return checked().prepare(plan, options, false);
}

Point Device::submit(const Program& program, std::span<const Update> updates, std::span<const Point> waits) {
  return checked().submit(program, updates, waits, Submissions::Limit::to_check);
}

void Device::wait(const Point& point, std::chrono::nanoseconds timeout) {
  checked().check(point, "wait");
  state_->submissions.wait(point, timeout);
}

void Device::synchronize(const Buffer& buffer, std::chrono::nanoseconds timeout) {
  DeviceState& state = live();
  if (!buffer || &buffer.memory()->backend() != state.backend.get()) {
    throw InvalidArgument("[synchronize] buffer: expected one of this device, got another's or none");
  }
  state.submissions.synchronize(buffer, timeout);
}

void Device::recover(uint32_t queue) {
  DeviceState& state = live();
  if (queue >= state.submissions.queues()) {
    throw InvalidArgument(
        fmt::format("[recover] queue: expected less than {}, got {}", state.submissions.queues(), queue));
  }
  state.backend->recover(queue);
}

void Device::when_reached(const Point& point, std::function<void(std::exception_ptr)> function) {
  DeviceState& state = live();
  state.check(point, "when_reached");
  if (!function) throw InvalidArgument("[when_reached] function: expected one, got none");
  state.callbacks.add(point, std::move(function));
}

bool Device::reached(const Point& point) const {
  DeviceState& state = live();
  state.check(point, "reached");
  return state.guarded([&] { return state.backend->completed(point.queue) >= point.value; });
}

Point Device::host_point() {
  return {live().backend->id, backend::kHostQueue, checked().host_value.fetch_add(1) + 1};
}

void Device::signal(const Point& point) {
  DeviceState& state = live();
  state.check(point, "signal");
  if (point.queue != backend::kHostQueue) {
    throw InvalidArgument("[signal] point: expected one of the host's timeline, got a queue's");
  }
  state.guarded([&] { state.backend->signal_host(point.value); });
  state.callbacks.host_changed();
}

std::vector<CommandTimes> Device::timestamps_ns(const Program& program) const {
  DeviceState& state = live();
  if (!program) throw InvalidArgument("[timestamps_ns] program: expected a prepared program, got none");
  if (program.state_->backend != state.backend) {
    throw InvalidArgument("[timestamps_ns] program: expected one of this device, got another's");
  }
  if (!program.state_->timestamps) {
    throw InvalidArgument("[timestamps_ns] program: expected one prepared with timestamps");
  }
  std::vector<backend::TickSpan> ticks(program.plan().data().commands.size());
  state.guarded([&] { state.backend->timestamps(*program.state_->program, ticks); });
  const auto ns = [&](uint64_t tick) { return static_cast<double>(tick) * info().ns_per_tick; };
  std::vector<CommandTimes> times;
  for (const backend::TickSpan& span : ticks) times.push_back({ns(span.begin), ns(span.ready), ns(span.end)});
  return times;
}

const backend::PlanData& Plan::data() const {
  if (!data_) throw InvalidArgument("[plan] expected a plan, got none");
  return *data_;
}

const std::string& Program::label() const {
  if (!state_) throw InvalidArgument("[program] expected a prepared program, got none");
  return state_->label;
}

const Plan& Program::plan() const {
  if (!state_) throw InvalidArgument("[program] expected a prepared program, got none");
  return state_->plan;
}

}  // namespace refrain
