// What config.json says of the families that have no more than a test each here: read, harmless, or refused by name. That what
// is read counts, tests/golden shows.
#include <gtest/gtest.h>

#include "refrain/model/config.h"
#include "refrain/model/rope_config.h"
#include "tests/refusal.h"

namespace refrain::test {
namespace {

using Windows = std::vector<uint32_t>;

/// A configuration of three layers.
model::Config read(const std::string& fields, const std::string& head_dim = R"("head_dim": 16, )") {
  constexpr const char* kSizes = R"({"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 1500,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-6, )";
  return model::read_config(format::Json::parse(kSizes + head_dim + fields + "}", "config.json"));
}

/// Of each layer; 0: none.
Windows windows(const std::string& fields) {
  Windows found;
  for (const model::LayerState& state : read(fields).state)
    found.push_back(std::get<model::KvState>(state).window);
  return found;
}

std::string refusal_of(const std::string& fields) {
  return refusal<FileError>([&] { (void)read(fields); });
}

TEST(FamilyConfigs, Gemma2) {
  const std::string gemma2 = R"("model_type": "gemma2", )";
  EXPECT_EQ(windows(gemma2 + R"("pad_token_id": 0)"), (Windows{4096, 0, 4096}));
  EXPECT_EQ(windows(gemma2 + R"("sliding_window": 7)"), (Windows{7, 0, 7}));
  EXPECT_EQ(
      windows(
          gemma2 +
          R"("sliding_window": null, "layer_types": ["full_attention", "full_attention", "full_attention"])"),
      Windows(3, 0));
  EXPECT_EQ(refusal_of(gemma2 + R"("sliding_window": null)"),
            "config.json: sliding_window: expected an integer, got null");
  EXPECT_EQ(refusal_of(gemma2 + R"("sliding_window": 0)").substr(0, 27), "config.json: sliding_window");
  for (const std::string cap : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    for (const std::string wrong : {"0", "0.0", "-1", "1e-60", "1e60"}) {
      EXPECT_EQ(refusal_of(gemma2 + '"' + cap + "\": " + wrong)
                    .find("config.json: " + cap + ": expected a number above 0, got "),
                0u)
          << wrong;
    }
  }
  for (const char* wrong :
       {R"("hidden_activation": "gelu")", R"("attention_bias": true)", R"("query_pre_attn_scalar": 0)"}) {
    const std::string field = wrong;
    EXPECT_EQ(refusal_of(gemma2 + field).find("config.json: " + field.substr(1, field.find(':') - 2)), 0u)
        << wrong;
  }
}

TEST(FamilyConfigs, Qwen2) {
  const std::string qwen2 = R"("model_type": "qwen2", "max_window_layers": 1, )";
  const std::string used = R"("use_sliding_window": true, )";
  EXPECT_EQ(windows(qwen2 + R"("sliding_window": 7)"), Windows(3, 0)) << "it is not used";
  EXPECT_EQ(windows(qwen2 + used + R"("sliding_window": 7)"), (Windows{0, 7, 7}));
  EXPECT_EQ(windows(qwen2 + used + R"("pad_token_id": 0)"), (Windows{0, 4096, 4096}));
  EXPECT_EQ(windows(qwen2 + used + R"("sliding_window": null)"), Windows(3, 0));
  EXPECT_EQ(windows(R"("model_type": "qwen2", )" + used + R"("sliding_window": 7)"), Windows(3, 0))
      << "from 28 on";
  const std::string types = R"("layer_types": ["sliding_attention", "full_attention", "full_attention"], )";
  EXPECT_EQ(windows(qwen2 + used + types + R"("sliding_window": 7)"), (Windows{7, 0, 0}));
  for (const char* without :
       {R"("sliding_window": 7)", R"("use_sliding_window": true, "sliding_window": null)"}) {
    EXPECT_EQ(refusal_of(qwen2 + types + without),
              "config.json: layer_types[0]: expected \"full_attention\", got \"sliding_attention\"");
  }
  EXPECT_EQ(refusal_of(qwen2 + used + R"("sliding_window": 0)").find("config.json: sliding_window: "), 0u);
  EXPECT_EQ(refusal_of(qwen2 + R"("hidden_act": "gelu")").find("config.json: hidden_act: "), 0u);
}

TEST(FamilyConfigs, Ministral) {
  const std::string ministral = R"("model_type": "ministral", )";
  const std::string types = R"("layer_types": ["full_attention", "sliding_attention", "full_attention"], )";
  EXPECT_EQ(windows(ministral + R"("pad_token_id": 1)"), Windows(3, 4096));
  EXPECT_EQ(windows(ministral + R"("sliding_window": 7)"), Windows(3, 7));
  EXPECT_EQ(windows(ministral + R"("sliding_window": null)"), Windows(3, 0));
  EXPECT_EQ(windows(ministral + types + R"("sliding_window": 7)"), (Windows{0, 7, 0}));
  EXPECT_EQ(refusal_of(ministral + types + R"("sliding_window": null)"),
            "config.json: sliding_window: expected an integer, got null");
  EXPECT_EQ(refusal_of(ministral + R"("hidden_act": "gelu")").find("config.json: hidden_act: "), 0u);
}

TEST(FamilyConfigs, Ministral3) {
  const std::string ministral3 = R"("model_type": "ministral3", )";
  const std::string rope =
      R"("rope_parameters": {"original_max_position_embeddings": 20, "llama_4_scaling_beta": 0.1})";
  EXPECT_EQ(windows(ministral3 + rope), Windows(3, 0));
  for (const auto& [head_dim, expected] : {std::pair{R"("head_dim": null, )", 16u}, {"", 128u}})
    EXPECT_EQ(std::get<model::KvState>(read(ministral3 + rope, head_dim).state[0]).head_dim, expected);
  EXPECT_EQ(windows(ministral3 + rope + R"(, "sliding_window": 7)"), Windows(3, 7));
  EXPECT_EQ(
      refusal_of(
          ministral3 + rope +
          R"(, "sliding_window": 7, "layer_types": ["full_attention", "full_attention", "full_attention"])")
          .find("config.json: layer_types[0]: "),
      0u);
  EXPECT_EQ(refusal_of(ministral3 + rope + R"(, "hidden_act": "gelu")").find("config.json: hidden_act: "),
            0u);
  // Without a block there is one of transformers, which a field beside is not to contradict.
  for (const char* fields :
       {R"("rope_theta": 1000000)", R"("rope_scaling": {}, "original_max_position_embeddings": 16384)"})
    EXPECT_EQ(windows(ministral3 + fields), Windows(3, 0)) << fields;
  EXPECT_EQ(refusal_of(ministral3 + R"("rope_theta": 7)"),
            "config.json: rope_theta: expected 1000000 where there is no block on rope, got 7");
  EXPECT_EQ(refusal_of(ministral3 + R"("original_max_position_embeddings": 20)"),
            "config.json: original_max_position_embeddings: expected 16384 where there is no block on rope, "
            "got 20");
  EXPECT_EQ(refusal_of(ministral3 + R"("rope_parameters": {})"),
            "config.json: rope_parameters: expected a member \"llama_4_scaling_beta\", got none")
      << "which is not as good as none";
  EXPECT_EQ(refusal_of(ministral3 + rope + R"(, "rope_scaling": {"original_max_position_embeddings": 20,
                "llama_4_scaling_beta": 0.2})"),
            "config.json: rope_parameters.llama_4_scaling_beta: expected 0.2 as in rope_scaling, got 0.1");
  EXPECT_EQ(refusal_of(ministral3 + rope + R"(, "rope_scaling": {"original_max_position_embeddings": 30,
                "llama_4_scaling_beta": 0.1})"),
            "config.json: rope_parameters.original_max_position_embeddings: expected 30 as in rope_scaling, "
            "got 20");
  EXPECT_EQ(windows(ministral3 +
                    R"("rope_parameters": {"type": "yarn", "factor": 4, "llama_4_scaling_beta": 0.1})"),
            Windows(3, 0))
      << "the context is the original one";
  EXPECT_EQ(refusal_of(ministral3 + R"("rope_scaling": {"original_max_position_embeddings": 20})"),
            "config.json: rope_scaling: expected a member \"llama_4_scaling_beta\", got none");
  EXPECT_EQ(refusal_of(ministral3 + R"("rope_parameters": {"llama_4_scaling_beta": 0.1})"),
            "config.json: rope_parameters: expected a member \"original_max_position_embeddings\", got none");
}

