// What happens on a device as such: memory, plans, and programs made ready. submissions.cpp and verdicts.cpp
// have the rest.
#include "refrain/device/device_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "refrain/graph/make_plan.h"
#include "refrain/graph/split.h"

namespace refrain {

void ResidencyStages::add(std::shared_ptr<ResidencyStage> stage) {
  const std::lock_guard lock(mutex_);
  stages_.push_back(std::move(stage));
  any_.store(true, std::memory_order_release);
}

void ResidencyStages::apply(const DeviceState& device) {
  if (!any_.load(std::memory_order_acquire)) return;
  std::array<std::shared_ptr<ResidencyStage>, 8> staged;
  size_t count = 0;
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(stages_, [](const auto& stage) { return stage->finished(); });
    any_.store(!stages_.empty(), std::memory_order_release);
    for (const auto& stage : stages_) {
      if (count == staged.size()) break;  // the others at the next submission
      if (stage->staged()) staged[count++] = stage;
    }
  }
  for (size_t i = 0; i < count; ++i) staged[i]->apply(device);
}

DeviceState::DeviceState(std::shared_ptr<backend::Backend> device_backend,
                         std::span<const backend::WeightLayout> weight_layouts, DeviceOptions device_options)
    : backend(device_backend ? std::move(device_backend)
                             : throw InvalidArgument("[device] backend: expected one, got none")),
      layouts(weight_layouts),
      options(std::move(device_options)),
      registry(*backend),
      imports(std::make_shared<Imports>(backend)),
      undefined(std::make_shared<Undefined>()),
      failures(backend->info.queue_count),
      arenas(backend->info.queue_count),
      submissions(*this),
      callbacks(*this) {}

DeviceState::~DeviceState() {
  backend->end_host();  // nobody is left to signal
  submissions.drain();
  callbacks.close();
}

void DeviceState::log(LogLevel level, std::string_view message) const noexcept {
  try {
    if (options.log) options.log(level, message);
  } catch (...) {
    // A callback that throws has broken its promise; what it was told is not worth a program.
  }
}

void DeviceState::check_live() const {
  if (lost.load(std::memory_order_acquire)) throw DeviceLost(loss());
}

std::string DeviceState::loss() const {
  const std::lock_guard lock(lost_mutex);
  return lost_message;
}

DeviceLink DeviceState::link() { return {weak_from_this(), undefined, submissions.place()}; }

Point DeviceState::submit(const Program& program, std::span<const Update> updates,
                          std::span<const Point> waits, Submissions::Limit limit) {
  check_live();
  if (!program) throw InvalidArgument("[submit] program: expected a prepared program, got none");
  if (program.state_->backend != backend)
    throw InvalidArgument("[submit] program: expected one of this device, got another's");
  for (const Point& point : waits) check(point, "submit");
  residency.apply(*this);
  return submissions.submit(program.state_, updates, waits, limit);
}

void DeviceState::check(const Point& point, const char* call) const {
  if (point.backend != backend->id) {
    throw InvalidArgument(fmt::format("[{}] point: expected one of this device, got another's", call));
  }
  const bool host = point.queue == backend::kHostQueue;
  if (!host && point.queue >= submissions.queues()) {
    throw InvalidArgument(fmt::format("[{}] point: queue: expected less than {}, got {}", call,
                                      submissions.queues(), point.queue));
  }
  const uint64_t last = host ? host_value.load(std::memory_order_acquire) : submissions.last(point.queue);
  if (point.value > last) {
    throw InvalidArgument(
        fmt::format("[{}] point: expected one that submit or host_point returned, got value {} of {}", call,
                    point.value, last));
  }
}

void DeviceState::note_lost(const std::string& what) {
  {
    const std::lock_guard lock(lost_mutex);
    if (lost.load(std::memory_order_relaxed)) return;
    lost_message = what;
    lost.store(true, std::memory_order_release);
  }
  callbacks.host_changed();
}

std::shared_ptr<const AllocationHandle> DeviceState::allocate(const backend::BufferSpec& spec) {
  const backend::Allocation* allocation = guarded([&] { return backend->allocate(spec); });
  std::shared_ptr<const AllocationHandle> handle;
  try {
    handle =
        std::make_shared<const AllocationHandle>(backend, allocation, nullptr, nullptr, link(), spec.label);
  } catch (...) {
    backend->release(allocation);
    throw;
  }
  counters.change([](Counters& c) { ++c.allocations; });
  return handle;
}

std::pair<Plan, PlanReport> DeviceState::plan(ComputeGraph graph, const PlanOptions& plan_options) {
  check_live();
  if (graph.owner != 0 && graph.owner != backend->id) {
    throw InvalidArgument("[plan] graph: expected one recorded on this device, got another's");
  }
  Plan plan;
  plan.backend_ = backend;
  plan.kernels_ = registry.table();
  plan.resources_ = std::make_shared<const std::vector<std::shared_ptr<const void>>>(graph.resources);
  const backend::KernelTables tables(*plan.kernels_, backend->group_kernels, backend->rewrites);
  auto [data, report] = graph::make_plan(std::move(graph), tables, backend->info, plan_options);
  plan.data_ = std::make_shared<const backend::PlanData>(std::move(data));
  keep_storage(std::move(graph));
  counters.change([](Counters& c) { ++c.plans; });
  return {std::move(plan), report};
}

