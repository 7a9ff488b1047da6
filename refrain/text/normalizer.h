// The part `normalizer` of the pipeline: rewrites text before it is split.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace refrain::text {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  /// `text` and the result are valid UTF-8.
  virtual std::string apply(std::string_view text) const = 0;
};

/// Canonical composition, as far as the Python package's own tables know the characters. O(n log n).
class NfcNormalizer final : public Normalizer {
 public:
  std::string apply(std::string_view text) const override;
};

/// `text` with each `from`, which is not empty, as `to`, from the left.
std::string replaced(std::string_view text, std::string_view from, std::string_view to);

/// `Replace` of a string.
class ReplaceNormalizer final : public Normalizer {
 public:
  ReplaceNormalizer(std::string_view from, std::string_view to) : from_(from), to_(to) {}
  std::string apply(std::string_view text) const override { return replaced(text, from_, to_); }

 private:
  std::string from_, to_;
};

/// One after the other.
class NormalizerSequence final : public Normalizer {
 public:
  explicit NormalizerSequence(std::vector<std::unique_ptr<Normalizer>> parts) : parts_(std::move(parts)) {}
  std::string apply(std::string_view text) const override;

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

}  // namespace refrain::text
