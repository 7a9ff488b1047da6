// What a call that must be refused says.
#pragma once

#include <functional>
#include <string>

#include "refrain/core/error.h"

namespace refrain::test {

/// The message of the Expected that `action` throws; any other exception is let through.
template <class Expected = InvalidArgument>
std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const Expected& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace refrain::test
