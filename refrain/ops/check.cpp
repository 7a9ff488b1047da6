// Checks that the schemas of ops share.
#include "refrain/ops/check.h"

#include <fmt/format.h>

#include <limits>
#include <string>

#include "refrain/core/error.h"

namespace refrain::ops {

using backend::ArgumentInfo;
using backend::OpCall;

void fail(const OpCall& call, std::string_view subject, std::string_view expected, std::string_view got) {
  throw InvalidArgument(fmt::format("[{}] {}: expected {}, got {}", call.op->name, subject, expected, got));
}

void fail(const OpCall& call, size_t index, std::string_view expected, std::string_view got) {
  fail(call, call.op->args[index].name, expected, got);
}

void expect_call(const OpCall& call) {
  const auto& specs = call.op->args;
  if (call.args.size() != specs.size()) {
    fail(call, "arguments", fmt::to_string(specs.size()), fmt::to_string(call.args.size()));
  }
  if (call.constants.size() != call.op->constants_bytes) {
    fail(call, "constants", fmt::format("{} bytes", call.op->constants_bytes),
         fmt::format("{} bytes", call.constants.size()));
  }
  for (size_t i = 0; i < specs.size(); ++i) {
    if (!call.args[i].bound && !specs[i].optional) fail(call, i, "an operand", "none");
  }
}

void expect_shape(const OpCall& call, size_t index, const Shape& shape) {
  if (!(call.args[index].shape == shape)) {
    fail(call, index, to_string(shape), to_string(call.args[index].shape));
  }
}

void expect_rank(const OpCall& call, size_t index, size_t least, size_t most, std::string_view described) {
  const Shape& shape = call.args[index].shape;
  bool good = shape.rank() >= least && shape.rank() <= most;
  for (const int64_t dim : shape.dims())
    good = good && dim > 0 && dim <= std::numeric_limits<uint32_t>::max();
  if (!good) fail(call, index, described, to_string(shape));
}

namespace {

std::string_view use_name(backend::Use use) {
  switch (use) {
    case backend::Use::matvec:
      return "matvec";
    case backend::Use::matmul:
      return "matmul";
    case backend::Use::gather:
      return "gather";
    case backend::Use::vector:
      return "vector";
  }
  return "unknown";
}

}  // namespace

void expect_weight(const OpCall& call, size_t index, std::initializer_list<backend::Use> uses) {
  const ArgumentInfo& argument = call.args[index];
  if (argument.weight == nullptr || argument.layout == nullptr)
    fail(call, index, "a weight", "a buffer or a temp");
  bool served = false;
  std::string use_names;
  for (const backend::Use use : uses) {
    served = served || argument.layout->accepts(*argument.weight, {use});
    use_names += (use_names.empty() ? "" : " or ");
    use_names += use_name(use);
  }
  if (!served) {
    fail(call, index, fmt::format("a weight packed for {}", use_names),
         fmt::format("layout {}", argument.layout->name));
  }
}

void expect_constant(const OpCall& call, std::string_view field, uint64_t expected, uint64_t got) {
  if (expected != got) fail(call, field, fmt::to_string(expected), fmt::to_string(got));
}

uint64_t argument_bytes(const ArgumentInfo& argument) {
  if (!argument.bound) return 0;
  if (argument.layout != nullptr) return argument.layout->packed_bytes(*argument.weight);
  const DType dtype = argument.dtype == DType::activation ? DType::f32 : argument.dtype;
  return static_cast<uint64_t>(argument.shape.elements()) * size_bytes(dtype);
}

uint32_t dimension(const Shape& shape, size_t axis) {
  return axis < shape.rank() ? static_cast<uint32_t>(shape[axis]) : 0;
}

void expect_elementwise(const backend::OpCall& call) {
  expect_call(call);
  expect_rank(call, 0, 1, Shape::kMaxRank, "[rows, ...]");
  const Shape& shape = call.args[0].shape;
  for (size_t i = 1; i < call.args.size(); ++i) expect_shape(call, i, shape);
  if (shape.elements() / shape[0] > std::numeric_limits<uint32_t>::max())
    fail(call, size_t{0}, "rows of fewer than 2^32 elements", to_string(shape));
}

void complete_elementwise(const backend::OpCall& call, std::byte* constants) {
  const Shape& shape = call.args[0].shape;
  *reinterpret_cast<ElementwiseConstants*>(constants) = {dimension(shape, 0),
                                                         static_cast<uint32_t>(shape.elements() / shape[0])};
}

uint32_t elementwise_units(const backend::OpCall& call) {
  return call.constants_as<ElementwiseConstants>().columns;
}

}  // namespace refrain::ops
