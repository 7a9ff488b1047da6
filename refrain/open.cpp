// Device::open: the one place that finds every backend. Each opener gives the whole bundle: kernels, layouts, backend.
#include <fmt/format.h>

#include <charconv>
#include <memory>
#include <vector>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/cuda/loader.h"
#include "refrain/backend/null/null_backend.h"
#include "refrain/backend/remote/remote_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/core/error.h"
#include "refrain/device/device.h"
#include "refrain/ops/decode_sets/tiles.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/layouts.h"

namespace refrain {
namespace {

#ifdef NDEBUG
constexpr bool kValidateUnlessTold = false;
#else
constexpr bool kValidateUnlessTold = true;
#endif

/// A backend and the tables that it refers to, as one owner.
struct OpenBackend {
  std::vector<backend::Kernel> kernels;
  std::vector<backend::WeightLayout> own_layouts;
  std::span<const backend::WeightLayout> layouts;  // best first
  std::unique_ptr<backend::Backend> backend;
};

void open_cpu(OpenBackend& opened, const DeviceOptions& options) {
  opened.kernels = ops::cpu_kernels();
  opened.layouts = ops::cpu_layouts();
  backend::CpuOptions cpu;
  cpu.threads = options.threads;
  cpu.queue_priorities = options.queue_priorities;
  if (options.portable_kernels) cpu.features = 0;
  opened.backend = backend::make_cpu(cpu, {opened.kernels, {}, ops::rewrites()});
}

void open_cuda(OpenBackend& opened, uint32_t ordinal, const DeviceOptions& options) {
  const backend::cuda::Plugin& plugin = backend::cuda::open_plugin({}, fmt::format("cuda:{}", ordinal));
  backend::cuda::Bundle bundle = backend::cuda::bind_plugin(plugin, ops::all_schemas(), ops::all_layouts());
  opened.kernels = std::move(bundle.kernels);
  opened.own_layouts = std::move(bundle.layouts);
  opened.layouts = opened.own_layouts;
  backend::cuda::CudaOptions cuda;
  cuda.ordinal = ordinal;
  cuda.queue_priorities = options.queue_priorities;
  opened.backend = plugin.open(cuda, {opened.kernels, bundle.group_kernels, ops::rewrites()});
}

/// N of "cuda:N", 0 of "cuda".
uint32_t cuda_ordinal(std::string_view name) {
  uint32_t ordinal = 0;
  if (name == "cuda") return ordinal;
  const std::string_view digits = name.substr(5);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), ordinal);
  if (error != std::errc() || end != digits.data() + digits.size())
    throw InvalidArgument(fmt::format("device: expected cuda:N, N a number from 0, got {}", name));
  return ordinal;
}

/// The first GPU where there is one that can be used, else the CPU.
void open_best(OpenBackend& opened, const DeviceOptions& options) {
  try {
    open_cuda(opened, 0, options);
  } catch (const DeviceError&) {
    open_cpu(opened, options);
  }
}

}  // namespace

Device Device::open(std::string_view name, const DeviceOptions& options) {
  auto opened = std::make_shared<OpenBackend>();
  if (name == "auto") {
    open_best(*opened, options);
  } else if (name == "cpu" || name == "remote") {
    open_cpu(*opened, options);
    if (name == "remote") opened->backend = backend::make_remote(std::move(opened->backend));
  } else if (name == "null") {
    opened->kernels = ops::null_kernels();
    opened->layouts = ops::cpu_layouts();
    opened->backend = backend::make_null(opened->kernels);
  } else if (name == "cuda" || name.starts_with("cuda:")) {
    open_cuda(*opened, cuda_ordinal(name), options);
  } else {
    throw InvalidArgument(fmt::format("device: expected auto, cpu, cuda:N, null or remote, got {}", name));
  }
  if (const size_t queues = opened->backend->info.queue_count; options.queue_priorities.size() > queues) {
    throw InvalidArgument(
        fmt::format("device: queue_priorities: expected at most {}, one for each queue, got {}", queues,
                    options.queue_priorities.size()));
  }
  if (options.validate.value_or(kValidateUnlessTold))
    opened->backend = backend::make_validate(std::move(opened->backend));
  backend::Backend* const backend = opened->backend.get();
  const std::span<const backend::WeightLayout> layouts = opened->layouts;
  return Device(std::shared_ptr<backend::Backend>(std::move(opened), backend), layouts, options);
}

}  // namespace refrain
