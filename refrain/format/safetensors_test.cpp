// The reader against every rule of the format, damaged files, and the writer against the reader.
#include "refrain/format/safetensors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>
#include <tuple>

#include "refrain/core/error.h"
#include "refrain/format/test_folder.h"

namespace refrain::format {
namespace {

/// A file in memory: the length, the header, the data.
std::string make_file(std::string_view header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof length);
  file += header;
  for (size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return file;
}

SafetensorsFile parse(std::string_view file) {
  return SafetensorsFile::parse(std::as_bytes(std::span(file)), "f");
}

/// The message of the error that `file` gives; empty when it loads.
std::string error_of(std::string_view file) {
  try {
    parse(file);
    return "";
  } catch (const FileError& error) {
    return error.what();
  }
}

std::string error_of_header(std::string_view header, size_t data_bytes) {
  return error_of(make_file(header, data_bytes));
}

constexpr const char* kValid = R"({"__metadata__":{"format":"pt"},)"
                               R"("b":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                               R"("a":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},)"
                               R"("e":{"dtype":"U8","shape":[0,5],"data_offsets":[32,32]},)"
                               R"("s":{"dtype":"I64","shape":[],"data_offsets":[32,40]},)"
                               R"("q":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[40,43]}}  )";

TEST(SafetensorsReader, ReadsAValidFile) {
  const std::string bytes = make_file(kValid, 43);
  const SafetensorsFile file = parse(bytes);
  ASSERT_EQ(file.tensors().size(), 5u);
  EXPECT_EQ(file.tensors()[0].name, "b");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  const TensorSegment b = file.segment("b");
  EXPECT_EQ(b.dtype, DType::f32);
  EXPECT_EQ(b.shape, (Shape{2, 3}));
  EXPECT_EQ(b.bytes.size(), 24u);
  EXPECT_EQ(std::to_integer<int>(file.segment("a").bytes[0]), 24);
  EXPECT_EQ(file.segment("s").shape.rank(), 0u);
  EXPECT_TRUE(file.segment("e").bytes.empty());
  EXPECT_EQ(file.find("none"), nullptr);
  EXPECT_THROW(file.segment("none"), FileError);
}

TEST(SafetensorsReader, ListsKnownTypesAndRefusesThemOnlyWhenUsed) {
  const std::string bytes = make_file(kValid, 43);
  const SafetensorsFile file = parse(bytes);
  const SafetensorsEntry* entry = file.find("q");
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->type_name, "F8_E4M3");
  EXPECT_FALSE(entry->dtype);
  EXPECT_EQ(entry->bytes.size(), 3u);
  EXPECT_THROW(file.segment("q"), FileError);
  for (const char* type : {"F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}) {
    EXPECT_EQ(error_of_header(
                  std::string(R"({"q":{"dtype":")") + type + R"(","shape":[3],"data_offsets":[0,3]}})", 3),
              "");
  }
  EXPECT_EQ(error_of_header(R"({"q":{"dtype":"C64","shape":[3],"data_offsets":[0,24]}})", 24), "");
  EXPECT_EQ(error_of_header(R"({"q":{"dtype":"F4","shape":[6],"data_offsets":[0,3]}})", 3), "");
  EXPECT_EQ(error_of_header(R"({"q":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}})", 3), "");
}

TEST(SafetensorsReader, AcceptsWhatTheFormatAllows) {
  EXPECT_EQ(error_of_header("{}", 0), "");
  EXPECT_EQ(error_of_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":[[]]}})", 1), "");
  EXPECT_EQ(error_of_header(R"({"__metadata__":null})", 0), "");
  EXPECT_EQ(error_of_header(R"({"__metadata__":{}})", 0), "");
  EXPECT_EQ(error_of_header(R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}     )", 1), "");
}

TEST(SafetensorsReader, EveryTypeHasItsNameAndSize) {
  const std::tuple<const char*, DType, size_t> types[] = {
      {"F64", DType::f64, 8},     {"F32", DType::f32, 4}, {"F16", DType::f16, 2}, {"BF16", DType::bf16, 2},
      {"U64", DType::u64, 8},     {"U32", DType::u32, 4}, {"U16", DType::u16, 2}, {"U8", DType::u8, 1},
      {"I64", DType::i64, 8},     {"I32", DType::i32, 4}, {"I16", DType::i16, 2}, {"I8", DType::i8, 1},
      {"BOOL", DType::boolean, 1}};
  for (const auto& [name, dtype, size_bytes] : types) {
    const std::string bytes =
        make_file(std::string(R"({"a":{"dtype":")") + name + R"(","shape":[1],"data_offsets":[0,)" +
                      std::to_string(size_bytes) + "]}}",
                  size_bytes);
    EXPECT_EQ(parse(bytes).segment("a").dtype, dtype) << name;
    EXPECT_EQ(safetensors_name(dtype), name);
  }
}

TEST(SafetensorsReader, AnEmptyTensorMayBeListedBehindTheOneThatBeginsWhereItLies) {
  const std::string bytes = make_file(R"({"c":{"dtype":"U8","shape":[2],"data_offsets":[4,6]},)"
                                      R"("f":{"dtype":"U8","shape":[0],"data_offsets":[6,6]},)"
                                      R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                                      R"("b":{"dtype":"U8","shape":[0],"data_offsets":[4,4]},)"
                                      R"("e":{"dtype":"U8","shape":[0,3],"data_offsets":[0,0]}})",
                                      6);
  const SafetensorsFile file = parse(bytes);
  std::string order;
  for (const SafetensorsEntry& entry : file.tensors()) order += entry.name;
  EXPECT_EQ(order, "eabcf");
  EXPECT_EQ(std::to_integer<int>(file.segment("c").bytes[1]), 5);
}

struct Bad {
  const char* header;
  size_t data_bytes;
  const char* says;
};

TEST(SafetensorsReader, RefusesEachBrokenRule) {
  const std::vector<Bad> cases = {
      {"", 0, "expected '{'"},
      {" {}", 0, "expected '{'"},
      {"[]", 0, "expected '{'"},
      {"{}\n", 0, "expected '}'"},
      {"{} x", 0, "expected '}'"},
      {"{}{}", 0, "expected JSON"},
      {"{", 0, "expected '}'"},
      {"{\"a\"}", 0, "expected JSON"},
      {"{\"\xff\":{}}", 0, "expected JSON"},
      {R"({"a":{"b":[[[0]]]}})", 0, "expected JSON"},  // too deep
      {R"({"a":{"b":[[[]]]}})", 0, "at most 4 levels"},
      {R"({"a":{"b":[[]]}})", 0, "\"dtype\""},  // 4 levels
      {R"({"a":1})", 0, "expected an object"},
      {R"({"__metadata__":1})", 0, "__metadata__: expected an object"},
      {R"({"__metadata__":{"a":1}})", 0, "expected a string"},
      {R"({"__metadata__":{"a":null}})", 0, "expected a string"},
      {R"({"__metadata__":{"a":"1","a":"2"}})", 0, "distinct keys"},
      {R"({"__metadata__":null,"__metadata__":null})", 0, "__metadata__ twice"},
      {R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1, "\"dtype\""},
      {R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1, "\"shape\""},
      {R"({"a":{"dtype":"U8","shape":[1]}})", 1, "\"data_offsets\""},
      {R"({"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})", 1, "dtype"},
      {R"({"a":{"dtype":"U9","shape":[1],"data_offsets":[0,1]}})", 1, "\"U9\""},
      {R"({"a":{"dtype":"u8","shape":[1],"data_offsets":[0,1]}})", 1, "\"u8\""},
      {R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1, "shape: expected an array"},
      {R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1, "a negative one"},
      {R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1, "a fraction"},
      {R"({"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}})", 1, "a string"},
      {R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", 1, "at most 8"},
      {R"({"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,1]}})", 1, "below 2^63"},
      {R"({"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}})", 1, "expected"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1, "expected 2 integers, got 1"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}})", 1, "expected 2 integers, got 3"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1, "end >= begin"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}})", 1, "expected 2 bytes"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,3]}})", 3, "expected 4 bytes"},
      {R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}})", 1, "whole bytes"},
      {R"({"a":{"dtype":"F6_E3M2","shape":[2],"data_offsets":[0,1]}})", 1, "whole bytes"},
      {R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "overflow"},
      {R"({"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}})", 0, "overflow"},
      {R"({"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}})", 0, "overflow"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2, "expected to begin at 0"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
       3, "expected to begin at 1"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "expected to begin at 2"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
       2, "expected to begin at 2"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 1, "expected to end within 1 bytes"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 2, "expected 1 bytes"},
      {"{}", 1, "expected 0 bytes"},
      {R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "\"dtype\" twice"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2, "distinct names"},
      {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
       R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
       0, "distinct names"},
  };
  for (const Bad& bad : cases) {
    const std::string error = error_of_header(bad.header, bad.data_bytes);
    EXPECT_NE(error.find(bad.says), std::string::npos) << bad.header << "\n  gives: " << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
}

