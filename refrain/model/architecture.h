// What one architecture provides: its weights, and its forward pass written with plain ops.
#pragma once

#include <memory>

#include "refrain/model/config.h"
#include "refrain/model/kv_cache.h"
#include "refrain/model/step.h"
#include "refrain/model/weights.h"

namespace refrain::model {

/// What a recorded forward pass reads and writes besides weights.
struct Forward {
  const StepBlock& step;
  const KvCache& cache;
  const Buffer& status;  ///< u32 [sequences + 1]
  const Buffer& logits;  ///< f32 [rows, vocab], step.live_outputs of them live
};

/// One file an architecture. Records, never runs; knows no device.
class Architecture {
 public:
  virtual ~Architecture() = default;
  /// From the tokens of the step block to the logits of its wanted rows, writing the cache on the way.
  virtual void record(CommandEncoder& encoder, const Forward& forward) const = 0;
};

/// qwen3.cpp. Throws FileError when a tensor is missing or of another shape than `config` asks for.
std::unique_ptr<Architecture> load_qwen3(const Config& config, WeightLoader& loader);

}  // namespace refrain::model
