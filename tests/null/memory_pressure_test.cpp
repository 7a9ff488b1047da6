// A whole road over a CPU device for which the n-th allocation fails, for every n, with and without the check of
// the contract. A call that threw has left nothing: what it would have submitted has not run, and made once more it
// does what it would have done; or all is dropped there and then. Nothing hangs, a failure stays one, and as many
// blocks of the heap live afterwards as before.
// A program of its own, since it replaces operator new.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <vector>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/validate/validate_backend.h"
#include "refrain/device/executor.h"
#include "refrain/device/pool.h"
#include "refrain/device/residency.h"
#include "refrain/device/session.h"
#include "tests/counted_new.h"
#include "tests/eventually.h"
#include "tests/null/fusible_ops.h"
#include "tests/null/random_graph.h"
#include "tests/refusal.h"

namespace refrain::null_tests {
namespace {

using namespace std::chrono_literals;

using test::refusal;

constexpr OpSchema kBoom{"boom", kMixArgs, sizeof(MixConstants), check_dtypes};
void explode(const TileArgs&, uint32_t, uint32_t) { throw std::runtime_error("exploded"); }
constexpr backend::TileKernel kExplode{nullptr, nullptr, explode};

// As mix, and counts how often it has run.
std::atomic<int> runs{0};
constexpr OpSchema kCounted{"counted", kMixArgs, sizeof(MixConstants), check_dtypes};
void run_counted(const TileArgs& args, uint32_t begin, uint32_t end) {
  ++runs;
  run_mix(args, begin, end);
}
constexpr backend::TileKernel kRunCounted{nullptr, nullptr, run_counted};

std::span<const backend::Kernel> kernels() {
  static const backend::Kernel kTable[] = {
      {"mix", &kMix, "test", 0, 0, any, one_tile, &kRunMix},
      {"counted", &kCounted, "test", 0, 0, any, one_tile, &kRunCounted},
      {"boom", &kBoom, "test", 0, 0, any, one_tile, &kExplode},
      row_kernel<norm>("norm", kNorm),
      row_kernel<project>("project", kProject),
      row_kernel<blend>("blend", kBlend),
  };
  return kTable;
}

class Road {
 public:
  struct GaveUp {};

  /// `gives_up`: at the first std::bad_alloc.
  Road(bool validate, bool gives_up) : validate_(validate), gives_up_(gives_up) { points_.reserve(64); }
  ~Road() { close(); }

  /// How many calls threw std::bad_alloc.
  int thrown() const { return thrown_; }

  /// Throws GaveUp.
  void run() {
    step([&] {
      backend::CpuOptions options;
      options.threads = 1;  // made anew for each allocation
      std::unique_ptr<backend::Backend> made = backend::make_cpu(options, kernels());
      if (validate_) made = backend::make_validate(std::move(made));
      backend_ = std::move(made);
    });
    step([&] { device_.emplace(backend_, std::span<const backend::WeightLayout>(), DeviceOptions()); });
    for (Buffer* buffer : {&a_, &b_, &c_, &d_, &e_})
      step([&] {
        *buffer = device_->buffer(DType::u32, {16}, "a label that is too long to be kept in place");
      });
    step([&] { pool_.emplace(*device_); });
    step([&] { pooled_ = pool_->buffer(DType::u32, {16}, "pooled"); });
    step([&] { set_.emplace(*device_, ResidencyOptions{.lock = false}); });
    step([&] { set_->add(a_); });

    Program program, reader, fused;
    step([&] { program = prepare(kCounted, a_, b_, 0); });
    step([&] { reader = prepare(kMix, d_, c_, 1); });
    step([&] { fused = prepare_fused(); });
    const Point host = device_->host_point();
    const std::array<uint32_t, 16> values{1, 2, 3};
    std::array<Update, 9> updates;
    updates.fill({a_, std::as_bytes(std::span(values))});
    submitting([&] { return device_->submit(program, updates, std::array{host}); });
    listen(points_.back());
    listen(host);
    submitting([&] { return commit(kCounted, b_, pooled_, 1); });
    listen(points_.back());
    step([&] { points_.push_back(device_->submit(fused)); });
    sessions();
    split();
    step([&] { bad_ = commit(kBoom, a_, d_, 3); });
    listen(bad_);
    step([&] { set_->remove(a_); });
    step([&] { device_->signal(host); });

    for (const Point& point : points_) step([&] { device_->wait(point, 60s); });
    step([&] { EXPECT_TRUE(std::ranges::equal(e_.span<const uint32_t>(), fused_of(values))); });
    for (int i = 0; i < 2; ++i) fails([&] { device_->wait(bad_, 60s); });
    fails([&] { (void)d_.span<const uint32_t>(); });
    fails([&] { device_->synchronize(d_, 60s); });
    Point late;
    step([&] { late = device_->submit(reader); });
    listen(late);
    fails([&] { device_->wait(late, 60s); });
    fails([&] { (void)c_.span<uint32_t>(); });
    Point stopped;
    step([&] { stopped = commit(kCounted, a_, c_, 3); });
    fails([&] { device_->wait(stopped, 60s); });
    step([&] { device_->recover(3); });
    submitting([&] { return commit(kCounted, a_, d_, 3); });
    step([&] { device_->wait(points_.back(), 60s); });
    step([&] { (void)d_.span<const uint32_t>(); });
    test::eventually([&] { return called_ >= listening_; });
    EXPECT_EQ(called_, listening_) << "once each";
    EXPECT_GE(failures_heard_, 2) << "of bad_ and of late";
    EXPECT_LE(failures_heard_, 3) << "and, at most once, that memory was short";
    step([&] { pooled_ = {}; });
    step([&] { pool_->trim(); });
  }