TEST(SafetensorsReader, RefusesLyingLengths) {
  EXPECT_NE(error_of("").find("at least 8 bytes"), std::string::npos);
  EXPECT_NE(error_of("1234567").find("at least 8 bytes"), std::string::npos);
  std::string file = make_file("{}", 0);
  for (const uint64_t length : {uint64_t{3}, uint64_t{1} << 31, uint64_t{1} << 32, (uint64_t{1} << 63) - 1,
                                ~uint64_t{0}, ~uint64_t{7}, uint64_t{100'000'000}, uint64_t{100'000'001}}) {
    std::memcpy(file.data(), &length, sizeof length);
    EXPECT_NE(error_of(file).find("header: expected at most"), std::string::npos) << length;
  }
}

TEST(SafetensorsReader, KeepsItsOwnLimits) {
  const auto named = [](size_t length) {
    return "{\"" + std::string(length, 'n') + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
  };
  EXPECT_EQ(error_of_header(named(kSafetensorsMaxNameBytes), 1), "");
  EXPECT_NE(error_of_header(named(kSafetensorsMaxNameBytes + 1), 1).find("at most 512 bytes"),
            std::string::npos);

  std::string header = "{";
  for (size_t i = 0; i <= kSafetensorsMaxTensors; ++i) {
    header += '"' + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)";
  }
  header.back() = '}';
  EXPECT_NE(error_of_header(header, 0).find("at most 1000000 tensors"), std::string::npos);
}

