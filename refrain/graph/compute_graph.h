// A recording as plain data: commands in recorded order, what each is bound to, and the values between them.
// Kernels, order and memory are not decided here; the passes of this folder do that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "refrain/backend/op.h"
#include "refrain/backend/plan.h"

namespace refrain::graph {

using backend::kNone;
using backend::Range;

/// A value that lives only in the recording.
struct TempInfo {
  DType dtype = DType::f32;
  Shape shape;
};

/// What one argument of a command is bound to.
struct Binding {
  uint32_t info = 0;  ///< index into ComputeGraph::infos
  backend::BufferView
      view;               ///< a temp: offset and bytes within the value (bytes = 0 while its dtype is open)
  uint32_t temp = kNone;  ///< index into ComputeGraph::temps; kNone: `view` is memory
  backend::Access access = backend::Access::in;
  bool sealed = false;

  bool bound() const { return temp != kNone || view.allocation != nullptr; }
};

struct Command {
  const backend::OpSchema* op = nullptr;  ///< null: a fence, or a group
  Range bindings;                         ///< the schema's arguments, then the live count if `live`
  Range constants;                        ///< into ComputeGraph::constants, aligned to 16
  bool live = false;                      ///< the last binding is the live count of the rows
  uint32_t label = 0;
  uint32_t recorded = kNone;  ///< its place in the recording; kNone: a rewrite has made it
  Range members;              ///< of a group, in order; into ComputeGraph::members
  const backend::GroupKernel* kernel =
      nullptr;  ///< of a group: computes all of it; null: the members' own do

  bool group() const { return members.count != 0; }
  bool fence() const { return op == nullptr && !group(); }
};

/// A plain command as part of a group.
struct Member {
  Command command;
  backend::MemberRole role = backend::MemberRole::tile;
  uint32_t component =
      kNone;           ///< members that hand values on unit by unit, numbered from 0; a prologue: none
  uint32_t units = 1;  ///< of one row of the op's work
  uint32_t place =
      0;  ///< of a group with a kernel: as GroupKernel::fits has said; the three above say nothing then
};

struct ComputeGraph {
  std::vector<Command> commands;
  std::vector<Member> members;
  std::vector<Binding> bindings;
  std::vector<backend::ArgumentInfo>
      infos;  ///< shared by bindings, most of which are alike; [0]: nothing is bound
  std::vector<TempInfo> temps;
  std::vector<std::byte> constants;
  std::vector<std::string> labels;                     ///< [0] is empty
  std::vector<std::shared_ptr<const void>> resources;  ///< keeps the bound memory alive
  uint64_t owner = 0;  ///< id of the backend whose memory is bound; 0: none said
};

/// Empties a graph; the next recording may use its storage.
void clear(ComputeGraph& graph);

/// The call of a command, as ops and kernels see it. `infos` is storage for it.
backend::OpCall op_call(const ComputeGraph& graph, const Command& command,
                        std::vector<backend::ArgumentInfo>& infos);

}  // namespace refrain::graph

namespace refrain {
using graph::ComputeGraph;
}
