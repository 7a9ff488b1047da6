// The library in one page: two ops, run at once, then recorded, planned and replayed.
#include <refrain/refrain.h>

#include <chrono>
#include <cstdio>
#include <vector>

using namespace refrain;
using namespace std::chrono_literals;

constexpr int64_t kWidth = 4096;

/// A 4-bit matrix [kWidth, kWidth] in MLX's format.
format::EncodedTensor matrix() {
  std::vector<float> values(kWidth * kWidth);
  uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = bf16::from_float(static_cast<float>(state >> 8) * 0x1p-29f - 0x1p-6f).to_float();
  }
  return format::encode(format::mlx_affine({.bits = 4, .group_size = 64}, DType::bf16), {kWidth, kWidth},
                        values);
}

int main() {
  const format::EncodedTensor encoded = matrix();
  const std::vector<float> ones(kWidth, 1.0f);
  const TensorSource norm_source =
      format::plain_tensor("norm", DType::f32, {kWidth}, std::as_bytes(std::span(ones)));

  Device device = Device::open("auto");
  Weight wq = device.pack(encoded.source("wq"), {Use::matvec, Use::matmul});
  Weight norm = device.pack(norm_source, {Use::vector});
  Buffer x = device.buffer(DType::f32, {1, kWidth}), q = device.buffer(DType::f32, {1, kWidth});
  std::vector<float> input(kWidth);
  for (size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i % 7) - 3;
  device.write(x, input);

  const auto record = [&](CommandEncoder& encoder) {
    Temp h = encoder.temp(DType::f32, {1, kWidth});  // a value, not memory
    ops::rms_norm(encoder, {.input = x, .weight = norm, .output = h, .eps = 1e-6f});
    ops::matmul(encoder, {.input = h, .weight = wq, .output = q});
  };

  // Either run it now: one submission, no barrier written by hand.
  CommandEncoder encoder = device.encoder();
  record(encoder);
  device.wait(encoder.commit({.label = "projection"}), 1s);
  std::printf("q[0] = %g\n", device.read<float>(q)[0]);

  // Or keep it: a second encoder records the same, and nothing has run.
  CommandEncoder recorder = device.encoder();
  record(recorder);
  ComputeGraph graph = recorder.finish();
  auto [plan, report] = device.plan(std::move(graph));
  std::printf("%zu commands, %zu edges, %zu levels\n%s", report.commands, report.edges, report.levels,
              graph::dump(plan.data()).c_str());
  Program step = device.prepare(plan);

  constexpr int kReplays = 200;
  const auto begin = std::chrono::steady_clock::now();
  Point last;
  for (int i = 0; i < kReplays; ++i) last = device.submit(step);
  device.wait(last, 10s);
  const std::chrono::duration<double, std::micro> elapsed = std::chrono::steady_clock::now() - begin;
  std::printf("%.1f us a replay, q[0] = %g\n", elapsed.count() / kReplays, device.read<float>(q)[0]);
}
