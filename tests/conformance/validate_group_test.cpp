// A plan with one thing wrong in a group: validate names it, or it changes no value.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/remote/remote_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/core/error.h"
#include "refrain/device/device.h"
#include "refrain/format/plain.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/layouts.h"
#include "refrain/ops/ops.h"
#include "refrain/ops/step_block.h"
#include "refrain/ops/testing.h"

namespace refrain::backend::testing {
namespace {

constexpr int64_t kRows = 70, kWidth = 32, kHeads = 4, kHeadDim = 8, kOther = 32;
constexpr uint32_t kLive = 66;  // of the second block of rows two are live

/// norm, then q with head norm and rope, and beside it a product with a sum: a prologue, two components, a
/// member that keeps rows in scratch, a shared scratch, a live count.
class ValidateGroup : public ::testing::TestWithParam<bool> {
 protected:
  ValidateGroup() {
    CpuOptions options;
    options.threads = 2;
    kernels_ = ops::cpu_kernels();
    std::unique_ptr<Backend> backend = make_cpu(options, kernels_);
    if (GetParam()) backend = make_remote(std::move(backend));
    backend_ = make_validate(std::move(backend));
    device_ = Device(backend_, ops::cpu_layouts(), {});
    const Buffer live = device_.buffer(DType::u32, {1});
    device_.write(live, std::array{kLive});
    const Buffer x = filled({kRows, kWidth}).with_live_rows(live);
    const Buffer rows = device_.buffer(DType::u32, {kRows, 4}).with_live_rows(live);
    std::vector<uint32_t> positions(4 * kRows);
    for (uint32_t r = 0; r < kRows; ++r) positions[r * 4 + 1] = 3 * r;
    device_.write(rows, positions);
    const Buffer b = filled({kRows, kOther}).with_live_rows(live);
    q_ = filled({kRows, kHeads, kHeadDim}).with_live_rows(live);
    sum_ = filled({kRows, kOther}).with_live_rows(live);

    CommandEncoder e = device_.encoder();
    const Temp h = e.temp(DType::f32, {kRows, kWidth}, live), q = e.temp(DType::f32, {kRows, kWidth}, live),
               q_normed = e.temp(DType::f32, {kRows, kHeads, kHeadDim}, live),
               v = e.temp(DType::f32, {kRows, kOther}, live);
    ops::rms_norm(e, {.input = x, .weight = weight({kWidth}, {Use::vector}), .output = h});
    ops::matmul(e, {h, weight({kWidth, kWidth}, {Use::matvec, Use::matmul}), q});
    ops::matmul(e, {h, weight({kOther, kWidth}, {Use::matvec, Use::matmul}), v});
    ops::rms_norm(e, {.input = q.view({kRows, kHeads, kHeadDim}),
                      .weight = weight({kHeadDim}, {Use::vector}),
                      .output = q_normed});
    ops::rope(e, {.input = q_normed,
                  .rows = rows,
                  .frequencies = weight({kHeadDim / 2}, {Use::vector}),
                  .output = q_});
    ops::add(e, {.a = v, .b = b, .output = sum_});
    PlanOptions plan_options;
    plan_options.check = true;
    plan_options.most_fused_rows = kRows;
    plan_ = device_.plan(e.finish(), plan_options).first;
    arena_ = backend_->allocate({plan_.arena_bytes(), "arena"});
    expected_ = run(plan());
  }
  ~ValidateGroup() override { backend_->release(arena_); }

  Buffer filled(const Shape& shape) {
    Buffer buffer = device_.buffer(DType::f32, shape);
    std::vector<float> values(static_cast<size_t>(shape.elements()));
    for (float& value : values) value = random_.uniform();
    device_.write(buffer, values);
    return buffer;
  }
  Weight weight(const Shape& shape, Uses uses) {
    std::vector<float> values(static_cast<size_t>(shape.elements()));
    for (float& value : values) value = random_.uniform();
    const std::vector<std::byte> bytes = ops::harness::encode(DType::f32, values);
    return device_.pack(format::plain_tensor("weight", DType::f32, shape, bytes), uses);
  }

  const PlanData& plan() const { return plan_.data(); }

  std::vector<float> run(const PlanData& plan) {
    for (const Buffer& buffer : {q_, sum_})
      device_.write(buffer, std::vector(buffer.bytes() / sizeof(float), -7.0f));
    ExecutableOptions options;
    options.arena = {arena_, 0, plan_.arena_bytes()};
    const auto program = backend_->prepare(plan, options);
    EXPECT_TRUE(backend_->wait(backend_->submit({program.get(), {}, {}}), std::chrono::seconds(60)));
    std::vector<float> values = device_.read<float>(q_);
    const std::vector<float> sum = device_.read<float>(sum_);
    values.insert(values.end(), sum.begin(), sum.end());
    return values;
  }

