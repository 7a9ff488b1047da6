// What config.json says of the families that have no more than a test each here: read, harmless, or refused by name. That what
// is read counts, tests/golden shows.
#include <gtest/gtest.h>

#include "refrain/model/config.h"
#include "tests/refusal.h"

namespace refrain::test {
namespace {

using Windows = std::vector<uint32_t>;

/// A configuration of three layers.
model::Config read(const std::string& fields) {
  constexpr const char* kSizes = R"({"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "vocab_size": 1500,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-6, )";
  return model::read_config(format::Json::parse(kSizes + fields + "}", "config.json"));
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

}  // namespace
}  // namespace refrain::test