  /// Lets go of all. What is in flight then ends.
  void close() {
    closing_ = true;
    set_.reset();
    pool_.reset();
    for (Buffer* buffer : {&a_, &b_, &c_, &d_, &e_, &pooled_}) *buffer = {};
    device_.reset();
    if (backend_ == nullptr) return;
    EXPECT_EQ(backend_.use_count(), 1);
    step([&] { EXPECT_EQ(backend_->memory().used_bytes, 0u) << "leaked"; });
    step([&] { backend_->release(backend_->allocate({64, "a last look"})); });  // tells of a breach
    backend_.reset();
    if (gives_up_ && thrown_ > 0) {
      EXPECT_LE(runs, submitted_) << "the others waited for the host";
    } else {
      EXPECT_EQ(runs, submitted_) << "what has run, and what was said to have been submitted";
    }
  }

 private:
  // Templates, so that the test itself allocates nothing outside of a call.
  template <class Call>
  void step(const Call& call) {
    for (;;) {
      try {
        return call();
      } catch (const std::bad_alloc&) {
        ++thrown_;
        ASSERT_LE(thrown_, 1) << "the second time there was memory";
        if (gives_up_ && !closing_) throw GaveUp();
      }
    }
  }
  template <class Call>
  void submitting(const Call& call) {
    Point point;
    step([&] {
      point = call();
      ++submitted_;
    });
    points_.push_back(point);
  }
  template <class Call>
  void fails(const Call& call) {
    bool failed = false;
    step([&] { failed = refusal<DeviceError>(call) != "nothing was thrown"; });
    EXPECT_TRUE(failed) << "a failure was lost";
  }
  void listen(const Point& point) {
    step([&] {
      device_->when_reached(point, [this](const std::exception_ptr& error) {
        failures_heard_ += error != nullptr;
        ++called_;
      });
      ++listening_;
    });
  }

  void record(CommandEncoder& encoder, const OpSchema& op, const Buffer& from, const Buffer& to) {
    dispatch(encoder, op, std::array{Operand(from), Operand(), Operand(to)}, MixConstants{1, 16, 0, 16});
  }
  Program prepare(const OpSchema& op, const Buffer& from, const Buffer& to, uint32_t queue) {
    CommandEncoder encoder = device_->encoder();
    record(encoder, op, from, to);
    PrepareOptions options;
    options.queue = queue;
    return device_->prepare(device_->plan(encoder.finish("a label that is too long to be kept")).first,
                            options);
  }
  Point commit(const OpSchema& op, const Buffer& from, const Buffer& to, uint32_t queue) {
    CommandEncoder encoder = device_->encoder();
    record(encoder, op, from, to);
    return encoder.commit({.label = "a label that is too long to be kept in place", .queue = queue});
  }

