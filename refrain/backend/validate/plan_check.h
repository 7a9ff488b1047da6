// Checks of a PlanData that need nothing but the plan, the device's description and the allocations that live.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "refrain/backend/backend.h"

namespace refrain::backend::validate {

/// What one argument of one command touches. The arena is resolved to its allocation.
struct Touch {
  const Allocation* allocation = nullptr;
  size_t begin = 0;  ///< bytes, half open
  size_t end = 0;
  bool writes = false;
  bool sealed = false;
  std::string where;  ///< command and argument, for messages
};

struct PlanCheck {
  const DeviceInfo& info;
  const ExecutableOptions& options;
  std::function<bool(const Allocation*)> lives;
};

/// Throws InvalidArgument for the first breach; else gives what the plan touches.
std::vector<Touch> check_plan(const PlanData& plan, const PlanCheck& check);

/// True when [offset, offset + bytes) lies within `size`.
inline bool within(size_t offset, size_t bytes, size_t size) {
  return offset <= size && bytes <= size - offset;
}

[[noreturn]] void fail(const std::string& what);

}  // namespace refrain::backend::validate
