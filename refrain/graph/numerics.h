// In which numerics class each op of a plan runs, and that it is one: law 10 as a check.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "refrain/backend/op.h"
#include "refrain/graph/plan_options.h"

namespace refrain::graph {

/// Takes down the classes of a plan's commands. An op whose arguments have the same dtypes and weight formats runs in one
/// class throughout a plan; a member whose values a GroupKernel elides is taken down and not compared, since its bits are
/// seen in those of others alone.
class NumericsBook {
 public:
  /// Throws InvalidArgument, naming op, kernels and classes, where the op runs in another class already.
  void add(const backend::OpCall& call, std::string_view kernel, std::string_view numerics, uint32_t recorded,
           bool elided = false);
  /// Writes PlanReport::numerics and numerics_of.
  void report(PlanReport& report) const;

 private:
  struct Entry {
    const backend::OpSchema* op = nullptr;
    std::vector<backend::ArgumentInfo> types;  // without shapes
    std::string_view numerics, kernel;
    bool elided = false;
  };
  static bool same_types(const Entry& entry, const backend::OpCall& call);

  std::vector<Entry> entries_;
  size_t next_ = 0;           // entry behind the last one met
  std::vector<uint32_t> of_;  // as PlanReport::numerics_of
};

/// Throws InvalidArgument, naming op, kernels and classes, where a command of two like recordings runs in different classes:
/// programs that are to give the same bits, such as those of a model for different numbers of rows. What one plan has
/// rewritten into other ops is not compared: a rewrite keeps the bits.
void require_same_numerics(const PlanReport& first, const PlanReport& other);

}  // namespace refrain::graph
