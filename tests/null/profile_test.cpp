// What a run took, command by command, as numbers, as a table and as a trace.
#include "refrain/device/profile.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/format/json.h"
#include "tests/null/controlled_backend.h"
#include "tests/null/random_graph.h"

namespace refrain::null_tests {
namespace {

using namespace std::chrono_literals;

Program record(Device& device, const Buffer& a, std::string_view label) {
  CommandEncoder encoder = device.encoder();
  const MixConstants c{1, 16, 0, 16};
  {
    const auto layer = encoder.scope("layer \"1\"\n");
    dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(a)}, c);
    encoder.barrier();
    dispatch(encoder, kUpdate, std::array{Operand(device.buffer(DType::u32, {16})), Operand(a)}, c);
  }
  dispatch(encoder, kMix, std::array{Operand(a), Operand(), Operand(a)}, c);
  return device.prepare(device.plan(encoder.finish(label)).first,
                        {.queue = 0, .arena = {}, .timestamps = true, .label = {}});
}

TEST(Profile, SpansRowsAndTable) {
  // Command i begins at 20 i, is ready 4 ns later and ends at 20 i + 10.
  Device device(std::make_shared<ControlledBackend>(kKernels), {}, {});
  const Buffer a = device.buffer(DType::u32, {16});
  const Profile profile(device, record(device, a, "step"));
  EXPECT_EQ(profile.label(), "step");
  ASSERT_EQ(profile.spans().size(), 3u) << "fences have none";
  EXPECT_EQ(profile.spans()[1].command, 2u);
  for (uint32_t i = 0; i < 3; ++i)
    EXPECT_EQ(profile.spans()[i].level, i + 1) << "each waits for the one before";
  EXPECT_EQ(profile.spans()[1].kernel, "update");
  EXPECT_EQ(profile.spans()[1].label, "layer \"1\"\n");
  EXPECT_EQ(profile.spans()[2].label, "step");
  EXPECT_EQ(profile.spans()[2].begin_ns, 60);
  EXPECT_EQ(profile.spans()[2].ready_ns, 64);
  EXPECT_EQ(profile.spans()[2].end_ns, 70);
  EXPECT_EQ(profile.duration_ns(), 70);
  EXPECT_EQ(profile.busy_ns(), 18);
  const std::vector<ProfileRow> rows = profile.rows(ProfileKey::kernel);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].name, "mix");
  EXPECT_EQ(rows[0].commands, 2u);
  EXPECT_EQ(rows[0].total_ns, 12);
  EXPECT_DOUBLE_EQ(rows[1].share, 1.0 / 3);
  EXPECT_EQ(profile.table(ProfileKey::kernel),
            "kernel  commands    total us   share\n"
            "mix            2         0.0   66.7 %\n"
            "update         1         0.0   33.3 %\n");
  EXPECT_EQ(profile.rows(ProfileKey::label)[0].name, "layer \"1\"\n");
  Profile twice = profile;
  twice.append(twice);
  EXPECT_EQ(twice.spans().size(), 6u);
  EXPECT_EQ(Profile().duration_ns(), 0);
  EXPECT_EQ(Profile().table(ProfileKey::label), "label  commands    total us   share\n");
}

TEST(Profile, RowsAreSortedByWhatTheyTook) {
  Device device(std::make_shared<ControlledBackend>(kKernels), {}, {});
  const Buffer a = device.buffer(DType::u32, {16});
  Profile all;
  for (const char* label : {"b", "d", "a", "c", "d", "c", "d"})
    all.append(Profile(device, record(device, a, label)));
  std::string names;
  for (const ProfileRow& row : all.rows(ProfileKey::submission)) names += row.name;
  EXPECT_EQ(names, "dcab") << "and equals by their names";
}

TEST(Profile, TheTraceIsJsonAndOverlapsLieInRowsOfTheirOwn) {
  Device device(std::make_shared<ControlledBackend>(kKernels), {}, {});
  const Buffer a = device.buffer(DType::u32, {16});
  const Profile one(device, record(device, a, "a \"quoted\" \\ label"));
  Profile profile = one;
  profile.append(one);
  const std::string json = profile.chrome_trace();
  EXPECT_NO_THROW(format::Json::parse(json, "trace")) << json;
  EXPECT_NE(json.find("a \\\"quoted\\\" \\\\ label"), std::string::npos);
  EXPECT_NE(json.find("layer \\\"1\\\"\\u000a"), std::string::npos);
  EXPECT_NE(json.find("\"tid\":1,"), std::string::npos);
  EXPECT_EQ(json.find("\"tid\":2,"), std::string::npos);
  EXPECT_NE(json.find("\"ts\":0.040,\"dur\":0.010,\"args\":{\"waited_us\":0.004,"), std::string::npos)
      << json;
  EXPECT_NO_THROW(format::Json::parse(Profile().chrome_trace(), "trace"));
}

