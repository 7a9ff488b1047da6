// What every step has around the forward pass of an architecture.
#include "refrain/model/architecture.h"

#include "refrain/ops/sample/sample.h"
#include "refrain/ops/step_advance/step_advance.h"
#include "refrain/ops/step_begin/step_begin.h"

namespace refrain::model {

void record_begin(CommandEncoder& encoder, const Forward& forward) {
  const StepBlock& step = forward.step;
  encoder.label("begin");
  ops::step_begin(encoder, {.block = step.block,
                            .slots = forward.slots.table(),
                            .live = step.live,
                            .rows = step.rows,
                            .segments = step.segments,
                            .outputs = step.outputs,
                            .status = forward.slots.status(),
                            .context_tokens = forward.context_tokens});
}

void record_end(CommandEncoder& encoder, const Forward& forward) {
  const StepBlock& step = forward.step;
  const Slots& slots = forward.slots;
  encoder.label("sample");
  ops::sample(encoder, {.logits = forward.logits,
                        .index = step.outputs,
                        .step_rows = step.rows,
                        .slots = slots.table(),
                        .masks = slots.masks(),
                        .status = slots.status()});
  encoder.label("advance");
  ops::step_advance(encoder, {.segments = step.segments,
                              .rows = step.rows,
                              .stop_sets = slots.stop_sets(),
                              .slots = slots.table(),
                              .status = slots.status(),
                              .ring = slots.ring(),
                              .context_tokens = forward.context_tokens});
}

}  // namespace refrain::model
