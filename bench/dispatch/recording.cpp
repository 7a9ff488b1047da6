#include "bench/dispatch/recording.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <thread>

#include "bench/dispatch/report.h"
#include "bench/dispatch/task_graph.h"
#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/null/null_backend.h"
#include "refrain/device/device.h"

namespace refrain::bench {
namespace {

using Clock = std::chrono::steady_clock;

double ns(Clock::duration time) { return std::chrono::duration<double, std::nano>(time).count(); }

struct Constants {
  uint32_t rows, columns;
  float eps;
};

constexpr backend::ArgumentSpec kArgs[] = {{"input", backend::Access::in, true},
                                           {"weight", backend::Access::in},
                                           {"residual", backend::Access::in, true},
                                           {"output", backend::Access::out, true}};
const backend::OpSchema& four() {
  static const backend::OpSchema op = [] {
    backend::OpSchema schema;
    schema.name = "four";
    schema.args = kArgs;
    schema.constants_bytes = sizeof(Constants);
    schema.check = [](const backend::OpCall&) {};
    return schema;
  }();
  return op;
}

backend::Kernel kernel() {
  backend::Kernel kernel;
  kernel.name = "four_null";
  kernel.op = &four();
  kernel.accepts = [](const backend::OpCall&) { return true; };
  kernel.launch = [](const backend::OpCall&, const backend::DeviceInfo&) {
    return backend::Launch{8, 1, 1, 0};
  };
  return kernel;
}

/// Records dispatches of four arguments, three of them with a live count.
class Recording {
 public:
  explicit Recording(Device& device)
      : device_(device),
        count_(device.buffer(DType::u32, {1})),
        input_(device.buffer(DType::f32, {8, 64}).with_live_rows(count_)),
        output_(device.buffer(DType::f32, {8, 64}).with_live_rows(count_)) {
    for (int i = 0; i < 300; ++i) weights_.push_back(device.buffer(DType::f32, {64}));
  }

  CommandEncoder begin() {
    CommandEncoder encoder = device_.encoder();
    for (Temp& temp : temps_) temp = encoder.temp(DType::activation, {8, 64}, count_);
    for (const Temp& temp : temps_) add(encoder, Operand(input_), Operand(input_), Operand(temp), 0);
    return encoder;
  }

  /// Without temps.
  void add(CommandEncoder& encoder) { add(encoder, Operand(input_), Operand(input_), Operand(output_), 0); }

  void add(CommandEncoder& encoder, size_t i) {
    add(encoder, Operand(temps_[i % 8]), Operand(temps_[(i + 3) % 8]), Operand(temps_[(i + 5) % 8]), i);
  }

 private:
  void add(CommandEncoder& encoder, const Operand& input, const Operand& residual, const Operand& output,
           size_t i) {
    dispatch(encoder, four(), std::array{input, Operand(weights_[i % weights_.size()]), residual, output},
             Constants{8, 64, 1e-6f});
  }

