// The tables that ops.inc spells out.
#include "refrain/ops/kernel_tables.h"

#include "refrain/core/shape.h"

namespace refrain::ops {

#define OP(name, kernels)                                \
  extern const backend::OpSchema name##_schema;          \
  std::span<const backend::Kernel> name##_cpu_kernels(); \
  std::span<const backend::Kernel> name##_cpu_avx2_kernels();
#include "refrain/ops/ops.inc"
#undef OP

namespace {

void append(std::vector<backend::Kernel>& table, std::span<const backend::Kernel> kernels) {
  table.insert(table.end(), kernels.begin(), kernels.end());
}

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

#if defined(__x86_64__)
#define REFRAIN_APPEND_avx2(name) append(table, name##_cpu_avx2_kernels());
#else
#define REFRAIN_APPEND_avx2(name)
#endif
#define REFRAIN_APPEND_portable(name)

std::vector<backend::Kernel> cpu_kernels() {
  std::vector<backend::Kernel> table;
#define OP(name, kernels) REFRAIN_APPEND_##kernels(name) append(table, name##_cpu_kernels());
#include "refrain/ops/ops.inc"
#undef OP
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

std::span<const backend::OpSchema* const> all_schemas() {
#define OP(name, kernels) &name##_schema,
  static constexpr const backend::OpSchema* kSchemas[] = {
#include "refrain/ops/ops.inc"
  };
#undef OP
  return kSchemas;
}

}  // namespace refrain::ops
