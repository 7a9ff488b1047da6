#include "refrain/format/model_folder.h"

#include <gtest/gtest.h>

#include <functional>

#include "refrain/core/error.h"
#include "refrain/format/plain.h"
#include "refrain/format/test_folder.h"

namespace refrain::format {
namespace {

/// Writes a safetensors file of zeros.
void write_tensors(const TestFolder& folder, std::string_view file,
                   const std::vector<SafetensorsSpec>& specs) {
  SafetensorsWriter writer(folder.path() / file, specs);
  for (const SafetensorsSpec& spec : specs) {
    const auto bytes = static_cast<size_t>(spec.shape.elements()) * size_bytes(spec.dtype);
    writer.append(spec.name, std::vector<std::byte>(bytes));
  }
  writer.commit();
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const FileError& error) {
    return error.what();
  }
  return "";
}

void expect_error(const std::function<void()>& call, const std::vector<std::string>& says) {
  const std::string error = error_of(call);
  for (const std::string& part : says)
    EXPECT_NE(error.find(part), std::string::npos) << part << "\n  in: " << error;
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
}

std::vector<SafetensorsSpec> affine(const std::string& module, int64_t rows, int64_t columns, int64_t bits,
                                    int64_t group, DType dtype = DType::bf16) {
  return {{module + ".weight", DType::u32, {rows, columns * bits / 32}},
          {module + ".scales", dtype, {rows, columns / group}},
          {module + ".biases", dtype, {rows, columns / group}}};
}

class ModelFolderTest : public testing::Test {
 protected:
  void SetUp() override { folder_.write("config.json", "{}"); }
  ModelFolder open() {
    return ModelFolder::open(folder_.path(), [this](LogLevel level, std::string_view message) {
      EXPECT_EQ(level, LogLevel::warning);
      log_.emplace_back(message);
    });
  }
  /// Opens a folder with one quantized module "m", and gives its weight.
  TensorSource open_weight(const std::vector<SafetensorsSpec>& specs, std::string_view config, int64_t rows,
                           int64_t columns) {
    log_.clear();
    write_tensors(folder_, "model.safetensors", specs);
    folder_.write("config.json", config);
    return open().weight("m", rows, columns);
  }

