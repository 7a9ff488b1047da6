#include "refrain/text/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "refrain/core/error.h"
#include "refrain/text/unicode.h"

namespace refrain::text {

namespace {
constexpr uint32_t kNone = ~uint32_t{0};
}

/// A link of the list of what a piece consists of so far; `id` is kNoId once it was joined to its left
/// neighbour.
struct Bpe::Symbol {
  uint32_t id;
  uint32_t previous;
  uint32_t next;
};

struct Bpe::Candidate {
  uint32_t rank;
  uint32_t position;
  uint32_t joined;
  /// std heaps put the greatest first: the one of least rank, then the leftmost.
  bool operator<(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

Bpe::Bpe(Vocabulary vocabulary, std::span<const Merge> merges, const BpeOptions& options)
    : vocabulary_(std::move(vocabulary)), options_(options) {
  if (options.unknown && !vocabulary_.spelling(*options.unknown)) {
    throw InvalidArgument("the unknown token is not a token");
  }
  slots_.resize(std::bit_ceil(merges.size() * 2 + 2));
  std::string joined;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    joined.assign(merges[rank].first).append(merges[rank].second);
    const auto left = vocabulary_.id_of(merges[rank].first), right = vocabulary_.id_of(merges[rank].second);
    const auto result = vocabulary_.id_of(joined);
    if (!left || !right || !result) {
      throw InvalidArgument(fmt::format("merge {}: expected tokens, got {} that is none", rank,
                                        !left    ? "a left part"
                                        : !right ? "a right part"
                                                 : "a result"));
    }
    insert(uint64_t{*left} << 32 | *right, static_cast<uint32_t>(rank), *result);
  }
  std::string character;
  for (char32_t c = 0; c < kDirectCharacters; ++c) {
    character.clear();
    append_utf8(c, character);
    characters_[c] = vocabulary_.id_of(character).value_or(kNoId);
  }
}

size_t Bpe::first_slot(uint64_t pair) const {
  // Fibonacci hashing: 2^64 over the golden ratio spreads neighbouring keys.
  return static_cast<size_t>((pair ^ pair >> 29) * 0x9E3779B97F4A7C15u >> 17) & (slots_.size() - 1);
}

void Bpe::insert(uint64_t pair, uint32_t rank, uint32_t joined) {
  size_t at = first_slot(pair);
  while (slots_[at].pair != kEmpty && slots_[at].pair != pair) at = (at + 1) & (slots_.size() - 1);
  slots_[at] = {pair, rank, joined};  // of a pair that occurs twice the last counts
}

const Bpe::Slot* Bpe::find(uint32_t left, uint32_t right) const {
  const uint64_t pair = uint64_t{left} << 32 | right;
  for (size_t at = first_slot(pair); slots_[at].pair != kEmpty; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].pair == pair) return &slots_[at];
  }
  return nullptr;
}

uint32_t Bpe::character_id(std::string_view character, char32_t code_point) const {
  if (code_point < kDirectCharacters) return characters_[code_point];
  return vocabulary_.id_of(character).value_or(kNoId);
}

void Bpe::append_symbols(std::string_view piece, std::vector<Symbol>& symbols) const {
  const auto add = [&](uint32_t id) {
    const uint32_t index = static_cast<uint32_t>(symbols.size());
    symbols.push_back({id, index == 0 ? kNone : index - 1, index + 1});
  };
  bool after_unknown = false;
  for (size_t position = 0; position < piece.size();) {
    const size_t begin = position;
    const char32_t code_point = next_code_point(piece, position);
    const std::string_view character = piece.substr(begin, position - begin);
    const uint32_t id = character_id(character, code_point);
    const bool unknown = id == kNoId && options_.byte_ids.empty();
    if (id != kNoId) {
      add(id);
    } else if (!unknown) {
      for (const char byte : character) add(options_.byte_ids[static_cast<uint8_t>(byte)]);
    } else if (!options_.missing_unknown.empty()) {
      throw InvalidArgument(fmt::format(
          "[encode] text: expected characters of the vocabulary, which lacks unk_token {}, got U+{:04X}",
          options_.missing_unknown, static_cast<uint32_t>(code_point)));
    } else if (options_.unknown && !(after_unknown && options_.fuse_unknown)) {
      add(*options_.unknown);
    } else {
      continue;
    }
    after_unknown = unknown;
  }
  if (!symbols.empty()) symbols.back().next = kNone;
}

void Bpe::merge(std::vector<Symbol>& symbols, std::vector<Candidate>& heap) const {
  const auto consider = [&](uint32_t left, bool push) {
    const uint32_t right = symbols[left].next;
    if (right == kNone) return;
    const Slot* const slot = find(symbols[left].id, symbols[right].id);
    if (slot == nullptr) return;
    heap.push_back({slot->rank, left, slot->joined});
    if (push) std::push_heap(heap.begin(), heap.end());
  };
  heap.clear();
  for (uint32_t i = 0; i < symbols.size(); ++i) consider(i, false);
  std::make_heap(heap.begin(), heap.end());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate best = heap.back();
    heap.pop_back();
    Symbol& left = symbols[best.position];
    if (left.id == kNoId || left.next == kNone) continue;
    Symbol& right = symbols[left.next];
    // A candidate is stale when a neighbour has been joined to something else meanwhile.
    const Slot* const slot = find(left.id, right.id);
    if (slot == nullptr || slot->joined != best.joined) continue;
    left.id = best.joined;
    left.next = right.next;
    right.id = kNoId;
    if (left.next != kNone) symbols[left.next].previous = best.position;
    if (left.previous != kNone) consider(left.previous, true);
    consider(best.position, true);
  }
}

void Bpe::tokenize(std::span<const std::string_view> pieces, std::vector<uint32_t>& ids) const {
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
  for (const std::string_view piece : pieces) {
    if (options_.ignore_merges) {
      if (const auto id = vocabulary_.id_of(piece)) {
        ids.push_back(*id);
        continue;
      }
    }
    symbols.clear();
    append_symbols(piece, symbols);
    merge(symbols, heap);
    for (const Symbol& symbol : symbols) {
      if (symbol.id != kNoId) ids.push_back(symbol.id);
    }
  }
}

}  // namespace refrain::text
