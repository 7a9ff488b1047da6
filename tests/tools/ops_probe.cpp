// A test tool: runs every CPU kernel of an op that this machine can run on tensors of a safetensors file and
// writes the results, each under its kernel's name, for the Python tests.
//
// ops_probe matmul IN OUT                     x, w
// ops_probe matmul IN OUT affine BITS GROUP   x, w (codes), scales, biases
// ops_probe matmul IN OUT q8_0|q4_0           x, w (blocks, u8 [rows, bytes])
// ops_probe rms_norm IN OUT                   x, w; eps 1e-6
// ops_probe silu_mul IN OUT                   x (gate), w (up)
// ops_probe gelu_mul IN OUT                   x (gate), w (up)
// ops_probe softcap IN OUT CAP                x
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <map>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "refrain/backend/features.h"
#include "refrain/format/mlx_affine.h"
#include "refrain/format/plain.h"
#include "refrain/format/q4_0.h"
#include "refrain/format/q8_0.h"
#include "refrain/format/safetensors.h"
#include "refrain/ops/gelu_mul/gelu_mul.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/layouts.h"
#include "refrain/ops/matmul/matmul.h"
#include "refrain/ops/rms_norm/rms_norm.h"
#include "refrain/ops/silu_mul/silu_mul.h"
#include "refrain/ops/softcap/softcap.h"

namespace {

using namespace refrain;
using format::SafetensorsFile;

struct AlignedFree {
  void operator()(std::byte* data) const { ::operator delete(data, std::align_val_t{64}); }
};
using Bytes = std::unique_ptr<std::byte, AlignedFree>;

Bytes allocate(size_t bytes) {
  return Bytes(static_cast<std::byte*>(::operator new(bytes + 1, std::align_val_t{64})));
}

uint64_t machine_features() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return backend::kFeatureAvx2;
#endif
  return 0;
}

struct Packed {
  backend::WeightInfo info;
  const backend::WeightLayout* layout = nullptr;
  Bytes bytes;
};

Packed pack(const TensorSource& source, const backend::WeightLayout& layout) {
  Packed packed{{source.format, source.shape}, &layout, nullptr};
  const size_t bytes = layout.packed_bytes(packed.info);
  packed.bytes = allocate(bytes);
  ops::pack_whole(layout, source, packed.info, {packed.bytes.get(), bytes});
  return packed;
}

using Inputs = std::vector<std::pair<backend::ArgumentInfo, std::byte*>>;

/// Runs each kernel on the inputs and an output, and collects its output. `constants`: what the shapes do not imply.
template <class Constants>
std::map<std::string, std::vector<float>> run_all(const backend::OpSchema& op, const Inputs& inputs,
                                                  const Shape& y_shape, Constants constants) {
  std::vector<backend::ArgumentInfo> infos;
  std::vector<void*> args;
  for (const auto& [info, data] : inputs) {
    infos.push_back(info);
    args.push_back(data);
  }
  infos.push_back({true, DType::f32, y_shape, nullptr, nullptr});
  args.push_back(nullptr);
  const backend::OpCall call{&op, infos, std::as_bytes(std::span(&constants, 1))};
  op.check(call);
  op.complete(call, reinterpret_cast<std::byte*>(&constants));
  std::map<std::string, std::vector<float>> results;
  for (const backend::Kernel& kernel : ops::cpu_kernels()) {
    if (kernel.op != &op || (kernel.needs & ~machine_features()) != 0 || !kernel.accepts(call)) continue;
    std::vector<float> y(static_cast<size_t>(y_shape.elements()));
    args.back() = y.data();
    const backend::Launch launch = kernel.launch(call, {});
    const Bytes scratch = allocate(launch.scratch_bytes);
    const auto& entry = *static_cast<const backend::TileKernel*>(kernel.entry);
    const backend::TileArgs tile_args{args.data(), call.constants.data(), scratch.get(), launch.rows};
    if (entry.prologue != nullptr) entry.prologue(tile_args);
    entry.tiles(tile_args, 0, ceil_div(launch.rows, launch.rows_per_block) * launch.tiles_per_block);
    results[std::string(kernel.name)] = std::move(y);
  }
  return results;
}

int write(const std::string& path, const std::map<std::string, std::vector<float>>& results,
          const Shape& shape) {
  std::vector<format::SafetensorsSpec> specs;
  for (const auto& [kernel, y] : results) specs.push_back({kernel, DType::f32, shape});
  format::SafetensorsWriter writer(path, std::move(specs));
  for (const auto& [kernel, y] : results) writer.append(kernel, std::as_bytes(std::span(y)));
  writer.commit();
  return 0;
}

int run(const std::vector<std::string>& arguments) {
  const std::string& op = arguments.at(0);
  const SafetensorsFile in = SafetensorsFile::open(arguments.at(1));
  const TensorSegment x_segment = in.segment("x");
  const Shape x_shape = x_segment.shape;
  const Bytes x = allocate(x_segment.bytes.size());
  std::copy(x_segment.bytes.begin(), x_segment.bytes.end(), x.get());
  const std::pair x_input{backend::ArgumentInfo{true, DType::f32, x_shape, nullptr, nullptr}, x.get()};

  Shape y_shape = x_shape;
  std::map<std::string, std::vector<float>> results;
  if (op == "softcap") {
    results = run_all(ops::softcap_schema, {x_input}, y_shape,
                      ops::SoftcapConstants{.cap = std::stof(arguments.at(3))});
    return write(arguments.at(2), results, y_shape);
  }
  const TensorSegment w = in.segment("w");
  TensorSource source = format::plain_tensor("w", w.dtype, w.shape, w.bytes);
  if (op == "silu_mul" || op == "gelu_mul") {
    const Bytes up = allocate(w.bytes.size());
    std::copy(w.bytes.begin(), w.bytes.end(), up.get());
    const auto& schema = op == "silu_mul" ? ops::silu_mul_schema : ops::gelu_mul_schema;
    results = run_all(schema, {x_input, {{true, w.dtype, w.shape, nullptr, nullptr}, up.get()}}, y_shape,
                      ops::SiluMulConstants{});
  } else if (op == "rms_norm") {
    const Packed weight = pack(source, ops::vector_f32());
    results = run_all(ops::rms_norm_schema,
                      {x_input, {{true, w.dtype, w.shape, &weight.info, weight.layout}, weight.bytes.get()}},
                      y_shape, ops::RmsNormConstants{.eps = 1e-6f});
  } else if (op == "matmul") {
    if (arguments.size() > 3) {
      source.shape = {w.shape[0], x_shape[1]};
      if (arguments[3] == "affine") {
        source.segments = {w, in.segment("scales"), in.segment("biases")};
        source.format = &format::mlx_affine({static_cast<uint32_t>(std::stoul(arguments.at(4))),
                                             static_cast<uint32_t>(std::stoul(arguments.at(5)))},
                                            source.segments[1].dtype);
      } else {
        source.format = arguments[3] == "q8_0" ? &format::q8_0() : &format::q4_0();
      }
    }
    const Packed weight = pack(source, ops::matrix_layout(*source.format));
    y_shape = {x_shape[0], w.shape[0]};
    results = run_all(
        ops::matmul_schema,
        {x_input,
         {{true, source.format->dtype, source.shape, &weight.info, weight.layout}, weight.bytes.get()}},
        y_shape, ops::MatmulConstants{});
  } else {
    std::cerr << "unknown op " << op << "\n";
    return 2;
  }
  return write(arguments.at(2), results, y_shape);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
