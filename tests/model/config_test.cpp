// What config.json says, family by family: read, harmless, or refused by name. That what is read counts, tests/golden
// shows.
#include <gtest/gtest.h>

#include "refrain/model/config.h"
#include "refrain/model/decoder_config.h"
#include "refrain/model/rope_config.h"
#include "tests/refusal.h"

namespace refrain::test {
namespace {

using format::Json;

struct Family {
  const char* type;
  const char* more;  ///< beside kSizes, in front of a comma
};
constexpr Family kFamilies[] = {{"llama", ""}, {"qwen3", ""}, {"gemma3_text", R"("sliding_window": 16,)"}};
constexpr const char* kSizes = R"("num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 256,
  "rms_norm_eps": 1e-6)";

/// config.json of a family, with `fields` behind the others.
Json config_of(const Family& family, const std::string& fields) {
  const std::string type = std::string("{\"model_type\": \"") + family.type + "\", ";
  return Json::parse(type + family.more + kSizes + ", " + fields + "}", "config.json");
}

std::string refusal_of(const Family& family, const std::string& fields) {
  return refusal<FileError>([&] { (void)model::read_config(config_of(family, fields)); });
}

std::vector<model::KvState> states_of(const model::Config& config) {
  std::vector<model::KvState> states;
  for (const model::LayerState& state : config.state) states.push_back(std::get<model::KvState>(state));
  return states;
}

TEST(Config, HarmlessFieldsAreNoMatter) {
  // What transformers knows of these families, and what does not change the logits of a text.
  const std::string fields =
      R"("attention_dropout": 0.1, "initializer_range": 0.5, "use_cache": false, "pad_token_id": 7,
    "bos_token_id": null, "transformers_version": "5.17.0", "output_hidden_states": true, "output_attentions": true,
    "return_dict": false, "dtype": "float16", "torch_dtype": "bfloat16", "chunk_size_feed_forward": 8,
    "id2label": {"0": "a"}, "label2id": {"a": 0}, "num_labels": 2, "problem_type": null, "pretraining_tp": 4,
    "max_window_layers": 1, "use_sliding_window": false, "_sliding_window_pattern": 3, "_name_or_path": "x",
    "cache_implementation": "hybrid", "temperature": Infinity, "seed": 340282366920938463463374607431768211456,
    "is_causal": true, "use_bidirectional_attention": false, "is_encoder_decoder": false, "per_layer_config": {},
    "partial_rotary_factor": 1.0, "original_max_position_embeddings": 64)";
  for (const Family& family : kFamilies) {
    const model::Config plain = model::read_config(config_of(family, R"("attention_bias": false)"));
    const model::Config config = model::read_config(config_of(family, fields));
    EXPECT_EQ(config.facts, plain.facts);
    EXPECT_EQ(states_of(config), states_of(plain));
  }
}

TEST(Config, OtherWeightsThanTheFoldersAreRefused) {
  EXPECT_EQ(refusal_of(kFamilies[0], R"("transformers_weights": "other.safetensors")"),
            "config.json: transformers_weights: expected the weights in model*.safetensors, got "
            "\"other.safetensors\"");
  EXPECT_EQ(refusal_of(kFamilies[0], R"("transformers_weights": null)"), "nothing was thrown");
}

TEST(Config, NullIsAbsent) {
  const std::string fields =
      R"("rope_parameters": null, "rope_scaling": null, "rope_theta": null, "layer_types": null,
    "quantization": null, "quantization_config": null, "is_causal": null, "per_layer_config": null,
    "attn_logit_softcapping": null, "final_logit_softcapping": null, "use_bidirectional_attention": null,
    "architectures": null, "eos_token_id": null, "partial_rotary_factor": null, "tie_word_embeddings": null)";
  for (const Family& family : kFamilies) {
    EXPECT_EQ(refusal_of(family, fields), "nothing was thrown") << family.type;
  }
}

TEST(Config, WhatWouldChangeTheLogitsIsRefusedByName) {
  const std::pair<const char*, const char*> fields[] = {
      {"is_causal", "false"},
      {"use_bidirectional_attention", "true"},
      {"is_encoder_decoder", "true"},
      {"per_layer_config", R"({"1": {"skip": ["mlp"]}})"},
      {"partial_rotary_factor", "0.5"},
      {"attention_bias", "true"},
      {"layer_types", R"(["chunked_attention", "full_attention"])"},
      {"rope_scaling", R"({"rope_type": "longrope", "factor": 2.0})"},
  };
  for (const Family& family : kFamilies) {
    for (const auto& [name, value] : fields) {
      const std::string refused = refusal_of(family, std::string("\"") + name + "\": " + value);
      EXPECT_TRUE(refused.starts_with(std::string("config.json: ") + name)) << family.type << ": " << refused;
    }
  }
  EXPECT_EQ(refusal_of(kFamilies[0], R"("is_causal": false)"),
            "config.json: is_causal: expected true, got false");
}

