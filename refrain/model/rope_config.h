// What config.json files say of rotary position embeddings: how the angles grow with the position.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <vector>

#include "refrain/format/json.h"
#include "refrain/model/decoder_config.h"

namespace refrain::model {

struct RopeSettings {
  enum class Scaling { none, linear, dynamic, llama3, yarn, longrope };
  double theta = 10000.0;
  Scaling scaling = Scaling::none;
  double factor = 1;  ///< by which frequencies shrink
  // Of llama3; without them all shrink.
  double low_freq_factor = 0, high_freq_factor = 1;
  uint32_t original_context_tokens = 0;  ///< of llama3, yarn and longrope; 0: the model's
  double attention_factor = 1;           ///< of cosines and sines, with yarn and longrope
  // Of yarn: pairs that turn so often in the original context stay, or shrink; between them, rounded outwards, both mix.
  double beta_fast = 32, beta_slow = 1;
  bool truncate = true;
  // Of longrope: by which the frequency of each pair shrinks, in a context up to the original one and in a longer one.
  std::vector<double> short_factors, long_factors;

  bool needs_original() const { return scaling == Scaling::llama3 || scaling == Scaling::yarn; }
  bool operator==(const RopeSettings&) const = default;
};

/// From the blocks on a type of layers that are there, which have to agree, and `theta` beside them; theta is `fallback`
/// where neither says it. `config`: the file, for its context. Throws FileError for a scaling that is not provided, and
/// for blocks within these.
RopeSettings read_rope(const format::Json& config, const DecoderDefaults& defaults,
                       std::initializer_list<std::optional<format::Json>> blocks,
                       const std::optional<format::Json>& theta, double fallback);
/// From `rope_parameters`, `rope_scaling` and `rope_theta`, of all layers.
RopeSettings read_rope(const format::Json& config, const DecoderDefaults& defaults = {});
/// Of Phi-3, whose rope is plain or scaled by "longrope" from `original_tokens` on, and turns `dim` elements of a head.
RopeSettings read_longrope(const format::Json& config, const DecoderDefaults& defaults, uint32_t dim,
                           uint32_t original_tokens);
/// How many elements of a head of `head_dim` turn, by `partial_rotary_factor` in a block on rope or beside them.
uint32_t read_rotary_dim(const format::Json& config, uint32_t head_dim);
/// The block of a type of layers in `rope_parameters`, which then holds "full_attention" and "sliding_attention" alone.
std::optional<format::Json> find_rope_of(const format::Json& config, std::string_view layer_type);
/// `rope_scaling` of such a family, which older files have for full attention. Throws FileError where it names its type as
/// files older than that do, since transformers then overlooks it.
std::optional<format::Json> find_full_scaling(const format::Json& config);

/// theta^(-2 i / dim) in float32, [dim / 2], scaled as "linear" divides them, "llama3" bends them (Llama 3.1: long
/// waves are divided, short ones stay, those between are mixed) and "yarn" does by how often a pair turns, and "longrope" pair by
/// pair. `dim`: elements of a head that turn. `longer`: than the original context.
std::vector<float> rope_frequencies(const RopeSettings& rope, uint32_t dim, bool longer = false);

}  // namespace refrain::model
