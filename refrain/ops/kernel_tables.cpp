// The tables that ops.inc and the files in the folders of ops spell out.
#include "refrain/ops/kernel_tables.h"

#include "refrain/core/shape.h"
#include "refrain/ops/attention_part/attention_part.h"

namespace refrain::ops {

#define OP(name) extern const backend::OpSchema name##_schema;
#include "refrain/ops/ops.inc"
#undef OP

// REFRAIN_CPU_KERNELS: KERNELS(file) for each file NAME_cpu*.cpp that this build has, of each op the best first.
#define KERNELS(file) std::span<const backend::Kernel> file##_kernels();
REFRAIN_CPU_KERNELS
#undef KERNELS

namespace {

bool accept_all(const backend::OpCall&) { return true; }

backend::Launch launch_one(const backend::OpCall& call, const backend::DeviceInfo&) {
  backend::Launch launch;
  for (size_t i = 0; i < call.args.size(); ++i) {
    if (call.op->args[i].rows && call.args[i].bound && call.args[i].shape.rank() > 0) {
      launch.rows = static_cast<uint32_t>(call.args[i].shape[0]);
      launch.rows_per_block = launch.rows;
      break;
    }
  }
  return launch;
}

void no_tiles(const backend::TileArgs&, uint32_t, uint32_t) {}

void no_region(const backend::TileArgs&, uint32_t, uint32_t, uint32_t, uint32_t) {}

constexpr backend::TileKernel kNothing{nullptr, nullptr, no_tiles, no_region};

}  // namespace

std::vector<backend::Kernel> cpu_kernels() {
  std::vector<backend::Kernel> table;
#define KERNELS(file) \
  for (const backend::Kernel& kernel : file##_kernels()) table.push_back(kernel);
  REFRAIN_CPU_KERNELS
#undef KERNELS
  return table;
}

std::vector<backend::Kernel> null_kernels() {
  std::vector<backend::Kernel> table;
  for (const backend::OpSchema* schema : all_schemas()) {
    table.push_back({.name = "nothing",
                     .op = schema,
                     .numerics = "none",
                     .accepts = accept_all,
                     .launch = launch_one,
                     .entry = &kNothing,
                     .regions = true});
  }
  return table;
}

std::span<const backend::Rewrite> rewrites() {
  static constexpr const backend::Rewrite* kFirst = &split_attention;
  return {kFirst, 1};
}

std::span<const backend::OpSchema* const> all_schemas() {
#define OP(name) &name##_schema,
  static constexpr const backend::OpSchema* kSchemas[] = {
#include "refrain/ops/ops.inc"
  };
#undef OP
  return kSchemas;
}

}  // namespace refrain::ops
