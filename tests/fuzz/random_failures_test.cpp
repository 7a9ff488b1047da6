// Random submissions to several queues, of which some throw, against the rule of failures: whoever reads what a failure
// would have written gets that failure, the first of several, by its label, whether it was known when he was
// submitted or not; what a queue runs behind its own failure fails until it is recovered; all else has the values of
// the order of submission. Goes on as random_graphs_test.cpp does, by the same variables.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <deque>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/device/device.h"
#include "tests/eventually.h"
#include "tests/fuzz/repeat.h"
#include "tests/null/random_graph.h"
#include "tests/refusal.h"

namespace refrain::null_tests {
namespace {

using namespace std::chrono_literals;

using test::refusal;

const std::string kNone = "nothing was thrown";

// Spoils half of its output and throws.
constexpr OpSchema kBoom{"boom", kMixArgs, sizeof(MixConstants), check_dtypes};
void explode(const TileArgs& args, uint32_t, uint32_t) {
  const auto& c = args.constants_as<MixConstants>();
  std::fill_n(args.arg<uint32_t>(2), (c.output + 1) / 2, 0xDEADDEADu);
  throw std::runtime_error("exploded");
}
constexpr backend::TileKernel kExplode{nullptr, nullptr, explode};

std::span<const backend::Kernel> kernels() {
  static const std::vector<backend::Kernel> kTable = [] {
    std::vector<backend::Kernel> table(std::begin(kKernels), std::end(kKernels));
    table.push_back({"boom", &kBoom, "test", 0, 0, any, one_tile, &kExplode});
    return table;
  }();
  return kTable;
}

struct Tally {
  uint64_t submissions = 0, threw = 0, behind = 0, read = 0, replays = 0, known = 0, recovered = 0;
};

class RandomFailures {
 public:
  RandomFailures(uint32_t seed, Tally& tally)
      : rng_(seed), tally_(tally), device_(cpu(seed % 2 == 0), {}, {}) {
    for (uint32_t b = 0; b < kBuffers; ++b) {
      buffers_.push_back(device_.buffer(DType::u32, {kElements}, "buffer " + std::to_string(b)));
      for (uint32_t i = 0; i < kElements; ++i) {
        state_[b][i].value = rng_();
        buffers_[b].span<uint32_t>()[i] = state_[b][i].value;
      }
    }
  }

  /// What is wrong; empty when nothing is.
  std::string find(uint32_t rounds) {
    std::string fault;
    for (uint32_t r = 0; r < rounds && fault.empty(); ++r) {
      for (uint32_t i = 1 + below(12); i-- > 0;) submit();
      fault = faults();
      for (uint32_t queue = 0; queue < kQueues; ++queue) {
        if (below(3) == 0) continue;
        device_.recover(queue);
        tally_.recovered += stopped_by_[queue].has_value();
        stopped_by_[queue].reset();
      }
    }
    release();
    return fault;
  }

 private:
  static constexpr uint32_t kBuffers = 4, kElements = 16, kQueues = 3, kPart = 4;

  struct Element {
    uint32_t value = 0;
    std::optional<size_t>
        failed;  ///< the first since it was last written that failed and would have written it
  };
  /// Elements of a buffer, or a temp of the recording.
  struct Place {
    uint32_t index = 0, first = 0, count = 0;
    bool temp = false;
  };
  struct Command {
    const OpSchema* op = nullptr;
    Place a, b, to;  ///< b.count 0: none
    MixConstants constants;
  };
  struct Recording {
    Program program;
    std::string label;
    uint32_t queue = 0;
    std::vector<Command> commands;
    uint32_t temps = 0;
  };
  enum class Verdict : uint8_t { good, threw, behind, reads };
  struct Submission {
    Point point;
    std::string label;
    Verdict verdict = Verdict::good;
    size_t other = 0;  ///< behind which, or whose failure it reads
    std::string heard;
  };

  static std::unique_ptr<backend::Backend> cpu(bool validate) {
    backend::CpuOptions options;
    options.threads = 2;
    std::unique_ptr<backend::Backend> made = backend::make_cpu(options, kernels());
    return validate ? backend::make_validate(std::move(made)) : std::move(made);
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>(rng_() % n); }

