// The core types: halves against the compiler's own, integers and shapes at their limits, files that cannot
// be read.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "refrain/core/checked.h"
#include "refrain/core/dtype.h"
#include "refrain/core/error.h"
#include "refrain/core/foreign_text.h"
#include "refrain/core/half.h"
#include "refrain/core/mapped_file.h"
#include "refrain/core/shape.h"

namespace refrain {
namespace {

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }

template <class E, class F>
std::string message_of(F&& call) {
  try {
    std::forward<F>(call)();
  } catch (const E& error) {
    return error.what();
  }
  return "nothing was thrown";
}

// Floats of every sign and exponent, with mantissas dense around each place where a half may round.
template <class F>
void for_each_float(F&& visit) {
  const auto around = [&](uint32_t upper) {
    for (int32_t delta = -2; delta <= 2; ++delta) visit(upper + static_cast<uint32_t>(delta));
  };
  for (uint32_t upper = 0; upper < 0x10000u; ++upper) {  // steps of bf16 and their halves
    around(upper << 16);
    around((upper << 16) | 0x8000u);
  }
  for (uint32_t exponent = 100; exponent < 145; ++exponent) {  // steps of f16 and their halves
    for (uint32_t mantissa = 0; mantissa < (1u << 23); mantissa += 1u << 12) {
      around((exponent << 23) | mantissa);
      around(0x80000000u | (exponent << 23) | mantissa);
    }
  }
  uint32_t bits = 12345;
  for (int i = 0; i < 2'000'000; ++i) {
    bits = bits * 1664525u + 1013904223u;
    visit(bits);
  }
}

#ifdef __FLT16_MANT_DIG__

uint16_t f16_by_compiler(float value) { return std::bit_cast<uint16_t>(static_cast<_Float16>(value)); }

TEST(F16, EveryHalfWidensAsTheCompilerDoes) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const f16 half{static_cast<uint16_t>(bits)};
    const float expected = static_cast<float>(std::bit_cast<_Float16>(half.bits));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(half.to_float())) << bits;
    } else {
      ASSERT_EQ(bits_of(half.to_float()), bits_of(expected)) << bits;
    }
  }
}

TEST(F16, FloatsRoundAsTheCompilerDoes) {
  for_each_float([](uint32_t bits) {
    const float value = float_of(bits);
    const uint16_t got = f16::from_float(value).bits;
    if (std::isnan(value)) {
      ASSERT_EQ(got & 0x7E00u, 0x7E00u) << bits;
      ASSERT_EQ(got >> 15, bits >> 31) << bits;
    } else {
      ASSERT_EQ(got, f16_by_compiler(value)) << bits;
    }
  });
}

#endif

TEST(F16, EveryHalfSurvivesAFloat) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const f16 half{static_cast<uint16_t>(bits)};
    const bool nan = (bits & 0x7FFFu) > 0x7C00u;
    ASSERT_EQ(f16::from_float(half.to_float()).bits, nan ? bits | 0x200u : bits);
  }
}

TEST(F16, KnownValues) {
  EXPECT_EQ(f16{0x3C00}.to_float(), 1.0f);
  EXPECT_EQ(f16{0x0001}.to_float(), 0x1p-24f);
  EXPECT_EQ(f16{0x7BFF}.to_float(), 65504.0f);
  EXPECT_EQ(f16::from_float(65519.0f).bits, 0x7BFF);
  EXPECT_EQ(f16::from_float(65520.0f).bits, 0x7C00);  // halfway to 2^16: to even, infinity
  EXPECT_EQ(f16::from_float(0x1p-25f).bits, 0x0000);  // half the least subnormal: to even, zero
  EXPECT_EQ(f16::from_float(-0x1.8p-25f).bits, 0x8001);
}

TEST(F16, SaturatedIsTheSameButNeverInfinite) {
  for_each_float([](uint32_t bits) {
    const uint16_t rounded = f16::from_float(float_of(bits)).bits;
    const uint16_t infinity = rounded & 0x7FFFu;
    ASSERT_EQ(f16::saturated(float_of(bits)).bits, infinity == 0x7C00 ? rounded - 1 : rounded) << bits;
  });
}

