// Attention by strands (strand.cuh): the set of a layer's attention for one row (head norms, ropes, the write to the cache and attention
// itself), and attention alone for any rows, with the same bits.
#include <cooperative_groups.h>

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "refrain/backend/set_pattern.h"
#include "refrain/ops/attention/attention.h"
#include "refrain/ops/decode_sets/strand.cuh"
#include "refrain/ops/decode_sets/tables_cuda.h"
#include "refrain/ops/kv_write/kv_write.h"
#include "refrain/ops/rms_norm/rms_norm.h"
#include "refrain/ops/rope/rope.h"
#include "refrain/ops/step_row.h"

namespace refrain::ops {
namespace {

using namespace decode;
using backend::SetCall;
using backend::SetElided;
using backend::SetPattern;
using backend::SetWire;

static_assert(kPagePositions % kChunk == 0);

struct AttentionStrands {
  CommandState state;
  const float* query = nullptr;  // [rows, heads, D]; of a set before norm and rope
  const float* key = nullptr;    // of a set: [kv_heads, D], the same
  const float* value = nullptr;  // of a set: [kv_heads, D]
  const float* query_gain = nullptr;
  const float* key_gain = nullptr;
  const float* frequencies = nullptr;  // of a set: [D / 2]
  const StepRow* rows = nullptr;
  PageTable table;
  float* cache = nullptr;
  uint32_t* status = nullptr;
  float* output = nullptr;  // [rows, heads, D]
  uint32_t kv_heads = 0;
  uint32_t pages = 0;
  uint32_t window = 0;
  uint32_t stages = 1;  // chunks of keys and values that a warp has on their way
  float query_eps = 0, key_eps = 0;
  float scale = 1;  // of the scores, and log2(e): weights are powers of two
};

/// Dynamic shared memory: ChunkRing<kDim>::bytes(stages). kSet: of one row, with norms, ropes and the write of key and value
/// to the cache.
template <uint32_t kDim, uint32_t kQueries, bool kSet>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kAttentionThreads, kQueries <= 2   ? 3
                                                                                      : kQueries <= 4 ? 2
                                                                                                      : 1)
    attention_strands(const __grid_constant__ AttentionStrands p) {
#if __CUDA_ARCH__ >= 900  // its kernels need kFeatureHopper
  __shared__ __align__(16) float queries[kQueries][kDim];
  __shared__ __align__(16) float newest[2][kDim];  // key, value
  __shared__ float cosines[kDim / 2], sines[kDim / 2];
  __shared__ __align__(16) float weights[kAttentionWarps][kQueries][kChunk];
  __shared__ __align__(16) Parts<kDim, kQueries> parts;
  __shared__ uint64_t barriers[kAttentionWarps * 2 * kMostStages];
  extern __shared__ __align__(128) std::byte memory[];
  const ChunkRing<kDim> ring(memory, barriers, p.stages);
  const auto cluster = cooperative_groups::this_cluster();
  const uint32_t rank = cluster.block_rank(), unit = blockIdx.x / kCluster;
  const uint32_t kv_head = unit % p.kv_heads, r = unit / p.kv_heads;
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const CacheGeometry geometry{p.pages, p.kv_heads, kDim};

  StepRow row;
  const uint32_t* ids = nullptr;  // of the slot's pages; null: the row is idle or refused
  uint32_t bits = 0;              // for the status
  uint32_t first_position = 0, c = 0, last = 0;
  uint32_t started = 0;  // chunks of the warp
  // The next of them: c + n kStrands.
  const auto start = [&](uint32_t kind, uint32_t n) {
    const uint32_t at = c + n * kStrands;
    const uint32_t page = __ldcg(ids + at / (kPagePositions / kChunk));
    const size_t within = size_t{at % (kPagePositions / kChunk)} * kChunk * kDim;
    if (page < p.table.cache_pages)
      ring.start(kind, n, p.cache + geometry.unit_offset(kind, page, kv_head) + within);
    return page < p.table.cache_pages;
  };
  const auto start_first = [&] {
    for (; ids != nullptr && started < p.stages && c + started * kStrands <= last; ++started) {
      if (!start(0, started)) break;  // found out again below
      start(1, started);
    }
  };
  const auto drain = [&] {
    for (uint32_t n = 0; n < started; ++n) {
      ring.wait(0, n);
      ring.wait(1, n);
    }
  };
  const auto find_row = [&] {
    const uint4 words = __ldcg(reinterpret_cast<const uint4*>(p.rows) + r);
    memcpy(&row, &words, sizeof(row));
    const uint32_t last_page = row.position / kPagePositions;
    const bool idle = row.slot == kIdle;
    if (!idle) {
      bits = row.slot >= p.table.slots             ? kSlotOutOfRange
             : last_page >= p.table.pages_per_slot ? kPositionOutOfRange
                                                   : 0u;
    }
    if (!idle && bits == 0) ids = p.table.ids + size_t{row.slot} * p.table.pages_per_slot;
    first_position = p.window != 0 && row.position >= p.window ? row.position - p.window + 1 : 0;
    last = row.position / kChunk;
    // The warp's first chunk: the first of its strand that is not before the window.
    const uint32_t first = first_position / kChunk, strand = warp * kCluster + rank;
    c = first + (strand - first) % kStrands;
  };
  const auto check_pages = [&] {
    bool missing = false;
    for (uint32_t page = first_position / kPagePositions + threadIdx.x;
         ids != nullptr && page <= row.position / kPagePositions; page += kAttentionThreads)
      missing = missing || __ldcg(ids + page) >= p.table.cache_pages;
    if (__syncthreads_or(missing) != 0) {
      bits = kPageOutOfRange;
      ids = nullptr;
    }
    converge();
  };
  const auto find_angles = [&] {
    if (!kSet || threadIdx.x >= kDim / 2) return;
    double sine, cosine;
    sincos(static_cast<double>(static_cast<float>(row.position) * __ldg(p.frequencies + threadIdx.x)), &sine,
           &cosine);
    cosines[threadIdx.x] = static_cast<float>(cosine);
    sines[threadIdx.x] = static_cast<float>(sine);
  };
  // Vectors that the block prepares, a warp each: queries, and of a set where it has the newest chunk the key and the value.
  const auto vector_of = [&](uint32_t item) {
    if (item < kQueries) return p.query + (size_t{unit} * kQueries + item) * kDim;
    return (item == kQueries ? p.key : p.value) + size_t{kv_head} * kDim;
  };
  const auto load_gain = [&](Head<kDim>& gain, uint32_t item) {
    if (kSet && p.query_gain != nullptr && item <= kQueries)
      gain.load_sealed(item < kQueries ? p.query_gain : p.key_gain);
  };
  Head<kDim> head, gain;  // the warp's first vector
  const auto prepare = [&] {
    find_row();
    if constexpr (kSet) {
      start_first();
      find_angles();
    }
    check_pages();
  };
  const bool ahead = p.state.ahead;
  const Running run(p.state, [&] {
    load_gain(gain, warp);
    if (ahead) prepare();
  });
  if (!ahead) prepare();
  const bool writes = kSet && last % kCluster == rank;
  const uint32_t items = kQueries + (writes ? 2u : 0u);
  if (warp < items) head.load(vector_of(warp));  // before anything is waited for: a plan has memory for it
  if (r >= run.rows || ids == nullptr) drain();  // what has been started ends before the block does
  if (r >= run.rows) return;
  if (ids == nullptr) {
    constexpr uint32_t kSlice = Parts<kDim, kQueries>::kSlice;
    for (uint32_t i = threadIdx.x; i < kQueries * kSlice; i += kAttentionThreads)
      p.output[(size_t{unit} * kQueries + i / kSlice) * kDim + rank * kSlice + i % kSlice] = 0;
    if (kv_head == 0 && rank == 0 && threadIdx.x == 0)
      raise_status(p.status, bits == kSlotOutOfRange ? p.table.slots : row.slot, bits);
    return;
  }
  // That all blocks of it have begun is waited for below; nothing has to be seen by then.
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
  if constexpr (!kSet) start_first();

  if constexpr (kSet) __syncthreads();  // the angles
  for (uint32_t item = warp; item < items; item += kAttentionWarps) {
    if (item != warp) {
      head.load(vector_of(item));
      load_gain(gain, item);
    }
    if (kSet && item <= kQueries) {
      if (p.query_gain != nullptr) head.normalize(gain, item < kQueries ? p.query_eps : p.key_eps);
      head.rotate(cosines, sines);
    }
    if (item < kQueries) {
#pragma unroll
      for (float& e : head.e) e *= p.scale;
      head.store(queries[item]);
      continue;
    }
    const uint32_t kind = item - kQueries;  // 0: key, 1: value
    head.store(newest[kind]);
    head.store(p.cache + geometry.unit_offset(kind, __ldcg(ids + row.position / kPagePositions), kv_head) +
               row.position % kPagePositions * kDim);
  }
  __syncthreads();

  Strand<kDim, kQueries> strand;
  const bool any = c <= last;
  for (uint32_t n = 0; c + n * kStrands <= last; ++n) {
    const uint32_t at = c + n * kStrands, position = at * kChunk;
    ChunkView view;
    view.begin = position < first_position ? first_position - position : 0;
    view.end = row.position + 1 - position;
    if (kSet && at == last) view.newest = row.position % kChunk;
    const bool more = c + (n + p.stages) * kStrands <= last;
    view.rows = ring.wait(0, n);
    view.newest_row = newest[0];
    strand.weigh(view, queries, weights[warp]);
    __syncwarp();
    if (more) start(0, n + p.stages);
    view.rows = ring.wait(1, n);
    view.newest_row = newest[1];
    strand.add(view, weights[warp]);
    __syncwarp();
    if (more) start(1, n + p.stages);
  }
  asm volatile("barrier.cluster.wait;" ::: "memory");
  converge();
  if (any) {
    const uint32_t to = warp * kCluster + rank;
    constexpr uint32_t kSlice = Parts<kDim, kQueries>::kSlice;
#pragma unroll
    for (uint32_t q = 0; q < kQueries; ++q) {
      float4 v = strand.values[q];
      if constexpr (Share<kDim>::kAtOnce == 2) {
        v = make_float4(v.x + __shfl_xor_sync(~0u, v.x, 16), v.y + __shfl_xor_sync(~0u, v.y, 16),
                        v.z + __shfl_xor_sync(~0u, v.z, 16), v.w + __shfl_xor_sync(~0u, v.w, 16));
      }
      const uint32_t column = 4 * Share<kDim>::value_quad();
      if (lane < Share<kDim>::kColumns) {
        auto* other = cluster.map_shared_rank(&parts, column / kSlice);
        *reinterpret_cast<float4*>(&other->values[to][q][column % kSlice]) = v;
      }
      if (lane < kCluster)
        cluster.map_shared_rank(&parts, lane)->sums[to][q] = make_float2(strand.max[q], strand.sum[q]);
    }
  }
  cluster.sync();

  // Threads of one output follow each other, a power of two; thread t of them has strands t, t + kEach, ...
  constexpr uint32_t kSlice = Parts<kDim, kQueries>::kSlice;
  constexpr uint32_t kOutputs = kQueries * kSlice;
  constexpr uint32_t kEach = std::min(std::bit_floor(kAttentionThreads / kOutputs), kWarp);
  const uint32_t output = min(threadIdx.x / kEach, kOutputs - 1), q = output / kSlice, d = output % kSlice;
  const uint32_t first_chunk = first_position / kChunk, chunks = last - first_chunk + 1;
  const auto used = [&](uint32_t s) { return (s - first_chunk) % kStrands < chunks; };
  converge();
  float max = -INFINITY;
  for (uint32_t s = threadIdx.x % kEach; s < kStrands; s += kEach) {
    if (used(s)) max = fmaxf(max, parts.sums[s][q].x);
  }
  converge();
  for (uint32_t half = kEach / 2; half > 0; half /= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, half));
  float sum = 0, total = 0;
  for (uint32_t s = threadIdx.x % kEach; s < kStrands; s += kEach) {
    if (!used(s)) continue;
    const float factor = exp2f(parts.sums[s][q].x - max);
    sum = __fmaf_rn(factor, parts.values[s][q][d], sum);
    total = __fmaf_rn(factor, parts.sums[s][q].y, total);
  }
  converge();
  for (uint32_t half = kEach / 2; half > 0; half /= 2) {
    sum += __shfl_xor_sync(~0u, sum, half);
    total += __shfl_xor_sync(~0u, total, half);
  }
  if (threadIdx.x % kEach == 0 && threadIdx.x < kOutputs * kEach)
    p.output[(size_t{unit} * kQueries + q) * kDim + rank * kSlice + d] = __fdiv_rn(sum, total);
#endif
}

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
      if (member.args[3].dtype != DType::f32) return false;
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
                           return call.args[3].dtype == DType::f32 &&
                                  is_shape<kDim, kQueries>(call.constants_as<AttentionConstants>());
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
