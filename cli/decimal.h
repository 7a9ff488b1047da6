// Integers of options: in decimal, whatever they begin with, and none that is cut to what fits.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <limits>
#include <string>

namespace refrain::cli {

/// For Option::transform of an option of type T: "010" is ten.
template <class T>
CLI::Validator decimal() {
  return {[](std::string& text) -> std::string {
            T value = 0;
            const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
            if (error != std::errc() || end != text.data() + text.size()) {
              return fmt::format("expected an integer in [0, {}], got \"{}\"", std::numeric_limits<T>::max(),
                                 text);
            }
            text = std::to_string(value);
            return {};
          },
          ""};
}

}  // namespace refrain::cli
