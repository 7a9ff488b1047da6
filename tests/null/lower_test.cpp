// What lowering makes of a group: where its members' scratch lies, how its rows are cut into tiles. Nothing is run,
// so that the constants of a call may say what its kernel asks for.
#include "refrain/graph/lower.h"

#include <gtest/gtest.h>

#include <functional>
#include <utility>

#include "tests/null/fusible_ops.h"
#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

constexpr uint32_t kComputeUnits = 3;

/// 2048 operations a unit of a product, 8 of all else; `others`: rows of a block, bytes of scratch, of a row's scratch.
backend::Cost unit_cost(const OpCall& call) {
  const auto& c = call.constants_as<RowConstants>();
  const uint64_t each = call.op->iteration == backend::Iteration::contraction ? 2048 : 8;
  return {0, each * c.units * static_cast<uint64_t>(call.args[0].shape[0])};
}
uint32_t rows_of(const OpCall& call) { return static_cast<uint32_t>(call.args[0].shape[0]); }
backend::Launch blocks_of_rows(const OpCall& call, const backend::DeviceInfo&) {
  return {rows_of(call), call.constants_as<RowConstants>().others, 1, 0};
}
backend::Launch scratch(const OpCall& call, const backend::DeviceInfo&) {
  return {rows_of(call), 1, 1, call.constants_as<RowConstants>().others};
}
backend::Launch row_scratch(const OpCall& call, const backend::DeviceInfo&) {
  backend::Launch launch{rows_of(call), 1, 1, 0};
  launch.row_scratch_bytes = call.constants_as<RowConstants>().others;
  return launch;
}

constexpr OpSchema with_unit_cost(OpSchema schema) {
  schema.cost = unit_cost;
  return schema;
}
constexpr OpSchema kProduct = with_unit_cost(kProject), kTwo = with_unit_cost(kBlend),
                   kInPlace = with_unit_cost(kAccumulate);

std::vector<backend::Kernel> table(uint32_t product_granule = 1, uint32_t blend_granule = 1) {
  backend::Kernel product = row_kernel<project>("product", kProduct), two = row_kernel<blend>("two", kTwo),
                  in_place = row_kernel<accumulate>("in_place", kInPlace);
  product.launch = blocks_of_rows;
  product.unit_granule = product_granule;
  two.launch = scratch;
  two.unit_granule = blend_granule;
  in_place.launch = row_scratch;
  in_place.keeps_rows = true;
  return {row_kernel<norm>("norm", kNorm), product, two, in_place};
}

class LowerGroup : public ::testing::Test {
 protected:
  void open(const std::vector<backend::Kernel>& kernels, const Shape& shape) {
    kernels_ = kernels;
    device_ = Device(backend::make_null(kernels_, 0, kComputeUnits), {}, {});
    shape_ = shape;
    x_ = device_.buffer(DType::u32, shape);
    weight_ = device_.buffer(DType::u32, {1});
  }
  uint32_t columns() const { return static_cast<uint32_t>(shape_[1]); }
  Temp temp(CommandEncoder& e) const { return e.temp(DType::u32, shape_); }
  void norm_of_rows(CommandEncoder& e, const Operand& input, const Operand& output) {
    dispatch(e, kNorm, std::array{input, output}, RowConstants{0, columns(), 1, 0});
  }
  void product(CommandEncoder& e, const Operand& input, const Operand& output, uint32_t units,
               uint32_t rows_per_block = 1) {
    dispatch(e, kProduct, std::array{input, Operand(weight_), output},
             RowConstants{0, columns(), units, rows_per_block});
  }
  void two(CommandEncoder& e, const Operand& a, const Operand& output, uint32_t units,
           uint32_t scratch_bytes = 0) {
    dispatch(e, kTwo, std::array{a, a, output}, RowConstants{0, columns(), units, scratch_bytes});
  }
  void in_place(CommandEncoder& e, const Operand& input, const Operand& target, uint32_t row_scratch_bytes) {
    dispatch(e, kInPlace, std::array{input, target},
             RowConstants{0, columns(), columns(), row_scratch_bytes});
  }

  /// The plan of what must become one group.
  const backend::PlanData& plan(const std::function<void(CommandEncoder&)>& record) {
    CommandEncoder encoder = device_.encoder();
    record(encoder);
    plan_ = device_.plan(encoder.finish()).first;
    EXPECT_EQ(plan_.data().commands.size(), 1u);
    EXPECT_EQ(plan_.data().groups.size(), 1u);
    return plan_.data();
  }
  static size_t scratch_of_a_worker(const backend::PlanData& plan) {
    return plan.commands[0].launch.scratch_bytes;
  }

  std::vector<backend::Kernel> kernels_;
  Device device_ = null_device();
  Shape shape_;
  Buffer x_, weight_;
  Plan plan_;
};

TEST_F(LowerGroup, ScratchThatMembersUseInTurnIsTheGreatestOfThem) {
  open(table(), {4, 6});
  for (const auto& [first, second, all] :
       {std::tuple{256u, 64u, 256u}, {64u, 256u, 256u}, {64u, 65u, 128u}, {0u, 1u, 64u}, {0u, 0u, 0u}}) {
    const backend::PlanData& made = plan([&, a = first, b = second](CommandEncoder& e) {
      const Temp y = temp(e), z = temp(e);
      product(e, x_, y, 6);
      two(e, y, z, 6, a);
      two(e, z, temp(e), 6, b);
    });
    EXPECT_EQ(scratch_of_a_worker(made), all) << first << " and " << second;
    ASSERT_EQ(made.members.size(), 3u);
    for (const backend::FusedMember& member : made.members) EXPECT_EQ(member.scratch_offset_bytes, 0u);
    const backend::PlanCommand& command = made.commands[0];
    EXPECT_EQ(command.scratch_arg == backend::kNone, all == 0);
    if (all == 0) continue;
    const backend::Argument& argument = made.args[command.args.first + command.scratch_arg];
    EXPECT_EQ(argument.view.bytes, size_t{all} * kComputeUnits);
    EXPECT_EQ(argument.access, Access::out);
  }
}

