// A test tool: runs the reader, the writer and the affine quantization on safetensors files for the Python
// tests.
//
// affine_probe quantize IN OUT BITS GROUP   each tensor x of IN -> x.weight, x.scales, x.biases in OUT
// affine_probe dequantize IN OUT BITS GROUP the reverse, in float32
// affine_probe copy IN OUT                  every tensor of IN written by our writer
// affine_probe list IN                      lines: name, type, shape, bytes, offset in the file modulo 16
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/format/mlx_affine.h"
#include "refrain/format/safetensors.h"

namespace {

using namespace refrain;
using namespace refrain::format;

int quantize(const SafetensorsFile& in, const char* out, AffineParameters p) {
  std::vector<SafetensorsSpec> specs;
  for (const SafetensorsEntry& entry : in.tensors()) {
    const int64_t rows = entry.shape[0], columns = entry.shape[1];
    specs.push_back({entry.name + ".weight", DType::u32, {rows, columns / 32 * p.bits}});
    specs.push_back({entry.name + ".scales", *entry.dtype, {rows, columns / p.group_size}});
    specs.push_back({entry.name + ".biases", *entry.dtype, {rows, columns / p.group_size}});
  }
  SafetensorsWriter writer(out, std::move(specs));
  for (const SafetensorsEntry& entry : in.tensors()) {
    const size_t elements = static_cast<size_t>(entry.shape.elements());
    const size_t pair_bytes = elements / p.group_size * size_bytes(*entry.dtype);
    std::vector<uint32_t> codes(affine_words(elements, p));
    std::vector<std::byte> scales(pair_bytes), biases(pair_bytes);
    if (!affine_quantize(*entry.dtype, entry.bytes, p, codes, scales, biases)) {
      std::cerr << entry.name << ": not finite\n";
      return 1;
    }
    writer.append(entry.name + ".weight", std::as_bytes(std::span(codes)));
    writer.append(entry.name + ".scales", scales);
    writer.append(entry.name + ".biases", biases);
  }
  writer.commit();
  return 0;
}

int dequantize(const SafetensorsFile& in, const char* out, AffineParameters p) {
  constexpr std::string_view kSuffix = ".weight";
  std::vector<SafetensorsSpec> specs;
  for (const SafetensorsEntry& entry : in.tensors()) {
    if (!entry.name.ends_with(kSuffix)) continue;
    const std::string name = entry.name.substr(0, entry.name.size() - kSuffix.size());
    specs.push_back({name, DType::f32, {entry.shape[0], entry.shape[1] * 32 / p.bits}});
  }
  SafetensorsWriter writer(out, specs);
  for (const SafetensorsSpec& spec : specs) {
    const TensorSegment scales = in.segment(spec.name + ".scales");
    std::vector<float> values(static_cast<size_t>(spec.shape.elements()));
    affine_dequantize(scales.dtype, in.segment(spec.name + ".weight").bytes, scales.bytes,
                      in.segment(spec.name + ".biases").bytes, p, values);
    writer.append(spec.name, std::as_bytes(std::span(values)));
  }
  writer.commit();
  return 0;
}

int copy(const SafetensorsFile& in, const char* out) {
  std::vector<SafetensorsSpec> specs;
  for (const SafetensorsEntry& entry : in.tensors()) {
    specs.push_back({entry.name, in.segment(entry).dtype, entry.shape});
  }
  SafetensorsWriter writer(out, std::move(specs), in.metadata());
  for (const SafetensorsEntry& entry : in.tensors()) writer.append(entry.name, entry.bytes);
  writer.commit();
  return 0;
}

int list(const SafetensorsFile& in) {
  for (const SafetensorsEntry& entry : in.tensors()) {
    const auto offset = reinterpret_cast<uintptr_t>(entry.bytes.data()) % 16;
    std::cout << entry.name << ' ' << entry.type_name << ' ' << to_string(entry.shape) << ' '
              << entry.bytes.size() << ' ' << offset << '\n';
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string_view verb = argc > 2 ? argv[1] : "";
  const auto number = [&](int i) { return static_cast<uint32_t>(std::strtoul(argv[i], nullptr, 10)); };
  if (verb == "list" && argc == 3) return list(SafetensorsFile::open(argv[2]));
  if (verb == "copy" && argc == 4) return copy(SafetensorsFile::open(argv[2]), argv[3]);
  if (verb == "quantize" && argc == 6) {
    return quantize(SafetensorsFile::open(argv[2]), argv[3], {number(4), number(5)});
  }
  if (verb == "dequantize" && argc == 6) {
    return dequantize(SafetensorsFile::open(argv[2]), argv[3], {number(4), number(5)});
  }
  std::cerr << "usage: affine_probe quantize|dequantize IN OUT BITS GROUP | copy IN OUT | list IN\n";
  return 2;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
