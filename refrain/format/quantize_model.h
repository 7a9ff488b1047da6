// Makes a quantized copy of a model folder, packing the tensors that mlx_lm.convert packs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>

#include "refrain/core/log.h"
#include "refrain/format/mlx_affine.h"

namespace refrain::format {

struct QuantizeOptions {
  AffineParameters affine;
  bool force = false;    ///< replace a folder that an earlier run has written, as its config.json says
  unsigned threads = 0;  ///< 0: one per CPU
  LogCallback log;
  /// Called after each part with bytes of the input done and in all; may be empty. What it throws ends the work.
  std::function<void(uint64_t done_bytes, uint64_t all_bytes)> progress;
};

struct QuantizeReport {
  size_t packed_tensors = 0;
  size_t kept_tensors = 0;     ///< written as they were
  size_t dropped_tensors = 0;  ///< a tied head, tables that are derived
  uint64_t input_bytes = 0;
  uint64_t output_bytes = 0;  ///< of model.safetensors
};

/// Reads the folder `in` (f32, f16 or bf16) and writes the folder `out`: model.safetensors, config.json with
/// the quantization and `"quantized_by": "refrain"` added, and copies of the tokenizer's files. All of it is made in a
/// hidden folder in `out`, which a failure removes, and only then takes the place of what was there, config.json last:
/// without it a folder is no model. What a run that was killed has left is in no later one's way.
///
/// Packed are the matrices `*.weight` (linear layers and embeddings, not norms) whose columns the group size
/// divides. All other tensors keep their bytes. A head is dropped when config.json ties it to the embedding.
/// Throws FileError when `in` is unreadable, quantized already or a mixture of experts, when `out` is `in`, is being
/// written by another run or holds anything else, when a weight is not finite or when the disk fails; InvalidArgument for parameters
/// other than 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128.
QuantizeReport quantize_model(const std::filesystem::path& in, const std::filesystem::path& out,
                              const QuantizeOptions& options);

}  // namespace refrain::format