TEST_F(LowerGroup, WhatIsKeptLiesBeforeWhatIsUsedInTurn) {
  open(table(), {4, 6});
  const backend::PlanData& made = plan([&](CommandEncoder& e) {
    const Temp h = temp(e), y = temp(e), z = temp(e);
    norm_of_rows(e, x_, h);
    product(e, h, y, 6, /*rows_per_block=*/3);
    product(e, h, z, 6, /*rows_per_block=*/4);
    in_place(e, y, z, /*row_scratch_bytes=*/50);
    in_place(e, z, y, /*row_scratch_bytes=*/8);
    two(e, y, z, 6, 256);
    two(e, z, temp(e), 6, 64);
  });
  ASSERT_EQ(made.members.size(), 7u);
  EXPECT_EQ(made.commands[0].launch.rows_per_block, 3u) << "the least of the products'";
  EXPECT_EQ(made.groups[0].value_row_bytes, 24u);
  EXPECT_EQ(made.members[0].private_arg, 1u);
  EXPECT_EQ(made.members[1].private_arg, 0u);
  EXPECT_EQ(made.members[2].private_arg, 0u);
  // Each a header of 64 bytes, then three rows: of 24 bytes the value, of 50 and of 8 the two that keep some.
  const size_t value = 64 + 128, first = 64 + 192, second = 64 + 64;
  EXPECT_EQ(made.members[3].scratch_offset_bytes, value);
  EXPECT_EQ(made.members[3].scratch_bytes, first);
  EXPECT_EQ(made.members[4].scratch_offset_bytes, value + first);
  EXPECT_EQ(made.members[4].scratch_bytes, second);
  for (const size_t member : {5u, 6u})
    EXPECT_EQ(made.members[member].scratch_offset_bytes, value + first + second);
  EXPECT_EQ(scratch_of_a_worker(made), value + first + second + 256);
}

TEST_F(LowerGroup, ABlockHasNoMoreRowsThanThereAre) {
  open(table(), {4, 6});
  const backend::PlanData& made = plan([&](CommandEncoder& e) {
    const Temp y = temp(e);
    product(e, x_, y, 6, /*rows_per_block=*/5);
    two(e, y, temp(e), 6);
  });
  EXPECT_EQ(made.commands[0].launch.rows_per_block, 4u);
  EXPECT_EQ(made.commands[0].launch.rows, 4u);
}

TEST_F(LowerGroup, TilesHaveLikeWork) {
  // 2^17 operations are 64 units of a product; with 8 more a unit, 63.75.
  open(table(), {40, 256});
  const backend::PlanData& apart = plan([&](CommandEncoder& e) {
    product(e, x_, temp(e), 256);
    const Temp y = temp(e);
    product(e, x_, y, 256);
    two(e, y, temp(e), 256);
  });
  ASSERT_EQ(apart.components.size(), 2u);
  for (const backend::FusedComponent& component : apart.components) {
    EXPECT_EQ(component.units, 256u);
    EXPECT_EQ(component.units_per_tile, 64u);
  }
  EXPECT_EQ(apart.commands[0].launch.tiles_per_block, 8u);

  // Each 16 rows at once are a pass over the weights more.
  for (const auto& [rows, units_per_tile] : {std::pair{16u, 64u}, {17u, 32u}, {33u, 21u}}) {
    const backend::PlanData& rows_at_once = plan([&, count = rows](CommandEncoder& e) {
      const Temp y = temp(e);
      product(e, x_, y, 256, count);
      two(e, y, temp(e), 256);
    });
    EXPECT_EQ(rows_at_once.components[0].units_per_tile, units_per_tile) << rows;
    EXPECT_EQ(rows_at_once.commands[0].launch.tiles_per_block, (256 + units_per_tile - 1) / units_per_tile);
  }
}

TEST_F(LowerGroup, TilesAreOfWholeGranules) {
  // Two units of the blend lie in one of the product: 24 of them are 12, and 48 the least that both do best.
  open(table(/*product_granule=*/16, /*blend_granule=*/24), {4, 512});
  const backend::PlanData& both = plan([&](CommandEncoder& e) {
    const Temp y = temp(e);
    product(e, x_, y, 256);
    two(e, y, temp(e), 512);
  });
  ASSERT_EQ(both.components.size(), 1u);
  EXPECT_EQ(both.components[0].units, 256u) << "the least of its members'";
  EXPECT_EQ(both.members[1].units, 512u);
  EXPECT_EQ(both.components[0].units_per_tile, 96u);
  EXPECT_EQ(both.commands[0].launch.tiles_per_block, 3u);

  open(table(/*product_granule=*/1000), {4, 512});
  const backend::PlanData& whole = plan([&](CommandEncoder& e) {
    const Temp y = temp(e);
    product(e, x_, y, 256);
    two(e, y, temp(e), 256);
  });
  EXPECT_EQ(whole.components[0].units_per_tile, 256u) << "no more than there are";
  EXPECT_EQ(whole.commands[0].launch.tiles_per_block, 1u);
}

}  // namespace
}  // namespace refrain::null_tests
