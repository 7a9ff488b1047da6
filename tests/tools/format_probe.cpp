// A test tool: runs the reader, the writer and the formats on safetensors files for the Python tests.
//
// format_probe quantize IN OUT BITS GROUP   each tensor x of IN -> x.weight, x.scales, x.biases in OUT
// format_probe dequantize IN OUT BITS GROUP the reverse, in float32
// format_probe q8_0|q4_0 IN OUT              each tensor of blocks, u8 [rows, bytes], in float32
// format_probe copy IN OUT                  every tensor of IN written by our writer
// format_probe list IN                      lines: name, type, shape, bytes, offset in the file modulo 16
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "refrain/format/encoded.h"
#include "refrain/format/mlx_affine.h"
#include "refrain/format/plain.h"
#include "refrain/format/q4_0.h"
#include "refrain/format/q8_0.h"
#include "refrain/format/safetensors.h"

namespace {

using namespace refrain;
using namespace refrain::format;

constexpr std::array<const char*, 3> kParts = {".weight", ".scales", ".biases"};

/// A plain f32, f16 or bf16 tensor as f32.
std::vector<float> widened(const SafetensorsEntry& entry) {
  return decode(plain_tensor(entry.name, *entry.dtype, entry.shape, entry.bytes));
}

int quantize(const SafetensorsFile& in, const char* out, AffineParameters p) {
  std::vector<SafetensorsSpec> specs;
  for (const SafetensorsEntry& entry : in.tensors()) {
    for (size_t i = 0; i < kParts.size(); ++i) {
      const TensorSegment part = part_of(mlx_affine(p, *entry.dtype), entry.shape, i);
      specs.push_back({entry.name + kParts[i], part.dtype, part.shape});
    }
  }
  SafetensorsWriter writer(out, std::move(specs));
  for (const SafetensorsEntry& entry : in.tensors()) {
    const EncodedTensor tensor = encode(mlx_affine(p, *entry.dtype), entry.shape, widened(entry));
    for (size_t i = 0; i < kParts.size(); ++i) writer.append(entry.name + kParts[i], tensor.parts[i]);
  }
  writer.commit();
  return 0;
}

/// Writes the values of `sources` under their names.
int write_decoded(const std::vector<TensorSource>& sources, const char* out) {
  std::vector<SafetensorsSpec> specs;
  for (const TensorSource& source : sources) specs.push_back({source.name, DType::f32, source.shape});
  SafetensorsWriter writer(out, std::move(specs));
  for (const TensorSource& source : sources) {
    const std::vector<float> values = decode(source);
    writer.append(source.name, std::as_bytes(std::span(values)));
  }
  writer.commit();
  return 0;
}

int dequantize(const SafetensorsFile& in, const char* out, AffineParameters p) {
  std::vector<TensorSource> sources;
  for (const SafetensorsEntry& entry : in.tensors()) {
    if (!entry.name.ends_with(kParts[0])) continue;
    const std::string name = entry.name.substr(0, entry.name.size() - std::string_view(kParts[0]).size());
    const TensorSegment scales = in.segment(name + kParts[1]);
    sources.push_back({name,
                       &mlx_affine(p, scales.dtype),
                       {entry.shape[0], entry.shape[1] * 32 / p.bits},
                       {in.segment(entry), scales, in.segment(name + kParts[2])},
                       nullptr});
  }
  return write_decoded(sources, out);
}

int blocks(const SafetensorsFile& in, const char* out, const WeightFormat& format) {
  std::vector<TensorSource> sources;
  for (const SafetensorsEntry& entry : in.tensors()) {
    const int64_t columns = entry.shape[1] / format.parts[0].elements * format.block_elements;
    sources.push_back({entry.name, &format, {entry.shape[0], columns}, {in.segment(entry)}, nullptr});
  }
  return write_decoded(sources, out);
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
  for (const WeightFormat* format : {&q8_0(), &q4_0()}) {
    if (verb == format->name && argc == 4) return blocks(SafetensorsFile::open(argv[2]), argv[3], *format);
  }
  std::cerr
      << "usage: format_probe quantize|dequantize IN OUT BITS GROUP | q8_0|q4_0|copy IN OUT | list IN\n";
  return 2;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
