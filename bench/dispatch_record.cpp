// What recording costs: nanoseconds a dispatch, over recordings of 1,000 dispatches of an op with four
// arguments.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "refrain/device/null/null_device.h"
#include "refrain/stream/device.h"

namespace {

using namespace refrain;

struct Constants {
  uint32_t rows, columns;
  float eps;
};

constexpr device::ArgumentSpec kArgs[] = {{"input", device::Access::in, true},
                                          {"weight", device::Access::in},
                                          {"residual", device::Access::in, true},
                                          {"output", device::Access::out, true}};
constexpr device::OpSchema kOp{"four", "", kArgs, sizeof(Constants), [](const device::OpCall&) {}};

}  // namespace

int main() {
  constexpr int kDispatches = 1000, kRounds = 400;
  Device device(device::make_null({}), {}, {});
  const Buffer count = device.buffer(DType::u32, {1});
  std::vector<Buffer> weights;
  for (int i = 0; i < 300; ++i) weights.push_back(device.buffer(DType::f32, {64}));
  const Buffer input = device.buffer(DType::f32, {8, 64}).with_live_rows(count);

  std::vector<double> record_ns;
  for (int round = 0; round < kRounds; ++round) {
    CommandEncoder encoder = device.encoder();
    std::array<Temp, 8> temps;
    for (Temp& temp : temps) temp = encoder.temp(DType::activation, {8, 64}, count);
    for (const Temp& temp : temps) {
      dispatch(encoder, kOp, std::array{Operand(input), Operand(weights[0]), Operand(input), Operand(temp)},
               Constants{8, 64, 1e-6f});
    }
    const auto begin = std::chrono::steady_clock::now();
    for (size_t i = 0; i < kDispatches; ++i) {
      dispatch(encoder, kOp,
               std::array{Operand(temps[i % 8]), Operand(weights[i % weights.size()]),
                          Operand(temps[(i + 3) % 8]), Operand(temps[(i + 5) % 8])},
               Constants{8, 64, 1e-6f});
    }
    const auto end = std::chrono::steady_clock::now();
    record_ns.push_back(std::chrono::duration<double, std::nano>(end - begin).count() / kDispatches);
  }
  std::ranges::sort(record_ns);
  std::printf("record: %.1f ns a dispatch (median of %d), least %.1f\n", record_ns[kRounds / 2], kRounds,
              record_ns[0]);
}
