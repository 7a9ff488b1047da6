// Joins the parts of the CUDA backend, and exports them as the plugin's one symbol.
#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <utility>

#include "refrain/backend/cuda/executable.h"
#include "refrain/backend/cuda/health.h"
#include "refrain/backend/cuda/kernel_tables.h"
#include "refrain/backend/cuda/memory.h"
#include "refrain/backend/cuda/plugin.h"
#include "refrain/backend/cuda/queues.h"
#include "refrain/core/error.h"

namespace refrain::backend::cuda {
namespace {

constexpr int kLeastCapability = 80;  // of the images that the plugin holds; major * 10 + minor
constexpr int kProgrammaticCapability = 90;

std::string device_name(uint32_t ordinal) { return "cuda:" + std::to_string(ordinal); }

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/// Throws DeviceError, saying what is missing, unless there is such a GPU that the plugin can use.
void expect_device(uint32_t ordinal) {
  const std::string name = device_name(ordinal);
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    throw DeviceError(name + ": no NVIDIA driver (libcuda.so.1) was found");
  if (driver / 1000 < CUDART_VERSION / 1000) {
    throw DeviceError(name + ": the NVIDIA driver is too old: expected one for CUDA " +
                      version_text(CUDART_VERSION / 1000 * 1000) + " or later, got CUDA " +
                      version_text(driver));
  }
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (counted != cudaSuccess && counted != cudaErrorNoDevice)
    throw DeviceError(name + ": " + cudaGetErrorString(counted));
  if (count == 0) throw DeviceError(name + ": no NVIDIA GPU was found");
  if (ordinal >= static_cast<uint32_t>(count))
    throw DeviceError(name + ": expected cuda:0 to " + device_name(static_cast<uint32_t>(count) - 1));
}

DeviceTraits traits_of(const CudaOptions& options, const cudaDeviceProp& properties) {
  DeviceTraits traits;
  traits.ordinal = static_cast<int>(options.ordinal);
  traits.compute_units = static_cast<uint32_t>(properties.multiProcessorCount);
  traits.shared_bytes_per_sm = properties.sharedMemPerMultiprocessor;
  traits.shared_bytes_per_block = properties.sharedMemPerBlockOptin;
  traits.reserved_shared_bytes = properties.reservedSharedMemPerBlock;
  traits.programmatic_launch = properties.major * 10 + properties.minor >= kProgrammaticCapability;
  traits.full_edges = options.full_edges;
  return traits;
}

cudaDeviceProp properties_of(const CudaOptions& options) {
  expect_device(options.ordinal);
  const std::string name = device_name(options.ordinal);
  cudaDeviceProp properties{};
  if (const cudaError_t result = cudaGetDeviceProperties(&properties, static_cast<int>(options.ordinal));
      result != cudaSuccess) {
    throw DeviceError(name + ": " + cudaGetErrorString(result));
  }
  if (properties.major * 10 + properties.minor < kLeastCapability) {
    throw DeviceError(name + ": " + properties.name + ": expected compute capability 8.0 or later, got " +
                      std::to_string(properties.major) + "." + std::to_string(properties.minor));
  }
  return properties;
}

DeviceInfo describe(const cudaDeviceProp& properties) {
  DeviceInfo info;
  info.backend = "cuda";
  info.name = std::string(properties.name) + ", " + std::to_string(properties.multiProcessorCount) +
              " SMs, sm_" + std::to_string(properties.major) + std::to_string(properties.minor);
  // Of later ones the image is the PTX for sm_80, whose kernels are without what only Hopper has.
  info.features = properties.major == 9 && properties.minor == 0 ? kFeatureHopper : 0;
  info.queue_count = Queues::kCount;
  info.compute_units = static_cast<uint32_t>(properties.multiProcessorCount);
  info.ns_per_tick = 1.0;
  return info;
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(const CudaOptions& options, const cudaDeviceProp& properties, const KernelTables& kernel_tables)
      : Backend(describe(properties), kernel_tables),
        traits_(traits_of(options, properties)),
        health_(std::make_shared<Health>(device_name(options.ordinal))),
        memory_(traits_.ordinal, *health_),
        queues_(traits_.ordinal, options.queue_priorities, *health_) {
    health_->running = [this] { return queues_.under_way(); };
  }

  ~CudaBackend() override {
    queues_.close();
    health_->running = nullptr;
  }

  const Allocation* allocate(const BufferSpec& spec) override { return memory_.allocate(spec); }
  void release(const Allocation* allocation) noexcept override { memory_.release(allocation); }
  MemoryUsage memory() const override { return memory_.usage(); }
  void write(const BufferView& to, std::span<const std::byte> from) override { memory_.write(to, from); }
  void read(const BufferView& from, std::span<std::byte> to) const override { memory_.read(from, to); }

  std::unique_ptr<Executable> prepare(const PlanData& plan, const ExecutableOptions& options) override {
    health_->check_live();
    const CurrentDevice current(traits_.ordinal);
    return std::make_unique<CudaExecutable>(plan, options, traits_, health_);
  }

  Point submit(const Submission& submission) override {
    const auto& program = static_cast<const CudaExecutable&>(*submission.program);
    return {id, program.queue, queues_.submit(program, submission)};
  }

  uint64_t completed(uint32_t queue) const override { return queues_.completed(queue); }
  bool wait(const Point& point, std::chrono::nanoseconds timeout) override {
    return queues_.wait(point, timeout);
  }
  void signal_host(uint64_t value) override { queues_.signal_host(value); }
  void end_host() noexcept override { queues_.end_host(); }
  void recover(uint32_t queue) noexcept override { queues_.recover(queue); }

  void timestamps(const Executable& program, std::span<TickSpan> spans) const override {
    health_->check_live();
    static_cast<const CudaExecutable&>(program).spans(spans);
  }

 private:
  const DeviceTraits traits_;
  const std::shared_ptr<Health> health_;
  mutable Memory memory_;
  Queues queues_;
};

std::unique_ptr<Backend> open(const CudaOptions& options, const KernelTables& kernels) {
  const cudaDeviceProp properties = properties_of(options);
  const CurrentDevice current(static_cast<int>(options.ordinal));
  return std::make_unique<CudaBackend>(options, properties, kernels);
}

}  // namespace
}  // namespace refrain::backend::cuda

extern "C" __attribute__((visibility("default"))) const refrain::backend::cuda::Plugin*
refrain_cuda_plugin() {
  using namespace refrain::backend::cuda;
  static const Plugin kPlugin{plugin_abi(), plugin_kernels(), plugin_group_kernels(), plugin_layouts(), open};
  return &kPlugin;
}
