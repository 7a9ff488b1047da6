// What the tables of kernels promise as a whole.
#include "refrain/ops/kernel_tables.h"

#include <gtest/gtest.h>

#include <array>
#include <span>

#include "refrain/ops/ops.h"
#include "refrain/ops/testing.h"

namespace refrain::ops {
namespace {

/// When all tests of the program have run, so has every kernel of every op on the tested device.
class EveryKernelIsTested : public testing::Environment {
  void TearDown() override {
    if (GTEST_FLAG_GET(filter) != "*") return;
    for (const backend::OpSchema* op : all_schemas()) {
      for (const backend::Kernel* kernel : harness::kernels_of(*op))
        EXPECT_TRUE(harness::kernels_run().contains(kernel)) << "no test runs " << kernel->name;
    }
  }
};
const auto* const kEveryKernelIsTested = testing::AddGlobalTestEnvironment(new EveryKernelIsTested);

TEST(KernelTables, WhoeverClaimsRegionsHasThem) {
  size_t with_regions = 0;
  for (const auto& table : {cpu_kernels(), null_kernels()}) {
    for (const backend::Kernel& kernel : table) {
      const auto& entry = *static_cast<const backend::TileKernel*>(kernel.entry);
      if (!kernel.regions) continue;
      ++with_regions;
      EXPECT_NE(entry.region, nullptr) << kernel.name;
      EXPECT_GT(kernel.unit_granule, 0u) << kernel.name;
    }
  }
  EXPECT_GT(with_regions, 0u);
}

TEST(KernelTables, AllKernelsOfAnOpComputeRegionsOrNone) {
  // Otherwise it would depend on the machine what is fused.
  for (const backend::Kernel& kernel : cpu_kernels()) {
    EXPECT_EQ(kernel.regions, kernel.op->units != nullptr) << kernel.name;
  }
}

TEST(KernelTables, ABlockOfRowsIsOfAboutAsManyElements) {
  const auto expect = [](const backend::OpSchema& op, const auto& constants, uint32_t rows_per_block) {
    const backend::OpCall call{&op, {}, std::as_bytes(std::span(&constants, 1))};
    for (const backend::Kernel& kernel : cpu_kernels()) {
      if (kernel.op != &op) continue;
      EXPECT_EQ(kernel.launch(call, harness::machine()).rows_per_block, rows_per_block) << kernel.name;
    }
  };
  for (const auto& [rows, heads, head_dim, rows_per_block] : {std::array{1000u, 2u, 64u, 256u},
                                                              {1000u, 3u, 50u, 218u},
                                                              {10u, 2u, 64u, 10u},
                                                              {10u, 512u, 128u, 1u}}) {
    const KvWriteConstants kv_write{.rows = rows, .kv_heads = heads, .head_dim = head_dim};
    const RopeConstants rope{.rows = rows, .heads = heads, .head_dim = head_dim};
    const GatherRowsConstants gather_rows{.output_rows = rows, .columns = heads * head_dim};
    expect(kv_write_schema, kv_write, rows_per_block);
    expect(rope_schema, rope, rows_per_block);
    expect(gather_rows_schema, gather_rows, rows_per_block);
  }
}

TEST(KernelTables, SchemasWithUnitsSayWhichArgumentsDivide) {
  for (const backend::OpSchema* schema : all_schemas()) {
    bool any = false;
    for (const backend::ArgumentSpec& spec : schema->args) {
      any |= spec.units;
      EXPECT_TRUE(!spec.units || spec.rows) << schema->name << ' ' << spec.name;
    }
    EXPECT_EQ(any, schema->units != nullptr) << schema->name;
    EXPECT_EQ(schema->iteration != backend::Iteration::other, schema->units != nullptr) << schema->name;
  }
}

}  // namespace
}  // namespace refrain::ops