TEST(Config, AWindowThatOnlyACacheKnowsIsRefused) {
  for (const std::string name : {"\"sliding_window\"", "\"attention_chunk_size\""}) {
    const std::string refused = refusal_of(kFamilies[0], name + ": 255");
    EXPECT_TRUE(refused.ends_with(": expected none, got 255")) << refused;
    for (const char* harmless :
         {": null", ": 256", R"(: 16, "layer_types": ["full_attention", "full_attention"])"})
      EXPECT_EQ(refusal_of(kFamilies[0], name + harmless), "nothing was thrown");
  }
}

TEST(Config, NumbersThatAreReadHaveToFit) {
  EXPECT_EQ(refusal_of(kFamilies[1], R"("rope_theta": NaN)"),
            "config.json: rope_theta: expected a number of 64 bits, got NaN");
  EXPECT_EQ(
      refusal_of(kFamilies[2], R"("rope_parameters": {"full_attention": {"rope_theta": Infinity}})"),
      "config.json: rope_parameters.full_attention.rope_theta: expected a number of 64 bits, got Infinity");
  EXPECT_EQ(refusal_of(kFamilies[0], R"("eos_token_id": [2, 18446744073709551616])"),
            "config.json: eos_token_id[1]: expected an integer in [0, 4294967295], got 18446744073709551616");
}

model::RopeSettings rope_of(const std::string& fields) {
  return model::read_rope(Json::parse("{" + fields + "}", "config.json"));
}

std::string rope_refusal(const std::string& fields) {
  return refusal<FileError>([&] { (void)rope_of(fields); });
}

TEST(Rope, ThetaMayBeInEitherBlockOrBesideIt) {
  for (const char* fields :
       {R"("rope_scaling": {"rope_type": "default", "rope_theta": 500000})",
        R"("rope_scaling": {"rope_type": "default"}, "rope_theta": 500000.0)",
        R"("rope_scaling": {}, "rope_parameters": {"rope_theta": 500000})",
        R"("rope_parameters": {"type": "default", "rope_theta": 500000}, "rope_scaling": null)",
        R"("rope_scaling": {"rope_theta": 5e5}, "rope_parameters": {"rope_theta": 500000})",
        R"("rope_parameters": {}, "rope_theta": 500000)"}) {
    EXPECT_EQ(rope_of(fields).theta, 500000) << fields;
  }
  const model::RopeSettings linear = rope_of(
      R"("rope_scaling": {"rope_type": "linear", "factor": 4, "rope_theta": 700}, "rope_parameters": {})");
  EXPECT_EQ(linear.theta, 700);
  EXPECT_EQ(linear.factor, 4);
  EXPECT_EQ(rope_of("").theta, 10000);
}

TEST(Rope, BlocksThatSayDifferentThingsAreRefused) {
  EXPECT_EQ(
      rope_refusal(R"("rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 500000})"),
      "config.json: rope_scaling: expected rope_theta as in rope_parameters, got none");
  EXPECT_EQ(rope_refusal(R"("rope_scaling": {"rope_theta": 7}, "rope_parameters": {"rope_theta": 8})"),
            "config.json: rope_scaling.rope_theta: expected 8 as elsewhere, got 7");
  const std::string llama3 = R"("rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
    "high_freq_factor": 4, "original_max_position_embeddings": 128})";
  EXPECT_EQ(rope_of(llama3 + R"(, "original_max_position_embeddings": 128)").original_context_tokens, 128u);
  EXPECT_EQ(rope_refusal(llama3 + R"(, "original_max_position_embeddings": 64)"),
            "config.json: original_max_position_embeddings: expected 128 as in the block on rope, got 64");
}

TEST(Rope, TheContextBeforeLlama3sIsTheModelsWhereTheBlockSaysNone) {
  const std::string block = R"("rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
    "high_freq_factor": 4)";
  EXPECT_EQ(rope_of(block + "}").original_context_tokens, 0u) << "the model's, once that is known";
  EXPECT_EQ(rope_refusal(block + R"(, "original_max_position_embeddings": null})"),
            "config.json: rope_scaling.original_max_position_embeddings: expected an integer, got null");
  EXPECT_EQ(rope_refusal(block + R"(}, "original_max_position_embeddings": 128)"),
            "config.json: original_max_position_embeddings: expected it in the block on rope, got it beside")
      << "transformers takes none beside the block";
}