  Device& device_;
  Buffer count_;
  Buffer input_, output_;
  std::vector<Buffer> weights_;
  std::array<Temp, 8> temps_;
};

}  // namespace

void measure_recording() {
  Device device(backend::make_null({}), {}, {});
  Recording recording(device);
  std::vector<double> dispatch_ns, barrier_ns, temp_ns;
  for (int round = 0; round < 400; ++round) {
    CommandEncoder encoder = recording.begin();
    const auto begin = Clock::now();
    for (size_t i = 0; i < kCommands; ++i) recording.add(encoder, i);
    const auto middle = Clock::now();
    for (size_t i = 0; i < kCommands; ++i) encoder.barrier();
    const auto end = Clock::now();
    dispatch_ns.push_back(ns(middle - begin) / kCommands);
    for (size_t i = 0; i < kCommands; ++i) encoder.temp(DType::f32, {8, 64});
    temp_ns.push_back(ns(Clock::now() - end) / kCommands);
    barrier_ns.push_back(ns(end - middle) / kCommands);
  }
  print("record/dispatch", median(dispatch_ns), "ns");
  print("record/dispatch_minimum", std::ranges::min(dispatch_ns), "ns");
  print("record/barrier", median(barrier_ns), "ns");
  print("record/temp", median(temp_ns), "ns");
}

// From a new encoder to the end of the wait, planning and preparing included, and what of it is the wait. On the
// CPU, with one thread, kept awake: by default a worker sleeps after 20 us without work, so whether a figure had a
// wake in it would hang on the machine's mood while planning. What a wake costs is measure_submission's.
void measure_commit() {
  const backend::TileKernel tiles{.tiles = [](const backend::TileArgs&, uint32_t, uint32_t) {}};
  backend::Kernel table = kernel();
  table.entry = &tiles;
  backend::CpuOptions one_thread;
  one_thread.threads = 1;
  one_thread.spin = std::chrono::milliseconds(10);
  Device null(backend::make_null({&table, 1}), {}, {});
  Device cpu(backend::make_cpu(one_thread, std::span(&table, 1)), {}, {});
  for (Device* device : {&null, &cpu}) {
    Recording recording(*device);
    for (const size_t commands : {0, 1, 10}) {
      std::vector<double> times, waits;
      for (int round = 0; round < 1000; ++round) {
        const auto begin = Clock::now();
        CommandEncoder encoder = device->encoder();
        for (size_t i = 0; i < commands; ++i) recording.add(encoder);
        const Point point = encoder.commit();
        const auto middle = Clock::now();
        device->wait(point);
        const auto end = Clock::now();
        times.push_back(ns(end - begin) / 1e3);
        waits.push_back(ns(end - middle) / 1e3);
      }
      const std::string name =
          "commit/" + device->info().backend + "/" + std::to_string(commands) + "_commands";
      print(name, median(times), "us");
      print(name + "/wait", median(waits), "us");
    }
  }
}

void measure_null_replay() {
  const backend::Kernel table = kernel();
  Device device(backend::make_null({&table, 1}), {}, {});
  Recording recording(device);
  CommandEncoder encoder = recording.begin();
  for (size_t i = 0; i < kCommands; ++i) recording.add(encoder, i);
  const auto [plan, report] = device.plan(encoder.finish());
  const Program program = device.prepare(plan);
  const auto commands = static_cast<double>(plan.data().commands.size());
  std::vector<double> times;
  for (int round = 0; round < 2000; ++round) {
    const auto begin = Clock::now();
    const Point point = device.submit(program);
    device.wait(point);
    times.push_back(ns(Clock::now() - begin) / commands);
  }
  print("replay/null", median(times), "ns/command");
}

// A submission of nothing, so that all of the time is that of the queue and of the wake.
void measure_submission() {
  for (const uint32_t threads : {1u, 2u}) {
    backend::CpuOptions options;
    options.threads = threads;
    const auto device = backend::make_cpu(options, {});
    const auto program = device->prepare({}, {});
    const auto submit = [&] { return device->submit({program.get(), {}, {}}); };
    constexpr int kAhead = 1000;
    std::vector<double> ahead, awake, cold;
    for (int round = 0; round < 51; ++round) {
      const auto begin = Clock::now();
      backend::Point last;
      for (int i = 0; i < kAhead; ++i) last = submit();
      device->wait(last, std::chrono::hours(1));
      ahead.push_back(ns(Clock::now() - begin) / kAhead);
    }
    const auto waited = [&] {
      const auto begin = Clock::now();
      device->wait(submit(), std::chrono::hours(1));
      return ns(Clock::now() - begin) / 1e3;
    };
    for (int round = 0; round < 2000; ++round) awake.push_back(waited());
    for (int round = 0; round < 300; ++round) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // the workers sleep after 20 us
      cold.push_back(waited());
    }
    const std::string suffix = threads_suffix(threads);
    print("submit/one_behind_another" + suffix, median(ahead), "ns");
    print("submit/and_wait" + suffix, median(awake), "us");
    print("submit/and_wait_cold" + suffix, median(cold), "us");
  }
}

}  // namespace refrain::bench
