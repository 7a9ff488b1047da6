// Attention by strands: the set of a layer's attention for one row (head norms, ropes, the write to the cache and attention
// itself), and attention alone for any rows, with the same bits.
#include <array>
#include <utility>

#include "refrain/backend/set_pattern.h"
#include "refrain/ops/decode_sets/attention_strands.cuh"
#include "refrain/ops/decode_sets/tables_cuda.h"
#include "refrain/ops/kv_write/kv_write.h"
#include "refrain/ops/rms_norm/rms_norm.h"
#include "refrain/ops/rope/rope.h"

namespace refrain::ops {
namespace {

using namespace decode;
using backend::SetCall;
using backend::SetElided;
using backend::SetPattern;
using backend::SetWire;

constexpr std::string_view kNumerics = "fast, f32, 64 strands of 8 positions";
constexpr backend::OpClass kClasses[] = {
    {"rms_norm", kNormNumerics}, {"rope", kRopeNumerics}, {"kv_write", kCopyNumerics}};

// Arguments: rms_norm input, weight, output; rope input, rows, frequencies, output; kv_write key, value, rows, page_table,
// cache, status; attention query, rows, page_table, cache, status, output.
enum Place : uint32_t { kQueryRope, kKeyRope, kWrite, kAttend, kQueryNorm, kKeyNorm };
constexpr std::string_view kPlaces[] = {"rope", "rope", "kv_write", "attention", "rms_norm", "rms_norm"};
constexpr SetWire kWires[] = {
    {kQueryRope, 3, kAttend, 0},    {kKeyRope, 3, kWrite, 0},  {kWrite, 4, kAttend, 3},
    {kWrite, 2, kAttend, 1},        {kWrite, 3, kAttend, 2},   {kWrite, 5, kAttend, 4},
    {kQueryRope, 1, kAttend, 1},    {kKeyRope, 1, kAttend, 1}, {kQueryRope, 2, kKeyRope, 2},
    {kQueryNorm, 2, kQueryRope, 0}, {kKeyNorm, 2, kKeyRope, 0}};
constexpr SetElided kElided[] = {{kQueryRope, 3}, {kKeyRope, 3}, {kQueryNorm, 2}, {kKeyNorm, 2}};

constexpr uint32_t kMostQueries = 8;

/// Head sizes and queries a key-value head that there are kernels for.
bool has_kernel(const AttentionConstants& c) {
  if ((c.head_dim != 64 && c.head_dim != 128) || c.heads % c.kv_heads != 0) return false;
  return c.heads <= kMostQueries * c.kv_heads;
}

bool takes(const SetCall& call, std::span<const uint32_t> places) {
  if (call.rows != 1) return false;
  for (size_t m = 0; m < call.members.size(); ++m) {
    const backend::OpCall& member = call.members[m].call;
    if (places[m] == kAttend) {
      if (!has_kernel(member.constants_as<AttentionConstants>())) return false;
    } else if (places[m] == kQueryRope || places[m] == kKeyRope) {
      const auto& c = member.constants_as<RopeConstants>();
      if (c.interleaved != 0 || 2 * c.pairs != c.head_dim || member.args[2].layout->name != "vector_f32")
        return false;
    } else if (places[m] == kQueryNorm || places[m] == kKeyNorm) {
      if (!member.args[1].bound || member.args[1].layout->name != "vector_f32") return false;
    }
  }
  return true;
}

template <size_t kCount>
constexpr SetPattern kPattern{std::span(kPlaces).first(kCount), std::span(kWires).first(kCount == 6 ? 11 : 9),
                              std::span(kElided).first(kCount == 6 ? 4 : 2), takes};

uint32_t stages_of(const AttentionConstants& c) {
  constexpr uint32_t kManyPages = 4 * kStrands * kChunk / kPagePositions;
  return c.pages_per_slot > kManyPages && (c.window == 0 || c.window > kManyPages * kPagePositions)
             ? kMostStages
             : 1;
}

/// What attention itself says.
void set_attention(AttentionStrands& p, const BoundMember& member) {
  const auto& c = member.constants_as<AttentionConstants>();
  p.query = static_cast<const float*>(member.args[0]);
  p.rows = vectors_at<const StepRow>(member.args[1]);
  p.table = {static_cast<const uint32_t*>(member.args[2]), c.slots, c.pages_per_slot, c.pages};
  p.cache = vectors_at<float>(member.args[3]);
  p.status = static_cast<uint32_t*>(member.args[4]);
  p.output = static_cast<float*>(member.args[5]);
  p.kv_heads = c.kv_heads;
  p.pages = c.pages;
  p.window = c.window;
  // Two are worth their memory, of which other kernels want some, where a warp has many chunks.
  p.stages = stages_of(c);
  p.scale = c.scale * 1.44269504f;
}

void bind_rows(const BoundCommand& command, std::byte* parameters) {
  AttentionStrands p;
  p.state = command.state;
  set_attention(p, command.members.front());
  std::memcpy(parameters, &p, sizeof(p));
}

void bind_set(const BoundCommand& command, std::byte* parameters) {
  std::array<const BoundMember*, std::size(kPlaces)> at{};
  for (const BoundMember& member : command.members) at[member.place] = &member;
  AttentionStrands p;
  p.state = command.state;
  set_attention(p, *at[kAttend]);
  const BoundMember* query = at[kQueryNorm] != nullptr ? at[kQueryNorm] : at[kQueryRope];
  const BoundMember* key = at[kKeyNorm] != nullptr ? at[kKeyNorm] : at[kKeyRope];
  p.query = static_cast<const float*>(query->args[0]);
  p.key = static_cast<const float*>(key->args[0]);
  p.value = static_cast<const float*>(at[kWrite]->args[1]);
  if (at[kQueryNorm] != nullptr) {
    p.query_gain = static_cast<const float*>(query->args[1]);
    p.query_eps = query->constants_as<RmsNormConstants>().eps;
    p.key_gain = static_cast<const float*>(key->args[1]);
    p.key_eps = key->constants_as<RmsNormConstants>().eps;
  }
  p.frequencies = static_cast<const float*>(at[kQueryRope]->args[2]);
  std::memcpy(parameters, &p, sizeof(p));
}

template <uint32_t kDim, uint32_t kQueries, bool kSet>
KernelEntry entry_of() {
  return {.function = reinterpret_cast<const void*>(attention_strands<kDim, kQueries, kSet>),
          .parameter_bytes = sizeof(AttentionStrands),
          .bind = kSet ? bind_set : bind_rows,
          .shape =
              [](const BoundCommand& command) {
                for (const BoundMember& member : command.members) {
                  if (member.place != (kSet ? uint32_t{kAttend} : 0u)) continue;
                  const auto& c = member.constants_as<AttentionConstants>();
                  return GridShape{.blocks = uint64_t{c.rows} * c.kv_heads * kCluster,
                                   .threads = kAttentionThreads,
                                   .shared_bytes = ChunkRing<kDim>::bytes(stages_of(c)),
                                   .cluster = kCluster};
                }
                return GridShape{};
              },
          .waits_everywhere = true,
          // The row and its pages; of a set the cache too, whose newest position it writes itself.
          .reads_ahead =
              [](uint32_t place, uint32_t argument) {
                if (place != (kSet ? uint32_t{kAttend} : 0u)) return false;
                return argument == 1 || argument == 2 || (kSet && argument == 3);
              }};
}

template <uint32_t kDim, uint32_t kQueries>
bool is_shape(const AttentionConstants& c) {
  return c.head_dim == kDim && c.heads == c.kv_heads * kQueries;
}

/// True when a set, whole or not, may be of this shape.
template <uint32_t kDim, uint32_t kQueries>
bool of_shape(const SetCall& call) {
  for (const backend::SetMember& member : call.members) {
    if (member.call.op->name == "attention")
      return is_shape<kDim, kQueries>(member.call.constants_as<AttentionConstants>());
  }
  return true;
}

template <uint32_t kDim, uint32_t kQueries, size_t kCount>
backend::GroupKernel set_row() {
  static const KernelEntry kEntry = entry_of<kDim, kQueries, true>();
  return {.name = kCount == 6 ? "norm_rope_attention" : "rope_attention",
          .numerics = kNumerics,
          .needs = kFeatureHopper | backend::kFeatureFast,
          .fits =
              [](const SetCall& call, std::span<uint32_t> places) {
                return of_shape<kDim, kQueries>(call) ? match(kPattern<kCount>, call, places)
                                                      : backend::Fit::no;
              },
          .elides = [](const SetCall& call, uint32_t member,
                       uint32_t argument) { return elides(kPattern<kCount>, call, member, argument); },
          .launch = [](const SetCall& call,
                       const backend::DeviceInfo&) { return backend::Launch{.rows = call.rows}; },
          .entry = &kEntry,
          .classes = kClasses};
}

template <uint32_t kDim, uint32_t kQueries>
PluginKernel row() {
  static const KernelEntry kEntry = entry_of<kDim, kQueries, false>();
  return {.op = "attention",
          .kernel = {.name = "attention_strands",
                     .numerics = kNumerics,
                     .needs = kFeatureHopper | backend::kFeatureFast,
                     .accepts =
                         [](const backend::OpCall& call) {
                           return is_shape<kDim, kQueries>(call.constants_as<AttentionConstants>());
                         },
                     .launch =
                         [](const backend::OpCall& call, const backend::DeviceInfo&) {
                           return backend::Launch{.rows = call.constants_as<AttentionConstants>().rows};
                         },
                     .entry = &kEntry}};
}

}  // namespace

std::span<const PluginKernel> attention_strands_cuda_kernels() {
  static const auto kKernels = []<uint32_t... kQueries>(std::integer_sequence<uint32_t, kQueries...>) {
    return std::array{row<128, kQueries + 1>()..., row<64, kQueries + 1>()...};
  }(std::make_integer_sequence<uint32_t, kMostQueries>());
  return kKernels;
}

std::span<const backend::GroupKernel> attention_sets_cuda() {
  // With head norms first: of two sets that fit, the larger.
  static const auto kKernels = []<uint32_t... kQueries>(std::integer_sequence<uint32_t, kQueries...>) {
    return std::array{set_row<128, kQueries + 1, 6>()..., set_row<64, kQueries + 1, 6>()...,
                      set_row<128, kQueries + 1, 4>()..., set_row<64, kQueries + 1, 4>()...};
  }(std::make_integer_sequence<uint32_t, kMostQueries>());
  return kKernels;
}

}  // namespace refrain::ops
