// The whole road above a device that fails: a model is loaded, prepared and run while the n-th allocation,
// prepare, submit, submission or call fails, for every n until nothing fails. What is thrown is the library's
// own, nothing leaks, nothing hangs, and the next attempt on the same device succeeds.
#include <gtest/gtest.h>

#include <functional>

#include "refrain/core/error.h"
#include "refrain/device/cpu/cpu_device.h"
#include "refrain/device/fault/fault_device.h"
#include "refrain/device/validate/validate_device.h"
#include "refrain/model/program_family.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/layouts.h"

namespace refrain::device::testing {
namespace {

// The token that follows two tokens, by three submissions of two programs.
uint32_t generate(const std::shared_ptr<Backend>& backend) {
  const refrain::Device device(backend, ops::cpu_layouts(), {});
  const model::Model model = model::Model::load(device, "models/tales-qwen3-4bit");
  model::FamilyOptions options;
  options.context_tokens = 64;
  options.capacities = {1, 2};
  model::ProgramFamily family(model, options);
  const model::StepRow rows[] = {{7, 0, 0, 0}, {8, 1, 0, 0}};
  const uint32_t both[] = {0, 1};
  model::StepSequence sequence = family.sequence(0, 2);
  family.submit({rows, {&sequence, 1}, both});
  family.wait(std::chrono::minutes(1));
  const model::StepRow next[] = {{family.sampled(1), 2, 0, 0}};
  sequence = family.sequence(0, 3);
  family.submit({next, {&sequence, 1}, std::span(both).first(1)});
  family.submit_next();
  family.wait(std::chrono::minutes(1));
  return family.sampled(0);
}

struct Kind {
  const char* name;
  uint64_t FaultPlan::*field;
  bool again;  // the device can be used afterwards
};

class FrontFaults : public ::testing::TestWithParam<Kind> {};

TEST_P(FrontFaults, EveryNth) {
  const Kind& kind = GetParam();
  const std::vector<Kernel> kernels = ops::cpu_kernels();
  CpuOptions options;
  options.threads = 2;
  const auto make = [&] { return make_fault(make_cpu(options, kernels)); };
  const uint32_t expected = generate(std::shared_ptr<Backend>(make()));
  uint64_t n = 0;
  for (bool faulted = true; faulted;) {
    ASSERT_LT(++n, 2000u);
    std::unique_ptr<Backend> owned = make();
    Backend* const fault = owned.get();
    const std::shared_ptr<Backend> backend = make_validate(std::move(owned));
    FaultPlan plan;
    plan.*kind.field = n;
    set_faults(*fault, plan);
    bool thrown = false;
    try {
      EXPECT_EQ(generate(backend), expected);
    } catch (const DeviceError&) {
      thrown = true;
    }
    faulted = fault_counts(*fault).faults > 0;
    // A loss at the very end meets the wait of a destructor, which has nobody to tell.
    EXPECT_TRUE(thrown == faulted || (kind.field == &FaultPlan::loss && faulted)) << "n " << n;
    EXPECT_EQ(backend.use_count(), 1) << "n " << n;
    set_faults(*fault, {});
    if (!kind.again && faulted) continue;
    EXPECT_EQ(backend->memory().used_bytes, 0u) << "n " << n << ": leaked";
    EXPECT_EQ(generate(backend), expected) << "n " << n;
  }
  EXPECT_GE(n, 3u) << "the road has several of each";
}

INSTANTIATE_TEST_SUITE_P(Kinds, FrontFaults,
                         ::testing::Values(Kind{"allocation", &FaultPlan::allocation, true},
                                           Kind{"prepare", &FaultPlan::prepare, true},
                                           Kind{"submit", &FaultPlan::submit, true},
                                           Kind{"execution", &FaultPlan::execution, false},
                                           Kind{"loss", &FaultPlan::loss, false}),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace refrain::device::testing
