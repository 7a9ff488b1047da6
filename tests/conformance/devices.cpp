// One line adds a device to the suite.
#include "tests/conformance/devices.h"

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/fault/fault_backend.h"
#include "refrain/backend/null/null_backend.h"
#include "refrain/backend/remote/remote_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "tests/conformance/cuda_device.h"
#include "tests/conformance/test_kernels.h"

namespace refrain::backend::testing {
namespace {

std::unique_ptr<Backend> cpu(uint32_t threads) {
  CpuOptions options;
  options.threads = threads;
  return make_cpu(options, test_kernels());
}

std::unique_ptr<Backend> cpu_awake(uint32_t threads) {
  CpuOptions options;
  options.threads = threads;
  options.spin = kSpinForever;
  return make_cpu(options, test_kernels());
}

// Tests whose results a device that computes nothing cannot give, and those of waiting.
constexpr const char* kComputing[] = {"EdgesRandom",
                                      "EdgesReplayed",
                                      "Fence",
                                      "FenceRandom",
                                      "LiveCount",
                                      "LiveCountWritten",
                                      "ZeroTiles",
                                      "Updates",
                                      "UpdatesCopied",
                                      "WaitAcrossQueues",
                                      "Replays",
                                      "ReplaysPipelined",
                                      "SubmitFromThreads",
                                      "WaitFromThreads",
                                      "ScratchOfWorkers",
                                      "Placement",
                                      "PlacedEdges",
                                      "Arena",
                                      "Imports",
                                      "ManyTiles",
                                      "Prefetch",
                                      "HostMemory",
                                      "DeviceImports",
                                      "Timestamps",
                                      "DestroyInFlight",
                                      "TimedCommandsOverlap"};
constexpr const char* kWaiting[] = {"HostPoint",    "BlockedQueue", "Timeout",    "DestroyBlocked",
                                    "HostTimeline", "HostEnds",     "AfterOrders"};

std::vector<Exception> exceptions() {
  std::vector<Exception> result;
  for (const char* device : {"null", "validate_null"}) {
    for (const char* test : kComputing) result.push_back({device, test, "null computes nothing"});
    for (const char* test : kWaiting)
      result.push_back({device, test, "null completes at once, whatever it waits for"});
  }
  result.push_back({"cpu_1", "TimedCommandsOverlap", "one worker runs one command at a time"});
  for (const char* device : {"remote_cpu", "validate_remote_cpu", "validate_fault_remote_cpu"})
    result.push_back({device, "DeviceImports", "nobody else has memory where it allocates"});
  for (const char* device : {"cuda", "cuda_full_edges", "validate_cuda"}) {
    result.push_back({device, "Placement", "the hardware places blocks"});
    result.push_back({device, "Prefetch", "kernels load ahead themselves; no host counts it"});
    result.push_back({device, "DeviceImports", "an array of the host is no memory of the GPU"});
  }
  return result;
}

/// Where a GPU is to be tested, the others have been elsewhere.
std::vector<DeviceCase> cuda_devices() {
  return {
      {"cuda", [] { return cuda_device(); }},
      {"cuda_full_edges", [] { return cuda_device(true); }},
      {"validate_cuda", [] { return make_validate(cuda_device()); }},
  };
}

}  // namespace

const std::vector<DeviceCase>& devices() {
  static const std::vector<DeviceCase> kCuda =
      cuda_under_test().empty() ? std::vector<DeviceCase>() : cuda_devices();
  if (!kCuda.empty()) return kCuda;
  static const std::vector<DeviceCase> kDevices = {
      {"null", [] { return make_null(test_kernels()); }},
      {"cpu_1", [] { return cpu(1); }},
      {"cpu_2", [] { return cpu(2); }},
      {"cpu_2_awake", [] { return cpu_awake(2); }},
      {"cpu_4", [] { return cpu(4); }},
      {"cpu_16", [] { return cpu(16); }},
      {"validate_cpu", [] { return make_validate(cpu(2)); }},
      {"validate_fault_cpu", [] { return make_validate(make_fault(cpu(2))); }},
      {"remote_cpu", [] { return make_remote(cpu(2)); }},
      {"validate_remote_cpu", [] { return make_validate(make_remote(cpu(2))); }},
      {"validate_fault_remote_cpu", [] { return make_validate(make_fault(make_remote(cpu(2)))); }},
      {"validate_null", [] { return make_validate(make_null(test_kernels())); }},
  };
  return kDevices;
}

std::string exception(const std::string& device, const std::string& test) {
  for (const Exception& entry : exceptions()) {
    if (entry.device == device && entry.test == test) return entry.reason;
  }
  return {};
}

}  // namespace refrain::backend::testing