TEST(BF16, EveryValueSurvivesAFloat) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const bf16 value{static_cast<uint16_t>(bits)};
    ASSERT_EQ(bits_of(value.to_float()), bits << 16);
    const bool nan = (bits & 0x7FFFu) > 0x7F80u;
    ASSERT_EQ(bf16::from_float(value.to_float()).bits, nan ? bits | 0x40u : bits);
  }
}

// The judge is the distance, in double, to the two neighbours that truncation and its successor give.
TEST(BF16, FloatsRoundToNearestEven) {
  for_each_float([](uint32_t bits) {
    const float value = float_of(bits);
    const uint16_t got = bf16::from_float(value).bits;
    if (std::isnan(value)) {
      ASSERT_EQ(got & 0x7FC0u, 0x7FC0u) << bits;
      ASSERT_EQ(got >> 15, bits >> 31) << bits;
      return;
    }
    const uint32_t low = bits >> 16;
    if ((low & 0x7FFFu) >= 0x7F7Fu) {  // the successor is infinity, which has no distance
      const bool up = (bits & 0x7FFFFFFFu) >= 0x7F7F8000u;
      ASSERT_EQ(got, (low & 0x8000u) | (up ? 0x7F80u : 0x7F7Fu)) << bits;
      return;
    }
    const double below = std::abs(double{value} - double{float_of(low << 16)});
    const double above = std::abs(double{float_of((low + 1) << 16)} - double{value});
    const uint32_t expected = below < above ? low : above < below ? low + 1 : low + (low & 1u);
    ASSERT_EQ(got, expected) << bits;
  });
}

TEST(Halves, ConvertAtCompileTime) {
  static_assert(f16::from_float(1.5f).bits == 0x3E00);
  static_assert(f16::from_float(0x1p-20f).to_float() == 0x1p-20f);
  static_assert(bf16::from_float(-2.0f).bits == 0xC000);
  static_assert(DTypeOf<f16>::value == DType::f16 && DTypeOf<bf16>::value == DType::bf16);
}

TEST(DTypes, NamesAndSizes) {
  const std::vector<std::pair<DType, std::pair<std::string, size_t>>> all = {
      {DType::f32, {"f32", 4}},         {DType::f16, {"f16", 2}},
      {DType::bf16, {"bf16", 2}},       {DType::f64, {"f64", 8}},
      {DType::u8, {"u8", 1}},           {DType::i8, {"i8", 1}},
      {DType::u16, {"u16", 2}},         {DType::i16, {"i16", 2}},
      {DType::u32, {"u32", 4}},         {DType::i32, {"i32", 4}},
      {DType::u64, {"u64", 8}},         {DType::i64, {"i64", 8}},
      {DType::boolean, {"boolean", 1}}, {DType::activation, {"activation", 0}},
  };
  for (const auto& [dtype, expected] : all) {
    EXPECT_EQ(name(dtype), expected.first);
    EXPECT_EQ(size_bytes(dtype), expected.second) << expected.first;
  }
}

TEST(Checked, AddAndMultiplyAtTheLimits) {
  constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
  constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();
  EXPECT_EQ(checked_add(kMax - 1, uint64_t{1}), kMax);
  EXPECT_EQ(checked_add(kMax, uint64_t{1}), std::nullopt);
  EXPECT_EQ(checked_add(kLeast, int64_t{-1}), std::nullopt);
  EXPECT_EQ(checked_mul(uint64_t{1} << 32, (uint64_t{1} << 32) - 1), kMax - ((uint64_t{1} << 32) - 1));
  EXPECT_EQ(checked_mul(uint64_t{1} << 32, uint64_t{1} << 32), std::nullopt);
  EXPECT_EQ(checked_mul(kLeast, int64_t{-1}), std::nullopt);
  EXPECT_EQ(checked_mul(uint8_t{16}, uint8_t{16}), std::nullopt);
}