TEST(FamilyConfigs, Granite) {
  const std::string granite = R"("model_type": "granite", )";
  EXPECT_EQ(windows(granite + R"("pad_token_id": 1)"), Windows(3, 0));
  for (const std::string key :
       {"embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"}) {
    for (const std::string wrong : {"0", "-1", "1e-10", "10000000000"}) {
      EXPECT_EQ(refusal_of(granite + '"' + key + "\": " + wrong),
                "config.json: " + key + ": expected a number in (1e-9, 1e9), got " + wrong);
    }
  }
  for (const std::string wrong :
       {R"("attention_bias": 1)", R"("mlp_bias": 1)", R"("hidden_act": "gelu")", R"("sliding_window": 7)",
        R"("layer_types": ["sliding_attention", "full_attention", "full_attention"])"})
    EXPECT_EQ(refusal_of(granite + wrong).find("config.json: " + wrong.substr(1, wrong.find(':') - 2)), 0u)
        << wrong;
}

TEST(FamilyConfigs, Olmo3) {
  const std::string olmo3 = R"("model_type": "olmo3", )";
  EXPECT_EQ(windows(olmo3 + R"("pad_token_id": 1)"), Windows(3, 4096)) << "the fourth would be without";
  EXPECT_EQ(
      windows(
          olmo3 +
          R"("sliding_window": 7, "layer_types": ["full_attention", "sliding_attention", "full_attention"])"),
      (Windows{0, 7, 0}));
  EXPECT_EQ(refusal_of(olmo3 + R"("sliding_window": null)"),
            "config.json: sliding_window: expected an integer, got null");
  EXPECT_EQ(refusal_of(olmo3 + R"("attention_bias": true)"),
            "config.json: attention_bias: expected false, got true");
  EXPECT_EQ(refusal_of(olmo3 + R"("hidden_act": "gelu")").find("config.json: hidden_act: "), 0u);
  EXPECT_EQ(refusal_of(olmo3 + R"("rope_parameters": {"rope_theta": 5})")
                .find("config.json: rope_parameters.rope_theta: expected \"full_attention\""),
            0u);
  EXPECT_EQ(
      refusal_of(olmo3 + R"("rope_theta": 5, "rope_parameters": {"full_attention": {"rope_theta": 6}})"),
      "config.json: rope_theta: expected 6 as elsewhere, got 5");
}

