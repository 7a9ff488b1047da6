// The index of the greatest value of each row.
#pragma once

#include <cstdint>
#include <span>

#include "refrain/device/kernel.h"
#include "refrain/stream/encoder.h"

namespace refrain::ops {

struct Argmax {
  Operand input;
  Operand output;
};

/// Finds the greatest value of each row: output[r] = the least i with input[r, i] = max over j of input[r,
/// j].
///
/// input: f32 [R, V], rows. output: u32 [R], rows.
/// NaNs are never the greatest; a row of nothing but NaNs gives 0. Zeros of either sign are equal.
/// Aliasing: none. Errors: InvalidArgument for shapes that do not fit.
/// Accuracy: exact.
void argmax(CommandEncoder& encoder, const Argmax& args);

struct ArgmaxConstants {
  uint32_t rows = 0;
  uint32_t columns = 0;
};

extern const device::OpSchema argmax_schema;
/// One tile a row.
device::Launch argmax_launch(const device::OpCall& call, const device::DeviceInfo& info);
void argmax_reference(const device::TileArgs& args);
std::span<const device::Kernel> argmax_cpu_kernels();
std::span<const device::Kernel> argmax_cpu_avx2_kernels();

}  // namespace refrain::ops