  Place somewhere() {
    const uint32_t first = below(kElements / kPart), count = 1 + below(kElements / kPart - first);
    return {below(kBuffers), first * kPart, count * kPart, false};
  }
  Buffer view(const Place& place) const { return buffers_[place.index].slice(place.first, place.count); }

  void record() {
    Recording made;
    made.label = "recording " + std::to_string(recordings_.size());
    made.queue = below(kQueues);
    CommandEncoder encoder = device_.encoder();
    std::vector<Temp> temps;
    std::deque<Buffer> views;  // an operand refers to what is bound
    const auto operand = [&](const Place& place) {
      if (place.count == 0) return Operand();
      return place.temp ? Operand(temps[place.index]) : Operand(views.emplace_back(view(place)));
    };
    const auto input = [&] {
      if (temps.empty() || below(3) != 0) return somewhere();
      return Place{below(static_cast<uint32_t>(temps.size())), 0, kElements, true};
    };
    const uint32_t count = 1 + below(4);
    const uint32_t boom = below(5) == 0 ? below(count) : count;
    for (uint32_t i = 0; i < count; ++i) {
      Command c{&kMix, input(), {}, somewhere(), {}};
      if (i == boom) {
        c.op = &kBoom;
      } else if (below(4) == 0) {
        c.op = &kUpdate;
      } else if (below(3) == 0) {
        c.to = {static_cast<uint32_t>(temps.size()), 0, kElements, true};
        temps.push_back(encoder.temp(DType::u32, {kElements}));
      }
      if (c.op != &kUpdate && below(2) == 0) c.b = somewhere();
      c.constants = {below(1 << 20), c.a.count, c.b.count, c.to.count};
      try {
        if (c.op == &kUpdate) {
          dispatch(encoder, *c.op, std::array{operand(c.a), operand(c.to)}, c.constants);
        } else {
          dispatch(encoder, *c.op, std::array{operand(c.a), operand(c.b), operand(c.to)}, c.constants);
        }
        made.commands.push_back(c);
      } catch (const InvalidArgument&) {  // it would read what it writes: nothing was recorded
        if (c.to.temp) temps.pop_back();
      }
    }
    made.temps = static_cast<uint32_t>(temps.size());
    PrepareOptions options;
    options.queue = made.queue;
    options.label = made.label;
    made.program = device_.prepare(device_.plan(encoder.finish(made.label)).first, options);
    recordings_.push_back(std::move(made));
  }

  /// What a run of a recording leaves in memory, as if nothing failed.
  struct Run {
    std::array<std::array<uint32_t, kElements>, kBuffers> values{};
    std::array<std::array<bool, kElements>, kBuffers> written{};
    std::optional<size_t> reads;  ///< the first failure that it reads
    bool throws = false;
  };
  Run run(const Recording& recording, const std::optional<Place>& update,
          const std::vector<uint32_t>& sent) const {
    Run run;
    for (uint32_t b = 0; b < kBuffers; ++b)
      std::ranges::transform(state_[b], run.values[b].begin(), &Element::value);
    std::vector<std::array<uint32_t, kElements>> temps(recording.temps);
    const auto at = [&](const Place& place) {
      return place.temp ? temps[place.index].data() : run.values[place.index].data() + place.first;
    };
    const auto read = [&](const Place& place) {
      for (uint32_t i = place.first; i < place.first + place.count && !place.temp; ++i) {
        const std::optional<size_t>& failed = state_[place.index][i].failed;
        if (failed && !run.written[place.index][i])
          run.reads = std::min(run.reads.value_or(SIZE_MAX), *failed);
      }
    };
    const auto note_written = [&](const Place& place) {
      if (!place.temp) std::fill_n(run.written[place.index].begin() + place.first, place.count, true);
    };
    if (update) {
      std::ranges::copy(sent, at(*update));
      note_written(*update);
    }
    for (const Command& c : recording.commands) {
      const bool updates = c.op == &kUpdate;
      read(c.a);
      read(updates ? c.to : c.b);
      std::array<void*, 3> args{at(c.a), at(c.to), nullptr};
      if (!updates) args = {at(c.a), c.b.count == 0 ? nullptr : at(c.b), at(c.to)};
      TileArgs tile;
      tile.args = args.data();
      tile.constants = reinterpret_cast<const std::byte*>(&c.constants);
      (updates ? run_update : run_mix)(tile, 0, 1);
      note_written(c.to);
      run.throws = run.throws || c.op == &kBoom;
    }
    return run;
  }