TEST(FamilyConfigs, Phi3) {
  const std::string phi3 = R"("model_type": "phi3", )";
  EXPECT_EQ(windows(phi3 + R"("sliding_window": null)"), Windows(3, 0));
  EXPECT_EQ(windows(phi3 + R"("sliding_window": 7)"), Windows(3, 7));
  EXPECT_EQ(
      refusal_of(
          phi3 +
          R"("sliding_window": 7, "layer_types": ["full_attention", "full_attention", "full_attention"])")
          .find("config.json: layer_types[0]: "),
      0u);
  EXPECT_EQ(refusal_of(phi3 + R"("attention_chunk_size": 7)"),
            "config.json: attention_chunk_size: expected none, got 7");
  EXPECT_EQ(refusal_of(phi3 + R"("hidden_act": "gelu")").find("config.json: hidden_act: "), 0u);
  for (const char* factor : {"0", "-0.5", "1.5", "0.05", "0.07", "0.45"})  // of 16: none, or an odd number
    EXPECT_EQ(refusal_of(phi3 + R"("partial_rotary_factor": )" + factor)
                  .find("config.json: partial_rotary_factor: expected a share of 16 that is even, got "),
              0u)
        << factor;
  EXPECT_EQ(refusal_of(phi3 +
                       R"("partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.75})"),
            "config.json: partial_rotary_factor: expected 0.75 as elsewhere, got 0.5");
  const auto longrope = [&](const std::string& fields, const std::string& factors = "[1, 2, 3, 4]") {
    return phi3 +
           R"("partial_rotary_factor": 0.5, "rope_scaling": {"short_factor": [1, 1, 1, 2], "long_factor": )" +
           factors + fields;
  };
  for (const char* type : {"longrope", "su", "yarn"})
    EXPECT_EQ(windows(longrope(std::string(R"(, "type": ")") + type + "\"}")), Windows(3, 0));
  const std::string type = R"(, "rope_type": "longrope")";
  EXPECT_EQ(refusal_of(longrope(type + "}", "[1, 2, 3]")),
            "config.json: rope_scaling.long_factor: expected 4 factors, got 3");
  EXPECT_EQ(refusal_of(longrope(type + "}", "[1, 2, 3, 0]")),
            "config.json: rope_scaling.long_factor[3]: expected a positive number, got 0");
  EXPECT_EQ(refusal_of(longrope(type + R"(, "factor": 0})")),
            "config.json: rope_scaling.factor: expected a positive number, got 0");
  EXPECT_EQ(refusal_of(longrope(type + R"(, "original_max_position_embeddings": 64})")),
            "config.json: rope_scaling.original_max_position_embeddings: expected 4096 as beside the block, "
            "got 64");
  EXPECT_EQ(refusal_of(longrope(type + R"(}, "original_max_position_embeddings": 1)"))
                .find("config.json: original_max_position_embeddings: "),
            0u);
  EXPECT_EQ(refusal_of(longrope(R"(, "type": "linear"})")),
            "config.json: rope_scaling.type: expected \"default\", \"longrope\", \"su\" or \"yarn\", got "
            "\"linear\"");
  EXPECT_EQ(refusal_of(longrope(R"(, "type": "longrope", "rope_type": "default"})")),
            "config.json: rope_scaling.rope_type: contradicts \"type\" beside it");
  EXPECT_EQ(
      refusal_of(
          phi3 +
          R"("rope_scaling": {"rope_type": "default"}, "rope_parameters": {"partial_rotary_factor": 0.5})"),
      "config.json: rope_scaling: expected partial_rotary_factor as in rope_parameters, got none");
  EXPECT_EQ(refusal_of(phi3 + R"("rope_scaling": {"type": "longrope"})"),
            "config.json: rope_scaling: expected a member \"short_factor\", got none");
}

