// What a kernel for several commands looks for, as data: ops in their places, and wires between them.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "refrain/backend/kernel.h"

namespace refrain::backend {

/// Two arguments that are the same bytes.
struct SetWire {
  uint32_t from = 0;  ///< place
  uint32_t from_argument = 0;
  uint32_t to = 0;  ///< place
  uint32_t to_argument = 0;
};

/// A value that the kernel keeps to itself.
struct SetElided {
  uint32_t place = 0;
  uint32_t argument = 0;
};

struct SetPattern {
  std::span<const std::string_view> places;  ///< the op of each
  std::span<const SetWire> wires;
  /// Arguments of all places at which such a value is bound; it must not be touched outside.
  std::span<const SetElided> elided;
  /// True for the shapes, dtypes and layouts that the kernel takes. `places` as from match(). Null: all.
  bool (*accepts)(const SetCall& call, std::span<const uint32_t> places) = nullptr;
};

/// GroupKernel::fits of a pattern: an assignment of members to places of their op under which each wire with both ends in
/// the set holds. Whole: every place is taken, no elided value is touched outside, and `accepts` agrees. Of several
/// assignments the first in the order of members and places.
Fit match(const SetPattern& pattern, const SetCall& call, std::span<uint32_t> places);

/// GroupKernel::elides of a set that match() has found whole.
bool elides(const SetPattern& pattern, const SetCall& call, uint32_t member, uint32_t argument);

}  // namespace refrain::backend
