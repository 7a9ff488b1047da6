// What a rewrite is: one op's call as several of other ops, so that a backend need not have a kernel for all of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string_view>
#include <vector>

#include "refrain/backend/op.h"

namespace refrain::backend {

struct DeviceInfo;

/// What a rewrite may know beside the call.
struct RewriteTarget {
  const DeviceInfo& info;
  uint32_t splits = 0;  ///< PlanOptions::splits; 0: as the device does best
};

/// What an argument of a new command is.
struct RewriteArgument {
  enum class Kind : uint8_t { none, of_call, value };
  Kind kind = Kind::none;  ///< none: left unbound
  uint32_t index = 0;

  /// Argument `index` of the call, bound as there.
  static constexpr RewriteArgument of_call(uint32_t index) { return {Kind::of_call, index}; }
  /// A value that Replacement::value() has made.
  static constexpr RewriteArgument value(uint32_t index) { return {Kind::value, index}; }
};

/// The commands that stand for a call, in their order, and the values between them.
struct Replacement {
  struct Value {
    DType dtype = DType::f32;
    Shape shape;
  };
  struct Command {
    const OpSchema* op = nullptr;
    std::vector<RewriteArgument> args;  ///< in the order of the schema
    std::vector<std::byte> constants;
  };
  std::vector<Value> values;
  std::vector<Command> commands;

  uint32_t value(DType dtype, const Shape& shape) {
    values.push_back({dtype, shape});
    return static_cast<uint32_t>(values.size() - 1);
  }
  template <class Constants>
  void command(const OpSchema& op, std::initializer_list<RewriteArgument> args, const Constants& constants) {
    Command& made = commands.emplace_back();
    made.op = &op;
    made.args = args;
    made.constants.resize(sizeof(constants));
    std::memcpy(made.constants.data(), &constants, sizeof(constants));
  }
};

/// One row of a backend's table of rewrites. Of the rows of an op, the first that replaces a call does; what it makes is
/// not rewritten again. Commands with row arguments have the call's live count, for as many rows.
///
/// It may touch the call's arguments only as the call's schema does: read what is `in`, accumulate into what is
/// `accumulate`; what is `out` it writes before it reads it. A call whose kernel is of another numerics class than
/// those of the new commands stays whole, and so does one that works in place.
struct Rewrite {
  std::string_view name;  ///< "split_attention"
  const OpSchema* op = nullptr;
  /// Adds the commands to `replacement`, which is empty. False: the call stays as it is.
  bool (*rewrite)(const OpCall& call, const RewriteTarget& target, Replacement& replacement) = nullptr;
};

}  // namespace refrain::backend
