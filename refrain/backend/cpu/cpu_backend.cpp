// Joins the parts of the CPU backend: memory, programs, the team, and the scheduler that feeds it.
#include "refrain/backend/cpu/cpu_backend.h"

#include <algorithm>
#include <utility>

#include "refrain/backend/cpu/executable.h"
#include "refrain/backend/cpu/features.h"
#include "refrain/backend/cpu/machine.h"
#include "refrain/backend/cpu/memory.h"
#include "refrain/backend/cpu/scheduler.h"
#include "refrain/backend/cpu/team.h"
#include "refrain/core/error.h"

namespace refrain::backend {
namespace cpu {
namespace {

constexpr uint32_t kMaxThreads = 1024;

DeviceInfo describe(const CpuOptions& options, uint32_t workers) {
  DeviceInfo info;
  info.backend = "cpu";
  info.features = detect_features() & options.features;
  // Each wider set builds on the one before it.
  if ((info.features & kFeatureAvx2) == 0) info.features &= ~uint64_t{kFeatureAvx512};
  if ((info.features & kFeatureAvx512) == 0)
    info.features &= ~uint64_t{kFeatureAvx512Vnni | kFeatureAvx512Bf16};
  info.name = model_name(options.system_root) + ", " + std::to_string(workers) +
              (workers == 1 ? " worker, " : " workers, ") + describe_features(info.features);
  info.queue_count = Scheduler::kQueueCount;
  info.compute_units = workers;
  info.buffer_alignment_bytes = kAlignmentBytes;
  info.ns_per_tick = 1e9 * std::chrono::steady_clock::period::num /
                     static_cast<double>(std::chrono::steady_clock::period::den);
  info.host_memory = true;
  info.composes = true;
  info.most_fused_rows = 8;  // docs/performance.md: from 64 rows on, fusing lost 1 to 10 %
  return info;
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(const CpuOptions& options, const KernelTables& kernel_tables, uint32_t workers, bool crowded)
      : Backend(describe(options, workers), kernel_tables),
        memory_(options.system_root, options.memory_limit_bytes),
        scheduler_([this](const CpuExecutable& program) { team_.start(program); }, options.queue_priorities),
        team_(workers, crowded ? std::chrono::nanoseconds(0) : options.spin, options.spin != kSpinForever,
              [this] { scheduler_.complete(); }) {}

  ~CpuBackend() override { scheduler_.close(); }

  const Allocation* allocate(const BufferSpec& spec) override { return memory_.allocate(spec); }
  void release(const Allocation* allocation) noexcept override { memory_.release(allocation); }

  void advise(std::span<const BufferView> views, Advice advice) override {
    for (const BufferView& view : views) {
      if (view.allocation == nullptr || view.bytes == 0) continue;
      memory_.advise(view, advice);
    }
  }

  MemoryUsage memory() const override { return memory_.usage(); }

  void write(const BufferView& to, std::span<const std::byte> from) override {
    std::ranges::copy(from, host_bytes(to));
  }

  void read(const BufferView& from, std::span<std::byte> to) const override {
    std::copy_n(host_bytes(from), to.size(), to.begin());
  }

  std::unique_ptr<Executable> prepare(const PlanData& plan, const ExecutableOptions& options) override {
    return std::make_unique<CpuExecutable>(plan, options);
  }

  Point submit(const Submission& submission) override {
    const auto& program = static_cast<const CpuExecutable&>(*submission.program);
    return {id, program.queue, scheduler_.submit(program, submission)};
  }

  uint64_t completed(uint32_t queue) const override { return scheduler_.completed(queue); }
  bool wait(const Point& point, std::chrono::nanoseconds timeout) override {
    return scheduler_.wait(point, timeout);
  }
  void signal_host(uint64_t value) override { scheduler_.signal_host(value); }
  void end_host() noexcept override { scheduler_.end_host(); }
  void recover(uint32_t queue) noexcept override { scheduler_.recover(queue); }

  void timestamps(const Executable& program, std::span<TickSpan> spans) const override {
    static_cast<const CpuExecutable&>(program).spans(spans);
  }

 private:
  Memory memory_;
  Scheduler scheduler_;
  Team team_;  // ends before the scheduler that its last worker may still be in
};

}  // namespace
}  // namespace cpu

std::unique_ptr<Backend> make_cpu(const CpuOptions& options, const KernelTables& kernels) {
  if (options.threads > cpu::kMaxThreads) {
    throw InvalidArgument("[make_cpu] threads: expected at most " + std::to_string(cpu::kMaxThreads) +
                          ", got " + std::to_string(options.threads));
  }
  if (options.queue_priorities.size() > cpu::Scheduler::kQueueCount) {
    throw InvalidArgument("[make_cpu] queue_priorities: expected at most " +
                          std::to_string(cpu::Scheduler::kQueueCount) + ", got " +
                          std::to_string(options.queue_priorities.size()));
  }
  const std::vector<uint32_t> cpus = cpu::affinity_cpus();
  const uint32_t workers =
      options.threads != 0 ? options.threads : cpu::choose_workers(cpus, options.system_root);
  return std::make_unique<cpu::CpuBackend>(options, kernels, workers,
                                           workers > cpu::whole_cpus(cpus, options.system_root));
}

}  // namespace refrain::backend
