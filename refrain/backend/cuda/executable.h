// A PlanData as a CUDA graph, built node by node with the plan's own edges; what is submitted once, as launches in order.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "refrain/backend/backend.h"
#include "refrain/backend/cuda/edges.h"
#include "refrain/backend/cuda/health.h"
#include "refrain/backend/cuda/kernel_entry.h"

namespace refrain::backend::cuda {

/// What executables must know of the GPU.
struct DeviceTraits {
  int ordinal = 0;
  uint32_t compute_units = 1;
  size_t shared_bytes_per_sm = 0;
  size_t shared_bytes_per_block = 0;  ///< the most that a block may ask for
  size_t reserved_shared_bytes = 0;   ///< that the system takes of each block's
  bool programmatic_launch = false;   ///< the hardware knows programmatic edges
  bool full_edges = false;            ///< there shall be none
};

class CudaExecutable final : public Executable {
 public:
  CudaExecutable(const PlanData& plan, const ExecutableOptions& options, const DeviceTraits& traits,
                 std::shared_ptr<Health> health);
  ~CudaExecutable() override;

  /// Appends one run to the stream. Throws DeviceError when refused.
  void launch(cudaStream_t stream) const;
  /// Of the last run that has completed, while none is under way.
  void spans(std::span<TickSpan> spans) const;
  const std::vector<Edge>& edges() const { return edges_; }

  const uint32_t queue;
  const std::string label;

 private:
  /// A command ready to be launched: its kernels one after another, or none.
  struct Node {
    std::vector<GridShape> kernels;
    std::vector<std::byte> parameters;
    bool waits = false;
    bool triggers_late = false;
  };

  void free_all() noexcept;
  /// What a command may load before it waits.
  struct Ahead {
    bool live = false;
    bool args = false;  ///< what its entry's reads_ahead names
  };
  Node make_node(uint32_t index, const std::vector<void*>& args, const Ahead& ahead);
  std::vector<BufferView> read_ahead(uint32_t index) const;
  GridShape prepared(const PlanCommand& command, GridShape shape, bool& waits);
  void build_graph();
  cudaGraphNode_t add_node(uint32_t index, const GridShape* kernel, std::span<const cudaGraphNode_t> from,
                           std::span<const cudaGraphEdgeData> data);
  void launch_kernel(const Node& node, const GridShape& kernel, cudaStream_t stream) const;

  const PlanData& plan_;
  const DeviceTraits traits_;
  const std::shared_ptr<Health> owner_;  // a program may outlive its backend
  Health& health_;
  std::vector<Node> nodes_;
  std::vector<Edge> edges_;
  std::byte* tickets_ = nullptr;  // of the device
  Stamp* stamps_ = nullptr;       // of the device
  Stamp* seen_stamps_ = nullptr;  // of the host, copied behind each run
  cudaGraph_t graph_ = nullptr;   // null: submitted once
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace refrain::backend::cuda
