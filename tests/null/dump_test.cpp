// Plans as text: what a person reads, to the letter.
#include "refrain/graph/dump.h"

#include <gtest/gtest.h>

#include "tests/null/fusible_ops.h"
#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

ComputeGraph record(Device& device) {
  const Buffer x = device.buffer(DType::u32, {8, 4}), y = device.buffer(DType::u32, {8, 4});
  const Buffer header = device.buffer(DType::u32, {4});
  const Buffer rows = header.slice(0, 1);
  CommandEncoder encoder = device.encoder();
  encoder.label("first");
  const Temp a = encoder.temp(DType::u32, {8, 4}, rows), b = encoder.temp(DType::u32, {8, 4});
  dispatch(encoder, kRows, std::array{Operand(x.with_live_rows(rows)), Operand(a)}, MixConstants{1, 4, 0, 0});
  dispatch(encoder, kMix, std::array{Operand(y), Operand(), Operand(b)}, MixConstants{4, 32, 0, 32});
  encoder.barrier();
  encoder.label("second");
  dispatch(encoder, kUpdate, std::array{Operand(b), Operand(y.slice(2, 2))}, MixConstants{1, 32, 0, 8});
  encoder.label("");
  dispatch(encoder, kMix, std::array{Operand(y), Operand(a), Operand(y)}, MixConstants{1, 32, 32, 32});
  return encoder.finish();
}

constexpr const char* kGolden =
    R"(   0 level 1   rows "first" rows 8/1 x 1 tiles after
       in a memory 0 [0, 128)
       out output arena [0, 128)
       in live rows memory 1 [0, 4)
   1 level 1   mix_scratch "first" rows 1/1 x 1 tiles after
       in a memory 2 [0, 128)
       out output arena [128, 256)
       out scratch arena [256, 384)
   2 level 1   fence "first" after 0 1
   3 level 2   update "second" rows 1/1 x 1 tiles after 2
       in a arena [128, 256)
       inout target memory 2 [32, 64)
   4 level 3   mix rows 1/1 x 1 tiles after 3
       in a memory 2 [0, 128)
       in b arena [0, 128)
       out output memory 2 [0, 128)
width 1 levels 2
width 2 levels 1
arena 384 bytes
)";

TEST(Dump, GoldenPlan) {
  Device device = null_device(2);
  const auto [plan, report] = device.plan(record(device));
  EXPECT_EQ(graph::dump(plan.data()), kGolden);
  EXPECT_EQ(
      graph::dump(report),
      "recorded_commands 4\nrecorded_levels 3\nfused_levels 3\nnumerics rows of u32, u32: test by rows\n"
      "numerics mix of u32, u32: test by mix_scratch\nnumerics update of u32, u32: test by update\n"
      "numerics mix of u32, u32, u32: test by mix\ncommands 4\nedges 4\nconflicts "
      "1\nlevels 3\nmoved 0\nbarriers_before 2\nbarriers 2\ntemp_bytes 384\nscratch_bytes "
      "128\narena_bytes 384\n");
}

TEST(Dump, EqualPlansGiveEqualText) {
  Device device = null_device(2);
  device.buffer(DType::u8, {100});  // other allocation ids than in the other test
  EXPECT_EQ(graph::dump(device.plan(record(device)).first.data()), kGolden);
  EXPECT_EQ(graph::dump(device.plan(record(device)).first.data()), kGolden);
}

