// What the config.json files of decoder-only transformers say alike. A family takes what it has of this into its own
// settings; of rotary embeddings: rope_config.h.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <vector>

#include "refrain/format/json.h"
#include "refrain/model/config.h"

namespace refrain::model {

/// What a family takes where the file has no such field. 0: it has to be there.
struct DecoderDefaults {
  uint32_t layers = 0, hidden = 0, heads = 0, intermediate = 0, vocab = 0, context_tokens = 0;
  double rms_norm_eps = 0;
  double rope_theta = 10000;
  uint32_t head_dim = 0;  ///< 0: hidden / heads
  uint32_t kv_heads = 0;  ///< 0: as many as heads, which null stands for in any family
  bool tied = false;
  bool partial_rotation = false;  ///< rope may turn a part of each head
};

/// Of a decoder with grouped-query attention and a gated MLP.
struct DecoderSizes {
  uint32_t layers = 0;
  uint32_t hidden = 0;        ///< width of the residual stream
  uint32_t heads = 0;         ///< query heads
  uint32_t kv_heads = 0;      ///< divides heads
  uint32_t head_dim = 0;      ///< even; heads * head_dim need not be hidden
  uint32_t rotary_dim = 0;    ///< of these, those that rope turns: the first, an even number
  uint32_t intermediate = 0;  ///< width of the MLP
  uint32_t vocab = 0;
  uint32_t context_tokens = 0;
  float rms_norm_eps = 0;
  bool tied_embeddings = false;  ///< the head is the embedding

  /// Throws FileError, also for what would make it another kind of decoder: attention to what follows, layers that
  /// differ.
  explicit DecoderSizes(const format::Json& config, const DecoderDefaults& defaults = {});
  /// The common part of a model of these sizes whose layers all have full attention.
  Config config() const;
};

/// Of the file, or the family's where it has none. Throws FileError.
uint32_t read_context_tokens(const format::Json& config, const DecoderDefaults& defaults);
/// Whether the file has the field, be it null: some families take null for something else than no word.
bool says(const format::Json& config, std::string_view key);
using format::find_block;

/// The type of each layer, one of `known`. Nothing when the field is absent. Throws FileError.
std::optional<std::vector<std::string>> read_layer_types(const format::Json& config, uint32_t layers,
                                                         std::initializer_list<std::string_view> known);
/// Gives their window to the layers of type sliding_attention; without types to those that `slides` names by their number. It is
/// `sliding_window`, or `fallback` where the file does not say it (0: it has to). Throws FileError.
void read_windows(const format::Json& json, Config& config, const std::function<bool(uint32_t)>& slides,
                  uint32_t fallback = 0);
/// Refuses layers of another kind, and windows below the context that would be those of all layers.
void expect_full_attention(const format::Json& config, const DecoderSizes& sizes);
/// A number above 0. Throws FileError.
double read_positive(const format::Json& field);
/// Refuses rope of a part of each head.
void expect_whole_rotation(const format::Json& from);
/// Refuses a field whose value would change the arithmetic in a way that is not provided. Absent is fine.
void expect_off(const format::Json& config, std::string_view key);
void expect_absent(const format::Json& config, std::string_view key);
void expect_string(const format::Json& config, std::string_view key, std::string_view value);

}  // namespace refrain::model