TEST(SafetensorsReader, ShowsHostileNamesOnOneLine) {
  const std::string error =
      error_of_header(R"({"a\n\u0000\u001b[31m":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}})", 1);
  EXPECT_NE(error.find("a\\u000a\\u0000\\u001b[31m"), std::string::npos) << error;
}

/// Loads or gives a FileError, and what loads lies within the file.
void expect_typed(const std::string& bytes, const std::string& original, const std::string& what) {
  const std::string copy(bytes.begin(),
                         bytes.end());  // exactly as long as it is: sanitizers see what lies behind
  try {
    const SafetensorsFile file = parse(copy);
    size_t covered = 0;
    for (const SafetensorsEntry& entry : file.tensors()) covered += entry.bytes.size();
    ASSERT_LE(covered + 8, copy.size()) << what;
  } catch (const FileError&) {
    ASSERT_NE(bytes, original) << what;
  }
}

TEST(SafetensorsReader, SurvivesEveryTruncation) {
  const std::string file = make_file(kValid, 43);
  for (size_t length = 0; length < file.size(); ++length) {
    EXPECT_NE(error_of(std::string(file, 0, length)), "") << length;
  }
  EXPECT_NE(error_of(file + '\0'), "");
}

TEST(SafetensorsReader, SurvivesEveryBitFlipOfTheHeader) {
  const std::string original = make_file(kValid, 43);
  for (size_t bit = 0; bit < 8 * (8 + std::strlen(kValid)); ++bit) {
    std::string file = original;
    file[bit / 8] = static_cast<char>(file[bit / 8] ^ (1 << bit % 8));
    expect_typed(file, original, "bit " + std::to_string(bit));
  }
}

TEST(SafetensorsReader, SurvivesExtremeNumbers) {
  const std::vector<std::string> extremes = {"0",
                                             "1",
                                             "2147483648",
                                             "4294967296",
                                             "9223372036854775807",
                                             "9223372036854775808",
                                             "18446744073709551615",
                                             "18446744073709551616",
                                             "-1",
                                             "-9223372036854775808",
                                             "1e308",
                                             "0.5"};
  for (const char* type : {"U8", "BF16", "F64", "F4"}) {
    for (const std::string& a : extremes) {
      for (const std::string& b : extremes) {
        for (const std::string& c : extremes) {
          for (const std::string& d : extremes) {
            const std::string file =
                make_file(std::string(R"({"t":{"dtype":")") + type + R"(","shape":[)" + a + ',' + b +
                              R"(],"data_offsets":[)" + c + ',' + d + "]}}",
                          16);
            expect_typed(file, "", file);
          }
        }
      }
    }
  }
}

TEST(SafetensorsReader, SurvivesPairsOfDamagedBytes) {
  const std::string original = make_file(kValid, 43);
  uint64_t state = 1;
  const auto random = [&state](size_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<size_t>((state >> 33) % below);
  };
  for (int i = 0; i < 100'000; ++i) {
    std::string file = original;
    for (int k = 0; k < 2; ++k)
      file[8 + random(std::strlen(kValid))] = "0123456789{}[]\",:-. \\eun"[random(24)];
    expect_typed(file, original, file);
  }
}

TEST(SafetensorsReader, NamesAFileThatIsNone) {
  TestFolder folder;
  EXPECT_THROW(SafetensorsFile::open(folder.path() / "none.safetensors"), FileError);
  EXPECT_THROW(SafetensorsFile::open(folder.path()), FileError);
}

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  return names;
}

TEST(SafetensorsReader, SaysWhatWasSavedInPlaceOfTheFile) {
  EXPECT_EQ(error_of("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"),
            "f: expected a safetensors file, got a Git LFS pointer, without the file that it stands for");
  EXPECT_EQ(error_of("\n<!doctype html><title>404</title>"),
            "f: expected a safetensors file, got a web page");
}

TEST(SafetensorsWriter, WritesWhatTheReaderReads) {
  TestFolder folder;
  const auto path = folder.path() / "w.safetensors";
  SafetensorsWriter writer(path,
                           {{"z", DType::u8, {3}},
                            {"b", DType::bf16, {2}},
                            {"a", DType::bf16, {1, 1}},
                            {"w", DType::u32, {2}},
                            {"empty", DType::f32, {0, 7}},
                            {"d\"\\\n\x1f", DType::f64, {}}},
                           {{"format", "mlx"}});
  writer.append("z", bytes_of("x"));
  writer.append("d\"\\\n\x1f", bytes_of("12345678"));
  writer.append("w", bytes_of("aaaabbbb"));
  writer.append("z", bytes_of("yz"));
  writer.append("a", bytes_of("aa"));
  writer.append("b", bytes_of("bbcc"));
  writer.commit();
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"w.safetensors"});
  EXPECT_EQ(std::filesystem::file_size(path), writer.size_bytes());

  const SafetensorsFile file = SafetensorsFile::open(path);
  std::vector<std::string> order;
  for (const SafetensorsEntry& entry : file.tensors()) order.push_back(entry.name);
  EXPECT_EQ(order, (std::vector<std::string>{"d\"\\\n\x1f", "empty", "w", "a", "b", "z"}));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.tensors()[0].bytes.data()) % SafetensorsWriter::kDataAlignment,
            0u);
  EXPECT_EQ(file.metadata().at("format"), "mlx");
  const auto text = [&](std::string_view name) {
    const auto bytes = file.segment(name).bytes;
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  EXPECT_EQ(text("z"), "xyz");
  EXPECT_EQ(text("w"), "aaaabbbb");
  EXPECT_EQ(text("b"), "bbcc");
}

