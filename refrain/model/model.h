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
  graph::Mode mode = graph::Mode::exact;  ///< of all programs of the model
  ProgressCallback progress;
  LogCallback log;
  FileAccess files = FileAccess::map;  ///< read: files may change once the model is loaded; takes more memory
};

/// Immutable once loaded; copies share it.
class Model {
 public:
  /// `path`: a folder with config.json and *.safetensors, Hugging Face's or MLX's. Throws FileError,
  /// Cancelled, DeviceError.
  static Model load(const Device& device, const std::filesystem::path& path, const LoadOptions& options = {});

  /// The model that `config` (a config.json) describes, with weights from anywhere. Throws as load.
  static Model make(const Device& device, const format::Json& config, const WeightSource& weights,
                    const LoadOptions& options = {});

  const Config& config() const { return state_->config; }
  const WeightTotals& weights() const { return state_->totals; }
  const Architecture& architecture() const { return *state_->architecture; }
  const Device& device() const { return state_->device; }
  graph::Mode mode() const { return state_->mode; }

 private:
  struct State {
    Device device;
    Config config;
    WeightTotals totals;
    std::unique_ptr<Architecture> architecture;
    graph::Mode mode;
  };
  static Model make(const Device& device, Config config, const format::Json& json,
                    const WeightSource& weights, const LoadOptions& options);
  explicit Model(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

}  // namespace refrain::model