  /// What validate says of a plan; empty when it takes it, and then values are those of the right plan.
  std::string refusal(const PlanData& spoilt) {
    std::vector<float> values;
    try {
      values = run(spoilt);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    EXPECT_EQ(0, std::memcmp(values.data(), expected_.data(), values.size() * sizeof(float)));
    return {};
  }

  ops::harness::Random random_;
  std::vector<Kernel> kernels_;
  std::shared_ptr<Backend> backend_;
  Device device_{make_cpu({}, {}), ops::cpu_layouts(), {}};
  Buffer q_, sum_;
  refrain::Plan plan_;
  const Allocation* arena_ = nullptr;
  std::vector<float> expected_;
};

TEST_P(ValidateGroup, TheRightPlanHasAllThatIsSpoiltBelow) {
  ASSERT_EQ(plan().commands.size(), 1u);
  EXPECT_EQ(title(plan(), plan().commands[0]), "rms_norm+matmul*2+rms_norm+rope+add");
  ASSERT_EQ(plan().components.size(), 2u);
  EXPECT_EQ(plan().commands[0].launch.rows_per_block, 64u);
  EXPECT_GT(plan().members[4].row_scratch_bytes, 0u);
  EXPECT_GT(plan().members[1].scratch_bytes, 0u);
  EXPECT_EQ(refusal(plan()), "");
  EXPECT_EQ(expected_[(kLive - 1) * kWidth + 1] == -7.0f, false);
  EXPECT_EQ(expected_[kLive * kWidth], -7.0f) << "this row is not live";
}

TEST_P(ValidateGroup, NamesWhatIsWrong) {
  const auto refused = [&](const std::string& part, const std::function<void(PlanData&)>& spoil) {
    PlanData spoilt = plan();
    spoil(spoilt);
    EXPECT_NE(refusal(spoilt).find(part), std::string::npos) << part << "\nin " << refusal(spoilt);
  };
  static Kernel other;
  refused("its kind does not exist", [](PlanData& p) { p.commands[0].kind = static_cast<CommandKind>(7); });
  refused("its group does not exist", [](PlanData& p) { p.commands[0].group = kNone; });
  refused("no rows", [](PlanData& p) { p.commands[0].launch.rows = 0; });
  refused("its members leave", [](PlanData& p) { p.groups[0].members.count = UINT32_MAX; });
  refused("its components leave", [](PlanData& p) { p.groups[0].components.first = UINT32_MAX; });
  refused("neither units", [](PlanData& p) { p.components[1].units_per_tile = 0; });
  refused("tiles of a block", [](PlanData& p) { p.components[1].units_per_tile = 1; });
  refused("no kernel", [](PlanData& p) { p.members[2].kernel = nullptr; });
  refused("whole tiles only", [](PlanData& p) {
    other = *p.members[1].kernel;
    other.regions = false;
    p.members[1].kernel = &other;
  });
  refused("where its schema expects them", [](PlanData& p) { p.members[3].args.first += 1; });
  refused("where its schema expects them", [](PlanData& p) {
    // The last member's arguments end behind the array.
    p.args.resize(p.members[5].args.first + 1);
    p.commands[0].args.count = static_cast<uint32_t>(p.args.size()) - p.commands[0].args.first;
  });
  refused("its constants leave", [](PlanData& p) { p.members[3].constants.first = UINT32_MAX - 15; });
  refused("constants: expected", [](PlanData& p) { p.members[3].constants.count -= 1; });
  refused("member 1: units", [](PlanData& p) { p.members[1].units *= 2; });
  refused("member 4: units", [](PlanData& p) { p.members[4].units = 0; });
  refused("do not divide its own", [](PlanData& p) {
    p.components[0].units = 3;
    p.components[0].units_per_tile = 3;
  });
  refused("bytes do not divide", [](PlanData& p) { p.commands[0].launch.rows = 71; });
  refused("its role does not exist", [](PlanData& p) { p.members[5].role = static_cast<MemberRole>(2); });
  refused("its component does not exist", [](PlanData& p) { p.members[5].component = 2; });
  refused("not unit by unit", [](PlanData& p) {
    p.members[2].component = 0;  // the other product, away from its sum
    p.components[0].units = p.components[0].units_per_tile = 4;
  });
  refused("a component has no members",
          [](PlanData& p) { p.members[2].component = p.members[5].component = 0; });
  refused("a prologue without its value", [](PlanData& p) { p.members[0].private_arg = kNone; });
  refused("a prologue with a component", [](PlanData& p) { p.members[0].component = 0; });
  refused("its prologue and value do not agree", [](PlanData& p) {
    p.members[0].private_arg = kNone;
    p.members[0].role = MemberRole::tile;
    p.members[0].component = 0;
    p.components[0].units = p.components[0].units_per_tile = 1;
  });
  refused("its private argument does not exist", [](PlanData& p) { p.members[1].private_arg = 3; });
  refused("its private argument is not read", [](PlanData& p) { p.members[1].private_arg = 2; });
  refused("its private argument is not written", [](PlanData& p) { p.members[0].private_arg = 0; });
  refused("bound, and private",
          [](PlanData& p) { p.args[p.members[1].args.first].view = p.args[p.members[0].args.first].view; });
  refused("not bound", [](PlanData& p) { p.members[1].private_arg = kNone; });
  refused("value: ", [](PlanData& p) { p.groups[0].value_row_bytes /= 2; });
  refused("value: ", [](PlanData& p) { p.groups[0].value_row_bytes = SIZE_MAX / 2; });
  refused("keeps some", [](PlanData& p) { p.members[4].row_scratch_bytes = 0; });
  refused("keeps none", [](PlanData& p) { p.members[1].row_scratch_bytes = 64; });
  refused("too few for the rows", [](PlanData& p) { p.members[4].scratch_bytes -= 64; });
  refused("member 4: scratch: leaves", [](PlanData& p) { p.members[4].scratch_bytes = SIZE_MAX; });
  refused("member 1: scratch: leaves",
          [](PlanData& p) { p.members[1].scratch_offset_bytes = SIZE_MAX - 63; });
  refused("scratch: not aligned", [](PlanData& p) { p.members[1].scratch_offset_bytes += 4; });
  refused("overlaps what another keeps", [](PlanData& p) { p.members[1].scratch_offset_bytes = 0; });
  refused("overlaps what another keeps", [](PlanData& p) { p.members[4].scratch_offset_bytes = 64; });
  refused("times", [](PlanData& p) { p.commands[0].launch.scratch_bytes = size_t{1} << 63; });
  refused("expected access out", [](PlanData& p) {
    p.args[p.commands[0].args.first + p.commands[0].scratch_arg].access = static_cast<Access>(9);
  });
  refused("a fence with arguments", [](PlanData& p) { p.commands[0].kind = CommandKind::fence; });
}

TEST_P(ValidateGroup, AnyFieldWithAnyValueIsRefusedOrChangesNothing) {
  const PlanData& right = plan();
  PlanData spoilt = right;
  uint32_t refused = 0, taken = 0;
  const auto try_values = [&](const std::string& what, auto& field) {
    using T = std::remove_reference_t<decltype(field)>;
    const T value = field;
    const auto number = static_cast<uint64_t>(value);
    for (const uint64_t other :
         {uint64_t{0}, uint64_t{1}, number - 64, number - 1, number + 1, number + 64, number / 2, number * 2,
          uint64_t{kNone} - 63, uint64_t{kNone}, uint64_t{1} << 63, UINT64_MAX - 63, UINT64_MAX}) {
      field = static_cast<T>(other);
      if (field == value) continue;
      SCOPED_TRACE(what + " = " + std::to_string(other) + " for " + std::to_string(number));
      (refusal(spoilt).empty() ? taken : refused) += 1;
    }
    field = value;
  };
  const auto try_range = [&](const std::string& what, Range& range) {
    try_values(what + ".first", range.first);
    try_values(what + ".count", range.count);
  };
  try_range("members", spoilt.groups[0].members);
  try_range("components", spoilt.groups[0].components);
  try_values("value_row_bytes", spoilt.groups[0].value_row_bytes);
  for (FusedComponent& component : spoilt.components) {
    try_values("units", component.units);
    try_values("units_per_tile", component.units_per_tile);
  }
  for (FusedMember& member : spoilt.members) {
    const std::string name(member.kernel->name);
    try_range(name + " args", member.args);
    try_values(name + " constants.count", member.constants.count);  // others of its size would do as well
    try_values(name + " role", member.role);
    try_values(name + " component", member.component);
    try_values(name + " units", member.units);
    try_values(name + " private_arg", member.private_arg);
    try_values(name + " row_scratch_bytes", member.row_scratch_bytes);
    try_values(name + " scratch_offset_bytes", member.scratch_offset_bytes);
    try_values(name + " scratch_bytes", member.scratch_bytes);
  }
  PlanCommand& command = spoilt.commands[0];
  try_range("command args", command.args);
  try_range("command deps", command.deps);
  try_values("kind", command.kind);
  try_values("group", command.group);
  try_values("live_arg", command.live_arg);
  try_values("scratch_arg", command.scratch_arg);
  try_values("rows_per_block", command.launch.rows_per_block);
  try_values("tiles_per_block", command.launch.tiles_per_block);
  try_values("scratch_bytes", command.launch.scratch_bytes);
  // What is taken: another cut into tiles, sizes that only plan a scratch, ranges of nothing.
  EXPECT_GT(refused, 10 * taken);
}

INSTANTIATE_TEST_SUITE_P(Reach, ValidateGroup, ::testing::Bool(),
                         [](const auto& test) { return test.param ? "remote" : "cpu"; });

}  // namespace
}  // namespace refrain::backend::testing