TEST(SafetensorsWriter, LeavesNothingWhenDropped) {
  TestFolder folder;
  const auto path = folder.path() / "w.safetensors";
  folder.write("w.safetensors", "old");
  {
    SafetensorsWriter writer(path, {{"a", DType::u8, {4}}});
    writer.append("a", bytes_of("123"));
    EXPECT_THROW(writer.append("a", bytes_of("45")), InvalidArgument);
    EXPECT_THROW(writer.append("b", bytes_of("4")), InvalidArgument);
    EXPECT_THROW(writer.commit(), InvalidArgument);
  }
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"w.safetensors"});
  EXPECT_EQ(read_text_file(path), "old");
}

TEST(SafetensorsWriter, RefusesWhatTheFormatCannotSay) {
  TestFolder folder;
  const auto make = [&](std::vector<SafetensorsSpec> specs) {
    SafetensorsWriter(folder.path() / "w", std::move(specs));
  };
  EXPECT_THROW(make({{"a", DType::u8, {1}}, {"a", DType::u8, {1}}}), InvalidArgument);
  EXPECT_THROW(make({{"__metadata__", DType::u8, {1}}}), InvalidArgument);
  EXPECT_THROW(make({{std::string(513, 'a'), DType::u8, {1}}}), InvalidArgument);
  EXPECT_THROW(make({{"a", DType::activation, {1}}}), InvalidArgument);
  EXPECT_THROW(make({{"a", DType::f64, {int64_t{1} << 61}}}), InvalidArgument);
  EXPECT_TRUE(names_in(folder.path()).empty());
  EXPECT_THROW(SafetensorsWriter(folder.path() / "none" / "w", {}), FileError);
}

/// Files may not grow beyond `limit_bytes` while it lives; a write beyond fails instead of raising a signal.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t limit_bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{limit_bytes, old_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit old_{};
  void (*handler_)(int);
};

TEST(SafetensorsWriter, FailsWhenTheDiskDoes) {
  TestFolder folder;
  const auto path = folder.path() / "w.safetensors";
  folder.write("w.safetensors", "old");
  {
    const FileSizeLimit limit(8192);
    SafetensorsWriter writer(path, {{"a", DType::u8, {8192}}});
    EXPECT_THROW(writer.append("a", bytes_of(std::string(8192, 'x'))), FileError);
  }
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"w.safetensors"});
  EXPECT_EQ(read_text_file(path), "old");
}

}  // namespace
}  // namespace refrain::format
