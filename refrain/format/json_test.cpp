#include "refrain/format/json.h"

#include <gtest/gtest.h>

#include <functional>

#include "refrain/core/error.h"
#include "refrain/format/test_folder.h"

namespace refrain::format {
namespace {

Json parse(std::string_view text) { return Json::parse(text, "f.json"); }

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const FileError& error) {
    return error.what();
  }
  return "";
}

TEST(Json, GivesTypedMembers) {
  const Json json = parse(R"({"n":3,"x":-0.5,"s":"text","t":true,"z":null,"a":[1,2],"o":{"k":{"d":7}}})");
  EXPECT_EQ(json.u32("n"), 3u);
  EXPECT_EQ(json.f64("n"), 3.0);
  EXPECT_EQ(json.f64("x"), -0.5);
  EXPECT_EQ(json.string("s"), "text");
  EXPECT_TRUE(json.boolean("t"));
  EXPECT_EQ(json.array("a").items()[1].as_u32(), 2u);
  EXPECT_EQ(json.object("o").object("k").u32("d"), 7u);
  EXPECT_EQ(json.keys(), (std::vector<std::string>{"n", "x", "s", "t", "z", "a", "o"}));
  EXPECT_FALSE(json.has("z"));
  EXPECT_FALSE(json.has("none"));
  EXPECT_TRUE(json.at("z").is_null());
  EXPECT_EQ(json.u32_or("z", 9), 9u);
  EXPECT_EQ(json.u32_or("n", 9), 3u);
  EXPECT_EQ(json.f64_or("none", 1.5), 1.5);
  EXPECT_EQ(json.string_or("none", "d"), "d");
  EXPECT_TRUE(json.boolean_or("none", true));
}

TEST(Json, NamesFileAndFieldInErrors) {
  const Json json =
      parse(R"({"n":-1,"big":18446744073709551615,"o":{"list":[{"x":"one"}]},"f":1.5,"odd\nkey":{"x":1}})");
  EXPECT_EQ(error_of([&] { json.u32("n"); }), "f.json: n: expected an integer in [0, 4294967295], got -1");
  EXPECT_EQ(error_of([&] { json.u32("big"); }),
            "f.json: big: expected an integer in [0, 4294967295], got 18446744073709551616");
  EXPECT_EQ(error_of([&] { json.object("o").array("list").items()[0].u32("x"); }),
            "f.json: o.list[0].x: expected an integer, got \"one\"");
  EXPECT_EQ(error_of([&] { json.u32("f"); }), "f.json: f: expected an integer, got 1.5");
  EXPECT_EQ(error_of([&] { json.f64("o"); }), "f.json: o: expected a number, got an object");
  EXPECT_EQ(error_of([&] { json.u32("none"); }), "f.json: expected a member \"none\", got none");
  EXPECT_EQ(error_of([&] { json.u32_or("f", 1); }), "f.json: f: expected an integer, got 1.5");
  EXPECT_EQ(error_of([&] { json.at("odd\nkey").as_bool(); }),
            "f.json: \"odd\\u000akey\": expected a boolean, got an object");
  EXPECT_EQ(error_of([&] { json.at("n").u32("x"); }), "f.json: n: expected an object, got -1");
}

TEST(Json, RefusesWhatIsNotStrict) {
  for (const char* text : {"", " ", "{", "{}x", "{'a':1}", "{\"a\":01}", "[1,]", "nul", "{\"a\":\"\xff\"}",
                           "{\"a\":nan}", "{\"a\":-NaN}", "{NaN:1}", "{\"a\":NaN", "\"\\ud800\""}) {
    EXPECT_NE(error_of([&] { parse(text); }), "") << text;
  }
}

TEST(Json, KeysThatOccurTwiceFailOnlyWhereTheyAreRead) {
  const Json json = parse(R"({"a":1,"x":0,"a":1,"o":{"b":1,"c":2,"b":null},"x":0,"z":3})");
  EXPECT_EQ(json.u32("z"), 3u);
  EXPECT_EQ(json.object("o").u32("c"), 2u);
  EXPECT_FALSE(json.has("b"));
  EXPECT_EQ(error_of([&] { json.u32("a"); }), "f.json: expected distinct keys, got \"a\" twice");
  EXPECT_EQ(error_of([&] { json.has("x"); }), "f.json: expected distinct keys, got \"x\" twice");
  EXPECT_EQ(error_of([&] { json.object("o").find("b"); }),
            "f.json: o: expected distinct keys, got \"b\" twice");
}

TEST(Json, NumbersThatJsonDoesNotHoldFailOnlyWhereTheyAreRead) {
  const Json json = parse(R"({"one":1,"max":1000000000000000019884624838656,"huge":1e999,"two":[0.5,NaN,2],
                              "o":{"x":-Infinity,"text":"NaN","max":18446744073709551615},"three":3.5})");
  EXPECT_EQ(json.u32("one"), 1u);
  EXPECT_EQ(json.array("two").items()[0].as_f64(), 0.5);
  EXPECT_EQ(json.array("two").items()[2].as_u32(), 2u);
  EXPECT_EQ(json.object("o").string("text"), "NaN");
  EXPECT_EQ(json.f64("three"), 3.5);
  EXPECT_EQ(json.f64("max"), 1000000000000000019884624838656.0);
  EXPECT_EQ(error_of([&] { json.u32("max"); }),
            "f.json: max: expected an integer in [0, 4294967295], got 1000000000000000019884624838656");
  EXPECT_EQ(error_of([&] { json.f64("huge"); }), "f.json: huge: expected a number of 64 bits, got 1e999");
  EXPECT_EQ(error_of([&] { json.array("two").items()[1].as_f64(); }),
            "f.json: two[1]: expected a number of 64 bits, got NaN");
  EXPECT_EQ(error_of([&] { json.object("o").f64("x"); }),
            "f.json: o.x: expected a number of 64 bits, got -Infinity");
  EXPECT_EQ(error_of([&] { json.object("o").u32("x"); }), "f.json: o.x: expected an integer, got -Infinity");
  EXPECT_EQ(error_of([&] { json.object("o").string("x"); }), "f.json: o.x: expected a string, got -Infinity");
}

TEST(Json, SaysWhatWasSavedInPlaceOfTheFile) {
  EXPECT_EQ(error_of([] { parse("<!DOCTYPE html>\n<html></html>"); }),
            "f.json: expected JSON, got a web page");
  EXPECT_EQ(error_of([] { parse("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"); }),
            "f.json: expected JSON, got a Git LFS pointer, without the file that it stands for");
}

TEST(Json, BoundsDepth) {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_NO_THROW(parse(nested(Json::kMaxDepth)));
  EXPECT_THROW(parse(nested(Json::kMaxDepth + 1)), FileError);
  EXPECT_THROW(parse(nested(1'000'000)), FileError);
}

TEST(Json, ReadsFilesUpToALimit) {
  TestFolder folder;
  folder.write("a.json", R"({"a":1})");
  EXPECT_EQ(Json::load(folder.path() / "a.json").u32("a"), 1u);
  EXPECT_THROW(Json::load(folder.path() / "a.json", 3), FileError);
  EXPECT_THROW(Json::load(folder.path() / "none.json"), FileError);
}

TEST(Json, CutsLongNamesBetweenCharacters) {
  std::string text(99, 'a');
  text += "\xc3\xbc\xc3\xbc";
  EXPECT_EQ(in_quotes(text), '"' + std::string(99, 'a') + "\"...");
  EXPECT_EQ(in_quotes("a\"b\\"), R"("a\"b\\")");
}

}  // namespace
}  // namespace refrain::format
