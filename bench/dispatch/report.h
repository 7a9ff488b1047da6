// A figure a line: `name value unit`.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace refrain::bench {

inline double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

inline std::string threads_suffix(uint32_t threads) {
  return std::string("/").append(std::to_string(threads)).append(threads == 1 ? "_thread" : "_threads");
}

inline void print(const std::string& name, double value, const char* unit) {
  std::printf("%s %.*f %s\n", name.c_str(), value < 10 ? 2 : value < 100 ? 1 : 0, value, unit);
  std::fflush(stdout);
}

}  // namespace refrain::bench
