#include "refrain/graph/expand.h"

namespace refrain::graph {

void expand(ComputeGraph& graph, Mode mode) {
  // In both modes activations are f32.
  (void)mode;
  const auto resolve = [](DType& dtype) {
    if (dtype == DType::activation) dtype = DType::f32;
  };
  for (TempInfo& temp : graph.temps) resolve(temp.dtype);
  for (backend::ArgumentInfo& info : graph.infos) resolve(info.dtype);
  for (Binding& binding : graph.bindings) {
    if (binding.temp != kNone) {
      const TempInfo& temp = graph.temps[binding.temp];
      binding.view.bytes = static_cast<size_t>(temp.shape.elements()) * size_bytes(temp.dtype);
    }
  }
}

}  // namespace refrain::graph
