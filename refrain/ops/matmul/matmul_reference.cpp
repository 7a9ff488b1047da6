// matmul: the reference.
#include "refrain/core/half.h"
#include "refrain/ops/matmul/matmul.h"

namespace refrain::ops {
namespace {

double weight_at(const void* weight, uint32_t dtype, size_t index) {
  switch (static_cast<DType>(dtype)) {
    case DType::bf16:
      return static_cast<const bf16*>(weight)[index].to_float();
    case DType::f16:
      return static_cast<const f16*>(weight)[index].to_float();
    default:
      return static_cast<const float*>(weight)[index];
  }
}

}  // namespace

void matmul_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<MatmulConstants>();
  for (size_t row = 0; row < args.live_rows; ++row) {
    for (size_t output = 0; output < c.outputs; ++output) {
      double sum = 0;
      for (size_t k = 0; k < c.columns; ++k) {
        sum += args.arg<float>(0)[row * c.columns + k] *
               weight_at(args.args[1], c.dtype, output * c.columns + k);
      }
      args.arg<float>(2)[row * c.outputs + output] = static_cast<float>(sum);
    }
  }
}

}  // namespace refrain::ops
