#include "refrain/stream/device.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <utility>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"
#include "refrain/graph/make_plan.h"
#include "refrain/stream/device_state.h"

namespace refrain {
namespace {

// Kernels read weights with vector loads; a weight that lies at a lesser alignment in its file is copied.
constexpr size_t kInPlaceAlignment = 16;

// Submissions with more updates than this allocate; a step block is one update.
constexpr size_t kInlineUpdates = 8;

device::WeightInfo weight_info(const TensorSource& source) {
  return {source.format, source.dtype, source.shape, source.bits, source.group_size};
}

}  // namespace

DeviceState::DeviceState(std::shared_ptr<device::Backend> device_backend,
                         std::span<const device::WeightLayout> weight_layouts, DeviceOptions device_options)
    : backend(device_backend ? std::move(device_backend)
                             : throw InvalidArgument("[device] backend: expected one, got none")),
      layouts(weight_layouts),
      options(std::move(device_options)),
      submitted(backend->info.queue_count),
      in_flight(backend->info.queue_count) {
  // Room for what a steady loop keeps in flight, so that it allocates nothing.
  for (auto& queue : in_flight) queue.reserve(64);
}

DeviceState::~DeviceState() {
  // Nobody is left to signal a host point; what waits for one may go ahead, on memory that is still held.
  backend->signal_host(UINT64_MAX);
  for (uint32_t queue = 0; queue < in_flight.size(); ++queue) {
    if (in_flight[queue].empty()) continue;
    try {
      while (!backend->wait({backend.get(), queue, in_flight[queue].back().value}, std::chrono::seconds(1))) {
      }
    } catch (const Error&) {
      // A failed submission has nothing left to run.
    }
  }
}

std::shared_ptr<const AllocationHandle> DeviceState::allocate(const device::BufferSpec& spec,
                                                              std::shared_ptr<const void> keep_alive) {
  const device::Allocation* allocation = backend->allocate(spec);
  counters.allocations.fetch_add(1, std::memory_order_relaxed);
  return std::make_shared<const AllocationHandle>(backend, allocation, std::move(keep_alive));
}

std::shared_ptr<const AllocationHandle> DeviceState::import_file(
    const std::shared_ptr<const MappedFile>& file) {
  const std::lock_guard lock(mutex);
  std::weak_ptr<const AllocationHandle>& slot = imports[file.get()];
  if (auto handle = slot.lock()) return handle;
  device::BufferSpec spec;
  spec.bytes = file->bytes().size();
  spec.host = const_cast<std::byte*>(file->bytes().data());  // sealed: never bound for writing
  spec.label = file->path().string();
  auto handle = allocate(spec, file);
  slot = handle;
  return handle;
}

std::pair<Plan, PlanReport> DeviceState::plan(ComputeGraph graph, const PlanOptions& plan_options) {
  if (graph.owner != nullptr && graph.owner != backend.get()) {
    throw InvalidArgument("[plan] graph: expected one recorded on this device, got another's");
  }
  Plan plan;
  plan.backend_ = backend;
  plan.resources_ = std::make_shared<const std::vector<std::shared_ptr<const void>>>(graph.resources);
  auto [data, report] = graph::make_plan(std::move(graph), backend->kernels, backend->info, plan_options);
  plan.data_ = std::make_shared<const device::Plan>(std::move(data));
  keep_storage(std::move(graph));
  counters.plans.fetch_add(1, std::memory_order_relaxed);
  return {std::move(plan), report};
}

ComputeGraph DeviceState::take_storage() {
  const std::lock_guard lock(mutex);
  return std::exchange(spare, {});
}

void DeviceState::keep_storage(ComputeGraph&& graph) noexcept {
  graph::clear(graph);  // outside of the lock: it may release memory
  const std::lock_guard lock(mutex);
  if (graph.bindings.capacity() > spare.bindings.capacity()) std::swap(graph, spare);
}

Program DeviceState::prepare(const Plan& plan, const PrepareOptions& prepare_options, bool once) {
  if (!plan) throw InvalidArgument("[prepare] plan: expected a plan, got none");
  if (plan.backend_ != backend)
    throw InvalidArgument("[prepare] plan: expected one of this device, got another's");
  if (prepare_options.queue >= backend->info.queue_count) {
    throw InvalidArgument(fmt::format("[prepare] queue: expected less than {}, got {}",
                                      backend->info.queue_count, prepare_options.queue));
  }
  auto state = std::make_shared<Program::State>();
  state->plan = plan;
  state->queue = prepare_options.queue;
  state->timestamps = prepare_options.timestamps;
  state->arena = prepare_options.arena;
  state->backend = backend;
  device::PrepareOptions backend_options;
  backend_options.queue = prepare_options.queue;
  backend_options.once = once;
  backend_options.timestamps = prepare_options.timestamps;
  if (plan.arena_bytes() != 0) {
    if (!state->arena) {
      const auto bytes = plan.arena_bytes();
      state->arena =
          Buffer(allocate({bytes, nullptr, "arena"}, nullptr), 0, DType::u8, {static_cast<int64_t>(bytes)});
    }
    if (state->arena.bytes() < plan.arena_bytes()) {
      throw InvalidArgument(fmt::format("[prepare] arena: expected at least {} bytes, got {}",
                                        plan.arena_bytes(), state->arena.bytes()));
    }
    if (&state->arena.memory()->backend() != backend.get()) {
      throw InvalidArgument("[prepare] arena: expected a buffer of this device, got another device's");
    }
    if (state->arena.offset_bytes() % backend->info.buffer_alignment_bytes != 0) {
      throw InvalidArgument(fmt::format("[prepare] arena: expected an offset aligned to {}, got {}",
                                        backend->info.buffer_alignment_bytes, state->arena.offset_bytes()));
    }
    backend_options.arena = state->arena.device_view();
  }
  const device::BufferView& arena = backend_options.arena;
  for (const device::Argument& arg : plan.data().args) {
    if (arg.view.allocation == nullptr || arg.view.bytes == 0) continue;
    state->bound.push_back(arg.view.allocation);
    // No order is derived between the arena and what else is bound.
    if (arg.view.allocation == arena.allocation && arg.view.offset_bytes < arena.offset_bytes + arena.bytes &&
        arena.offset_bytes < arg.view.offset_bytes + arg.view.bytes) {
      throw InvalidArgument(
          "[prepare] arena: expected memory of its own, got a buffer that a command is bound to");
    }
  }
  std::ranges::sort(state->bound, std::less<>());
  state->bound.erase(std::ranges::unique(state->bound).begin(), state->bound.end());
  state->commands = static_cast<uint64_t>(
      std::ranges::count(plan.data().commands, device::CommandKind::kernel, &device::Command::kind));
  state->program = backend->prepare(plan.data(), backend_options);
  counters.programs_prepared.fetch_add(1, std::memory_order_relaxed);
  Program program;
  program.state_ = std::move(state);
  return program;
}

Point DeviceState::submit(const Program& program, std::span<const Update> updates,
                          std::span<const Point> waits) {
  if (!program) throw InvalidArgument("[submit] program: expected a prepared program, got none");
  Program::State& state = *program.state_;
  if (state.backend != backend)
    throw InvalidArgument("[submit] program: expected one of this device, got another's");
  for (const Point& point : waits) check(point, "submit");

  InFlight entry;
  entry.program = program.state_;
  std::array<device::Update, kInlineUpdates> inline_updates;
  std::vector<device::Update> more_updates;
  if (updates.size() > inline_updates.size()) more_updates.resize(updates.size());
  const std::span<device::Update> backend_updates =
      more_updates.empty() ? std::span(inline_updates).first(updates.size()) : std::span(more_updates);
  for (size_t i = 0; i < updates.size(); ++i) {
    const Update& update = updates[i];
    if (!update.to || update.to.bytes() != update.from.size()) {
      throw InvalidArgument(fmt::format("[submit] update {}: expected {} bytes, got {}", i,
                                        update.to ? update.to.bytes() : 0, update.from.size()));
    }
    if (&update.to.memory()->backend() != backend.get()) {
      throw InvalidArgument(fmt::format("[submit] update {}: expected a buffer of this device", i));
    }
    backend_updates[i] = {update.to.device_view(), update.from};
    const device::Allocation* allocation = &update.to.memory()->allocation();
    if (!std::ranges::binary_search(state.bound, allocation, std::less<>()))
      entry.updated.push_back(update.to.memory());
  }

  reap();
  const std::lock_guard lock(mutex);
  // Held before it runs: nothing may fail between the two.
  auto& entries = in_flight[state.queue];
  entries.push_back(std::move(entry));
  Point point;
  try {
    point = backend->submit({state.program.get(), backend_updates, waits});
  } catch (...) {
    entries.pop_back();
    throw;
  }
  entries.back().value = point.value;
  submitted[state.queue].store(point.value, std::memory_order_release);
  counters.submissions.fetch_add(1, std::memory_order_relaxed);
  counters.commands_submitted.fetch_add(state.commands, std::memory_order_relaxed);
  return point;
}

void DeviceState::check(const Point& point, const char* call) const {
  if (point.backend != backend.get()) {
    throw InvalidArgument(fmt::format("[{}] point: expected one of this device, got another's", call));
  }
  const bool host = point.queue == device::kHostQueue;
  if (!host && point.queue >= submitted.size()) {
    throw InvalidArgument(
        fmt::format("[{}] point: queue: expected less than {}, got {}", call, submitted.size(), point.queue));
  }
  const uint64_t last = (host ? host_value : submitted[point.queue]).load(std::memory_order_acquire);
  if (point.value > last) {
    throw InvalidArgument(
        fmt::format("[{}] point: expected one that submit or host_point returned, got value {} of {}", call,
                    point.value, last));
  }
}

void DeviceState::reap() {
  // Programs are destroyed outside the lock: their destructors may release memory and take their time.
  std::array<InFlight, 16> done;
  for (bool more = true; more;) {
    size_t count = 0;
    {
      const std::lock_guard lock(mutex);
      for (uint32_t queue = 0; queue < in_flight.size(); ++queue) {
        if (in_flight[queue].empty()) continue;
        const uint64_t completed = backend->completed(queue);
        auto& entries = in_flight[queue];
        size_t n = 0;
        while (n < entries.size() && entries[n].value <= completed && count < done.size()) {
          done[count++] = std::move(entries[n++]);
        }
        entries.erase(entries.begin(), entries.begin() + static_cast<ptrdiff_t>(n));
      }
      more = count == done.size();
    }
    for (size_t i = 0; i < count; ++i) done[i] = {};
  }
}

Device::Device(std::shared_ptr<device::Backend> backend, std::span<const device::WeightLayout> layouts,
               const DeviceOptions& options)
    : state_(std::make_shared<DeviceState>(std::move(backend), layouts, options)) {}

DeviceState& Device::checked() const {
  if (!state_) throw InvalidArgument("[device] expected an open device, got one that was moved from");
  return *state_;
}

const device::DeviceInfo& Device::info() const { return checked().backend->info; }

device::MemoryUsage Device::memory() const { return checked().backend->memory(); }

Counters Device::counters() const {
  const auto& c = checked().counters;
  return {c.allocations.load(),       c.dispatches_recorded.load(), c.plans.load(),
          c.programs_prepared.load(), c.submissions.load(),         c.commands_submitted.load()};
}

Buffer Device::buffer(DType dtype, const Shape& shape, std::string_view label) {
  const int64_t elements = shape.elements();
  if (elements == 0 || size_bytes(dtype) == 0) {
    throw InvalidArgument(fmt::format("[buffer] {}: expected elements of a known size, got {} {}", label,
                                      name(dtype), to_string(shape)));
  }
  const std::optional<size_t> bytes = checked_mul(static_cast<size_t>(elements), size_bytes(dtype));
  if (!bytes) throw InvalidArgument(fmt::format("[buffer] {}: {} is too large", label, to_string(shape)));
  return Buffer(checked().allocate({*bytes, nullptr, std::string(label)}, nullptr), 0, dtype, shape);
}

Weight Device::pack(const TensorSource& source, Uses uses) {
  auto state = std::make_shared<Weight::State>();
  state->name = source.name;
  state->info = weight_info(source);
  for (const device::WeightLayout& layout : checked().layouts) {
    if (layout.accepts(state->info, uses)) {
      state->layout = &layout;
      break;
    }
  }
  if (state->layout == nullptr) {
    throw InvalidArgument(fmt::format("[pack] {}: device {} has no layout for {}{} with the uses asked for",
                                      source.name, info().backend, name(source.dtype),
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
                    reinterpret_cast<uintptr_t>(first.bytes.data()) % kInPlaceAlignment == 0;
  if (state->in_place) {
    state->memory = checked().import_file(source.file);
    state->offset_bytes = static_cast<size_t>(first.bytes.data() - source.file->bytes().data());
  } else {
    state->memory = checked().allocate({state->bytes, nullptr, source.name}, nullptr);
    if (state->memory->allocation().host == nullptr) {
      throw DeviceError(
          fmt::format("[pack] {}: the host cannot reach this device's memory in place", source.name));
    }
    state->layout->pack(source, state->info,
                        {static_cast<std::byte*>(state->memory->allocation().host), state->bytes});
  }
  return Weight(std::move(state));
}

CommandEncoder Device::encoder() {
  checked();
  return CommandEncoder(state_);
}

std::pair<Plan, PlanReport> Device::plan(ComputeGraph graph, const PlanOptions& options) {
  return checked().plan(std::move(graph), options);
}

Program Device::prepare(const Plan& plan, const PrepareOptions& options) {
  return checked().prepare(plan, options, false);
}

Point Device::submit(const Program& program, std::span<const Update> updates, std::span<const Point> waits) {
  return checked().submit(program, updates, waits);
}

void Device::wait(const Point& point, std::chrono::nanoseconds timeout) {
  checked().check(point, "wait");
  if (!checked().backend->wait(point, timeout)) {
    throw TimeoutError(fmt::format("[wait] queue {} has not completed submission {} within {} ms",
                                   point.queue, point.value,
                                   std::chrono::duration_cast<std::chrono::milliseconds>(timeout).count()));
  }
}

bool Device::reached(const Point& point) const {
  checked().check(point, "reached");
  return checked().backend->completed(point.queue) >= point.value;
}

Point Device::host_point() {
  return {checked().backend.get(), device::kHostQueue, checked().host_value.fetch_add(1) + 1};
}

void Device::signal(const Point& point) {
  checked().check(point, "signal");
  if (point.queue != device::kHostQueue) {
    throw InvalidArgument("[signal] point: expected one of the host's timeline, got a queue's");
  }
  checked().backend->signal_host(point.value);
}

std::vector<std::pair<double, double>> Device::timestamps_ns(const Program& program) const {
  if (!program) throw InvalidArgument("[timestamps_ns] program: expected a prepared program, got none");
  if (program.state_->backend != checked().backend) {
    throw InvalidArgument("[timestamps_ns] program: expected one of this device, got another's");
  }
  if (!program.state_->timestamps) {
    throw InvalidArgument("[timestamps_ns] program: expected one prepared with timestamps");
  }
  std::vector<device::TickSpan> ticks(program.plan().data().commands.size());
  checked().backend->timestamps(*program.state_->program, ticks);
  std::vector<std::pair<double, double>> spans;
  for (const device::TickSpan& span : ticks) {
    spans.emplace_back(static_cast<double>(span.begin) * info().ns_per_tick,
                       static_cast<double>(span.end) * info().ns_per_tick);
  }
  return spans;
}

const device::Plan& Plan::data() const {
  if (!data_) throw InvalidArgument("[plan] expected a plan, got none");
  return *data_;
}

const Plan& Program::plan() const {
  if (!state_) throw InvalidArgument("[program] expected a prepared program, got none");
  return state_->plan;
}

}  // namespace refrain
