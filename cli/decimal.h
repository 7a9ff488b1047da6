// Numbers of options: in decimal, whatever they begin with, and none that is cut to what fits.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <limits>
#include <string>
#include <type_traits>

namespace refrain::cli {

/// For Option::transform of an option of type T, an unsigned integer or a float: "010" is ten.
template <class T>
CLI::Validator decimal() {
  return {[](std::string& text) -> std::string {
            T value = 0;
            const char* const end = text.data() + text.size();
            const auto [stop, error] = std::from_chars(text.data(), end, value);
            if (error == std::errc() && stop == end) {
              text = fmt::format("{}", value);
              return {};
            }
            if constexpr (std::is_integral_v<T>) {
              return fmt::format("expected an integer in [0, {}], got \"{}\"", std::numeric_limits<T>::max(),
                                 text);
            } else {
              return fmt::format("expected a decimal number that a float holds, got \"{}\"", text);
            }
          },
          ""};
}

}  // namespace refrain::cli
