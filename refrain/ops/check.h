// Checks that the schemas of ops share. Each throws InvalidArgument, `[op] argument: expected ..., got ...`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "refrain/backend/op.h"
#include "refrain/core/dtype.h"
#include "refrain/core/shape.h"
#include "refrain/ops/elementwise.h"

namespace refrain::ops {

/// Throws `[op] subject: expected EXPECTED, got GOT`.
[[noreturn]] void fail(const backend::OpCall& call, std::string_view subject, std::string_view expected,
                       std::string_view got);
/// The same for argument `index`.
[[noreturn]] void fail(const backend::OpCall& call, size_t index, std::string_view expected,
                       std::string_view got);

/// As many arguments as the schema has, those bound that are not optional, constants of the right size. First
/// in every check.
void expect_call(const backend::OpCall& call);

/// Argument `index` is a tensor, not a weight, of this dtype. DType::f32 also accepts DType::activation.
void expect_dtype(const backend::OpCall& call, size_t index, DType dtype);
/// Argument `index` has this shape.
void expect_shape(const backend::OpCall& call, size_t index, const Shape& shape);
/// Argument `index` has `least` to `most` dimensions, none of them 0, each below 2^32. `described` names
/// them:
/// "[rows, columns]".
void expect_rank(const backend::OpCall& call, size_t index, size_t least, size_t most,
                 std::string_view described);
/// A tensor of this dtype and shape.
void expect_tensor(const backend::OpCall& call, size_t index, DType dtype, const Shape& shape);
/// Argument `index` is a Weight packed for one of `uses`.
void expect_weight(const backend::OpCall& call, size_t index, std::initializer_list<backend::Use> uses);
/// A field of the constants has the value that the shapes imply.
void expect_constant(const backend::OpCall& call, std::string_view name, uint64_t expected, uint64_t got);
/// The constant `format` is that of argument `index`, a Weight.
void expect_format(const backend::OpCall& call, size_t index, const WeightFormat* got);

/// Bytes of a bound argument with all rows live: a tensor's elements (activations as f32), a weight's packed
/// form.
uint64_t argument_bytes(const backend::ArgumentInfo& argument);

/// Dimension `axis` as a kernel constant; 0 when there is no such axis (the check then says what is wrong).
uint32_t dimension(const Shape& shape, size_t axis);

/// What the shape of an elementwise op's argument implies: [rows, ...].
ElementwiseConstants elementwise_constants(const Shape& shape);
/// Arguments 0 and 1, which are read, and 2, which is written, are f32 of one shape [rows, ...], and the
/// constants are those of it.
void expect_elementwise_pair(const backend::OpCall& call);
/// The call's ElementwiseConstants are these, and a row has fewer than 2^32 elements.
void expect_elementwise_constants(const backend::OpCall& call, const Shape& shape);

}  // namespace refrain::ops
