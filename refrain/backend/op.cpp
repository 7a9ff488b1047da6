#include "refrain/backend/op.h"

#include <string>

#include "refrain/core/error.h"

namespace refrain::backend {
namespace {

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
    if (!takes_dtype(call.op->args[i], call.args[i])) refuse(call, i);
  }
}

}  // namespace refrain::backend