TEST(Rope, BlocksForTypesOfLayersAreForFamiliesThatHaveThem) {
  const std::string block =
      R"(: {"full_attention": {"rope_theta": 7}, "sliding_attention": {"rope_theta": 8}})";
  const std::string says = ".full_attention: expected settings for all layers alike, got an object";
  for (const std::string name : {"rope_parameters", "rope_scaling"}) {
    for (const Family& family : {kFamilies[0], kFamilies[1]})
      EXPECT_EQ(refusal_of(family, '"' + name + '"' + block), "config.json: " + name + says);
  }
  const Family& gemma = kFamilies[2];
  EXPECT_EQ(refusal_of(gemma, "\"rope_scaling\"" + block), "config.json: rope_scaling" + says);
  for (const char* fields :
       {R"({"full_attention": {"rope_theta": 7}, "sliding_attention": {"rope_theta": 8}})",
        R"({"full_attention": {"rope_theta": 7}, "sliding_attention": null})", R"({"sliding_attention": {}})",
        "{}"})
    EXPECT_EQ(refusal_of(gemma, std::string("\"rope_parameters\": ") + fields), "nothing was thrown")
        << fields;
  EXPECT_EQ(refusal_of(gemma, R"("rope_parameters": {"full_attention": {}, "rope_theta": 7})"),
            "config.json: rope_parameters.rope_theta: expected \"full_attention\" and \"sliding_attention\" "
            "alone, got 7");
  EXPECT_EQ(refusal_of(gemma, R"("rope_parameters": {"full_attention": {"rope_type": "mrope"}})"),
            "config.json: rope_parameters.full_attention.rope_type: expected \"default\", \"linear\", "
            "\"dynamic\", \"llama3\" or \"yarn\", got \"mrope\"");
}

TEST(KvHeads, AreWhatTransformersTakesWhereTheFileSaysNothing) {
  const auto read = [](const Family& family, const std::string& heads) {
    std::string sizes = kSizes;
    const std::string fields = R"("num_attention_heads": 4,
  "num_key_value_heads": 2)";
    sizes.replace(sizes.find(fields), fields.size(), heads);
    return model::read_config(
        Json::parse(std::string("{\"model_type\": \"") + family.type + "\", " + family.more + sizes + "}",
                    "config.json"));
  };
  const auto kv_heads = [&](const Family& family, const std::string& heads) {
    return states_of(read(family, heads))[0].kv_heads;
  };
  const auto& [llama, qwen3, gemma3] = kFamilies;
  EXPECT_EQ(kv_heads(llama, R"("num_attention_heads": 64)"), 64u);
  EXPECT_EQ(kv_heads(qwen3, R"("num_attention_heads": 64)"), 32u);
  EXPECT_EQ(kv_heads(gemma3, R"("num_attention_heads": 64)"), 4u);
  for (const Family& family : kFamilies)
    EXPECT_EQ(kv_heads(family, R"("num_attention_heads": 6, "num_key_value_heads": null)"), 6u)
        << family.type;
  EXPECT_EQ(refusal<FileError>([&] { (void)read(qwen3, R"("num_attention_heads": 16)"); }),
            "config.json: num_key_value_heads: expected a divisor of num_attention_heads 16, got none, which "
            "stands "
            "for 32");
  EXPECT_EQ(
      refusal<FileError>([&] { (void)read(llama, R"("num_attention_heads": 6, "num_key_value_heads": 4)"); }),
      "config.json: num_key_value_heads: expected a divisor of num_attention_heads 6, got 4");
}

TEST(HeadDim, IsWhatTransformersTakesWhereTheFileSaysNothing) {
  const auto heads = [](const char* type) {
    const Json json =
        Json::parse(std::string(R"({"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4,
      "num_key_value_heads": 4,
      "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
      "sliding_window": 256, "model_type": ")") +
                        type + "\"}",
                    "config.json");
    return std::get<model::KvState>(model::read_config(json).state[0]).head_dim;
  };
  EXPECT_EQ(heads("llama"), 16u);
  EXPECT_EQ(heads("qwen3"), 128u);
  EXPECT_EQ(heads("gemma3_text"), 256u);
}

}  // namespace
}  // namespace refrain::test
