// The drawing of a plan, as golden text.
#include "refrain/graph/dot.h"

#include <gtest/gtest.h>

#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

TEST(Dot, Golden) {
  Device device = null_device();
  CommandEncoder encoder = device.encoder();
  const Buffer a = device.buffer(DType::u32, {4}), b = device.buffer(DType::u32, {4}),
               c = device.buffer(DType::u32, {4});
  encoder.label("a \"quoted\" \\ label\nin two lines");
  dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(b)}, MixConstants{1, 4, 0, 4});
  encoder.label("");
  dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(c)}, MixConstants{1, 4, 0, 4});
  encoder.barrier();
  dispatch(encoder, kUpdate, std::array{Operand(b), Operand(c)}, MixConstants{1, 4, 0, 4});
  const backend::PlanData plan = graph::make_plan(encoder.finish(), kKernels, device.info(), {}).first;
  EXPECT_EQ(graph::dump_dot(plan), R"(digraph plan {
  node [shape=box, fontname="monospace"];
  c0 [label="0 mix\na \"quoted\" \\ label\nin two lines"];
  c1 [label="1 mix"];
  c2 [label="2 fence", shape=underline, width=4];
  c3 [label="3 update"];
  { rank=same; c0; c1; }  // level 1
  { rank=same; c3; }  // level 2
  c0 -> c2;
  c1 -> c2;
  c2 -> c3;
}
)");
}

TEST(Dot, NothingToDraw) {
  EXPECT_EQ(graph::dump_dot({}), "digraph plan {\n  node [shape=box, fontname=\"monospace\"];\n}\n");
}

TEST(Dot, AnArrowForEachEdge) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    Device device = null_device();
    RandomGraph random(device, 300 + seed, 40);
    const backend::PlanData plan = graph::make_plan(random.finish(), kKernels, device.info(), {}).first;
    const std::string text = graph::dump_dot(plan);
    size_t arrows = 0;
    for (size_t at = text.find("->"); at != std::string::npos; at = text.find("->", at + 1)) ++arrows;
    EXPECT_EQ(arrows, plan.deps.size());
    for (uint32_t i = 0; i < plan.commands.size(); ++i) {
      for (uint32_t d = 0; d < plan.commands[i].deps.count; ++d) {
        const uint32_t dep = plan.deps[plan.commands[i].deps.first + d];
        EXPECT_NE(text.find("  c" + std::to_string(dep) + " -> c" + std::to_string(i) + ";\n"),
                  std::string::npos);
      }
    }
  }
}

}  // namespace
}  // namespace refrain::null_tests