std::vector<Plan> DeviceState::split(const Plan& plan) const {
  std::vector<Plan> parts;
  for (backend::PlanData& data : graph::split(plan.data()).parts) {
    Plan& part = parts.emplace_back(plan);
    part.data_ = std::make_shared<const backend::PlanData>(std::move(data));
  }
  return parts;
}

ComputeGraph DeviceState::take_storage() {
  counters.change([](Counters& c) { ++c.encoders; });
  return storage.take();
}

void DeviceState::keep_storage(ComputeGraph&& graph) noexcept {
  graph::clear(graph);  // outside of the lock: it may release memory
  storage.keep(std::move(graph), [](const ComputeGraph& a, const ComputeGraph& b) {
    return a.bindings.capacity() > b.bindings.capacity();
  });
}

Buffer DeviceState::direct_arena(uint32_t queue, size_t bytes) {
  Arena& arena = arenas[queue];
  const std::lock_guard lock(arena.mutex);
  if (arena.memory == nullptr || arena.memory->allocation().bytes < bytes) {
    const size_t before = arena.memory == nullptr ? 0 : arena.memory->allocation().bytes;
    arena.memory.reset();  // programs in flight hold it
    const size_t wanted = std::max(bytes, 2 * before);
    try {
      arena.memory = allocate({wanted, "arena"});
    } catch (const DeviceLost&) {
      throw;
    } catch (const DeviceError&) {
      if (wanted == bytes) throw;
      arena.memory = allocate({bytes, "arena"});  // what is needed may fit where room to grow does not
    }
  }
  return Buffer(arena.memory, 0, DType::u8, {static_cast<int64_t>(bytes)});
}

Program DeviceState::prepare(const Plan& plan, const PrepareOptions& prepare_options, bool once) {
  check_live();
  if (!plan) throw InvalidArgument("[prepare] plan: expected a plan, got none");
  if (plan.backend_ != backend)
    throw InvalidArgument("[prepare] plan: expected one of this device, got another's");
  if (prepare_options.queue >= backend->info.queue_count) {
    throw InvalidArgument(fmt::format("[prepare] queue: expected less than {}, got {}",
                                      backend->info.queue_count, prepare_options.queue));
  }
  const backend::PlanData& data = plan.data();
  auto state = std::make_shared<Program::State>();
  state->plan = plan;
  state->queue = prepare_options.queue;
  state->timestamps = prepare_options.timestamps;
  state->arena = prepare_options.arena;
  state->backend = backend;
  state->label = prepare_options.label;
  if (state->label.empty() && !data.labels.empty()) state->label = data.labels[0];
  backend::ExecutableOptions backend_options;
  backend_options.queue = prepare_options.queue;
  backend_options.once = once;
  backend_options.timestamps = prepare_options.timestamps;
  backend_options.label = state->label;
  if (plan.arena_bytes() != 0) {
    if (!state->arena && once) {
      state->arena = direct_arena(state->queue, plan.arena_bytes());
    } else if (!state->arena) {
      const auto bytes = plan.arena_bytes();
      state->arena = Buffer(allocate({bytes, "arena"}), 0, DType::u8, {static_cast<int64_t>(bytes)});
    }
    if (state->arena.bytes() < plan.arena_bytes()) {
      throw InvalidArgument(fmt::format("[prepare] arena: expected at least {} bytes, got {}",
                                        plan.arena_bytes(), state->arena.bytes()));
    }
    if (&state->arena.memory()->backend() != backend.get()) {
      throw InvalidArgument("[prepare] arena: expected a buffer of this device, got another device's");
    }
    if (state->arena.read_only()) {
      throw InvalidArgument("[prepare] arena: expected memory to write, got a read-only buffer");
    }
    if (state->arena.offset_bytes() % backend->info.buffer_alignment_bytes != 0) {
      throw InvalidArgument(fmt::format("[prepare] arena: expected an offset aligned to {}, got {}",
                                        backend->info.buffer_alignment_bytes, state->arena.offset_bytes()));
    }
    backend_options.arena = state->arena.device_view();
  }
  const backend::BufferView& arena = backend_options.arena;
  for (const backend::Argument& arg : data.args) {
    if (arg.view.allocation == nullptr || arg.view.bytes == 0) continue;
    // No order is derived between the arena and what else is bound.
    if (arg.view.allocation == arena.allocation && arg.view.offset_bytes < arena.offset_bytes + arena.bytes &&
        arena.offset_bytes < arg.view.offset_bytes + arg.view.bytes) {
      throw InvalidArgument(
          "[prepare] arena: expected memory of its own, got a buffer that a command is bound to");
    }
  }
  for (const std::shared_ptr<const void>& resource : *plan.resources_) state->kept.push_back(resource.get());
  std::ranges::sort(state->kept, std::less<>());
  state->touches = graph::summarize(data, arena);
  state->fences = static_cast<uint64_t>(
      std::ranges::count(data.commands, backend::CommandKind::fence, &backend::PlanCommand::kind));
  state->commands = data.commands.size() - state->fences;
  state->program = guarded([&] { return backend->prepare(data, backend_options); });
  counters.change([](Counters& c) { ++c.programs_prepared; });
  Program program;
  program.state_ = std::move(state);
  return program;
}

}  // namespace refrain
