// What people's model folders hold that the formats have no room for: other things saved under a file's name, and
// numbers as Python's json writes them.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace refrain {

/// What was saved in place of a file of a model, by its first bytes: "a Git LFS pointer ..." or "a web page". Empty:
/// neither.
std::string_view saved_instead(std::string_view head);

/// A number that strict readers of JSON refuse: NaN, Infinity, or what 64 bits do not hold.
struct ForeignNumber {
  size_t index = 0;  ///< among all numbers of the text, in its order
  std::string text;
};

struct PlainJson {
  std::string text;
  std::vector<ForeignNumber> numbers;
};

/// `text` with 0.5 in place of each such number outside of strings. All else stays, right or wrong.
PlainJson replace_foreign_numbers(std::string_view text);

}  // namespace refrain
