// Translates a PlanData once. Trusts it: what is wrong with a plan, validate/ finds.
#include "refrain/backend/cuda/executable.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "refrain/backend/cuda/memory.h"
#include "refrain/core/error.h"

namespace refrain::backend::cuda {
namespace {

void* address_of(const BufferView& view, const BufferView& arena) {
  if (view.bytes == 0) return nullptr;
  if (view.allocation != nullptr) return device_bytes(view);
  return device_bytes(arena) + view.offset_bytes;
}

const KernelEntry& entry_of(const PlanCommand& command) {
  return *static_cast<const KernelEntry*>(command.kind == CommandKind::kernel ? command.kernel->entry
                                                                              : command.group_kernel->entry);
}

cudaGraphEdgeData edge_data(bool programmatic) {
  cudaGraphEdgeData data{};
  if (programmatic) {
    data.from_port = cudaGraphKernelNodePortProgrammatic;
    data.type = cudaGraphDependencyTypeProgrammatic;
  }
  return data;
}

}  // namespace

CudaExecutable::CudaExecutable(const PlanData& plan, const ExecutableOptions& options,
                               const DeviceTraits& traits, std::shared_ptr<Health> health)
    : queue(options.queue),
      label(options.label),
      plan_(plan),
      traits_(traits),
      owner_(std::move(health)),
      health_(*owner_) {
  try {
    const auto zeroed = [&](size_t bytes, const char* what) {
      void* memory = nullptr;
      health_.check(cudaMalloc(&memory, bytes), what);
      health_.check(cudaMemset(memory, 0, bytes), what);
      return memory;
    };
    if (plan.ticket_bytes != 0)
      tickets_ = static_cast<std::byte*>(zeroed(plan.ticket_bytes, "memory for counters"));
    if (options.timestamps && !plan.commands.empty()) {
      const size_t bytes = plan.commands.size() * sizeof(Stamp);
      stamps_ = static_cast<Stamp*>(zeroed(bytes, "memory for timestamps"));
      void* seen = nullptr;
      health_.check(cudaHostAlloc(&seen, bytes, cudaHostAllocPortable), "memory for timestamps");
      std::memset(seen, 0, bytes);
      seen_stamps_ = static_cast<Stamp*>(seen);
    }
    std::vector<void*> args;
    args.reserve(plan.args.size());
    for (const Argument& argument : plan.args) args.push_back(address_of(argument.view, options.arena));
    for (uint32_t i = 0; i < plan.commands.size(); ++i) nodes_.push_back(make_node(i, args, {}));
    std::vector<bool> waits, late;
    for (const Node& node : nodes_) {
      waits.push_back(node.waits);
      late.push_back(node.triggers_late);
    }
    edges_ = make_edges(plan, waits, traits.full_edges);
    check_edges(plan, waits, edges_);
    const Completion completion(edges_, std::move(late));
    for (uint32_t i = 0; i < plan.commands.size(); ++i) {
      if (nodes_[i].kernels.empty()) continue;
      const PlanCommand& command = plan.commands[i];
      const auto may = [&](const std::vector<BufferView>& views) {
        return !views.empty() && may_read_ahead(plan, completion, i, views);
      };
      const Ahead ahead = {
          .live = command.live_arg != kNone && may({plan.args[command.args.first + command.live_arg].view}),
          .args = may(read_ahead(i))};
      if (ahead.live || ahead.args) nodes_[i] = make_node(i, args, ahead);
    }
    if (!options.once) build_graph();
    health_.check(cudaStreamSynchronize(nullptr), "preparing");  // the zeroing above
  } catch (...) {
    free_all();
    throw;
  }
}

CudaExecutable::~CudaExecutable() { free_all(); }

void CudaExecutable::free_all() noexcept {
  if (health_.lost()) return;  // the context takes all with it
  const CurrentDevice current(traits_.ordinal);
  if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
  if (graph_ != nullptr) cudaGraphDestroy(graph_);
  cudaFree(tickets_);
  cudaFree(stamps_);
  cudaFreeHost(seen_stamps_);
}

std::vector<BufferView> CudaExecutable::read_ahead(uint32_t index) const {
  const PlanCommand& command = plan_.commands[index];
  std::vector<BufferView> views;
  const auto add = [&](const KernelEntry& entry, uint32_t place, uint32_t first, uint32_t count) {
    for (uint32_t a = 0; a < count; ++a) {
      if (entry.reads_ahead(place, a)) views.push_back(plan_.args[first + a].view);
    }
  };
  if (entry_of(command).reads_ahead == nullptr) return views;
  if (command.kind == CommandKind::kernel) {
    add(entry_of(command), 0, command.args.first, static_cast<uint32_t>(command.kernel->op->args.size()));
  } else {
    for (uint32_t m = 0; m < command.placed.count; ++m) {
      const PlacedMember& member = plan_.placed[command.placed.first + m];
      add(entry_of(command), member.place, member.args.first, member.args.count);
    }
  }
  return views;
}

CudaExecutable::Node CudaExecutable::make_node(uint32_t index, const std::vector<void*>& args,
                                               const Ahead& ahead) {
  const PlanCommand& command = plan_.commands[index];
  Node node;
  if (command.kind == CommandKind::fence) return node;
  if (command.kind == CommandKind::fused_group)
    throw DeviceError(health_.device() + ": kernels are not composed here: " + title(plan_, command));
  const KernelEntry& entry = entry_of(command);
  BoundCommand bound;
  bound.launch = command.launch;
  bound.state.rows = command.launch.rows;
  if (command.live_arg != kNone)
    bound.state.live = static_cast<const uint32_t*>(args[command.args.first + command.live_arg]);
  bound.state.walkers = command.launch.walkers != 0 ? command.launch.walkers : traits_.compute_units;
  bound.state.scratch_bytes = command.launch.scratch_bytes;
  if (command.scratch_arg != kNone) {
    bound.state.scratch = static_cast<std::byte*>(args[command.args.first + command.scratch_arg]);
    bound.state.workspace = bound.state.scratch + bound.state.walkers * bound.state.scratch_bytes;
  }
  if (command.launch.ticket_bytes != 0)
    bound.state.tickets = reinterpret_cast<uint32_t*>(tickets_ + command.ticket_offset_bytes);
  if (stamps_ != nullptr) bound.state.stamp = stamps_ + index;
  bound.state.live_ahead = ahead.live;
  bound.state.ahead = ahead.args;

  std::vector<BoundMember> members;
  const auto add = [&](uint32_t place, const Range& member_args, const Range& constants) {
    members.push_back({place, args.data() + member_args.first, member_args.count,
                       plan_.constants.data() + constants.first});
  };
  if (command.kind == CommandKind::kernel) {
    add(0, {command.args.first, static_cast<uint32_t>(command.kernel->op->args.size())}, command.constants);
  } else {
    for (uint32_t m = 0; m < command.placed.count; ++m) {
      const PlacedMember& member = plan_.placed[command.placed.first + m];
      add(member.place, member.args, member.constants);
    }
  }
  bound.members = members;

  if (command.launch.rows == 0) return node;
  GridShape shape = entry.shape(bound);
  if (shape.blocks == 0) return node;
  if (shape.function == nullptr) shape.function = entry.function;
  node.parameters.resize(entry.parameter_bytes);
  entry.bind(bound, node.parameters.data());
  node.waits = entry.waits_everywhere && traits_.programmatic_launch;
  node.triggers_late = entry.triggers_late;
  const GridShape before = entry.before != nullptr ? entry.before(bound) : GridShape{};
  if (before.blocks != 0) node.kernels.push_back(prepared(command, before, node.waits));
  node.kernels.push_back(prepared(command, shape, node.waits));
  return node;
}

/// The shape as it is launched. `waits` stays true where the kernel's image holds the wait.
GridShape CudaExecutable::prepared(const PlanCommand& command, GridShape shape, bool& waits) {
  if (shape.blocks > INT32_MAX) {
    throw DeviceError(health_.device() + ": " + title(plan_, command) +
                      ": expected at most 2147483647 blocks, got " + std::to_string(shape.blocks));
  }
  cudaFuncAttributes attributes{};
  health_.check(cudaFuncGetAttributes(&attributes, shape.function), "kernel attributes");
  // All that the kernel's own leaves.
  const size_t most = traits_.shared_bytes_per_block - attributes.sharedSizeBytes;
  if (shape.exclusive_per_sm) {
    // More than half of an SM's, with what the kernel and the system take of each block.
    const size_t half = traits_.shared_bytes_per_sm / 2 + 1;
    const size_t taken = attributes.sharedSizeBytes + traits_.reserved_shared_bytes;
    if (half > taken) shape.shared_bytes = std::max(shape.shared_bytes, half - taken);
    shape.shared_bytes = std::min(shape.shared_bytes, most);
  }
  // An image for older hardware, or compiled from its PTX, does not hold the wait.
  waits = waits && attributes.ptxVersion >= 90;
  constexpr size_t kWithoutAsking = size_t{48} << 10;
  if (shape.shared_bytes > kWithoutAsking) {
    // Other launches of it may want more.
    health_.check(cudaFuncSetAttribute(shape.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(most)),
                  "shared memory of a kernel");
  }
  constexpr uint32_t kPortableCluster = 8;
  if (shape.cluster > kPortableCluster) {
    health_.check(cudaFuncSetAttribute(shape.function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
                  "cluster of a kernel");
  }
  return shape;
}

void CudaExecutable::build_graph() {
  health_.check(cudaGraphCreate(&graph_, 0), "graph");
  const size_t count = nodes_.size();
  std::vector<cudaGraphNode_t> built(count, nullptr);
  cudaGraphNode_t reset = nullptr;  // all stamps to zero, before any command
  if (stamps_ != nullptr) {
    cudaMemsetParams memset{};
    memset.dst = stamps_;
    memset.elementSize = 1;
    memset.width = count * sizeof(Stamp);
    memset.height = 1;
    health_.check(cudaGraphAddMemsetNode(&reset, graph_, nullptr, 0, &memset), "node of timestamps");
  }
  std::vector<cudaGraphNode_t> from;
  std::vector<cudaGraphEdgeData> data;
  auto edge = edges_.begin();
  for (uint32_t i = 0; i < count; ++i) {
    const Node& node = nodes_[i];
    from.clear();
    data.clear();
    for (; edge != edges_.end() && edge->to == i; ++edge) {
      from.push_back(built[edge->from]);
      data.push_back(edge_data(edge->programmatic));
    }
    if (from.empty() && reset != nullptr) {
      from.push_back(reset);
      data.push_back({});
    }
    if (node.kernels.empty()) built[i] = add_node(i, nullptr, from, data);
    for (const GridShape& kernel : node.kernels) {
      built[i] = add_node(i, &kernel, from, data);
      from.assign(1, built[i]);
      data.assign(1, edge_data(node.waits && !traits_.full_edges));
    }
  }
  if (count == 0) return;
  health_.check(cudaGraphInstantiate(&exec_, graph_, 0), "graph");
}

/// A command's kernel, null: nothing that runs, behind what is named.
cudaGraphNode_t CudaExecutable::add_node(uint32_t index, const GridShape* kernel,
                                         std::span<const cudaGraphNode_t> from,
                                         std::span<const cudaGraphEdgeData> data) {
  cudaGraphNodeParams params{};
  params.type = cudaGraphNodeTypeEmpty;
  void* parameters[1] = {nodes_[index].parameters.data()};
  if (kernel != nullptr) {
    params.type = cudaGraphNodeTypeKernel;
    params.kernel.func = const_cast<void*>(kernel->function);
    params.kernel.gridDim = dim3(static_cast<uint32_t>(kernel->blocks));
    params.kernel.blockDim = dim3(kernel->threads);
    params.kernel.sharedMemBytes = static_cast<uint32_t>(kernel->shared_bytes);
    params.kernel.kernelParams = parameters;
  }
  const std::string what = "node " + std::to_string(index) + " (" + title(plan_, plan_.commands[index]) + ")";
  cudaGraphNode_t node = nullptr;
  health_.check(cudaGraphAddNode(&node, graph_, from.data(), data.data(), from.size(), &params),
                what.c_str());
  if (kernel != nullptr && kernel->cluster > 1) {
    cudaLaunchAttributeValue value{};
    value.clusterDim.x = kernel->cluster;
    value.clusterDim.y = value.clusterDim.z = 1;
    health_.check(cudaGraphKernelNodeSetAttribute(node, cudaLaunchAttributeClusterDimension, &value),
                  what.c_str());
  }
  return node;
}

void CudaExecutable::launch_kernel(const Node& node, const GridShape& kernel, cudaStream_t stream) const {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<uint32_t>(kernel.blocks));
  config.blockDim = dim3(kernel.threads);
  config.dynamicSmemBytes = kernel.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute cluster{};
  if (kernel.cluster > 1) {
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = kernel.cluster;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.attrs = &cluster;
    config.numAttrs = 1;
  }
  void* parameters[1] = {const_cast<std::byte*>(node.parameters.data())};
  health_.check(cudaLaunchKernelExC(&config, kernel.function, parameters), "launch");
}

void CudaExecutable::launch(cudaStream_t stream) const {
  if (exec_ != nullptr) {
    health_.check(cudaGraphLaunch(exec_, stream), "launch of a graph");
  } else {
    for (const Node& node : nodes_) {
      for (const GridShape& kernel : node.kernels) launch_kernel(node, kernel, stream);
    }
  }
  if (seen_stamps_ != nullptr) {
    health_.check(
        cudaMemcpyAsync(seen_stamps_, stamps_, nodes_.size() * sizeof(Stamp), cudaMemcpyDeviceToHost, stream),
        "timestamps");
  }
}

void CudaExecutable::spans(std::span<TickSpan> spans) const {
  if (seen_stamps_ == nullptr) return;
  uint64_t first = UINT64_MAX;
  for (size_t i = 0; i < nodes_.size(); ++i) {
    if (!nodes_[i].kernels.empty()) first = std::min<uint64_t>(first, ~seen_stamps_[i].not_begin);
  }
  // What runs nothing passes when the last before it ends.
  uint64_t passed = first == UINT64_MAX ? 0 : first;
  for (size_t i = 0; i < nodes_.size(); ++i) {
    TickSpan span{passed, passed, passed};
    if (!nodes_[i].kernels.empty()) {
      const Stamp& stamp = seen_stamps_[i];
      span = {~stamp.not_begin, ~stamp.not_ready, stamp.end};
    }
    passed = std::max(passed, span.end);
    if (i < spans.size()) spans[i] = span;
  }
}

}  // namespace refrain::backend::cuda
