// What one architecture provides: its weights, and its forward pass written with plain ops.
#pragma once

#include <memory>
#include <string_view>

#include "refrain/model/config.h"
#include "refrain/model/kv_cache.h"
#include "refrain/model/slots.h"
#include "refrain/model/step.h"
#include "refrain/model/weights.h"

namespace refrain::model {

/// What a recorded forward pass reads and writes besides weights.
struct Forward {
  const StepBlock& step;
  const Slots& slots;
  const KvCache& cache;
  const Buffer& logits;     ///< f32 [outputs, vocab], step.live_outputs of them live
  uint32_t context_tokens;  ///< the most positions of a slot
};

/// One file an architecture. Records, never runs; knows no device.
class Architecture {
 public:
  virtual ~Architecture() = default;
  /// From the rows of the step to the logits of its outputs, writing the cache on the way.
  virtual void record(CommandEncoder& encoder, const Forward& forward) const = 0;
};

/// Records what comes before a forward pass: the block becomes rows.
void record_begin(CommandEncoder& encoder, const Forward& forward);
/// And what comes after it: a token is drawn for each output, and the slots move on.
void record_end(CommandEncoder& encoder, const Forward& forward);

/// A family of models: how config.json names it, and what reads and loads it. A line of families.inc.
struct Family {
  std::string_view model_type;
  std::string_view architecture;  ///< that `architectures` has to list, where config.json has it
  /// All but model_type and eos_ids. Throws FileError for what the family does not understand.
  Config (*read)(const format::Json& config) = nullptr;
  /// Throws FileError when a tensor is missing or of another shape than `config` asks for.
  std::unique_ptr<Architecture> (*load)(const format::Json& config, WeightLoader& loader) = nullptr;
};

/// The row of a class `Type`, an Architecture that is made from config.json and a loader.
template <class Type>
constexpr Family family(std::string_view model_type, std::string_view architecture) {
  return {model_type, architecture, Type::read,
          [](const format::Json& config, WeightLoader& loader) -> std::unique_ptr<Architecture> {
            return std::make_unique<Type>(config, loader);
          }};
}

/// The family that config.json names. Throws FileError when there is none, naming those that there are.
const Family& family_of(const format::Json& config);

}  // namespace refrain::model
