// The parts of check_plan(), for the two files that define them. Each names the command and the argument that break the
// contract.
#pragma once

#include <string>
#include <vector>

#include "refrain/backend/validate/plan_check.h"

namespace refrain::backend::validate {

inline std::string text(uint64_t value) { return std::to_string(value); }

template <class T>
bool in_array(const Range& range, const std::vector<T>& array) {
  return within(range.first, range.count, array.size());
}

class Checker {
 public:
  Checker(const PlanData& plan, const PlanCheck& check) : plan_(plan), check_(check) {}

  std::vector<Touch> run();

 private:
  std::string name(uint32_t index) const;
  std::string name(uint32_t index, uint32_t argument) const;
  void check_options() const;
  void check_command(uint32_t index);
  void check_kernel(uint32_t index, const Kernel* kernel) const;
  void check_deps(uint32_t index) const;
  void check_launch(uint32_t index) const;
  void check_constants(uint32_t index, const Range& constants, const OpSchema& op) const;
  void check_arguments(uint32_t index);
  void check_extras(uint32_t index, uint32_t count) const;
  void check_bindings(uint32_t index, uint32_t first, const Kernel& kernel, uint32_t private_arg);
  void touch_extras(uint32_t index, uint32_t first);
  Touch resolve(uint32_t index, uint32_t i) const;
  void check_live(uint32_t index) const;
  void check_scratch(uint32_t index) const;
  void check_sealed() const;

  // In group_check.cpp.
  void check_set(uint32_t index);
  void check_group(uint32_t index);
  void check_components(const std::string& where, const FusedGroup& group, const Launch& launch) const;
  void check_member(uint32_t index, const FusedGroup& group, const FusedMember& member,
                    const std::string& whose) const;
  void check_private(const FusedGroup& group, const FusedMember& member, const std::string& whose) const;
  void check_group_scratch(const std::string& where, const FusedGroup& group, const Launch& launch) const;
  void check_sharing(const std::string& where, const FusedGroup& group) const;

  const PlanData& plan_;
  const PlanCheck& check_;
  std::vector<Touch> touches_;
  bool fence_ = false;
};

}  // namespace refrain::backend::validate