TEST(Dump, AGroupHasALineForEachComponent) {
  Device device(backend::make_null(fusible_kernels(), 0, 2), {}, {});
  const Buffer x = device.buffer(DType::u32, {4, 6}), w = device.buffer(DType::u32, {1}),
               y = device.buffer(DType::u32, {4, 6}), z = device.buffer(DType::u32, {4, 6});
  CommandEncoder e = device.encoder();
  e.label("layer \"0\"\nof 1");  // a label stays within its line
  const Temp h = e.temp(DType::u32, {4, 6}), a = e.temp(DType::u32, {4, 6});
  dispatch(e, kNorm, std::array{Operand(x), Operand(h)}, RowConstants{7, 6, 1, 0});
  dispatch(e, kProject, std::array{Operand(h), Operand(w), Operand(a)}, RowConstants{7, 6, 6, 6});
  dispatch(e, kProject, std::array{Operand(h), Operand(w), Operand(y)}, RowConstants{5, 6, 6, 6});
  dispatch(e, kBlend, std::array{Operand(a), Operand(a), Operand(z)}, RowConstants{7, 6, 6, 0});
  const auto [plan, report] = device.plan(e.finish());
  EXPECT_EQ(graph::dump(plan.data()),
            R"(   0 level 1   norm+project*2+blend "layer \"0\"\nof 1" rows 4/2 x 4 tiles after
       prologue norm
       units 6/6 project blend
       units 6/2 project
       in norm.input memory 0 [0, 96)
       in project.weight memory 1 [0, 4)
       out project.output arena [256, 352)
       in project.weight memory 1 [0, 4)
       out project.output memory 2 [0, 96)
       in blend.a arena [256, 352)
       in blend.b arena [256, 352)
       out blend.output memory 3 [0, 96)
       out scratch arena [0, 256)
width 1 levels 1
arena 384 bytes
)");
  EXPECT_NE(graph::dump(report).find("fused norm+project*2+blend: #0 #1 #2 #3\n"), std::string::npos);
}

TEST(Dump, AGroupWithoutAPrologueHasNoLineForOne) {
  Device device(backend::make_null(fusible_kernels(), 0, 2), {}, {});
  const Buffer x = device.buffer(DType::u32, {4, 6}), w = device.buffer(DType::u32, {1}),
               y = device.buffer(DType::u32, {4, 6});
  CommandEncoder e = device.encoder();
  const Temp a = e.temp(DType::u32, {4, 6});
  dispatch(e, kProject, std::array{Operand(x), Operand(w), Operand(a)}, RowConstants{7, 6, 6, 6});
  dispatch(e, kBlend, std::array{Operand(a), Operand(a), Operand(y)}, RowConstants{7, 6, 6, 0});
  EXPECT_EQ(graph::dump(device.plan(e.finish()).first.data()),
            R"(   0 level 1   project+blend rows 4/2 x 1 tiles after
       units 6/6 project blend
       in project.input memory 0 [0, 96)
       in project.weight memory 1 [0, 4)
       out project.output arena [0, 96)
       in blend.a arena [0, 96)
       in blend.b arena [0, 96)
       out blend.output memory 2 [0, 96)
width 1 levels 1
arena 128 bytes
)");
}

TEST(Dump, AnEmptyPlan) {
  Device device = null_device();
  EXPECT_EQ(graph::dump(device.plan(device.encoder().finish()).first.data()), "arena 0 bytes\n");
}

TEST(Lower, NamesTheCallThatNoKernelAccepts) {
  Device device(backend::make_null({}), {}, {});
  CommandEncoder encoder = device.encoder();
  const Buffer a = device.buffer(DType::u32, {2, 3});
  const Temp t = encoder.temp(DType::activation, {6});
  dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(t)}, MixConstants{});
  try {
    device.plan(encoder.finish());
    FAIL() << "expected InvalidArgument";
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "[mix] device null: no kernel accepts a u32[2, 3], output f32[6]");
  }
}

TEST(Lower, TakesTheFirstKernelThatTheFeaturesAllow) {
  for (const uint64_t features : {uint64_t{0}, uint64_t{1} << 63}) {
    Device device(backend::make_null(kKernels, features), {}, {});
    CommandEncoder encoder = device.encoder();
    const Buffer a = device.buffer(DType::u32, {4}), b = device.buffer(DType::u32, {4});
    dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(b)}, MixConstants{1, 4, 0, 4});
    const auto [plan, report] = device.plan(encoder.finish());
    EXPECT_EQ(plan.data().commands[0].kernel->name, features == 0 ? "mix" : "mix_of_the_future");
  }
}

}  // namespace
}  // namespace refrain::null_tests
