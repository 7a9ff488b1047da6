// What a tokenizer consists of, between its reader (tokenizer_json.cpp) and its use (tokenizer.cpp).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "refrain/text/added_tokens.h"
#include "refrain/text/bpe.h"
#include "refrain/text/decoder.h"
#include "refrain/text/normalizer.h"
#include "refrain/text/pre_tokenizer.h"
#include "refrain/text/tokenizer.h"

namespace refrain::text {

struct Tokenizer::Parts {
  AddedTokens added;
  std::unique_ptr<Normalizer> normalizer;       ///< may be null
  std::unique_ptr<PreTokenizer> pre_tokenizer;  ///< may be null
  std::unique_ptr<Model> model;
  std::unique_ptr<Decoder> decoder;
  std::optional<uint32_t> bos;
};

}  // namespace refrain::text
