// Device::open: the one place that knows every backend, and hands each its kernels.
#include <fmt/format.h>

#include <memory>
#include <vector>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/null/null_backend.h"
#include "refrain/backend/remote/remote_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/core/error.h"
#include "refrain/device/device.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/layouts.h"

namespace refrain {
namespace {

#ifdef NDEBUG
constexpr bool kValidateUnlessTold = false;
#else
constexpr bool kValidateUnlessTold = true;
#endif

/// A backend and the kernel table that it refers to, as one owner.
struct OpenBackend {
  std::vector<backend::Kernel> kernels;
  std::unique_ptr<backend::Backend> backend;
};

}  // namespace

Device Device::open(std::string_view name, const DeviceOptions& options) {
  auto opened = std::make_shared<OpenBackend>();
  if (name == "auto" || name == "cpu" || name == "remote") {
    opened->kernels = ops::cpu_kernels();
    backend::CpuOptions cpu;
    cpu.threads = options.threads;
    cpu.queue_priorities = options.queue_priorities;
    if (options.portable_kernels) cpu.features = 0;
    opened->backend = backend::make_cpu(cpu, opened->kernels);
    if (name == "remote") opened->backend = backend::make_remote(std::move(opened->backend));
  } else if (name == "null") {
    opened->kernels = ops::null_kernels();
    opened->backend = backend::make_null(opened->kernels);
  } else if (name == "cuda" || name.starts_with("cuda:")) {
    throw DeviceError(fmt::format("device {}: this build has no CUDA backend; expected auto or cpu", name));
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
  backend::Backend* backend = opened->backend.get();
  return Device(std::shared_ptr<backend::Backend>(std::move(opened), backend), ops::cpu_layouts(), options);
}

}  // namespace refrain
