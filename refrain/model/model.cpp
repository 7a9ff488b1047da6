#include "refrain/model/model.h"

#include <fmt/format.h>

namespace refrain::model {

Model Model::load(const Device& device, const std::filesystem::path& path, const LoadOptions& options) {
  const format::ModelFolder folder = format::ModelFolder::open(path, options.log);
  auto state = std::make_shared<State>(State{device, read_config(path, folder.config()), {}, nullptr});
  WeightLoader loader(state->device, folder, options.progress);
  state->architecture = family_of(folder.config()).load(folder.config(), loader);
  loader.expect_all_taken(
      fmt::format("a {} model of {} layers", state->config.model_type, state->config.state.size()));
  state->totals = loader.totals();
  return Model(std::move(state));
}

}  // namespace refrain::model
