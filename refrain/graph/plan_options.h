// What a caller may ask of planning, and what planning says it did.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "refrain/backend/op.h"
#include "refrain/core/dtype.h"

namespace refrain::graph {

/// Arithmetic of a model, chosen once: it decides the dtype of activations, and of caches unless a runner is told another.
enum class Mode : uint8_t {
  exact,  ///< f32 activations, f32 cache; what references are judged by
  fast,   ///< f16 cache; kernels may round what they multiply to f16 or 12 bits where a device has such
};

/// The dtypes that a mode gives to what a recording leaves open.
struct ModeTypes {
  DType activation = DType::f32;  ///< of DType::activation
  DType cache = DType::f32;       ///< of keys and values between steps
};

/// Both modes compute on f32; what else `fast` rounds, its kernels round inside.
constexpr ModeTypes types_of(Mode mode) { return {.cache = mode == Mode::fast ? DType::f16 : DType::f32}; }

/// Of a device's features and what a mode grants beside them: what kernels and layouts may need.
constexpr uint64_t granted(uint64_t features, Mode mode) {
  return mode == Mode::fast ? features | backend::kFeatureFast : features;
}

/// In which of the orders that the edges allow commands stand. Edges and bits are the same in all.
enum class CommandOrder : uint8_t {
  recorded,
  levels,  ///< level by level, the longest critical path first: for devices that know barriers, not edges
};

struct PlanOptions {
  Mode mode = Mode::exact;
  bool fuse = true;              ///< commands that can share tiles become one
  uint32_t most_fused_rows = 0;  ///< commands of more rows stay apart; 0: as the device does best
  CommandOrder order = CommandOrder::recorded;
  /// Into how many parts rewrites of the backend divide an op's work on a row where they can (attention over a long
  /// context), so that more workers share it: 1: none, 0: as the device does best. Not in the bits.
  uint32_t splits = 0;
  bool reuse_memory = true;  ///< false: each temp has bytes of its own
  /// Prove that every conflicting pair of commands is ordered, by brute force. Unset: in debug builds of the
  /// library.
  std::optional<bool> check = std::nullopt;
};

/// How long a pass took.
struct PassTime {
  std::string name;
  double us = 0;
};

/// Where an op runs in a plan, and in which numerics class: equal classes give equal bits of a row.
struct OpNumerics {
  std::string op = {};
  /// Of its arguments, a weight's being its format: "f32, mlx_affine4_g64_bf16, f32".
  std::string types = {};
  std::string numerics = {};  ///< Kernel::numerics
  std::string kernel = {};    ///< the first that computes it so; of a set, its GroupKernel
  /// Its value is a GroupKernel's own and nobody sees it: the same op may run elsewhere in another class.
  bool elided = false;
};

struct PlanReport {
  size_t recorded_commands = 0;  ///< fences excluded, as everywhere here
  size_t recorded_levels = 0;    ///< the longest chain of the recording
  /// One a call that other commands stand for: the rewrite, the op with its label, and what it has become. Numbers of
  /// commands, here and below, count these in the place of what was recorded.
  std::vector<std::string> rewrites;
  std::vector<std::string> fusions;  ///< one a group: its ops and the commands in it
  std::vector<std::string> misses;   ///< what was not fused although its op can be, and why
  size_t fused_levels = 0;           ///< the longest chain after fusing, before kernels add scratch
  size_t commands = 0;               ///< fences excluded
  size_t edges = 0;                  ///< after transitive reduction
  size_t conflicts = 0;              ///< ordered pairs of neighbouring accesses before reduction
  size_t levels = 0;
  size_t moved = 0;            ///< commands that PlanOptions::order brought to an earlier place
  size_t barriers_before = 0;  ///< that a device without edges would need in the order after fusing
  size_t barriers = 0;         ///< that it would need in the final order
  /// Of an op with arguments of the same types there is one whose value is seen.
  std::vector<OpNumerics> numerics;
  /// Of each recorded command, its place in `numerics`; ~0 of a fence and of what has been rewritten.
  std::vector<uint32_t> numerics_of;
  std::vector<PassTime> passes;
  size_t temp_bytes = 0;  ///< sum over all temps
  size_t scratch_bytes = 0;
  size_t arena_bytes = 0;  ///< what is left of both after sharing
};

}  // namespace refrain::graph
