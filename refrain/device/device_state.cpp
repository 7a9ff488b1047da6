// What happens on a device as such: memory, plans, and programs made ready. submissions.cpp has the rest.
#include "refrain/device/device_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "refrain/graph/make_plan.h"
#include "refrain/graph/split.h"

namespace refrain {

DeviceState::DeviceState(std::shared_ptr<backend::Backend> device_backend,
                         std::span<const backend::WeightLayout> weight_layouts, DeviceOptions device_options)
    : backend(device_backend ? std::move(device_backend)
                             : throw InvalidArgument("[device] backend: expected one, got none")),
      layouts(weight_layouts),
      options(std::move(device_options)),
      registry(backend->kernels),
      imports(std::make_shared<Imports>(backend)),
      submitted(backend->info.queue_count),
      // Room for what a steady loop keeps in flight, so that it allocates nothing.
      in_flight(backend->info.queue_count, Ring<InFlight>(64)),
      callbacks(*this) {
  spare_ranges.reserve(64);
}

DeviceState::~DeviceState() {
  try {
    // Nobody is left to signal a host point; what waits for one may go ahead, on memory that is still held.
    backend->signal_host(UINT64_MAX);
  } catch (const Error&) {
    // Of a lost device nothing runs.
  }
  for (uint32_t queue = 0; queue < in_flight.size(); ++queue) {
    if (in_flight[queue].empty()) continue;
    try {
      while (!backend->wait({backend.get(), queue, in_flight[queue].back().value}, std::chrono::seconds(1))) {
      }
    } catch (const Error&) {
      // A failed submission has nothing left to run.
    }
  }
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
  if (!lost.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(mutex);
  throw DeviceLost(lost_message);
}

void DeviceState::note_lost(const std::string& what) {
  {
    const std::lock_guard lock(mutex);
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
    handle = std::make_shared<const AllocationHandle>(backend, allocation, nullptr, nullptr, weak_from_this(),
                                                      spec.label);
  } catch (...) {
    backend->release(allocation);
    throw;
  }
  const std::lock_guard lock(mutex);
  ++counters.allocations;
  return handle;
}

std::pair<Plan, PlanReport> DeviceState::plan(ComputeGraph graph, const PlanOptions& plan_options) {
  check_live();
  if (graph.owner != nullptr && graph.owner != backend.get()) {
    throw InvalidArgument("[plan] graph: expected one recorded on this device, got another's");
  }
  Plan plan;
  plan.backend_ = backend;
  plan.kernels_ = registry.table();
  plan.resources_ = std::make_shared<const std::vector<std::shared_ptr<const void>>>(graph.resources);
  auto [data, report] =
      graph::make_plan(std::move(graph), backend::KernelTables(*plan.kernels_, backend->group_kernels),
                       backend->info, plan_options);
  plan.data_ = std::make_shared<const backend::PlanData>(std::move(data));
  keep_storage(std::move(graph));
  const std::lock_guard lock(mutex);
  ++counters.plans;
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
  const std::lock_guard lock(mutex);
  ++counters.encoders;
  return std::exchange(spare, {});
}

void DeviceState::keep_storage(ComputeGraph&& graph) noexcept {
  graph::clear(graph);  // outside of the lock: it may release memory
  const std::lock_guard lock(mutex);
  if (graph.bindings.capacity() > spare.bindings.capacity()) std::swap(graph, spare);
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
    if (!state->arena) {
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
  {
    const std::lock_guard lock(mutex);
    ++counters.programs_prepared;
  }
  Program program;
  program.state_ = std::move(state);
  return program;
}

}  // namespace refrain
