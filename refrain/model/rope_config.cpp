#include "refrain/model/rope_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <span>
#include <utility>

namespace refrain::model {
namespace {

using format::Json;
using Scaling = RopeSettings::Scaling;

constexpr uint32_t kMaxContext = 1u << 28;
constexpr std::string_view kOriginal = "original_max_position_embeddings";

using Type = std::pair<std::string_view, Scaling>;
constexpr Type kTypes[] = {
    {"default", Scaling::none},  {"linear", Scaling::linear}, {"dynamic", Scaling::dynamic},
    {"llama3", Scaling::llama3}, {"yarn", Scaling::yarn},
};
// Older files have other names for it.
constexpr Type kLongropeTypes[] = {
    {"default", Scaling::none},
    {"longrope", Scaling::longrope},
    {"su", Scaling::longrope},
    {"yarn", Scaling::longrope},
};

Scaling read_scaling(const Json& block, std::span<const Type> types) {
  std::optional<Scaling> scaling;
  // Older files say "type", newer ones "rope_type".
  for (const std::string_view key : {"type", "rope_type"}) {
    const auto type = block.find(key);
    if (!type) continue;
    const auto found = std::ranges::find(types, type->as_string(), &Type::first);
    if (found == types.end()) {
      std::string others;
      for (const Type& other : types.subspan(1)) others += fmt::format(", \"{}\"", other.first);
      others.replace(others.rfind(','), 1, " or");
      type->fail(fmt::format("expected \"{}\"{}, got {}", types[0].first, others, type->describe()));
    }
    if (scaling && *scaling != found->second) type->fail("contradicts \"type\" beside it");
    scaling = found->second;
  }
  return scaling.value_or(Scaling::none);
}

double yarn_scale(double factor, double weight = 1) {
  return factor > 1 ? 0.1 * weight * std::log(factor) + 1 : 1;
}

/// 0: the model's context.
uint32_t read_original(const Json& block) {
  return says(block, kOriginal) ? block.u32(kOriginal, 1, kMaxContext) : 0;
}

/// What stands for a factor that a block does not say.
double growth_of(uint32_t context_tokens, uint32_t original_tokens) {
  return static_cast<double>(context_tokens) / original_tokens;
}

void read_yarn(const Json& config, const DecoderDefaults& defaults, const Json& block, RopeSettings& rope) {
  rope.original_context_tokens = read_original(block);
  // Null is what the contexts say, and no word an error.
  const Json factor = block.at("factor");
  if (!factor.is_null()) {
    rope.factor = read_positive(factor);
  } else if (rope.original_context_tokens != 0) {
    rope.factor = growth_of(read_context_tokens(config, defaults), rope.original_context_tokens);
  }
  const double weight = block.f64_or("mscale", 0), all = block.f64_or("mscale_all_dim", 0);
  rope.attention_factor = weight != 0 && all != 0
                              ? yarn_scale(rope.factor, weight) / yarn_scale(rope.factor, all)
                              : yarn_scale(rope.factor);
  if (!(rope.attention_factor > 0) || std::isinf(rope.attention_factor))
    block.fail(fmt::format("expected mscale and mscale_all_dim of a positive quotient, got {}",
                           rope.attention_factor));
  if (const auto told = block.find("attention_factor")) rope.attention_factor = read_positive(*told);
  // Zero stands for no word.
  const auto turns = [&](const char* key, double fallback) {
    const auto field = block.find(key);
    return field && field->as_f64() != 0 ? read_positive(*field) : fallback;
  };
  rope.beta_fast = turns("beta_fast", 32);
  rope.beta_slow = turns("beta_slow", 1);
  rope.truncate = block.boolean_or("truncate", true);
}

RopeSettings read_block(const Json& config, const DecoderDefaults& defaults, const Json& block) {
  expect_whole_rotation(block);
  RopeSettings rope;
  rope.scaling = read_scaling(block, kTypes);
  if (rope.scaling == Scaling::linear || rope.scaling == Scaling::llama3 || rope.scaling == Scaling::dynamic)
    rope.factor = read_positive(block.at("factor"));
  if (rope.scaling == Scaling::yarn) read_yarn(config, defaults, block, rope);
  if (rope.scaling == Scaling::llama3) {
    rope.low_freq_factor = read_positive(block.at("low_freq_factor"));
    rope.high_freq_factor = read_positive(block.at("high_freq_factor"));
    rope.original_context_tokens = read_original(block);
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      block.at("high_freq_factor")
          .fail(fmt::format("expected more than low_freq_factor {}, got {}", rope.low_freq_factor,
                            rope.high_freq_factor));
    }
  }
  return rope;
}

std::vector<double> read_factors(const Json& field, uint32_t count) {
  std::vector<double> factors;
  for (const Json& item : field.items()) factors.push_back(read_positive(item));
  if (factors.size() != count) field.fail(fmt::format("expected {} factors, got {}", count, factors.size()));
  return factors;
}

RopeSettings read_longrope_block(const Json& config, const DecoderDefaults& defaults, const Json& block,
                                 uint32_t dim, uint32_t original_tokens) {
  RopeSettings rope;
  rope.scaling = read_scaling(block, kLongropeTypes);
  if (rope.scaling == Scaling::none) return rope;
  rope.original_context_tokens = original_tokens;
  if (const auto told = block.find(kOriginal); told && told->as_u32() != original_tokens)
    told->fail(fmt::format("expected {} as beside the block, got {}", original_tokens, told->describe()));
  const auto factor = block.find("factor");
  rope.factor =
      factor ? read_positive(*factor) : growth_of(read_context_tokens(config, defaults), original_tokens);
  if (const auto told = block.find("attention_factor")) {
    rope.attention_factor = read_positive(*told);
  } else if (rope.factor > 1) {
    rope.attention_factor = std::sqrt(1 + std::log(rope.factor) / std::log(original_tokens));
  }
  rope.short_factors = read_factors(block.at("short_factor"), dim / 2);
  rope.long_factors = read_factors(block.at("long_factor"), dim / 2);
  return rope;
}

/// Of each pair of `dim` elements, how much of yarn's frequency is the unscaled one.
std::vector<double> yarn_shares(const RopeSettings& rope, uint32_t dim) {
  // The pair, not rounded, that turns so often in the original context.
  const auto pair_of = [&](double turns) {
    return dim * std::log(rope.original_context_tokens / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(rope.theta));
  };
  double low = pair_of(rope.beta_fast), high = pair_of(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  std::vector<double> shares(dim / 2);
  for (size_t i = 0; i < shares.size(); ++i)
    shares[i] = 1 - std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
  return shares;
}

using ReadBlock = std::function<RopeSettings(const Json& block)>;

RopeSettings read_blocks(const Json& config, std::initializer_list<std::optional<Json>> blocks,
                         const std::optional<Json>& theta, double fallback, const ReadBlock& read_block) {
  std::optional<RopeSettings> rope;
  std::optional<double> found;
  const auto take_theta = [&](const std::optional<Json>& field) {
    if (!field) return;
    const double value = read_positive(*field);
    if (found && *found != value) field->fail(fmt::format("expected {} as elsewhere, got {}", *found, value));
    found = value;
  };
  for (const std::optional<Json>& block : blocks) {
    if (!block) continue;
    for (const std::string& key : block->expect(Json::Kind::object).keys()) {
      if (const Json member = block->at(key); member.is_object()) {
        member.fail("expected settings for all layers alike, got an object");
      }
    }
    const RopeSettings read = read_block(*block);
    if (rope && *rope != read) block->fail("contradicts the other block on rope");
    rope = read;
    take_theta(block->find("rope_theta"));
  }
  take_theta(theta);
  RopeSettings result = rope.value_or(RopeSettings{});
  result.theta = found.value_or(fallback);
  if (result.scaling == Scaling::yarn && result.theta <= 1)
    config.fail(fmt::format("rope_theta: expected more than 1 with yarn, got {}", result.theta));
  return result;
}

/// Refuses what `rope_parameters` alone says where `rope_scaling` is there too: transformers takes that one alone.
void expect_scaling_says(const Json& config, std::string_view key) {
  const auto parameters = find_block(config, "rope_parameters"), scaling = find_block(config, "rope_scaling");
  if (parameters && scaling && parameters->has(key) && !scaling->has(key) && !config.has(key))
    scaling->fail(fmt::format("expected {} as in rope_parameters, got none", key));
}

/// From the blocks of all layers.
RopeSettings read_whole(const Json& config, double fallback, const ReadBlock& read_block) {
  const auto parameters = find_block(config, "rope_parameters"), scaling = find_block(config, "rope_scaling");
  const RopeSettings rope =
      read_blocks(config, {parameters, scaling}, config.find("rope_theta"), fallback, read_block);
  expect_scaling_says(config, "rope_theta");
  // It says nothing in place of one in the block, but is not to say another thing.
  const auto original = config.find(kOriginal);
  const bool is_read = rope.needs_original() || rope.original_context_tokens != 0;
  if (original && is_read && original->as_u32() != rope.original_context_tokens) {
    if (rope.original_context_tokens == 0) original->fail("expected it in the block on rope, got it beside");
    original->fail(fmt::format("expected {} as in the block on rope, got {}", rope.original_context_tokens,
                               original->describe()));
  }
  return rope;
}

}  // namespace

RopeSettings read_rope(const Json& config, const DecoderDefaults& defaults,
                       std::initializer_list<std::optional<Json>> blocks, const std::optional<Json>& theta,
                       double fallback) {
  const auto read = [&](const Json& block) { return read_block(config, defaults, block); };
  RopeSettings rope = read_blocks(config, blocks, theta, fallback, read);
  rope.truncate = true;  // transformers looks for it beside the blocks, where it cannot be
  return rope;
}

RopeSettings read_rope(const Json& config, const DecoderDefaults& defaults) {
  return read_whole(config, defaults.rope_theta,
                    [&](const Json& block) { return read_block(config, defaults, block); });
}

RopeSettings read_longrope(const Json& config, const DecoderDefaults& defaults, uint32_t dim,
                           uint32_t original_tokens) {
  return read_whole(config, defaults.rope_theta, [&](const Json& block) {
    return read_longrope_block(config, defaults, block, dim, original_tokens);
  });
}

uint32_t read_rotary_dim(const Json& config, uint32_t head_dim) {
  std::optional<double> factor;
  uint32_t dim = head_dim;
  for (const auto& from : {find_block(config, "rope_parameters"), find_block(config, "rope_scaling"),
                           std::optional<Json>(config)}) {
    const auto field = from ? from->find("partial_rotary_factor") : std::nullopt;
    if (!field) continue;
    if (factor && *factor != field->as_f64())
      field->fail(fmt::format("expected {} as elsewhere, got {}", *factor, field->describe()));
    factor = field->as_f64();
    if (*factor > 0 && *factor <= 1) dim = static_cast<uint32_t>(head_dim * *factor);
    if (!(*factor > 0 && *factor <= 1) || dim == 0 || dim % 2 != 0)
      field->fail(fmt::format("expected a share of {} that is even, got {}", head_dim, field->describe()));
  }
  expect_scaling_says(config, "partial_rotary_factor");
  return dim;
}

std::optional<Json> find_rope_of(const Json& config, std::string_view layer_type) {
  const auto blocks = find_block(config, "rope_parameters");
  if (!blocks) return std::nullopt;
  for (const std::string& key : blocks->keys()) {
    const Json other = blocks->at(key);
    if (key == "full_attention" || key == "sliding_attention" || other.is_null()) continue;
    other.fail("expected \"full_attention\" and \"sliding_attention\" alone, got " + other.describe());
  }
  return find_block(*blocks, layer_type);
}

std::optional<Json> find_full_scaling(const Json& config) {
  auto block = find_block(config, "rope_scaling");
  const auto type = block ? block->find("type") : std::nullopt;
  if (type && type->as_string() != "default" && !block->has("rope_type"))
    type->fail(fmt::format("expected \"rope_type\" in its place, got {}", type->describe()));
  return block;
}

std::vector<float> rope_frequencies(const RopeSettings& rope, uint32_t dim, bool longer) {
  std::vector<float> frequencies(dim / 2);
  const std::vector<double> shares =
      rope.scaling == Scaling::yarn ? yarn_shares(rope, dim) : std::vector<double>();
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double whole = static_cast<double>(
        1.0f / static_cast<float>(std::pow(rope.theta, 2.0 * static_cast<double>(i) / dim)));
    if (rope.scaling == Scaling::longrope) {
      frequencies[i] = static_cast<float>(whole / (longer ? rope.long_factors : rope.short_factors)[i]);
      continue;
    }
    // What "dynamic" stretches are sequences beyond the context, and there are none.
    const double divided = rope.scaling == Scaling::dynamic ? whole : whole / rope.factor;
    const double turns = rope.original_context_tokens * whole / (2 * std::numbers::pi);
    // Of the frequency as it was.
    const double share =
        rope.scaling == Scaling::yarn
            ? shares[i]
            : std::clamp((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0,
                         1.0);
    frequencies[i] = static_cast<float>((1 - share) * divided + share * whole);
  }
  return frequencies;
}

}  // namespace refrain::model
