#include "tests/conformance/cuda_device.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "refrain/backend/cuda/loader.h"
#include "refrain/core/error.h"
#include "tests/conformance/test_kernels.h"

namespace refrain::backend::testing {
namespace {

struct Opened {
  std::vector<Kernel> kernels;
  std::unique_ptr<Backend> backend;
};

Opened open_test_plugin(bool full_edges) {
  std::vector<const OpSchema*> schemas;
  for (const Kernel& kernel : test_kernels()) schemas.push_back(kernel.op);
  // Beside this program.
  const std::string name = "librefrain_cuda_test.so";
  const std::string program = "/proc/self/exe";
  char path[4096];
  const ssize_t size = readlink(program.c_str(), path, sizeof(path));
  std::string folder(path, size > 0 ? static_cast<size_t>(size) : 0);
  folder.resize(folder.rfind('/') + 1);
  const cuda::Plugin& plugin = cuda::open_plugin(folder + name);
  Opened opened;
  opened.kernels = cuda::bind_plugin(plugin, schemas, {}).kernels;
  cuda::CudaOptions options;
  options.ordinal = static_cast<uint32_t>(std::stoul(cuda_under_test().substr(5)));
  options.full_edges = full_edges;
  opened.backend = plugin.open(options, opened.kernels);
  return opened;
}

/// A plan whose kernels are the device's.
class ReboundExecutable final : public Executable {
 public:
  ReboundExecutable(Backend& inner, const PlanData& plan, const ExecutableOptions& options) : plan_(plan) {
    for (PlanCommand& command : plan_.commands) {
      if (command.kind != CommandKind::kernel) continue;
      const auto found = std::ranges::find_if(
          inner.kernels, [&](const Kernel& kernel) { return kernel.name == command.kernel->name; });
      if (found == inner.kernels.end()) throw DeviceError("no kernel " + std::string(command.kernel->name));
      command.kernel = &*found;
    }
    inner_ = inner.prepare(plan_, options);
  }
  const Executable& inner() const { return *inner_; }

 private:
  PlanData plan_;
  std::unique_ptr<Executable> inner_;
};

class ReboundBackend final : public Backend {
 public:
  explicit ReboundBackend(Opened opened)
      : Backend(opened.backend->info, opened.backend->kernels),
        opened_(std::move(opened)),
        inner_(*opened_.backend) {}

  const Allocation* allocate(const BufferSpec& spec) override { return inner_.allocate(spec); }
  void release(const Allocation* allocation) noexcept override { inner_.release(allocation); }
  void advise(std::span<const BufferView> views, Advice advice) override { inner_.advise(views, advice); }
  MemoryUsage memory() const override { return inner_.memory(); }
  void write(const BufferView& to, std::span<const std::byte> from) override { inner_.write(to, from); }
  void read(const BufferView& from, std::span<std::byte> to) const override { inner_.read(from, to); }
  std::unique_ptr<Executable> prepare(const PlanData& plan, const ExecutableOptions& options) override {
    return std::make_unique<ReboundExecutable>(inner_, plan, options);
  }
  Point submit(const Submission& submission) override {
    const Executable& program = static_cast<const ReboundExecutable&>(*submission.program).inner();
    const Point point = inner_.submit({&program, submission.updates, submission.waits, submission.after});
    return {id, point.queue, point.value};
  }
  uint64_t completed(uint32_t queue) const override { return inner_.completed(queue); }
  bool wait(const Point& point, std::chrono::nanoseconds timeout) override {
    return inner_.wait(point, timeout);
  }
  void signal_host(uint64_t value) override { inner_.signal_host(value); }
  void end_host() noexcept override { inner_.end_host(); }
  void recover(uint32_t queue) noexcept override { inner_.recover(queue); }
  void timestamps(const Executable& program, std::span<TickSpan> spans) const override {
    inner_.timestamps(static_cast<const ReboundExecutable&>(program).inner(), spans);
  }

 private:
  Opened opened_;
  Backend& inner_;
};

}  // namespace

std::string cuda_under_test() {
  const char* const device = std::getenv("REFRAIN_TEST_DEVICE");
  return device != nullptr && std::string_view(device).starts_with("cuda:") ? device : "";
}

std::unique_ptr<Backend> cuda_device(bool full_edges) {
  return std::make_unique<ReboundBackend>(open_test_plugin(full_edges));
}

}  // namespace refrain::backend::testing
