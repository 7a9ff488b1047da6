#include "refrain/text/pre_tokenizer.h"

#include "refrain/text/byte_level.h"

namespace refrain::text {
namespace {

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// Calls `use(piece)` for each piece in turn.
template <class Use>
void for_each_piece(const Pieces& pieces, const Use& use) {
  size_t begin = 0;
  for (const size_t end : pieces.ends) {
    use(std::string_view(pieces.text).substr(begin, end - begin));
    begin = end;
  }
}

}  // namespace

Pieces::Pieces(std::string whole) : text(std::move(whole)) {
  if (!text.empty()) ends.push_back(text.size());
}

std::vector<std::string_view> Pieces::views() const {
  std::vector<std::string_view> out;
  out.reserve(ends.size());
  for_each_piece(*this, [&](std::string_view piece) { out.push_back(piece); });
  return out;
}

void SplitPreTokenizer::apply(Pieces& pieces) const {
  std::vector<size_t> ends;
  ends.reserve(pieces.ends.size() + pieces.text.size() / 4);
  size_t offset = 0;
  const auto cut = [&](size_t at) {
    if (at != (ends.empty() ? 0 : ends.back())) ends.push_back(at);
  };
  for_each_piece(pieces, [&](std::string_view piece) {
    regex_.for_each_match(piece, [&](size_t begin, size_t end) {
      if (behavior_ == Behavior::isolated) cut(offset + begin);
      cut(offset + end);
    });
    offset += piece.size();
    cut(offset);
  });
  pieces.ends = std::move(ends);
}

ByteLevelPreTokenizer::ByteLevelPreTokenizer(bool add_prefix_space, bool use_regex)
    : add_prefix_space_(add_prefix_space),
      split_(use_regex ? std::make_unique<SplitPreTokenizer>(Regex(kGpt2Pattern)) : nullptr) {}

void ByteLevelPreTokenizer::apply(Pieces& pieces) const {
  if (add_prefix_space_) {
    Pieces prefixed{std::string()};
    for_each_piece(pieces, [&](std::string_view piece) {
      if (!piece.starts_with(' ')) prefixed.text.push_back(' ');
      prefixed.text.append(piece);
      prefixed.ends.push_back(prefixed.text.size());
    });
    pieces = std::move(prefixed);
  }
  if (split_) split_->apply(pieces);
  Pieces mapped{std::string()};
  mapped.text.reserve(pieces.text.size() * 2);
  mapped.ends.reserve(pieces.ends.size());
  for_each_piece(pieces, [&](std::string_view piece) {
    append_byte_characters(piece, mapped.text);
    mapped.ends.push_back(mapped.text.size());
  });
  pieces = std::move(mapped);
}

void PreTokenizerSequence::apply(Pieces& pieces) const {
  for (const auto& part : parts_) part->apply(pieces);
}

}  // namespace refrain::text