TEST(Checked, RoundingUp) {
  EXPECT_EQ(align_up(0, 64), 0u);
  EXPECT_EQ(align_up(1, 64), 64u);
  EXPECT_EQ(align_up(64, 64), 64u);
  EXPECT_EQ(ceil_div(0u, 3u), 0u);
  EXPECT_EQ(ceil_div(7u, 3u), 3u);
  EXPECT_EQ(ceil_div(std::numeric_limits<uint32_t>::max(), 2u), 0x80000000u);
}

TEST(Shapes, ElementsAndText) {
  EXPECT_EQ(Shape().elements(), 1);
  EXPECT_EQ(to_string(Shape()), "[]");
  const Shape shape{2, 3, 4};
  EXPECT_EQ(shape.rank(), 3u);
  EXPECT_EQ(shape.back(), 4);
  EXPECT_EQ(shape.elements(), 24);
  EXPECT_EQ(to_string(shape), "[2, 3, 4]");
  EXPECT_TRUE(shape == (Shape{2, 3, 4}));
  EXPECT_FALSE(shape == (Shape{2, 3}));
  EXPECT_FALSE(shape == (Shape{2, 3, 5}));
}

TEST(Shapes, ElementsThatOverflow) {
  constexpr int64_t kBig = int64_t{1} << 32;
  EXPECT_EQ((Shape{kBig, kBig / 4}).elements(), int64_t{1} << 62);
  EXPECT_EQ((Shape{kBig, kBig / 2}).elements_checked(), std::nullopt);
  EXPECT_EQ((Shape{kBig, kBig, 0}).elements(), 0);  // no element, however large the rest
  EXPECT_EQ(message_of<InvalidArgument>([] {
              (void)Shape{kBig, kBig}.elements();
            }),
            "[shape] [4294967296, 4294967296]: the number of elements overflows");
}

TEST(Shapes, RefusesWhatIsNoShape) {
  EXPECT_EQ(message_of<InvalidArgument>([] {
              Shape shape{2, -1};
            }),
            "[shape] dimension: expected >= 0, got -1");
  const std::vector<int64_t> dims(9, 1);
  EXPECT_EQ(Shape(std::span(dims).first(8)).rank(), 8u);
  EXPECT_EQ(message_of<InvalidArgument>([&] { Shape shape{std::span<const int64_t>(dims)}; }),
            "[shape] rank: expected at most 8, got 9");
}

// A folder of its own, removed with all that is in it.
class Files : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "refrain_core_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path write(const std::string& file_name, const std::string& content) const {
    std::ofstream(folder_ / file_name, std::ios::binary) << content;
    return folder_ / file_name;
  }

  std::filesystem::path folder_;
};

TEST_F(Files, MapsWhatTheFileHolds) {
  std::string content(10'000, '\0');
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 7);
  const auto path = write("some", content);
  const auto file = MappedFile::open(path);
  EXPECT_EQ(file->path(), path);
  ASSERT_EQ(file->bytes().size(), content.size());
  EXPECT_EQ(std::memcmp(file->bytes().data(), content.data(), content.size()), 0);
  EXPECT_EQ(read_text_file(path), content);
}

TEST_F(Files, MappingOutlivesTheName) {
  const auto path = write("some", "text");
  const auto file = MappedFile::open(path);
  std::filesystem::rename(write("other", "else"), path);
  EXPECT_EQ(static_cast<char>(file->bytes()[0]), 't');
}