  TestFolder folder_;
  std::vector<std::string> log_;
};

TEST_F(ModelFolderTest, NeedsConfigAndTensors) {
  expect_error([&] { open(); }, {"model*.safetensors"});
  write_tensors(folder_, "model.safetensors", {{"a", DType::f32, {2}}});
  EXPECT_NO_THROW(open());
  folder_.write("config.json", R"({"model_file":"code.py"})");
  expect_error([&] { open(); }, {"model_file", "code.py"});
  folder_.write("config.json", "[]");
  expect_error([&] { open(); }, {"expected an object"});
  std::filesystem::remove(folder_.path() / "config.json");
  expect_error([&] { open(); }, {"config.json"});
  expect_error([&] { ModelFolder::open(folder_.path() / "none"); }, {"expected a model folder"});
}

TEST_F(ModelFolderTest, TakesAllFilesWithoutAnIndex) {
  write_tensors(folder_, "model-00002-of-00002.safetensors", {{"b", DType::u8, {3}}});
  write_tensors(folder_, "model-00001-of-00002.safetensors",
                {{"a", DType::f32, {1}}, {"c", DType::u8, {1}}, {"d", DType::u8, {1}}});
  folder_.write("optimizer.safetensors", "not read");
  const ModelFolder model = open();
  EXPECT_EQ(model.tensor_names(), (std::vector<std::string>{"a", "b", "c", "d"}));
  EXPECT_TRUE(model.has("b"));
  EXPECT_FALSE(model.has("e"));
  const ModelFolder::Totals totals = model.totals();
  EXPECT_EQ(totals.files, 2u);
  EXPECT_EQ(totals.tensors, 4u);
  EXPECT_EQ(totals.aligned_tensors, 2u);
  EXPECT_EQ(totals.unaligned_tensors, 2u);
  EXPECT_EQ(totals.bytes, 9u);
}

TEST_F(ModelFolderTest, RefusesATensorInTwoFiles) {
  write_tensors(folder_, "model-1.safetensors", {{"a", DType::f32, {2}}});
  write_tensors(folder_, "model-2.safetensors", {{"a", DType::f32, {2}}});
  expect_error([&] { open(); }, {"\"a\"", "model-1.safetensors", "model-2.safetensors"});
}

class IndexTest : public ModelFolderTest {
 protected:
  void SetUp() override {
    ModelFolderTest::SetUp();
    write_tensors(folder_, "x.safetensors", {{"a", DType::f32, {2}}});
    write_tensors(folder_, "y.safetensors", {{"b", DType::f32, {2}}});
  }
  ModelFolder open_with(std::string_view map) {
    folder_.write("model.safetensors.index.json",
                  R"({"metadata":{"total_size":16},"weight_map":)" + std::string(map) + "}");
    return open();
  }
  using Names = std::vector<std::string>;
};

TEST_F(IndexTest, ItsFilesAreTaken) {
  write_tensors(folder_, "model.safetensors", {{"a", DType::f32, {3}}, {"c", DType::f32, {2}}});
  const ModelFolder model = open_with(R"({"a":"x.safetensors","b":"y.safetensors"})");
  EXPECT_EQ(model.tensor_names(), (Names{"a", "b"}));
  EXPECT_EQ(model.find("a")->shape, (Shape{2}));
}

TEST_F(IndexTest, AStaleOneMakesNothingWrongThatIsThere) {
  const Names both = {"a", "b"};
  EXPECT_EQ(open_with(R"({"a":"y.safetensors","b":"x.safetensors"})").tensor_names(), both) << "turned round";
  EXPECT_EQ(open_with(R"({"a":"none.safetensors","b":"y.safetensors"})").tensor_names(), (Names{"b"}));
  write_tensors(folder_, "y.safetensors", {{"b", DType::f32, {2}}, {"new", DType::f32, {2}}});
  EXPECT_EQ(open_with(R"({"a":"x.safetensors","b":"y.safetensors","lm_head.weight":"y.safetensors"})")
                .tensor_names(),
            (Names{"a", "b", "new"}))
      << "one too many and one too few";
  // Of files that it does not list, what it lacks.
  write_tensors(folder_, "model.safetensors", {{"a", DType::f32, {3}}, {"c", DType::f32, {2}}});
  const ModelFolder model = open_with(R"({"a":"x.safetensors","c":"old.safetensors"})");
  EXPECT_EQ(model.tensor_names(), (Names{"a", "c"}));
  EXPECT_EQ(model.find("a")->shape, (Shape{2}));
  for (const char* map : {"{}", R"({"a":"old.safetensors"})"})
    EXPECT_EQ(open_with(map).tensor_names(), (Names{"a", "c"})) << map;
}

TEST_F(IndexTest, AShardThatItLeavesOutIsTaken) {
  for (const char* file : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"})
    write_tensors(folder_, file, {{std::string(1, file[10]), DType::f32, {2}}});
  write_tensors(folder_, "model-00001-of-00003.safetensors", {{"other", DType::f32, {2}}});
  EXPECT_EQ(open_with(R"({"1":"model-00001-of-00002.safetensors"})").tensor_names(), (Names{"1", "2"}));
}

TEST_F(IndexTest, AFileThatItDoesNotNameFillsInOrIsSaidToBeUnread) {
  const char* map = R"({"a":"x.safetensors","b":"y.safetensors"})";
  write_tensors(folder_, "model-head.safetensors", {{"lm_head.weight", DType::f32, {2}}});
  EXPECT_EQ(open_with(map).tensor_names(), (Names{"a", "b", "lm_head.weight"}));
  EXPECT_EQ(log_, Names());
  // Another version of what is there, and what cannot be read at all.
  write_tensors(folder_, "model-old.safetensors", {{"c", DType::f32, {2}}, {"b", DType::f32, {3}}});
  folder_.write("model-part.safetensors", "{");
  EXPECT_EQ(open_with(map).tensor_names(), (Names{"a", "b", "lm_head.weight"}));
  ASSERT_EQ(log_.size(), 2u);
  const std::string old = (folder_.path() / "model-old.safetensors").string();
  EXPECT_EQ(log_[0], old + ": tensor \"b\": expected none that is also in " +
                         (folder_.path() / "y.safetensors").string() +
                         "; the file, which the index does not name, is not read");
  EXPECT_NE(log_[1].find("model-part.safetensors: "), std::string::npos) << log_[1];
}

TEST_F(IndexTest, NamesTheFileOfATensorThatIsWanted) {
  const ModelFolder model = open_with(R"({"a":"x.safetensors","b":"none.safetensors"})");
  ASSERT_EQ(log_.size(), 1u);
  EXPECT_NE(log_[0].find("index.json: weight_map: expected tensor \"b\" in none.safetensors, got none"),
            std::string::npos)
      << log_[0];
  expect_error([&] { model.tensor("b"); },
               {"none.safetensors: tensor \"b\": expected it as the index says, got none"});
  expect_error([&] { model.tensor("c"); }, {"tensor \"c\": expected it, got none"});
  expect_error([&] { open_with(R"({"a":"none.safetensors"})"); }, {"none.safetensors", "as the index says"});
  expect_error([&] { open_with("{}"); }, {"expected model*.safetensors, found none"});
}

TEST_F(IndexTest, HasToBeAMapOfFiles) {
  expect_error([&] { open_with(R"({"a":"x.safetensors","a":"x.safetensors"})"); }, {"twice"});
  expect_error([&] { open_with(R"({"a":1})"); }, {"expected a string"});
  expect_error([&] { open_with("7"); }, {"weight_map: expected an object"});
}

TEST(IsDerived, TablesOfRope) {
  for (const char* name : {"rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq",
                           "model.rotary_emb_local.inv_freq", "model.rotary_emb.sliding_attention_inv_freq",
                           "model.layers.0.self_attn.rotary_emb.cos_cached"})
    EXPECT_TRUE(is_derived(name)) << name;
  for (const char* name : {"model.norm.weight", "rotary_emb.weight", "inv_freq"})
    EXPECT_FALSE(is_derived(name)) << name;
}

TEST_F(ModelFolderTest, KeepsTheIndexInsideTheFolder) {
  write_tensors(folder_, "x.safetensors", {{"a", DType::f32, {2}}});
  for (const char* name :
       {"../x.safetensors", "/etc/passwd", "a/b", "a\\\\b", "..", ".", "", "x\\u0000.safetensors", "..x"}) {
    folder_.write("model.safetensors.index.json", std::string(R"({"weight_map":{"a":")") + name + R"("}})");
    expect_error([&] { open(); }, {"expected the name of a file in the folder"});
  }
}

TEST_F(ModelFolderTest, GivesPlainWeights) {
  const std::vector<SafetensorsSpec> specs = {{"m.weight", DType::bf16, {4, 64}},
                                              {"n.weight", DType::i32, {4, 64}},
                                              {"o.weight", DType::u32, {4, 64}}};
  const TensorSource source = open_weight(specs, "{}", 4, 64);
  EXPECT_EQ(source.format, &plain(DType::bf16));
  EXPECT_EQ(source.name, "m.weight");
  EXPECT_EQ(source.shape, (Shape{4, 64}));
  ASSERT_EQ(source.segments.size(), 1u);
  EXPECT_EQ(source.segments[0].bytes.size(), 512u);
  ASSERT_NE(source.file, nullptr);
  const ModelFolder model = open();
  expect_error([&] { model.weight("m", 5, 64); },
               {"model.safetensors", "\"m.weight\"", "expected [5, 64], got [4, 64]"});
  expect_error([&] { model.weight("n", 4, 64); }, {"expected F32, F16 or BF16, got I32"});
  expect_error([&] { model.weight("o", 4, 64); }, {"\"o.scales\""});
  expect_error([&] { model.weight("none", 4, 64); }, {"\"none.weight\""});
  EXPECT_EQ(model.tensor("n.weight").format, &plain(DType::i32));
  expect_error([&] { model.tensor("m.weight", {64}); }, {"expected [64], got [4, 64]"});
}

TEST_F(ModelFolderTest, TakesAffineParametersFromTheShapes) {
  for (const uint32_t bits : {2u, 3u, 4u, 5u, 6u, 8u}) {
    for (const uint32_t group : {32u, 64u, 128u}) {
      for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
        const std::string config = R"({"quantization":{"group_size":)" + std::to_string(group) +
                                   R"(,"bits":)" + std::to_string(bits) + "}}";
        const TensorSource source = open_weight(affine("m", 6, 256, bits, group, dtype), config, 6, 256);
        EXPECT_EQ(source.format, &mlx_affine({bits, group}, dtype));
        EXPECT_EQ(source.shape, (Shape{6, 256}));
        ASSERT_EQ(source.segments.size(), 3u);
        EXPECT_EQ(source.segments[0].dtype, DType::u32);
        EXPECT_EQ(source.segments[1].shape, (Shape{6, 256 / group}));
        EXPECT_TRUE(log_.empty()) << log_[0];
      }
    }
  }
}

TEST_F(ModelFolderTest, TrustsShapesMoreThanTheConfigAndWarns) {
  const auto warnings = [&](std::string_view config, int64_t bits) {
    const TensorSource source = open_weight(affine("m", 6, 256, bits, 64), config, 6, 256);
    EXPECT_EQ(source.format, &mlx_affine({static_cast<uint32_t>(bits), 64}, DType::bf16));
    EXPECT_LE(log_.size(), 1u);
    if (!log_.empty()) {
      EXPECT_NE(log_[0].find("\"m.weight\""), std::string::npos) << log_[0];
    }
    return log_.size();
  };
  EXPECT_EQ(warnings(R"({"quantization":{"group_size":64,"bits":4}})", 4), 0u);
  EXPECT_EQ(warnings(R"({"quantization_config":{"group_size":64,"bits":4,"mode":"affine"}})", 4), 0u);
  EXPECT_EQ(warnings(R"({"text_config":{"quantization":{"group_size":64,"bits":4}}})", 4), 0u);
  EXPECT_EQ(warnings(R"({"text_config":{"quantization_config":{"group_size":64,"bits":4}}})", 4), 0u);
  EXPECT_EQ(warnings(R"({"quantization":{"group_size":64,"bits":4,"m":{"group_size":64,"bits":8}}})", 8), 0u);
  EXPECT_EQ(warnings(R"({"quantization":{"group_size":64,"bits":4,"m":true}})", 4), 0u);
  EXPECT_EQ(
      warnings(R"({"quantization":{"group_size":32,"bits":4,"mode":"mxfp4","m":{"group_size":64,"bits":8}}})",
               8),
      0u);
  EXPECT_EQ(warnings(R"({"quantization":{"group_size":64,"bits":4}})", 8), 1u);
  EXPECT_EQ(warnings(R"({"quantization":{"group_size":32,"bits":4}})", 4), 1u);
  EXPECT_EQ(warnings(R"({"quantization":{"group_size":64,"bits":4,"x.m":{"group_size":64,"bits":8}}})", 8),
            1u);
  EXPECT_EQ(warnings(R"({"quantization":{"group_size":64,"bits":4,"m":false}})", 4), 1u);
  EXPECT_EQ(warnings(R"({"quantization":{"group_size":64,"bits":4,"mode":"mxfp4"}})", 4), 1u);
  EXPECT_EQ(warnings("{}", 4), 1u);

  open_weight({{"m.weight", DType::f32, {2, 64}}},
              R"({"quantization":{"group_size":64,"bits":4,"m":{"bits":8}}})", 2, 64);
  EXPECT_EQ(log_.size(), 1u);
  open_weight({{"m.weight", DType::f32, {2, 64}}}, R"({"quantization":{"group_size":64,"bits":4}})", 2, 64);
  EXPECT_TRUE(log_.empty());
}

TEST_F(ModelFolderTest, RefusesOtherEncodings) {
  const std::string supported = "expected affine codes of 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128";
  for (const int64_t bits : {1, 7}) {
    expect_error([&] { open_weight(affine("m", 6, 256, bits, 64), "{}", 6, 256); },
                 {supported, "got " + std::to_string(bits) + " bits"});
  }
  expect_error([&] { open_weight(affine("m", 6, 256, 4, 16), "{}", 6, 256); }, {supported, "groups of 16"});
  expect_error(
      [&] {
        open_weight({{"m.weight", DType::u32, {6, 32}}, {"m.scales", DType::u8, {6, 8}}}, "{}", 6, 256);
      },
      {supported, "\"m.biases\"", "U8"});
  for (const char* method : {"awq", "gptq", "mxfp4", "compressed-tensors"}) {
    expect_error(
        [&] {
          open_weight(affine("m", 6, 256, 4, 64),
                      R"({"quantization_config":{"bits":4,"group_size":128,"quant_method":")" +
                          std::string(method) + "\"}}",
                      6, 256);
        },
        {"config.json: quantization_config.quant_method", method});
  }
  expect_error(
      [&] {
        open_weight(affine("m", 6, 256, 4, 64), R"({"quantization":{"quantize_activations":true}})", 6, 256);
      },
      {"quantize_activations"});
  expect_error(
      [&] { open_weight(affine("m", 6, 256, 4, 64), R"({"quantization":{"mode":"other"}})", 6, 256); },
      {"quantization.mode"});
}

TEST_F(ModelFolderTest, RefusesPartsThatContradictEachOther) {
  const auto refused = [&](size_t part, DType dtype, const Shape& shape,
                           const std::vector<std::string>& says) {
    std::vector<SafetensorsSpec> specs = affine("m", 6, 256, 4, 64);
    specs[part].dtype = dtype;
    specs[part].shape = shape;
    expect_error([&] { open_weight(specs, "{}", 6, 256); }, says);
  };
  refused(0, DType::u32, {5, 32}, {"\"m.weight\"", "[6, ...]"});
  refused(0, DType::u32, {6, 33}, {"\"m.weight\"", "[6, 256 * bits / 32], got [6, 33]"});
  refused(0, DType::u32, {6, 0}, {"\"m.weight\""});
  refused(0, DType::u32, {6, 2048}, {"\"m.weight\""});
  refused(0, DType::u32, {192}, {"\"m.weight\""});
  refused(0, DType::f32, {6, 32}, {"expected codes in U32"});
  refused(1, DType::bf16, {6, 5}, {"\"m.scales\"", "[6, 256 / group size], got [6, 5]"});
  refused(1, DType::bf16, {6, 0}, {"\"m.scales\""});
  refused(1, DType::bf16, {7, 4}, {"\"m.scales\""});
  refused(1, DType::u16, {6, 4}, {"\"m.scales\"", "U16"});
  refused(2, DType::bf16, {6, 8}, {"\"m.biases\""});
  refused(2, DType::f16, {6, 4}, {"\"m.biases\"", "F16"});
  expect_error([&] { open_weight(affine("m", 6, 256, 4, 64), "{}", 6, 1024); },
               {"\"m.weight\"", "got 1 bits"});
}

TEST_F(ModelFolderTest, HoldsEveryFileOfAWeightInParts) {
  const std::vector<SafetensorsSpec> specs = affine("m", 6, 256, 4, 64);
  write_tensors(folder_, "model-1.safetensors", {specs[0]});
  write_tensors(folder_, "model-2.safetensors", {specs[1], specs[2]});
  TensorSource source;
  {
    const ModelFolder model = open();
    source = model.weight("m", 6, 256);
  }
  for (const TensorSegment& segment : source.segments) {
    for (const std::byte byte : segment.bytes) EXPECT_EQ(byte, std::byte{0});
  }
}

}  // namespace
}  // namespace refrain::format
