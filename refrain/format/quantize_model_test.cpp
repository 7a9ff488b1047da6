// The command's work on folders; tests/golden compares its bits with MLX.
#include "refrain/format/quantize_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "refrain/core/error.h"
#include "refrain/core/half.h"
#include "refrain/format/encoded.h"
#include "refrain/format/mlx_affine.h"
#include "refrain/format/model_folder.h"
#include "refrain/format/plain.h"
#include "refrain/format/test_folder.h"

namespace refrain::format {
namespace {

class QuantizeModelTest : public testing::Test {
 protected:
  /// Writes the input folder: float32 tensors of shape [rows, columns], or [rows] where columns is 0.
  struct Tensor {
    std::string name;
    int64_t rows, columns;
    float value = 1.0f;
  };
  void write_input(const std::vector<Tensor>& tensors, std::string_view config = "{\n  \"a\": 1\n}\n") {
    folder_.write("in/config.json", config);
    std::vector<SafetensorsSpec> specs;
    for (const Tensor& t : tensors) {
      specs.push_back({t.name, DType::f32, t.columns == 0 ? Shape{t.rows} : Shape{t.rows, t.columns}});
    }
    SafetensorsWriter writer(in_ / "model.safetensors", specs);
    for (const Tensor& t : tensors) {
      std::vector<float> values(static_cast<size_t>(t.rows * std::max<int64_t>(t.columns, 1)));
      for (size_t i = 0; i < values.size(); ++i) values[i] = t.value * static_cast<float>(i % 37);
      writer.append(t.name, std::as_bytes(std::span(values)));
    }
    writer.commit();
  }
  void SetUp() override { std::filesystem::create_directory(in_); }
  std::string error_of(const QuantizeOptions& options = {}) {
    try {
      quantize_model(in_, out_, options);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  TestFolder folder_;
  std::filesystem::path in_ = folder_.path() / "in";
  std::filesystem::path out_ = folder_.path() / "out";
};

TEST_F(QuantizeModelTest, PacksMatricesAndKeepsTheRest) {
  write_input({{"model.embed_tokens.weight", 7, 128},
               {"model.layers.0.mlp.up_proj.weight", 96, 64},
               {"model.layers.0.mlp.up_proj.bias", 96, 0},
               {"model.layers.0.odd.weight", 8, 96},
               {"model.layers.0.q_norm.weight", 4, 64},
               {"model.layers.0.scale.weight", 64, 0},
               {"model.layers.0.self_attn.rotary_emb.inv_freq", 32, 0},
               {"model.normal.0.none.weight", 0, 64},
               {"lm_head.weight", 7, 128},
               {"model.layers.0.table", 4, 64},
               {"model.norm.weight", 64, 0}});
  folder_.write("in/tokenizer.json", "tokens");
  folder_.write("in/chat_template.jinja", "template");
  const QuantizeReport report = quantize_model(in_, out_, {});
  EXPECT_EQ(report.packed_tensors, 4u);
  EXPECT_EQ(report.kept_tensors, 6u);
  EXPECT_EQ(report.dropped_tensors, 1u);
  const ModelFolder model =
      ModelFolder::open(out_, [](LogLevel, std::string_view message) { FAIL() << message; });
  EXPECT_EQ(model.tensor_names().size(), 18u);
  EXPECT_EQ(model.weight("model.embed_tokens", 7, 128).format, &mlx_affine({4, 64}, DType::f32));
  EXPECT_EQ(model.weight("model.layers.0.mlp.up_proj", 96, 64).format, &mlx_affine({4, 64}, DType::f32));
  EXPECT_EQ(model.weight("model.layers.0.odd", 8, 96).format, &plain(DType::f32));
  EXPECT_EQ(model.weight("model.layers.0.q_norm", 4, 64).format, &plain(DType::f32));
  EXPECT_EQ(model.weight("model.normal.0.none", 0, 64).format, &mlx_affine({4, 64}, DType::f32));
  EXPECT_EQ(model.config().u32("a"), 1u);
  EXPECT_EQ(model.config().object("quantization_config").u32("group_size"), 64u);
  EXPECT_EQ(read_text_file(out_ / "tokenizer.json"), "tokens");
  EXPECT_EQ(read_text_file(out_ / "chat_template.jinja"), "template");
}

TEST_F(QuantizeModelTest, KeepsWhatHasNoColumnsOrAnotherRankOrType) {
  folder_.write("in/config.json", "{}");
  SafetensorsWriter writer(in_ / "model.safetensors", {{"a.weight", DType::f32, {1, 64}},
                                                       {"none.weight", DType::f32, {3, 0}},
                                                       {"kernel.weight", DType::f32, {1, 1, 64}},
                                                       {"double.weight", DType::f64, {1, 64}},
                                                       {"codes.weight", DType::u32, {1, 64}}});
  const std::string zeros(64 * sizeof(double), '\0');
  const auto append = [&](std::string_view name, size_t size_bytes) {
    writer.append(name, std::as_bytes(std::span(zeros).first(size_bytes)));
  };
  append("a.weight", 256), append("kernel.weight", 256), append("codes.weight", 256);
  append("double.weight", 512);
  writer.commit();
  EXPECT_EQ(quantize_model(in_, out_, {}).kept_tensors, 4u);
  EXPECT_EQ(ModelFolder::open(out_).tensor("kernel.weight").shape, (Shape{1, 1, 64}));
}

TEST_F(QuantizeModelTest, GivesTheSameBytesForAnyNumberOfThreads) {
  write_input({{"a.weight", 301, 256, 0.01f}, {"b.weight", 1, 64}});
  std::string first;
  for (const unsigned threads : {1u, 2u, 5u}) {
    QuantizeOptions options;
    options.threads = threads;
    options.force = true;
    quantize_model(in_, out_, options);
    const std::string bytes = read_text_file(out_ / "model.safetensors");
    if (first.empty()) first = bytes;
    EXPECT_EQ(bytes, first) << threads;
  }
}

TEST_F(QuantizeModelTest, AddsToTheConfigAndChangesNothingElse) {
  const std::string added =
      "\"quantization\": {X\"group_size\": 64,X\"bits\": 4,X\"mode\": \"affine\"Y},Z\"quantization_config\": "
      "{X\"group_size\": "
      "64,X\"bits\": 4,X\"mode\": \"affine\"Y},Z\"quantized_by\": \"refrain\"";
  const auto expect = [&](const std::string& config, const std::string& head, const std::string& indent,
                          const std::string& tail) {
    write_input({{"a.weight", 1, 64}}, config);
    QuantizeOptions options;
    options.force = true;
    quantize_model(in_, out_, options);
    std::string block;
    for (const char c : added) {
      block += c == 'X' ? "\n" + indent + indent : c == 'Y' || c == 'Z' ? "\n" + indent : std::string(1, c);
    }
    EXPECT_EQ(read_text_file(out_ / "config.json"), head + "\n" + indent + block + "\n" + tail);
  };
  expect("{\n    \"a\": 1e-06,\n    \"b\": \"}\"\n}\n", "{\n    \"a\": 1e-06,\n    \"b\": \"}\",", "    ",
         "}\n");
  expect("{\"a\":1.0}", "{\"a\":1.0,", "  ", "}");
  expect("{}", "{", "  ", "}");
  expect(" {\n \n} \n", " {", "  ", "} \n");
}

TEST_F(QuantizeModelTest, WhatIsNullInTheConfigIsWrittenInItsPlace) {
  const auto written = [&](const std::string& config) {
    write_input({{"a.weight", 1, 64}}, config);
    QuantizeOptions options;
    options.force = true;
    quantize_model(in_, out_, options);
    return read_text_file(out_ / "config.json");
  };
  const auto block = [](const std::string& indent) {
    return "{\n" + indent + indent + "\"group_size\": 64,\n" + indent + indent + "\"bits\": 4,\n" + indent +
           indent + "\"mode\": \"affine\"\n" + indent + "}";
  };
  EXPECT_EQ(
      written(
          "{\n \"a\": \"quantization\",\n \"quantization\": null,\n \"b\": {\"quantization\": null}\n}\n"),
      "{\n \"a\": \"quantization\",\n \"quantization\": " + block(" ") +
          ",\n \"b\": {\"quantization\": null},\n \"quantization_config\": " + block(" ") +
          ",\n \"quantized_by\": \"refrain\"\n}\n");
  EXPECT_EQ(written("{\"a\":[\"\\\"\",2],\"quantized_by\" : null }"),
            "{\"a\":[\"\\\"\",2],\"quantized_by\" : \"refrain\",\n  \"quantization\": " + block("  ") +
                ",\n  \"quantization_config\": " + block("  ") + "\n}");
  EXPECT_EQ(written("{\"quantization_config\":null,\"quantized_by\":null,\"quantization\":null}"),
            "{\"quantization_config\":" + block("  ") +
                ",\"quantized_by\":\"refrain\",\"quantization\":" + block("  ") + "}");
}

TEST_F(QuantizeModelTest, DropsATiedHead) {
  write_input({{"model.embed_tokens.weight", 7, 64}, {"lm_head.weight", 7, 64}},
              R"({"tie_word_embeddings":true})");
  std::vector<std::string> lines;
  QuantizeOptions options;
  options.log = [&](LogLevel, std::string_view line) { lines.emplace_back(line); };
  EXPECT_EQ(quantize_model(in_, out_, options).dropped_tensors, 1u);
  EXPECT_FALSE(ModelFolder::open(out_).has("lm_head.weight"));
  EXPECT_EQ(lines, std::vector<std::string>{"tensor \"lm_head.weight\" is dropped: it follows from others"});
}

TEST_F(QuantizeModelTest, RefusesATiedHeadOfItsOwnAndKeepsTheOnlyOne) {
  const char* config = R"({"tie_word_embeddings":true})";
  write_input({{"model.embed_tokens.weight", 7, 64}, {"lm_head.weight", 7, 64, 2.0f}}, config);
  EXPECT_NE(error_of().find("\"lm_head.weight\": expected what \"model.embed_tokens.weight\" holds"),
            std::string::npos)
      << error_of();
  write_input({{"lm_head.weight", 7, 64}, {"model.rotary_emb.inv_freq", 8, 0}}, config);
  quantize_model(in_, out_, {});
  const ModelFolder model = ModelFolder::open(out_);
  EXPECT_TRUE(model.has("lm_head.weight"));
  EXPECT_FALSE(model.has("model.rotary_emb.inv_freq"));
}

TEST_F(QuantizeModelTest, DropsATiedHeadOfAnotherTypeIfItsValuesAreTheSame) {
  // More than are compared at a time, so that the last is in a part of its own.
  constexpr int64_t kRows = 65, kColumns = int64_t{1} << 16;
  std::vector<float> values(kRows * kColumns);
  std::vector<bf16> rounded(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(i % 129);  // 8 bits hold it
    rounded[i] = bf16::from_float(values[i]);
  }
  const auto write = [&] {
    folder_.write("in/config.json", R"({"tie_word_embeddings":true})");
    SafetensorsWriter writer(in_ / "model.safetensors",
                             {{"lm_head.weight", DType::f32, {kRows, kColumns}},
                              {"model.embed_tokens.weight", DType::bf16, {kRows, kColumns}}});
    writer.append("lm_head.weight", std::as_bytes(std::span(values)));
    writer.append("model.embed_tokens.weight", std::as_bytes(std::span(rounded)));
    writer.commit();
  };
  write();
  EXPECT_EQ(quantize_model(in_, out_, {}).dropped_tensors, 1u);
  values.back() += 0.25f;
  write();
  QuantizeOptions force;
  force.force = true;
  EXPECT_NE(error_of(force).find("\"lm_head.weight\": expected what"), std::string::npos);
}

TEST_F(QuantizeModelTest, ProgressCountsWhatIsKeptAndEndsWithAll) {
  write_input({{"model.embed_tokens.weight", 7, 128},
               {"lm_head.weight", 7, 128},  // dropped: no part of the work
               {"model.layers.0.odd.weight", 8, 96},
               {"model.norm.weight", 64, 0},
               {"z.bias", 3, 0}},
              R"({"tie_word_embeddings":true})");
  std::vector<uint64_t> done;
  QuantizeOptions options;
  constexpr uint64_t kAllBytes = (7 * 128 + 8 * 96 + 64 + 3) * sizeof(float);
  options.progress = [&](uint64_t done_bytes, uint64_t all_bytes) {
    done.push_back(done_bytes);
    EXPECT_EQ(all_bytes, kAllBytes);
  };
  const QuantizeReport report = quantize_model(in_, out_, options);
  constexpr uint64_t kPackedBytes = 7 * 128 * sizeof(float), kOddBytes = 8 * 96 * sizeof(float);
  EXPECT_EQ(done, (std::vector<uint64_t>{kPackedBytes, kPackedBytes + kOddBytes,
                                         kAllBytes - 3 * sizeof(float), kAllBytes}));
  EXPECT_EQ(report.input_bytes, kAllBytes);
  EXPECT_EQ(report.output_bytes, std::filesystem::file_size(out_ / "model.safetensors"));
}

TEST_F(QuantizeModelTest, ALargeMatrixIsPackedInBlocksOfRows) {
  // Two rows fit into the 32 MiB that are quantized at a time: the third begins a block.
  constexpr int64_t kRows = 3, kColumns = (int64_t{3} << 20) + 64;
  constexpr size_t kRowBytes = kColumns * sizeof(float);
  write_input({{"a.weight", kRows, kColumns}});
  std::vector<uint64_t> done;
  QuantizeOptions options;
  options.progress = [&](uint64_t done_bytes, uint64_t) { done.push_back(done_bytes); };
  quantize_model(in_, out_, options);
  EXPECT_EQ(done, (std::vector<uint64_t>{2 * kRowBytes, 3 * kRowBytes}));

  const SafetensorsFile in = SafetensorsFile::open(in_ / "model.safetensors");
  const SafetensorsFile out = SafetensorsFile::open(out_ / "model.safetensors");
  const WeightFormat& format = mlx_affine(options.affine, DType::f32);
  std::vector<float> values(kColumns);
  for (size_t row = 0; row < kRows; ++row) {
    std::memcpy(values.data(), in.segment("a.weight").bytes.data() + row * kRowBytes, kRowBytes);
    const EncodedTensor encoded = encode(format, {1, kColumns}, values);
    const auto expect = [&](std::string_view name, std::span<const std::byte> expected) {
      const auto found = out.segment(name).bytes.subspan(row * expected.size(), expected.size());
      EXPECT_TRUE(std::ranges::equal(found, expected)) << name << ", row " << row;
    };
    expect("a.weight", encoded.parts[0]);
    expect("a.scales", encoded.parts[1]);
    expect("a.biases", encoded.parts[2]);
  }
}

TEST_F(QuantizeModelTest, RefusesWithOneLine) {
  const auto expect = [&](const std::string& error, const std::string& says) {
    EXPECT_NE(error.find(says), std::string::npos) << says << "\n  in: " << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  };
  write_input({{"a.weight", 1, 64}}, R"({"quantization":{"bits":4,"group_size":64}})");
  expect(error_of(), "config.json: quantization: expected a model that is not quantized");
  write_input({{"a.weight", 1, 64}, {"a.scales", 1, 1}});
  expect(error_of(), "got scales");
  write_input({{"a.weight", 1, 64}}, R"({"quantized_by":"another"})");
  expect(error_of(), "config.json: quantized_by: expected a model that is not quantized");
  write_input({{"model.layers.0.mlp.experts.0.up_proj.weight", 1, 64}});
  expect(error_of(), "without experts");
  write_input({{"a.weight", 1, 96}});
  expect(error_of(), "multiple of 64");
  write_input({{"a.weight", 1, 64, std::numeric_limits<float>::infinity()}});
  expect(error_of(), "\"a.weight\": expected finite values");
  EXPECT_FALSE(std::filesystem::exists(out_ / "model.safetensors"));
  EXPECT_FALSE(std::filesystem::exists(out_)) << "no temporary file may remain";

  write_input({{"a.weight", 1, 64}});
  QuantizeOptions options;
  options.affine = {7, 64};
  EXPECT_THROW(quantize_model(in_, out_, options), InvalidArgument);
  EXPECT_THROW(quantize_model(in_, in_, {}), FileError);
  EXPECT_THROW(quantize_model(in_, in_ / ".." / "in" / ".", {}), FileError);
  folder_.write("file", "");
  EXPECT_THROW(quantize_model(in_, folder_.path() / "file", {}), FileError);
  EXPECT_THROW(quantize_model(folder_.path() / "none", out_, {}), FileError);
}

TEST_F(QuantizeModelTest, WhatEndsTheWorkLeavesTheOldFolder) {
  write_input({{"a.weight", 1, 64}, {"b.weight", 1, 64}});
  QuantizeOptions options;
  options.force = true;
  const auto expect_stopped = [&] {
    options.progress = [](uint64_t, uint64_t) { throw InvalidArgument("enough"); };
    EXPECT_THROW(quantize_model(in_, out_, options), InvalidArgument);
    options.progress = {};
  };
  expect_stopped();
  EXPECT_FALSE(std::filesystem::exists(out_));
  std::filesystem::create_directories(out_);
  expect_stopped();
  EXPECT_TRUE(std::filesystem::is_empty(out_)) << "it was there before";
  quantize_model(in_, out_, options);
  const auto file = std::filesystem::last_write_time(out_ / "model.safetensors");
  expect_stopped();
  EXPECT_EQ(std::filesystem::last_write_time(out_ / "model.safetensors"), file);
  EXPECT_EQ(names_in(out_), (std::vector<std::string>{"config.json", "model.safetensors"}));
}

TEST_F(QuantizeModelTest, ReplacesOnlyItsOwnResultAndOnlyWhenForced) {
  write_input({{"a.weight", 1, 64}});
  EXPECT_EQ(error_of(), "");
  EXPECT_NE(error_of().find("expected an empty folder"), std::string::npos);
  QuantizeOptions force;
  force.force = true;
  EXPECT_EQ(error_of(force), "");
  folder_.write("out/.model.safetensors.123-0.tmp", "left by a run that was killed");
  EXPECT_NE(error_of(), "");
  EXPECT_EQ(error_of(force), "");
  EXPECT_FALSE(std::filesystem::exists(out_ / ".model.safetensors.123-0.tmp"));
  folder_.write("out/.mine.tmp", "");
  EXPECT_NE(error_of(force).find(".mine.tmp"), std::string::npos);
  std::filesystem::remove(out_ / ".mine.tmp");
  folder_.write("out/model-00001-of-00002.safetensors", "");
  EXPECT_NE(error_of(force).find("model-00001-of-00002.safetensors"), std::string::npos);
  std::filesystem::remove(out_ / "model-00001-of-00002.safetensors");
  folder_.write("out/config.json", R"({"quantization":{"bits":4,"group_size":64}})");
  EXPECT_NE(error_of(force).find("expected a folder that this command has written"), std::string::npos);
}

}  // namespace
}  // namespace refrain::format
