// Loading: takes tensors of a source to a device and keeps count of what was taken.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>

#include "refrain/core/error.h"
#include "refrain/device/device.h"
#include "refrain/format/model_folder.h"

namespace refrain::model {

/// Called while weights are packed; false cancels the load.
using ProgressCallback = std::function<bool(uint64_t done_bytes, uint64_t total_bytes)>;

/// Thrown when a ProgressCallback cancels.
class Cancelled : public Error {
 public:
  using Error::Error;
};

struct WeightTotals {
  size_t weights = 0;
  uint64_t bytes = 0;           ///< as packed
  uint64_t in_place_bytes = 0;  ///< of these, the file's own pages
};

/// Where weights come from.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// The matrix [rows, columns] of a module, plain or quantized. Throws FileError when there is none such.
  virtual TensorSource weight(const std::string& module, int64_t rows, int64_t columns) const = 0;
  /// A tensor of floats. Throws FileError when there is none such.
  virtual TensorSource tensor(const std::string& name, const Shape& shape) const = 0;
  virtual std::vector<std::string> tensor_names() const = 0;
  virtual uint64_t bytes() const = 0;      ///< of all tensors
  virtual std::string origin() const = 0;  ///< for messages
};

/// The tensors of a folder, which outlives this.
class FolderWeights final : public WeightSource {
 public:
  explicit FolderWeights(const format::ModelFolder& folder) : folder_(folder) {}
  TensorSource weight(const std::string& module, int64_t rows, int64_t columns) const override {
    return folder_.weight(module, rows, columns);
  }
  TensorSource tensor(const std::string& name, const Shape& shape) const override {
    return folder_.tensor(name, shape);
  }
  std::vector<std::string> tensor_names() const override { return folder_.tensor_names(); }
  uint64_t bytes() const override { return folder_.totals().bytes; }
  std::string origin() const override { return folder_.path().string(); }

 private:
  const format::ModelFolder& folder_;
};

class WeightLoader {
 public:
  WeightLoader(Device& device, const WeightSource& source, ProgressCallback progress,
               graph::Mode mode = graph::Mode::exact);

  /// The matrix `module`.weight, plain or quantized.
  Weight matrix(const std::string& module, uint32_t rows, uint32_t columns, Uses uses);
  /// Rows [first, first + count) of the matrix `module`.weight of so many rows.
  Weight matrix_rows(const std::string& module, uint32_t rows, uint32_t columns, uint32_t first,
                     uint32_t count, Uses uses);
  /// The vector `name`, widened to f32; then, in f32, `plus` is added to each element, which is multiplied by `times`.
  Weight vector(const std::string& name, uint32_t elements, float plus = 0, float times = 1);
  /// f32 values that are computed, not stored.
  Weight computed(const std::string& name, std::span<const float> values);
  /// Whether the source has the matrix `module`.
  bool has(const std::string& module) const;
  /// Leaves out the matrix `copy`, where there is one, which has to equal the matrix `module`. Throws FileError.
  void skip_copy(const std::string& copy, const std::string& module, uint32_t rows, uint32_t columns);

  const WeightTotals& totals() const { return totals_; }
  /// Throws FileError naming the first tensor of the source that nothing has taken.
  void expect_all_taken(const std::string& what) const;

 private:
  /// Counts a matrix (and its scales and biases) among what was taken.
  void take(const std::string& module);
  Weight pack(const TensorSource& source, Uses uses);
  /// Calls the callback; throws Cancelled when it says so.
  void tell(uint64_t done_bytes) const;

  Device& device_;
  const WeightSource& source_;
  ProgressCallback progress_;
  graph::Mode mode_;
  std::set<std::string> taken_;
  WeightTotals totals_;
  uint64_t done_bytes_ = 0;
  uint64_t total_bytes_ = 0;
};

}  // namespace refrain::model
