#include "refrain/model/model.h"

#include <fmt/format.h>

namespace refrain::model {

Model Model::load(const Device& device, const std::filesystem::path& path, const LoadOptions& options) {
  const format::ModelFolder folder = format::ModelFolder::open(path, options.log, options.files);
  return make(device, read_config(path, folder.config()), folder.config(), FolderWeights(folder), options);
}

Model Model::make(const Device& device, const format::Json& config, const WeightSource& weights,
                  const LoadOptions& options) {
  return make(device, read_config(config), config, weights, options);
}

Model Model::make(const Device& device, Config config, const format::Json& json, const WeightSource& weights,
                  const LoadOptions& options) {
  auto state = std::make_shared<State>(State{device, std::move(config), {}, nullptr, options.mode});
  WeightLoader loader(state->device, weights, options.progress, options.mode);
  state->architecture = family_of(json).load(json, loader);
  loader.expect_all_taken(
      fmt::format("a {} model of {} layers", state->config.model_type, state->config.state.size()));
  state->totals = loader.totals();
  return Model(std::move(state));
}

}  // namespace refrain::model
