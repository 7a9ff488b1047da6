#include "refrain/format/plain.h"

#include <array>
#include <utility>

#include "refrain/format/floats.h"

namespace refrain::format {
namespace {

template <class T>
void decode(const WeightFormat&, const std::byte* const* parts, size_t blocks, float* values) {
  for (size_t i = 0; i < blocks; ++i) values[i] = load<T>(parts[0], i);
}

constexpr WeightFormat make(DType dtype) {
  WeightFormat format{.name = name(dtype), .dtype = dtype, .parts = {{{dtype, 1}}}};
  if (dtype == DType::f32) format.decode = decode<float>;
  if (dtype == DType::f16) format.decode = decode<f16>;
  if (dtype == DType::bf16) format.decode = decode<bf16>;
  return format;
}

template <size_t... I>
constexpr std::array<WeightFormat, sizeof...(I)> make_all(std::index_sequence<I...>) {
  return {make(static_cast<DType>(I))...};
}

constexpr auto kPlain = make_all(std::make_index_sequence<static_cast<size_t>(DType::activation)>());

}  // namespace

const WeightFormat& plain(DType dtype) { return kPlain.at(static_cast<size_t>(dtype)); }

TensorSource plain_tensor(std::string name, DType dtype, const Shape& shape,
                          std::span<const std::byte> bytes) {
  return {std::move(name), &plain(dtype), shape, {{dtype, shape, bytes}}, nullptr};
}

}  // namespace refrain::format