  // Of four rows: a product behind a norm and what takes it on, one command whose value lies in an arena.
  static constexpr RowConstants kNormOfRows{1, 4, 1, 0}, kProductOfRows{2, 4, 4, 4}, kBlendOfRows{3, 4, 4, 0};
  Program prepare_fused() {
    CommandEncoder encoder = device_->encoder();
    const Shape shape{4, 4};
    const Buffer input = a_.view(DType::u32, shape), output = e_.view(DType::u32, shape);
    const Temp normed = encoder.temp(DType::u32, shape), product = encoder.temp(DType::u32, shape);
    dispatch(encoder, kNorm, std::array{Operand(input), Operand(normed)}, kNormOfRows);
    dispatch(encoder, kProject, std::array{Operand(normed), Operand(a_.slice(3, 1)), Operand(product)},
             kProductOfRows);
    dispatch(encoder, kBlend, std::array{Operand(product), Operand(input), Operand(output)}, kBlendOfRows);
    const auto [plan, report] = device_->plan(encoder.finish("fused"));
    EXPECT_EQ(report.commands, 1u);
    EXPECT_GT(plan.arena_bytes(), 0u);
    PrepareOptions options;
    options.queue = 1;
    return device_->prepare(plan, options);
  }
  using Rows = std::array<uint32_t, 16>;
  static Rows fused_of(const Rows& input) {
    Rows normed{}, product{}, output{};
    compute<norm>(kNormOfRows, input, normed);
    compute<project>(kProductOfRows, normed, std::span(input).subspan(3), product);
    compute<blend>(kBlendOfRows, product, input, output);
    return output;
  }
  template <void (*Run)(const Region&), class... Args>
  static void compute(const RowConstants& c, Args&&... args) {
    std::array<void*, sizeof...(Args)> pointers{const_cast<uint32_t*>(args.data())...};
    TileArgs tile;
    tile.args = pointers.data();
    tile.constants = reinterpret_cast<const std::byte*>(&c);
    Run({tile, 0, 4, 0, c.units});
  }

  void sessions() {
    std::optional<EncoderSession> session;
    step([&] {
      session.emplace(*device_, "a session with a label that is long");
      for (const bool fence : {true, false}) {
        StageOptions options;
        options.queue = 2;
        options.timestamps = true;
        record(session->begin_stage("stage", options), kCounted, a_, c_);
        try {
          points_.push_back(fence ? session->fence_stage() : session->commit_stage());
        } catch (const DeviceError& error) {
          EXPECT_NE(std::string_view(error.what()).find("failed: std::bad_alloc"), std::string_view::npos);
          throw std::bad_alloc();  // it has failed the session
        }
        ++submitted_;
      }
    });
    step([&] { (void)refusal<TimeoutError>([&] { session->wait(0ns); }); });
  }

  void split() {
    step([&] {
      CommandEncoder encoder = device_->encoder();
      std::optional<Point> submitted;
      record(encoder, kCounted, a_, c_);
      for (int i = 0; i < 100; ++i) record(encoder, kMix, a_, c_);
      record(encoder, kCounted, a_, c_);
      ExecuteOptions options;
      options.split = true;
      options.queue = 2;
      options.submitted = &submitted;
      try {
        points_.push_back(execute(encoder, options).point);
        submitted_ += 2;
      } catch (...) {
        submitted_ += submitted.has_value();  // the first part runs
        throw;
      }
    });
  }

  const bool validate_, gives_up_;
  bool closing_ = false;
  std::shared_ptr<backend::Backend> backend_;
  std::optional<Device> device_;
  Buffer a_, b_, c_, d_, e_, pooled_;
  std::optional<BufferPool> pool_;
  std::optional<ResidencySet> set_;
  std::vector<Point> points_;
  Point bad_;
  int submitted_ = 0, thrown_ = 0;
  std::atomic<int> listening_{0}, called_{0}, failures_heard_{0};
};

class MemoryPressure : public testing::TestWithParam<std::tuple<bool, bool>> {};

TEST_P(MemoryPressure, WhicheverAllocationFailsTheRoadGoesOn) {
  if (!test::kCountsHeap) GTEST_SKIP() << "the sanitizer has an operator new of its own";
  const auto [validate, gives_up] = GetParam();
  {
    runs = 0;
    Road(validate, gives_up).run();  // what is made once is made here
  }
  uint64_t n = 0;
  int thrown = 0;
  for (bool refused = true; refused && !HasFailure();) {
    SCOPED_TRACE(++n);
    runs = 0;
    const int64_t blocks = test::heap_blocks;
    {
      Road road(validate, gives_up);
      const test::RefuseNth refusing(n);
      try {
        road.run();
      } catch (const Road::GaveUp&) {
      }
      road.close();
      refused = refusing.refused();
      thrown += road.thrown();
    }
    EXPECT_EQ(test::heap_blocks.load(), blocks) << "leaked";
  }
  EXPECT_GT(thrown, 300) << "of " << n << " refusals";
}

INSTANTIATE_TEST_SUITE_P(Ways, MemoryPressure, testing::Combine(testing::Bool(), testing::Bool()),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param) ? "validated_" : "bare_") +
                                  (std::get<1>(test.param) ? "dropped" : "again");
                         });

}  // namespace
}  // namespace refrain::null_tests