  void submit() {
    const bool replay = !recordings_.empty() && below(3) == 0;
    if (!replay) record();
    tally_.replays += replay;
    const Recording& recording =
        replay ? recordings_[below(static_cast<uint32_t>(recordings_.size()))] : recordings_.back();
    std::optional<Place> updated;
    std::vector<uint32_t> sent;
    std::vector<Update> updates;
    if (below(4) == 0) {
      updated = somewhere();
      for (uint32_t i = 0; i < updated->count; ++i) sent.push_back(rng_());
      updates.push_back({view(*updated), std::as_bytes(std::span(sent))});
    }
    const Run result = run(recording, updated, sent);
    // Whether it runs, and so stops its queue, on bytes that are undefined depends on when that is known.
    if (result.throws && result.reads && !stopped_by_[recording.queue]) return;

    // Behind a failure a submission waits for nothing. Were it heard of before a write that comes before it, what it
    // leaves undefined would have the failure that the write has mended, not its own.
    if (stopped_by_[recording.queue]) end();

    const size_t number = submissions_.size();
    Submission& made = submissions_.emplace_back();
    made.label = recording.label;
    std::optional<size_t>& stopped_by = stopped_by_[recording.queue];
    if (stopped_by) {
      made.verdict = Verdict::behind;
      made.other = *stopped_by;
    } else if (result.reads) {
      made.verdict = Verdict::reads;
      made.other = *result.reads;
    } else if (result.throws) {
      made.verdict = Verdict::threw;
      stopped_by = number;
    }
    for (uint32_t b = 0; b < kBuffers; ++b) {
      for (uint32_t i = 0; i < kElements; ++i) {
        if (!result.written[b][i]) continue;
        if (made.verdict == Verdict::good) {
          state_[b][i] = {result.values[b][i], {}};
        } else if (!state_[b][i].failed) {
          state_[b][i].failed = number;
        }
      }
    }

    std::vector<Point> waits;
    if (below(4) == 0) waits.push_back(held_.emplace_back(device_.host_point()));
    made.point = device_.submit(recording.program, updates, waits);
    device_.when_reached(made.point, [&made, this](const std::exception_ptr& error) {
      made.heard = refusal<DeviceError>([&] {
        if (error != nullptr) std::rethrow_exception(error);
      });
      ++called_;
    });
    ++tally_.submissions;
    switch (below(6)) {
      case 0:
        release();
        break;
      case 1:  // then it is known
        release();
        (void)refusal<DeviceError>([&] { device_.wait(made.point, 20s); });
        ++tally_.known;
        break;
      case 2:
        std::this_thread::yield();
        break;
      default:
        break;
    }
  }

  void release() {
    for (const Point& point : held_) device_.signal(point);
    held_.clear();
  }

  /// Of all submissions so far.
  void end() {
    release();
    for (const Submission& s : submissions_) (void)refusal<DeviceError>([&] { device_.wait(s.point, 20s); });
  }

  /// The submission whose failure is that of what this one would have written.
  size_t cause(size_t number) const {
    while (submissions_[number].verdict == Verdict::reads) number = submissions_[number].other;
    return number;
  }
  /// What a wait for it says.
  std::string message(size_t number) {
    const Submission& s = submissions_[number];
    std::string text = "[submission] '" + s.label + "', " + std::to_string(s.point.value) + " of queue " +
                       std::to_string(s.point.queue) + ": ";
    switch (s.verdict) {
      case Verdict::good:
        return kNone;
      case Verdict::threw: {  // which command it is, the plan says
        const std::string said = refusal<DeviceError>([&] { device_.wait(s.point, 20s); });
        const bool right = said.starts_with(text + "cpu: command ") && said.ends_with(" threw: exploded");
        return right ? said : text + "cpu: command ... threw: exploded";
      }
      case Verdict::behind: {
        const Submission& first = submissions_[s.other];
        const std::string said = message(s.other);
        return text + "cpu: did not run: submission " + std::to_string(first.point.value) + " of queue " +
               std::to_string(first.point.queue) + " '" + first.label +
               "' failed: " + said.substr(said.find("cpu: ") + 5);
      }
      case Verdict::reads:
        return text + "reads what a failure left undefined: " + message(cause(s.other));
    }
    return {};
  }

