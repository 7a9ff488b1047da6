// output = input * weight^T, by the op that reads the weight's format.
#pragma once

#include "refrain/ops/matmul/matmul.h"
#include "refrain/ops/quantized_matmul/quantized_matmul.h"

namespace refrain::model {

/// input f32 [rows, columns of weight], output f32 [rows, rows of weight].
inline void linear(CommandEncoder& encoder, const Operand& input, const Weight& weight,
                   const Operand& output) {
  if (weight.format() == WeightFormat::plain) {
    ops::matmul(encoder, {.input = input, .weight = weight, .output = output});
  } else {
    ops::quantized_matmul(encoder, {.input = input, .weight = weight, .output = output});
  }
}

}  // namespace refrain::model