TEST(FamilyConfigs, SizesAreTransformersWhereTheFileSaysNone) {
  const auto read_bare = [](const std::string& type) {
    return model::read_config(format::Json::parse(R"({"model_type": ")" + type + "\"}", "config.json"));
  };
  const model::Config phi3 = read_bare("phi3"), ministral3 = read_bare("ministral3");
  EXPECT_EQ(phi3.vocab, 32064u);
  EXPECT_EQ(phi3.context_tokens, 4096u);
  EXPECT_EQ(phi3.state.size(), 32u);
  EXPECT_EQ(std::get<model::KvState>(phi3.state[0]).kv_heads, 32u);
  EXPECT_EQ(std::get<model::KvState>(phi3.state[0]).head_dim, 96u);
  EXPECT_EQ(phi3.facts[0].second, "3072, MLP 8192");
  EXPECT_EQ(ministral3.vocab, 131072u);
  EXPECT_EQ(ministral3.context_tokens, 262144u);
  EXPECT_EQ(ministral3.state.size(), 34u);
  EXPECT_EQ(std::get<model::KvState>(ministral3.state[0]).kv_heads, 8u);
  EXPECT_EQ(std::get<model::KvState>(ministral3.state[0]).head_dim, 128u);
  EXPECT_EQ(ministral3.facts[0].second, "4096, MLP 14336");
}

TEST(FamilyConfigs, ATypeThatTransformersOverlooksIsRefused) {
  for (const std::string family :
       {R"("model_type": "olmo3", )", R"("model_type": "gemma3_text", "sliding_window": 7, )"}) {
    const auto scaling = [&](const std::string& type) {
      return family + R"("rope_scaling": {"factor": 2, )" + type + "}";
    };
    EXPECT_EQ(refusal_of(scaling(R"("type": "linear")")),
              "config.json: rope_scaling.type: expected \"rope_type\" in its place, got \"linear\"");
    for (const char* type :
         {R"("rope_type": "linear")", R"("rope_type": "linear", "type": "linear")", R"("type": "default")"})
      EXPECT_EQ(refusal_of(scaling(type)), "nothing was thrown") << type;
  }
}

