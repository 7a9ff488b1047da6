// The library in one page: two ops, run at once, then recorded, planned and replayed.
#include <refrain/refrain.h>

#include <chrono>
#include <cstdio>
#include <vector>

#include "refrain/format/mlx_affine.h"

using namespace refrain;
using namespace std::chrono_literals;

constexpr int64_t kWidth = 4096;

/// A 4-bit matrix [kWidth, kWidth] in MLX's format, as a reader of model files would hand it over.
struct Matrix {
  std::vector<uint32_t> codes = std::vector<uint32_t>(kWidth * kWidth / 8);
  std::vector<bf16> scales = std::vector<bf16>(kWidth * kWidth / 64);
  std::vector<bf16> biases = scales;

  Matrix() {
    std::vector<bf16> values(kWidth * kWidth);
    uint32_t state = 1;
    for (bf16& value : values) {
      state = state * 1664525u + 1013904223u;
      value = bf16::from_float(static_cast<float>(state >> 8) * 0x1p-29f - 0x1p-6f);
    }
    format::affine_quantize(DType::bf16, std::as_bytes(std::span(values)), {.bits = 4, .group_size = 64},
                            codes, std::as_writable_bytes(std::span(scales)),
                            std::as_writable_bytes(std::span(biases)));
  }

  TensorSource source() const {
    TensorSource source;
    source.name = "wq";
    source.format = WeightFormat::mlx_affine;
    source.dtype = DType::bf16;
    source.shape = {kWidth, kWidth};
    source.bits = 4;
    source.group_size = 64;
    source.segments = {{DType::u32, {kWidth, kWidth / 8}, std::as_bytes(std::span(codes))},
                       {DType::bf16, {kWidth, kWidth / 64}, std::as_bytes(std::span(scales))},
                       {DType::bf16, {kWidth, kWidth / 64}, std::as_bytes(std::span(biases))}};
    return source;
  }
};

int main() {
  const Matrix matrix;
  const std::vector<float> ones(kWidth, 1.0f);
  TensorSource norm_source;
  norm_source.name = "norm";
  norm_source.shape = {kWidth};
  norm_source.segments = {{DType::f32, {kWidth}, std::as_bytes(std::span(ones))}};

  Device device = Device::open("auto");
  Weight wq = device.pack(matrix.source(), {Use::matvec, Use::matmul});
  Weight norm = device.pack(norm_source, {Use::vector});
  Buffer x = device.buffer(DType::f32, {1, kWidth}), q = device.buffer(DType::f32, {1, kWidth});
  std::vector<float> input(kWidth);
  for (size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i % 7) - 3;
  device.write(x, input);

  const auto record = [&](CommandEncoder& encoder) {
    Temp h = encoder.temp(DType::f32, {1, kWidth});  // a value, not memory
    ops::rms_norm(encoder, {.input = x, .weight = norm, .output = h, .eps = 1e-6f});
    ops::quantized_matmul(encoder, {.input = h, .weight = wq, .output = q});
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