  /// Of the submissions since the last time, and of all memory.
  std::string faults() {
    release();
    const auto differs = [](const std::string& what, const std::string& found, const std::string& expected) {
      return what + ": " + found + "\n  expected: " + expected;
    };
    // In whatever order they are asked about.
    std::vector<size_t> order;
    for (size_t i = checked_; i < submissions_.size(); ++i) order.push_back(i);
    std::shuffle(order.begin(), order.end(), rng_);
    for (const size_t i : order) {
      const Submission& s = submissions_[i];
      const std::string said = refusal<DeviceError>([&] { device_.wait(s.point, 20s); });
      if (const std::string expected = message(i); said != expected)
        return differs("submission " + std::to_string(i), said, expected);
      tally_.threw += s.verdict == Verdict::threw;
      tally_.behind += s.verdict == Verdict::behind;
      tally_.read += s.verdict == Verdict::reads;
    }
    if (!test::eventually([&] { return called_ == submissions_.size(); })) return "a callback was not called";
    for (const size_t i : order) {
      if (const std::string expected = message(i); submissions_[i].heard != expected)
        return differs("callback " + std::to_string(i), submissions_[i].heard, expected);
    }
    checked_ = submissions_.size();

    for (uint32_t b = 0; b < kBuffers; ++b) {
      for (uint32_t first = 0; first < kElements; first += kPart) {
        const Place place{b, first, kPart, false};
        std::optional<size_t> failed;
        bool right = true;
        for (uint32_t i = first; i < first + kPart; ++i) {
          const Element& element = state_[b][i];
          if (element.failed) failed = std::min(failed.value_or(SIZE_MAX), *element.failed);
        }
        const std::string undefined =
            failed ? "'buffer " + std::to_string(b) + "' is undefined: " + message(cause(*failed)) : kNone;
        std::array<uint32_t, kPart> values{};
        const uint32_t how = below(3);
        const std::string said = refusal<DeviceError>([&] {
          if (how == 0) device_.synchronize(view(place), 20s);
          if (how == 1) device_.read(view(place), std::as_writable_bytes(std::span(values)));
          if (how != 1) std::ranges::copy(view(place).span<const uint32_t>(), values.begin());
        });
        constexpr const char* kBy[] = {"[synchronize] ", "[read] ", "[buffer] span: "};
        const std::string expected = failed ? kBy[how] + undefined : kNone;
        const std::string where = "buffer " + std::to_string(b) + " from " + std::to_string(first);
        if (said != expected) return differs(where, said, expected);
        for (uint32_t i = 0; i < kPart; ++i) right = right && values[i] == state_[b][first + i].value;
        if (!failed && !right) return where + ": other values";
      }
    }
    return {};
  }

  std::mt19937 rng_;
  Tally& tally_;
  std::deque<Submission> submissions_;  // outlives the device, which calls back
  std::atomic<size_t> called_{0};
  Device device_;
  std::vector<Buffer> buffers_;
  std::array<std::array<Element, kElements>, kBuffers> state_;  // as the submissions so far leave it
  std::deque<Recording> recordings_;
  std::array<std::optional<size_t>, kQueues> stopped_by_;
  std::vector<Point> held_;
  size_t checked_ = 0;
};

TEST(RandomFailures, WhoeverReadsWhatAFailureLeftGetsThatFailure) {
  Tally tally;
  repeat(1, 100, [&](uint32_t i) {
    const uint32_t seed = first_seed() + 3000000 + i;
    ASSERT_EQ(RandomFailures(seed, tally).find(1 + i % 6), "") << "seed " << seed;
  });
  // The campaign is worth something only if it has met what it is about.
  EXPECT_GT(40 * tally.threw, tally.submissions);
  EXPECT_GT(10 * tally.read, tally.submissions);
  EXPECT_GT(tally.behind, 0u);
  EXPECT_GT(tally.recovered, 0u);
  EXPECT_GT(tally.known, 0u);
  EXPECT_GT(tally.replays, 0u);
  const std::pair<const char*, uint64_t> figures[] = {
      {"submissions", tally.submissions}, {"threw", tally.threw},
      {"behind", tally.behind},           {"read", tally.read},
      {"replays", tally.replays},         {"known", tally.known},
      {"recovered", tally.recovered}};
  report(figures);
}

}  // namespace
}  // namespace refrain::null_tests