model::RopeSettings rope_of(const std::string& block) {
  return model::read_rope(format::Json::parse(
      "{\"max_position_embeddings\": 400, \"rope_parameters\": " + block + "}", "config.json"));
}

std::string rope_refusal(const std::string& block) {
  return refusal<FileError>([&] { (void)rope_of(block); });
}

TEST(RopeScaling, Yarn) {
  const auto with = [](const std::string& fields) {
    return R"({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 100)" + fields + "}";
  };
  const model::RopeSettings plain = rope_of(with(""));
  EXPECT_NEAR(plain.attention_factor, 1.1386294361119891, 1e-12);
  EXPECT_EQ(rope_of(with(R"(, "mscale": 2)")), plain) << "both of them or none";
  EXPECT_NEAR(rope_of(with(R"(, "mscale": 2, "mscale_all_dim": 0.5)")).attention_factor,
              1.2772588722239782 / 1.0693147180559945, 1e-12);
  EXPECT_EQ(rope_of(with(R"(, "attention_factor": 1.5)")).attention_factor, 1.5);
  EXPECT_EQ(rope_of(with(R"(, "beta_fast": 0, "beta_slow": null)")), plain) << "zero is no word";
  EXPECT_EQ(rope_of(R"({"rope_type": "yarn", "factor": null, "original_max_position_embeddings": 100})"),
            plain)
      << "400 / 100";
  EXPECT_EQ(rope_of(R"({"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 100})")
                .attention_factor,
            1);
  const std::string block = "config.json: rope_parameters";
  EXPECT_EQ(rope_of(R"({"rope_type": "yarn", "factor": 4})").original_context_tokens, 0u)
      << "the model's, once that is known";
  EXPECT_EQ(rope_of(R"({"rope_type": "yarn", "factor": null})").factor, 1) << "the context by itself";
  EXPECT_EQ(rope_refusal(R"({"rope_type": "yarn", "original_max_position_embeddings": 4})"),
            block + ": expected a member \"factor\", got none");
  for (const std::string key : {"beta_fast", "beta_slow", "attention_factor"}) {
    EXPECT_EQ(rope_refusal(with(", \"" + key + "\": -1")),
              block + "." + key + ": expected a positive number, got -1");
  }
  EXPECT_EQ(rope_refusal(R"({"rope_type": "yarn", "factor": 0, "original_max_position_embeddings": 100})"),
            block + ".factor: expected a positive number, got 0");
  EXPECT_EQ(rope_refusal(with(R"(, "mscale": -20, "mscale_all_dim": 1)"))
                .find(block + ": expected mscale and mscale_all_dim of a positive quotient"),
            0u);
  EXPECT_EQ(rope_refusal(with(R"(, "rope_theta": 1)")),
            "config.json: rope_theta: expected more than 1 with yarn, got 1");
  EXPECT_EQ(rope_refusal(with(R"(, "truncate": 1)")).find(block + ".truncate"), 0u);
}

TEST(RopeScaling, TheContextMayBeTheFamilys) {
  const auto rope = model::read_rope(
      format::Json::parse(
          R"({"rope_scaling": {"type": "yarn", "factor": null, "original_max_position_embeddings": 100}})",
          "config.json"),
      {.context_tokens = 800, .rope_theta = 7});
  EXPECT_EQ(rope.factor, 8);
  EXPECT_EQ(rope.theta, 7);
}

TEST(RopeScaling, DynamicIsOfSequencesBeyondTheContext) {
  EXPECT_EQ(model::rope_frequencies(rope_of(R"({"rope_type": "dynamic", "factor": 4})"), 16),
            model::rope_frequencies(rope_of("{}"), 16));
  EXPECT_EQ(rope_refusal(R"({"rope_type": "dynamic"})"),
            "config.json: rope_parameters: expected a member \"factor\", got none");
}

}  // namespace
}  // namespace refrain::test
