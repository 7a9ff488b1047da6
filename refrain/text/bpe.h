// Byte-pair encoding: joins the characters of a piece along a ranked list of merges. Where the ByteLevel
// pre-tokenizer has written bytes as characters, it knows nothing of that.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "refrain/text/vocabulary.h"

namespace refrain::text {

/// The part `model` of the pipeline: a piece of text becomes ids. Implementations are immutable.
class Model {
 public:
  virtual ~Model() = default;
  virtual const Vocabulary& vocabulary() const = 0;
  /// Appends the ids of each of `pieces`, which are valid UTF-8.
  virtual void tokenize(std::span<const std::string_view> pieces, std::vector<uint32_t>& ids) const = 0;
};

struct BpeOptions {
  bool ignore_merges = false;  ///< a piece that is a token needs no merges
  /// What a character outside the vocabulary becomes; without one it vanishes.
  std::optional<uint32_t> unknown{};
  /// In quotes, one that is no token: a character outside the vocabulary is then an error. Empty: there is none such.
  std::string missing_unknown{};
  bool fuse_unknown = false;  ///< neighbouring unknown characters become one token
  /// Of the 256 bytes, as which a character outside the vocabulary is then spelled. Empty: none.
  std::vector<uint32_t> byte_ids{};
};

/// A piece of n characters takes O(n log n): pairs wait in a heap ordered by rank, then position.
class Bpe final : public Model {
 public:
  using Merge = std::pair<std::string_view, std::string_view>;

  /// `merges` in the order of their rank. Throws InvalidArgument naming the merge whose parts, or whose
  /// result, are not tokens.
  Bpe(Vocabulary vocabulary, std::span<const Merge> merges, const BpeOptions& options);

  const Vocabulary& vocabulary() const override { return vocabulary_; }
  /// Throws InvalidArgument for a character outside the vocabulary where the unknown token is no token.
  void tokenize(std::span<const std::string_view> pieces, std::vector<uint32_t>& ids) const override;

 private:
  struct Slot {
    uint64_t pair = kEmpty;  // left id << 32 | right id
    uint32_t rank = 0;
    uint32_t joined = 0;
  };
  struct Symbol;
  struct Candidate;
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  static constexpr uint32_t kNoId = ~uint32_t{0};
  static constexpr size_t kDirectCharacters = 0x400;  // covers the 256 characters that stand for bytes

  const Slot* find(uint32_t left, uint32_t right) const;
  size_t first_slot(uint64_t pair) const;
  void insert(uint64_t pair, uint32_t rank, uint32_t joined);
  uint32_t character_id(std::string_view character, char32_t code_point) const;
  void append_symbols(std::string_view piece, std::vector<Symbol>& symbols) const;
  void merge(std::vector<Symbol>& symbols, std::vector<Candidate>& heap) const;

  Vocabulary vocabulary_;
  BpeOptions options_;
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
  std::array<uint32_t, kDirectCharacters> characters_{};
};

}  // namespace refrain::text
