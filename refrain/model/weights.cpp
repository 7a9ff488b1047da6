#include "refrain/model/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "refrain/core/error.h"
#include "refrain/format/encoded.h"
#include "refrain/format/plain.h"

namespace refrain::model {
namespace {

uint64_t bytes_of(const TensorSource& source) {
  uint64_t bytes = 0;
  for (const TensorSegment& segment : source.segments) bytes += segment.bytes.size();
  return bytes;
}

}  // namespace

WeightLoader::WeightLoader(Device& device, const WeightSource& source, ProgressCallback progress,
                           graph::Mode mode)
    : device_(device),
      source_(source),
      progress_(std::move(progress)),
      mode_(mode),
      total_bytes_(source.bytes()) {}

Weight WeightLoader::pack(const TensorSource& source, Uses uses) {
  const uint64_t source_bytes = bytes_of(source);
  const PackProgress progress = [&](size_t done_bytes, size_t packed_bytes) {
    const double share = static_cast<double>(done_bytes) / static_cast<double>(packed_bytes);
    tell(done_bytes_ + static_cast<uint64_t>(static_cast<double>(source_bytes) * share));
  };
  Weight weight = device_.pack(source, uses, {mode_, progress});
  done_bytes_ += source_bytes;
  ++totals_.weights;
  totals_.bytes += weight.bytes();
  if (weight.in_place()) totals_.in_place_bytes += weight.bytes();
  return weight;
}

void WeightLoader::tell(uint64_t done_bytes) const {
  if (progress_ && !progress_(done_bytes, total_bytes_)) throw Cancelled("loading was cancelled");
}

Weight WeightLoader::matrix(const std::string& module, uint32_t rows, uint32_t columns, Uses uses) {
  take(module);
  return pack(source_.weight(module, rows, columns), uses);
}

Weight WeightLoader::matrix_rows(const std::string& module, uint32_t rows, uint32_t columns, uint32_t first,
                                 uint32_t count, Uses uses) {
  take(module);
  TensorSource source = source_.weight(module, rows, columns);
  for (TensorSegment& part : source.segments) {
    const size_t row_bytes = part.bytes.size() / rows;
    part.bytes = part.bytes.subspan(first * row_bytes, count * row_bytes);
    std::vector<int64_t> dims(part.shape.dims().begin(), part.shape.dims().end());
    dims[0] = count;
    part.shape = Shape(dims);
  }
  source.shape = Shape{count, columns};
  return pack(source, uses);
}

Weight WeightLoader::vector(const std::string& name, uint32_t elements, float plus, float times) {
  taken_.insert(name);
  const TensorSource source = source_.tensor(name, {elements});
  if (plus == 0 && times == 1) return pack(source, {Use::vector});
  std::vector<float> values = format::decode(source);
  for (float& value : values) value = (value + plus) * times;
  done_bytes_ += bytes_of(source);
  tell(done_bytes_);
  return computed(name, values);
}

Weight WeightLoader::computed(const std::string& name, std::span<const float> values) {
  const Shape shape{static_cast<int64_t>(values.size())};
  return device_.pack(format::plain_tensor(name, DType::f32, shape, std::as_bytes(values)), {Use::vector});
}

bool WeightLoader::has(const std::string& module) const {
  const std::vector<std::string> names = source_.tensor_names();
  return std::ranges::find(names, module + ".weight") != names.end();
}

void WeightLoader::skip_copy(const std::string& copy, const std::string& module, uint32_t rows,
                             uint32_t columns) {
  take(copy);
  if (!has(copy)) return;
  if (format::same_values(source_.weight(copy, rows, columns), source_.weight(module, rows, columns))) return;
  throw FileError(fmt::format(
      "{}: tensor {}: expected what {} holds, to which config.json ties it, got another", source_.origin(),
      format::in_quotes(copy + ".weight"), format::in_quotes(module + ".weight")));
}

void WeightLoader::take(const std::string& module) {
  for (const char* part : {".weight", ".scales", ".biases"}) taken_.insert(module + part);
}

void WeightLoader::expect_all_taken(const std::string& what) const {
  for (const std::string& name : source_.tensor_names()) {
    if (taken_.contains(name) || format::is_derived(name)) continue;
    throw FileError(fmt::format("{}: tensor {}: expected tensors of {} only", source_.origin(),
                                format::in_quotes(name), what));
  }
}

}  // namespace refrain::model
