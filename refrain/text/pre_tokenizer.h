// The part `pre_tokenizer` of the pipeline: cuts text into the pieces that the model sees one at a time.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/text/regex.h"

namespace refrain::text {

/// Text and where it is cut. Pieces are never empty.
struct Pieces {
  std::string text;
  std::vector<size_t> ends;  ///< ascending; the last one is text.size()

  /// One piece, or none when `whole` is empty.
  explicit Pieces(std::string whole);
  std::vector<std::string_view> views() const;
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(Pieces& pieces) const = 0;
};

/// `Split`. Isolated: each match and each stretch between matches is a piece. Merged with previous: a match ends
/// the piece that it stands behind.
class SplitPreTokenizer final : public PreTokenizer {
 public:
  enum class Behavior { isolated, merged_with_previous };
  explicit SplitPreTokenizer(Regex regex, Behavior behavior = Behavior::isolated)
      : regex_(std::move(regex)), behavior_(behavior) {}
  void apply(Pieces& pieces) const override;

 private:
  Regex regex_;
  Behavior behavior_;
};

/// `ByteLevel`: optionally a space in front of each piece and GPT-2's split; then bytes become characters.
class ByteLevelPreTokenizer final : public PreTokenizer {
 public:
  ByteLevelPreTokenizer(bool add_prefix_space, bool use_regex);
  void apply(Pieces& pieces) const override;

 private:
  bool add_prefix_space_;
  std::unique_ptr<SplitPreTokenizer> split_;
};

/// One after the other.
class PreTokenizerSequence final : public PreTokenizer {
 public:
  explicit PreTokenizerSequence(std::vector<std::unique_ptr<PreTokenizer>> parts)
      : parts_(std::move(parts)) {}
  void apply(Pieces& pieces) const override;

 private:
  std::vector<std::unique_ptr<PreTokenizer>> parts_;
};

}  // namespace refrain::text