TEST(Profile, HostileLabels) {
  Device device(std::make_shared<ControlledBackend>(kKernels), {}, {});
  const Buffer a = device.buffer(DType::u32, {16});
  const std::pair<std::string, std::string> labels[] = {
      {"\x01\x1f\t\r\n\"\\/", "\\u0001\\u001f\\u0009\\u000d\\u000a\\\"\\\\/"},
      {std::string("nul\0here", 8), "nul\\u0000here"},
      {"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x8e\xb5", "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x8e\xb5"},
      {"\xff\xfe", "\\ufffd\\ufffd"},
      {"cut \xe2\x82", "cut \\ufffd\\ufffd"},
      {"alone \x80", "alone \\ufffd"},
      {"long \xc0\xaf \xe0\x80\xaf \xf0\x80\x80\xaf",
       "long \\ufffd\\ufffd \\ufffd\\ufffd\\ufffd \\ufffd\\ufffd\\ufffd\\ufffd"},
      {"half \xed\xa0\x80", "half \\ufffd\\ufffd\\ufffd"},
      {"beyond \xf4\x90\x80\x80", "beyond \\ufffd\\ufffd\\ufffd\\ufffd"},
      {"\xf5\x80\x80\x80", "\\ufffd\\ufffd\\ufffd\\ufffd"},
      {"lead \xe2(\xa1", "lead \\ufffd(\\ufffd"},
  };
  for (const auto& [label, expected] : labels) {
    const Profile profile(device, record(device, a, label));
    const std::string json = profile.chrome_trace();
    EXPECT_NO_THROW(format::Json::parse(json, "trace")) << json;
    EXPECT_NE(json.find("\"name\":\"" + expected + "\""), std::string::npos) << json;
    EXPECT_NE(json.find("\"submission\":\"" + expected + "\""), std::string::npos) << json;
    for (const ProfileKey key : {ProfileKey::kernel, ProfileKey::label, ProfileKey::submission}) {
      const std::string table = profile.table(key);
      EXPECT_EQ(static_cast<size_t>(std::ranges::count(table, '\n')), 1 + profile.rows(key).size()) << table;
    }
  }
}

TEST(Profile, OfAProgramWithoutCommands) {
  Device device(std::make_shared<ControlledBackend>(kKernels), {}, {});
  CommandEncoder encoder = device.encoder();
  encoder.barrier();
  const Program program = device.prepare(device.plan(encoder.finish("fence alone")).first,
                                         {.queue = 0, .arena = {}, .timestamps = true, .label = {}});
  const Profile profile(device, program);
  EXPECT_TRUE(profile.spans().empty());
  EXPECT_EQ(profile.duration_ns(), 0);
  EXPECT_EQ(profile.busy_ns(), 0);
  EXPECT_TRUE(profile.rows(ProfileKey::submission).empty());
  EXPECT_NO_THROW(format::Json::parse(profile.chrome_trace(), "trace"));
}

TEST(Profile, OfARunOnTheCpu) {
  for (const uint32_t threads : {1u, 2u}) {
    backend::CpuOptions options;
    options.threads = threads;
    Device device(backend::make_cpu(options, kKernels), {}, {});
    const Buffer a = device.buffer(DType::u32, {16});
    const Program program = record(device, a, "step");
    for (int i = 0; i < 2; ++i) {
      device.wait(device.submit(program), 10s);
      const Profile profile(device, program);
      ASSERT_EQ(profile.spans().size(), 3u);
      for (size_t s = 0; s < 3; ++s) {
        const ProfileSpan& span = profile.spans()[s];
        EXPECT_GT(span.begin_ns, 0);
        EXPECT_GE(span.end_ns, span.begin_ns);
        const double before = s > 0 ? profile.spans()[s - 1].end_ns : 0;
        EXPECT_GE(span.begin_ns, before) << "each waits for the one before";
      }
      EXPECT_LE(profile.busy_ns(), profile.duration_ns() + 1);
    }
  }
}

TEST(Profile, Misuse) {
  Device device = null_device();
  EXPECT_THROW(Profile(device, Program()), InvalidArgument);
  CommandEncoder encoder = device.encoder();
  const Program without = device.prepare(device.plan(encoder.finish()).first);
  EXPECT_THROW(Profile(device, without), InvalidArgument);
}

}  // namespace
}  // namespace refrain::null_tests
