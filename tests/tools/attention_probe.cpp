// A test tool: runs kernels of rope, kv_write, attention and sample on tensors of a safetensors file for the
// Python tests, without a device: all tiles on one thread, every row live.
//
// attention_probe rope KERNELS IN OUT INTERLEAVED   input, rows, frequencies -> output
// attention_probe attention KERNELS IN OUT SCALE    query, key, value, rows, page_table, cache
//                                                   -> output, cache, status: kv_write, then attention
// attention_probe sample KERNELS IN OUT             logits, index, rows, slots, masks -> rows
// KERNELS: portable or avx2 (exit status 77 where the machine has none).
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/backend/features.h"
#include "refrain/core/checked.h"
#include "refrain/core/error.h"
#include "refrain/format/safetensors.h"
#include "refrain/ops/attention/attention.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/kv_write/kv_write.h"
#include "refrain/ops/rope/rope.h"
#include "refrain/ops/sample/sample.h"

namespace {

using namespace refrain;

/// The tensors of a file as memory that kernels may write.
struct Tensor {
  DType dtype = DType::f32;
  Shape shape;
  std::vector<uint32_t> words;  // all dtypes here have four bytes

  uint32_t dim(size_t axis) const { return static_cast<uint32_t>(shape[axis]); }
};
using Tensors = std::map<std::string, Tensor>;

Tensors read(const char* path) {
  const format::SafetensorsFile file = format::SafetensorsFile::open(path);
  Tensors tensors;
  for (const format::SafetensorsEntry& entry : file.tensors()) {
    const TensorSegment segment = file.segment(entry);
    Tensor tensor{segment.dtype, segment.shape, std::vector<uint32_t>(segment.bytes.size() / 4)};
    std::memcpy(tensor.words.data(), segment.bytes.data(), tensor.words.size() * 4);
    tensors[entry.name] = std::move(tensor);
  }
  return tensors;
}

void write(const char* path, const Tensors& tensors, const std::vector<std::string>& names) {
  std::vector<format::SafetensorsSpec> specs;
  for (const std::string& name : names)
    specs.push_back({name, tensors.at(name).dtype, tensors.at(name).shape});
  format::SafetensorsWriter writer(path, specs);
  for (const std::string& name : names) writer.append(name, std::as_bytes(std::span(tensors.at(name).words)));
  writer.commit();
}

template <class Constants>
void run(const backend::Kernel& kernel, Tensors& tensors, const std::vector<std::string>& names,
         const Constants& constants) {
  std::vector<void*> args;
  for (const std::string& name : names) args.push_back(tensors.at(name).words.data());
  const auto bytes = std::as_bytes(std::span(&constants, 1));
  const backend::Launch launch = kernel.launch({kernel.op, {}, bytes}, {});
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> scratch(ceil_div(launch.scratch_bytes, sizeof(Line)));
  const backend::TileArgs tile_args = {args.data(), bytes.data(),
                                       reinterpret_cast<std::byte*>(scratch.data()), launch.rows};
  const auto& entry = *static_cast<const backend::TileKernel*>(kernel.entry);
  if (entry.prologue != nullptr) entry.prologue(tile_args);
  entry.tiles(tile_args, 0, ceil_div(launch.rows, launch.rows_per_block) * launch.tiles_per_block);
}

struct Kernels {
  const backend::Kernel* rope;
  const backend::Kernel* attention;
  const backend::Kernel* sample;
};

/// The kernel of an op that needs these features and no others.
const backend::Kernel* kernel_of(const backend::OpSchema& op, uint64_t needs = 0) {
  static const std::vector<backend::Kernel> kernels = ops::cpu_kernels();
  for (const backend::Kernel& kernel : kernels) {
    if (kernel.op == &op && kernel.needs == needs) return &kernel;
  }
  throw InvalidArgument(std::string(op.name) + ": no such kernel");
}

/// Empty when the machine has none of the name.
std::vector<Kernels> choose(std::string_view name) {
  uint64_t needs = 0;
  if (name != "portable") {
#if defined(__x86_64__)
    if (name == "avx2" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      needs = backend::kFeatureAvx2;
#endif
    if (needs == 0) return {};
  }
  return {{kernel_of(ops::rope_schema, needs), kernel_of(ops::attention_schema, needs),
           kernel_of(ops::sample_schema, needs)}};
}

int rope(const Kernels& kernels, Tensors tensors, const char* out, const char* interleaved) {
  const Tensor& input = tensors.at("input");
  const ops::RopeConstants constants = {input.dim(0), input.dim(1), input.dim(2),
                                        tensors.at("frequencies").dim(0),
                                        std::string_view(interleaved) == "1" ? 1u : 0u};
  tensors["output"] = input;
  run(*kernels.rope, tensors, {"input", "rows", "frequencies", "output"}, constants);
  write(out, tensors, {"output"});
  return 0;
}

int attention(const Kernels& kernels, Tensors tensors, const char* out, const char* scale) {
  const Tensor& query = tensors.at("query");
  const Tensor& cache = tensors.at("cache");
  const uint32_t slots = tensors.at("page_table").dim(0);
  const uint32_t pages = tensors.at("page_table").dim(1);
  const ops::KvWriteConstants written = {query.dim(0), cache.dim(2), query.dim(2),
                                         slots,        pages,        cache.dim(1)};
  const ops::AttentionConstants constants = {
      query.dim(0), query.dim(1), cache.dim(2), query.dim(2),
      slots,        pages,        cache.dim(1), std::strtof(scale, nullptr)};
  tensors["output"] = query;
  tensors["status"] = {DType::u32, {int64_t{slots} + 1}, std::vector<uint32_t>(slots + 1)};
  run(*kernel_of(ops::kv_write_schema), tensors, {"key", "value", "rows", "page_table", "cache", "status"},
      written);
  run(*kernels.attention, tensors, {"query", "rows", "page_table", "cache", "status", "output"}, constants);
  write(out, tensors, {"output", "cache", "status"});
  return 0;
}

int sample(const Kernels& kernels, Tensors tensors, const char* out) {
  const Tensor& logits = tensors.at("logits");
  const uint32_t slots = tensors.at("slots").dim(0);
  const ops::SampleConstants constants = {logits.dim(0), logits.dim(1), tensors.at("rows").dim(0), slots,
                                          tensors.at("masks").dim(0)};
  tensors["status"] = {DType::u32, {int64_t{slots} + 1}, std::vector<uint32_t>(slots + 1)};
  run(*kernels.sample, tensors, {"logits", "index", "rows", "slots", "masks", "status"}, constants);
  write(out, tensors, {"rows"});
  return 0;
}

int run_command(int argc, char** argv) {
  const std::vector<Kernels> kernels = choose(argc > 2 ? argv[2] : "");
  if (kernels.empty()) return 77;
  const std::string_view command = argv[1];
  if (command == "rope" && argc == 6) return rope(kernels[0], read(argv[3]), argv[4], argv[5]);
  if (command == "attention" && argc == 6) return attention(kernels[0], read(argv[3]), argv[4], argv[5]);
  if (command == "sample" && argc == 5) return sample(kernels[0], read(argv[3]), argv[4]);
  std::cerr << "attention_probe: wrong arguments\n";
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run_command(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
