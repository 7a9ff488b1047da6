#include "refrain/model/rope_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "refrain/model/decoder_config.h"

namespace refrain::model {
namespace {

using format::Json;
using Scaling = RopeSettings::Scaling;

constexpr uint32_t kMaxContext = 1u << 28;
constexpr std::string_view kOriginal = "original_max_position_embeddings";

constexpr std::pair<std::string_view, Scaling> kTypes[] = {
    {"default", Scaling::none},  {"linear", Scaling::linear}, {"dynamic", Scaling::dynamic},
    {"llama3", Scaling::llama3}, {"yarn", Scaling::yarn},
};

Scaling read_scaling(const Json& block) {
  std::optional<Scaling> scaling;
  // Older files say "type", newer ones "rope_type".
  for (const std::string_view key : {"type", "rope_type"}) {
    const auto type = block.find(key);
    if (!type) continue;
    const auto* found = std::ranges::find(kTypes, type->as_string(), [](const auto& t) { return t.first; });
    if (found == std::end(kTypes)) {
      type->fail(fmt::format("expected \"default\", \"linear\", \"dynamic\", \"llama3\" or \"yarn\", got {}",
                             type->describe()));
    }
    if (scaling && *scaling != found->second) type->fail("contradicts \"type\" beside it");
    scaling = found->second;
  }
  return scaling.value_or(Scaling::none);
}

double yarn_scale(double factor, double weight = 1) {
  return factor > 1 ? 0.1 * weight * std::log(factor) + 1 : 1;
}

void read_yarn(const Json& config, const Json& block, RopeSettings& rope) {
  rope.original_context_tokens = block.u32(kOriginal, 1, kMaxContext);
  // Null is what the contexts say, and no word an error.
  const Json factor = block.at("factor");
  rope.factor = factor.is_null() ? static_cast<double>(config.u32("max_position_embeddings", 1)) /
                                       rope.original_context_tokens
                                 : read_positive(factor);
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

RopeSettings read_block(const Json& config, const Json& block) {
  for (const std::string& key : block.expect(Json::Kind::object).keys()) {
    if (const Json member = block.at(key); member.is_object()) {
      member.fail("expected settings for all layers alike, got an object");
    }
  }
  expect_whole_rotation(block);
  RopeSettings rope;
  rope.scaling = read_scaling(block);
  if (rope.scaling == Scaling::linear || rope.scaling == Scaling::llama3 || rope.scaling == Scaling::dynamic)
    rope.factor = read_positive(block.at("factor"));
  if (rope.scaling == Scaling::yarn) read_yarn(config, block, rope);
  if (rope.scaling == Scaling::llama3) {
    rope.low_freq_factor = read_positive(block.at("low_freq_factor"));
    rope.high_freq_factor = read_positive(block.at("high_freq_factor"));
    rope.original_context_tokens = block.u32(kOriginal, 1, kMaxContext);
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      block.at("high_freq_factor")
          .fail(fmt::format("expected more than low_freq_factor {}, got {}", rope.low_freq_factor,
                            rope.high_freq_factor));
    }
  }
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

RopeSettings read_blocks(const Json& config, std::initializer_list<std::optional<Json>> blocks,
                         const std::optional<Json>& theta, double fallback) {
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
    const RopeSettings read = read_block(config, *block);
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

}  // namespace

RopeSettings read_rope(const Json& config, std::initializer_list<std::optional<Json>> blocks,
                       const std::optional<Json>& theta, double fallback) {
  RopeSettings rope = read_blocks(config, blocks, theta, fallback);
  rope.truncate = true;  // transformers looks for it beside the blocks, where it cannot be
  return rope;
}

RopeSettings read_rope(const Json& config, double fallback) {
  const auto parameters = find_block(config, "rope_parameters"), scaling = find_block(config, "rope_scaling");
  const RopeSettings rope = read_blocks(config, {parameters, scaling}, config.find("rope_theta"), fallback);
  // transformers takes rope_scaling alone where both are there.
  if (parameters && scaling && parameters->has("rope_theta") && !scaling->has("rope_theta") &&
      !config.has("rope_theta")) {
    scaling->fail("expected rope_theta as in rope_parameters, got none");
  }
  // It says nothing in place of one in the block, but is not to say another thing.
  const auto original = config.find(kOriginal);
  if (original && rope.original_context_tokens != 0 && original->as_u32() != rope.original_context_tokens) {
    original->fail(fmt::format("expected {} as in the block on rope, got {}", rope.original_context_tokens,
                               original->describe()));
  }
  return rope;
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

std::vector<float> rope_frequencies(const RopeSettings& rope, uint32_t dim) {
  std::vector<float> frequencies(dim / 2);
  const std::vector<double> shares =
      rope.scaling == Scaling::yarn ? yarn_shares(rope, dim) : std::vector<double>();
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double whole = static_cast<double>(
        1.0f / static_cast<float>(std::pow(rope.theta, 2.0 * static_cast<double>(i) / dim)));
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
