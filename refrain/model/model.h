// A model on a device: configuration, weights, and the forward pass that they make.
#pragma once

#include <filesystem>
#include <memory>

#include "refrain/device/device.h"
#include "refrain/model/architecture.h"
#include "refrain/model/config.h"
#include "refrain/model/weights.h"

namespace refrain::model {

struct LoadOptions {
  ProgressCallback progress;
  LogCallback log;
};

/// Immutable once loaded; copies share it.
class Model {
 public:
  /// `path`: a folder with config.json and *.safetensors, Hugging Face's or MLX's. Throws FileError,
  /// Cancelled, DeviceError.
  static Model load(const Device& device, const std::filesystem::path& path, const LoadOptions& options = {});

  const Config& config() const { return state_->config; }
  const WeightTotals& weights() const { return state_->totals; }
  const Architecture& architecture() const { return *state_->architecture; }
  const Device& device() const { return state_->device; }

 private:
  struct State {
    Device device;
    Config config;
    WeightTotals totals;
    std::unique_ptr<Architecture> architecture;
  };
  explicit Model(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

}  // namespace refrain::model
