#include "refrain/model/weights.h"

#include <fmt/format.h>

#include "refrain/core/error.h"

namespace refrain::model {

WeightLoader::WeightLoader(Device& device, const format::ModelFolder& folder, ProgressCallback progress)
    : device_(device), folder_(folder), progress_(std::move(progress)), total_bytes_(folder.totals().bytes) {}

Weight WeightLoader::pack(const TensorSource& source, Uses uses) {
  Weight weight = device_.pack(source, uses);
  ++totals_.weights;
  totals_.bytes += weight.bytes();
  if (weight.in_place()) totals_.in_place_bytes += weight.bytes();
  for (const TensorSegment& segment : source.segments) done_bytes_ += segment.bytes.size();
  if (progress_ && !progress_(done_bytes_, total_bytes_)) throw Cancelled("loading was cancelled");
  return weight;
}

Weight WeightLoader::matrix(const std::string& module, uint32_t rows, uint32_t columns, Uses uses) {
  skip(module);
  return pack(folder_.weight(module, rows, columns), uses);
}

Weight WeightLoader::vector(const std::string& name, uint32_t elements) {
  taken_.insert(name);
  return pack(folder_.tensor(name, {elements}), {Use::vector});
}

Weight WeightLoader::computed(const std::string& name, std::span<const float> values) {
  TensorSource source;
  source.name = name;
  source.shape = {static_cast<int64_t>(values.size())};
  source.segments.push_back({DType::f32, source.shape, std::as_bytes(values)});
  return device_.pack(source, {Use::vector});
}

void WeightLoader::skip(const std::string& module) {
  for (const char* part : {".weight", ".scales", ".biases"}) taken_.insert(module + part);
}

void WeightLoader::expect_all_taken(const std::string& what) const {
  for (const std::string& name : folder_.tensor_names()) {
    if (taken_.contains(name)) continue;
    throw FileError(fmt::format("{}: tensor {}: expected tensors of {} only", folder_.path().string(),
                                format::in_quotes(name), what));
  }
}

}  // namespace refrain::model
