// Checks that the schemas of ops share. Each throws InvalidArgument, `[op] argument: expected ..., got ...`. Of dtypes
// they say nothing: those are checked before, by what the schema lists (backend::check_dtypes).
#pragma once

#include <array>
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

/// Argument `index` has this shape.
void expect_shape(const backend::OpCall& call, size_t index, const Shape& shape);
/// Argument `index` has `least` to `most` dimensions, none of them 0, each below 2^32. `described` names
/// them:
/// "[rows, columns]".
void expect_rank(const backend::OpCall& call, size_t index, size_t least, size_t most,
                 std::string_view described);
/// Argument `index` is a Weight packed for one of `uses`.
void expect_weight(const backend::OpCall& call, size_t index, std::initializer_list<backend::Use> uses);
/// A field of the constants has the value that the shapes imply.
void expect_constant(const backend::OpCall& call, std::string_view name, uint64_t expected, uint64_t got);

/// Bytes of a bound argument with all rows live: a tensor's elements (activations as f32), a weight's packed
/// form.
uint64_t argument_bytes(const backend::ArgumentInfo& argument);

/// Dimension `axis` as a kernel constant; 0 when there is no such axis (the check then says what is wrong).
uint32_t dimension(const Shape& shape, size_t axis);

/// The arguments of an elementwise op of two: the output may be in the place of either.
constexpr std::array<backend::ArgumentSpec, 3> binary_args(std::string_view a, std::string_view b) {
  constexpr auto argument = [](std::string_view name, backend::Access access, uint32_t in_place) {
    return backend::ArgumentSpec{.name = name,
                                 .access = access,
                                 .rows = true,
                                 .in_place = in_place,
                                 .units = true,
                                 .dtypes = {DType::f32}};
  };
  return {argument(a, backend::Access::in, 0), argument(b, backend::Access::in, 0),
          argument("output", backend::Access::out, 0b11)};
}

/// The arguments of an elementwise op of one: the output may be in the input's place.
inline constexpr backend::ArgumentSpec kUnaryArgs[] = {
    {.name = "input", .access = backend::Access::in, .rows = true, .units = true, .dtypes = {DType::f32}},
    {.name = "output",
     .access = backend::Access::out,
     .rows = true,
     .in_place = 0b1,
     .units = true,
     .dtypes = {DType::f32}},
};

/// All arguments are f32 of one shape [rows, ...], a row has fewer than 2^32 elements.
void expect_elementwise(const backend::OpCall& call);

/// OpSchema::complete by a function that knows the constants' type.
template <class Constants, void (*Complete)(const backend::OpCall&, Constants&)>
void complete_as(const backend::OpCall& call, std::byte* constants) {
  Complete(call, *reinterpret_cast<Constants*>(constants));
}

/// OpSchema::complete and cost of elementwise ops: constants that are or begin with ElementwiseConstants; `Flops` an element.
void complete_elementwise(const backend::OpCall& call, std::byte* constants);
uint32_t elementwise_units(const backend::OpCall& call);
template <uint64_t Flops>
backend::Cost elementwise_cost(const backend::OpCall& call) {
  const auto elements = static_cast<uint64_t>(call.args[0].shape.elements());
  return {call.args.size() * elements * sizeof(float), Flops * elements};
}

}  // namespace refrain::ops
