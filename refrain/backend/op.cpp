#include "refrain/backend/op.h"

#include <string>

#include "refrain/core/error.h"

namespace refrain::backend {
namespace {

// What plans make of activations; one in a recording is any of these.
constexpr DType kActivations[] = {DType::f32, DType::f16, DType::bf16};

bool allows(DTypes dtypes, DType dtype) {
  if (dtype != DType::activation) return dtypes.has(dtype);
  for (const DType activation : kActivations) {
    if (dtypes.has(activation)) return true;
  }
  return false;
}

[[noreturn]] void refuse(const OpCall& call, size_t index) {
  const ArgumentSpec& spec = call.op->args[index];
  std::string expected;
  for (auto dtype = DType::f32; dtype != DType::activation;
       dtype = static_cast<DType>(static_cast<uint8_t>(dtype) + 1)) {
    if (spec.dtypes.has(dtype)) expected += (expected.empty() ? "" : " or ") + std::string(name(dtype));
  }
  const ArgumentInfo& got = call.args[index];
  throw InvalidArgument('[' + std::string(call.op->name) + "] " + std::string(spec.name) + ": expected " +
                        expected + ", got " +
                        (got.weight != nullptr ? "a weight" : std::string(name(got.dtype))));
}

}  // namespace

void check_dtypes(const OpCall& call) {
  for (size_t i = 0; i < call.args.size(); ++i) {
    const DTypes dtypes = call.op->args[i].dtypes;
    const ArgumentInfo& argument = call.args[i];
    if (dtypes.empty() || !argument.bound) continue;
    if (argument.weight != nullptr || !allows(dtypes, argument.dtype)) refuse(call, i);
  }
}

}  // namespace refrain::backend
