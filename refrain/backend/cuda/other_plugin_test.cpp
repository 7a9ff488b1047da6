// A plugin of another build, for loader_test.cpp.
#include "refrain/backend/cuda/plugin.h"

extern "C" const refrain::backend::cuda::Plugin* refrain_cuda_plugin() {
  static const refrain::backend::cuda::Plugin kPlugin{
      refrain::backend::cuda::plugin_abi() + 1, {}, {}, {}, nullptr};
  return &kPlugin;
}