TEST_F(Files, WhatIsReadStaysWhateverTheFileBecomes) {
  const std::string content(10'000, 'x');
  const auto path = write("some", content);
  const auto file = MappedFile::open(path, FileAccess::read);
  std::filesystem::resize_file(path, 0);
  ASSERT_EQ(file->bytes().size(), content.size());
  EXPECT_EQ(std::memcmp(file->bytes().data(), content.data(), content.size()), 0);
}

TEST_F(Files, EmptyFileIsEmpty) {
  const auto path = write("empty", "");
  EXPECT_TRUE(MappedFile::open(path)->bytes().empty());
  EXPECT_TRUE(MappedFile::open(path, FileAccess::read)->bytes().empty());
  EXPECT_EQ(read_text_file(path), "");
}

TEST_F(Files, NamesInAFolderAreSorted) {
  EXPECT_TRUE(names_in(folder_).empty());
  for (const char* name : {"b", ".a", "c"}) write(name, "text");
  std::filesystem::create_directory(folder_ / "d");
  EXPECT_EQ(names_in(folder_), (std::vector<std::string>{".a", "b", "c", "d"}));
}

TEST_F(Files, ErrorsNameThePath) {
  const std::string absent = (folder_ / "absent").string();
  EXPECT_EQ(message_of<FileError>([&] { names_in(absent); }), absent + ": No such file or directory");
  EXPECT_EQ(message_of<FileError>([&] { MappedFile::open(absent); }), absent + ": No such file or directory");
  EXPECT_EQ(message_of<FileError>([&] { read_text_file(absent); }), absent + ": No such file or directory");
  EXPECT_EQ(message_of<FileError>([&] { MappedFile::open(folder_); }),
            folder_.string() + ": expected a regular file");
  EXPECT_EQ(message_of<FileError>([&] { read_text_file("/dev/null"); }),
            "/dev/null: expected a regular file");
  const auto path = write("some", "text");
  EXPECT_EQ(read_text_file(path, 4), "text");
  EXPECT_EQ(read_text_file(write("one", "x")), "x");
  EXPECT_EQ(message_of<FileError>([&] { read_text_file(path, 3); }),
            path.string() + ": expected at most 3 bytes, got 4");
}

TEST(ForeignText, ReplacesOnlyNumbersThatJsonDoesNotHold) {
  const PlainJson plain = replace_foreign_numbers(
      R"({"NaN": -1, "a\"NaN": [NaN,-Infinity, 18446744073709551616, 18446744073709551615], "b": 1e999, "c": 1e-999,
          "d": -9223372036854775809, "e": Infinity, "f": "NaN", "g": 1e5})");
  EXPECT_EQ(plain.text, R"({"NaN": -1, "a\"NaN": [0.5,0.5, 0.5, 18446744073709551615], "b": 0.5, "c": 1e-999,
          "d": 0.5, "e": 0.5, "f": "NaN", "g": 1e5})");
  std::vector<std::pair<size_t, std::string>> found;
  for (const ForeignNumber& number : plain.numbers) found.emplace_back(number.index, number.text);
  EXPECT_EQ(found, (std::vector<std::pair<size_t, std::string>>{{1, "NaN"},
                                                                {2, "-Infinity"},
                                                                {3, "18446744073709551616"},
                                                                {5, "1e999"},
                                                                {7, "-9223372036854775809"},
                                                                {8, "Infinity"}}));
  for (const char* wrong :
       {"nan", "-NaN", "+Infinity", "NaNs", "0123456789012345678901234567890", "1e999x", "1.e999", "-", "1e",
        "\"NaN", "\"\\", "99999999999999999999.", "0x99999999999999999999"}) {
    EXPECT_EQ(replace_foreign_numbers(wrong).text, wrong);
    EXPECT_TRUE(replace_foreign_numbers(wrong).numbers.empty()) << wrong;
  }
}

TEST(ForeignText, KnowsWhatWasSavedInPlaceOfAFile) {
  for (const char* page :
       {"<!DOCTYPE html><html>", "\xEF\xBB\xBF \r\n<!doctype HTML>", "<html lang=\"en\">",
        "<!-- a comment --><html>", "<head><title>", "<?xml version=\"1.0\"?><Error><Code>"})
    EXPECT_EQ(saved_instead(page), "a web page") << page;
  for (const char* home : {"git-lfs", "hawser"}) {
    const std::string pointer =
        std::string("version https://") + home + ".github.com/spec/v1\noid sha256:0\n";
    EXPECT_NE(saved_instead(pointer).find("Git LFS"), std::string_view::npos);
  }
  EXPECT_EQ(saved_instead(std::string_view("<a\0\0\0\0\0\0{\"", 10)), "") << "a header of 24892 bytes";
  for (const char* other : {"", " ", "{}", "<", "< a", "<3", "version 1", "\xEF\xBB\xBF{}"})
    EXPECT_EQ(saved_instead(other), "") << other;
}

}  // namespace
}  // namespace refrain
