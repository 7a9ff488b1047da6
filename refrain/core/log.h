// Where the library reports what is neither a result nor an error. Nothing is ever printed.
#pragma once

#include <functional>
#include <string_view>

namespace refrain {

enum class LogLevel { info, warning };

/// Called on the thread that found something to say; must not throw. Empty: nothing is reported.
using LogCallback = std::function<void(LogLevel, std::string_view message)>;

}  // namespace refrain
