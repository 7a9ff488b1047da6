// Set of a layer's attention for one row: head norms, ropes, the write to the cache and attention itself.
//
// A cluster of 8 blocks takes a key-value head with its query heads; block b takes pages b, b + 8, ... of the cache, and the
// parts are merged in the order of blocks through distributed shared memory. Every block prepares the queries for itself;
// the one that has the newest page writes key and value to it first.
#include <cooperative_groups.h>

#include <array>

#include "refrain/backend/cuda/device.cuh"
#include "refrain/backend/set_pattern.h"
#include "refrain/ops/attention/attention.h"
#include "refrain/ops/decode_sets/tables_cuda.h"
#include "refrain/ops/kv_write/kv_write.h"
#include "refrain/ops/rms_norm/rms_norm.h"
#include "refrain/ops/rope/rope.h"
#include "refrain/ops/step_row.h"

namespace refrain::ops {
namespace {

using namespace backend::cuda;
using backend::SetCall;
using backend::SetElided;
using backend::SetPattern;
using backend::SetWire;

constexpr uint32_t kWarps = 8, kThreads = kWarps * kWarp;
constexpr uint32_t kCluster = 8;  // blocks of a key-value head

struct AttentionSet {
  CommandState state;
  const float* query = nullptr;  // [heads, D], before norm and rope
  const float* key = nullptr;    // [kv_heads, D], the same
  const float* value = nullptr;  // [kv_heads, D]
  const float* query_gain = nullptr;
  const float* key_gain = nullptr;
  const float* frequencies = nullptr;  // [D / 2]
  const StepRow* row = nullptr;
  PageTable table;
  float* cache = nullptr;
  uint32_t* status = nullptr;
  float* output = nullptr;  // [heads, D]
  uint32_t kv_heads = 0;
  uint32_t pages = 0;
  float query_eps = 0, key_eps = 0;
  float scale = 1;
};

/// Lane l has elements l, l + 32, ... of a head: the partner of a rope pair is its own.
template <uint32_t kDim>
struct Head {
  static constexpr uint32_t kCount = kDim / kWarp;
  float e[kCount];

  __device__ void load(const float* from) {
    for (uint32_t i = 0; i < kCount; ++i) e[i] = __ldcg(from + threadIdx.x % kWarp + i * kWarp);
  }
  __device__ void store(float* to) const {
    for (uint32_t i = 0; i < kCount; ++i) to[threadIdx.x % kWarp + i * kWarp] = e[i];
  }
  __device__ void normalize(const float* gain, float eps) {
    // In the order of the kernel of rms_norm: 32 neighbours, then these in halves.
    float sums[kCount];
    for (uint32_t i = 0; i < kCount; ++i) sums[i] = warp_sum(e[i] * e[i]);
    for (uint32_t half = kCount / 2; half > 0; half /= 2) {
      for (uint32_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    const float factor = __fdiv_rn(1.0f, __fsqrt_rn(__fdiv_rn(sums[0], static_cast<float>(kDim)) + eps));
    for (uint32_t i = 0; i < kCount; ++i)
      e[i] = e[i] * factor * __ldg(gain + threadIdx.x % kWarp + i * kWarp);
  }
  __device__ void rotate(const float* cosines, const float* sines) {
    for (uint32_t i = 0; i < kCount / 2; ++i) {
      const uint32_t pair = threadIdx.x % kWarp + i * kWarp;
      const float x = e[i], y = e[i + kCount / 2];
      e[i] = x * cosines[pair] - y * sines[pair];
      e[i + kCount / 2] = y * cosines[pair] + x * sines[pair];
    }
  }
};

/// What a block knows of the heads it shares: read by the other blocks of the cluster.
template <uint32_t kDim, uint32_t kQueries>
struct Part {
  float max[kQueries];
  float sum[kQueries];
  float values[kQueries][kDim];  // weighted, not divided
};

template <uint32_t kDim, uint32_t kQueries>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads)
    attention_set(const __grid_constant__ AttentionSet p) {
  constexpr uint32_t kColumns = kDim / 4;            // of 4 values
  constexpr uint32_t kGroups = kThreads / kColumns;  // of positions, when values are added
  constexpr uint32_t kEach = kPagePositions / kGroups;
  __shared__ __align__(16) float queries[kQueries][kDim];
  __shared__ float cosines[kDim / 2], sines[kDim / 2];
  __shared__ float weights[kQueries][kPagePositions];  // scores, then e^(score - max)
  __shared__ float rescale[kQueries];
  __shared__ __align__(16) float4 gathered[kGroups][kQueries][kColumns];
  __shared__ __align__(16) Part<kDim, kQueries> part;

  const Running run(p.state);
  if (run.rows == 0) return;
  const auto cluster = cooperative_groups::this_cluster();
  const uint32_t rank = cluster.block_rank(), kv_head = blockIdx.x / kCluster;
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const StepRow row = *p.row;

  // As check_row(), the pages looked through by all threads.
  const bool idle = row.slot == kIdle;
  const bool no_slot = !idle && row.slot >= p.table.slots;
  const uint32_t last = row.position / kPagePositions;
  const bool no_position = !idle && !no_slot && last >= p.table.pages_per_slot;
  const bool readable = !idle && !no_slot && !no_position;
  const uint32_t* ids = p.table.ids + (readable ? size_t{row.slot} * p.table.pages_per_slot : 0);
  bool no_page = false;
  for (uint32_t page = threadIdx.x; readable && page <= last; page += kThreads)
    no_page = no_page || ids[page] >= p.table.cache_pages;
  no_page = __syncthreads_or(no_page) != 0;
  if (!readable || no_page) {
    for (uint32_t i = threadIdx.x; rank == 0 && i < kQueries * kDim; i += kThreads)
      p.output[size_t{kv_head} * kQueries * kDim + i] = 0;
    if (blockIdx.x == 0 && threadIdx.x == 0 && !idle) {
      raise_status(p.status, no_slot ? p.table.slots : row.slot,
                   no_slot       ? kSlotOutOfRange
                   : no_position ? kPositionOutOfRange
                                 : kPageOutOfRange);
    }
    return;
  }

  if (threadIdx.x < kDim / 2) {
    double sine, cosine;
    sincos(static_cast<double>(static_cast<float>(row.position) * __ldg(p.frequencies + threadIdx.x)), &sine,
           &cosine);
    cosines[threadIdx.x] = static_cast<float>(cosine);
    sines[threadIdx.x] = static_cast<float>(sine);
    if (threadIdx.x < kQueries) {
      part.max[threadIdx.x] = -INFINITY;
      part.sum[threadIdx.x] = 0;
    }
  }
  __syncthreads();
  const CacheGeometry geometry{p.pages, p.kv_heads, kDim};
  // The block of the newest page has two vectors more: the key and the value.
  for (uint32_t item = warp; item < kQueries + (last % kCluster == rank ? 2u : 0u); item += kWarps) {
    Head<kDim> head;
    if (item < kQueries) {
      head.load(p.query + (size_t{kv_head} * kQueries + item) * kDim);
      if (p.query_gain != nullptr) head.normalize(p.query_gain, p.query_eps);
      head.rotate(cosines, sines);
      head.store(queries[item]);
      continue;
    }
    const uint32_t kind = item - kQueries;  // 0: key, 1: value
    head.load((kind == 0 ? p.key : p.value) + size_t{kv_head} * kDim);
    if (kind == 0) {
      if (p.key_gain != nullptr) head.normalize(p.key_gain, p.key_eps);
      head.rotate(cosines, sines);
    }
    head.store(p.cache + geometry.unit_offset(kind, ids[last], kv_head) +
               row.position % kPagePositions * kDim);
  }
  __syncthreads();

  float4 values[kQueries];  // of this thread's positions and column
  for (float4& value : values) value = make_float4(0, 0, 0, 0);
  const uint32_t column = threadIdx.x % kColumns, group = threadIdx.x / kColumns;
  for (uint32_t page = rank; page <= last; page += kCluster) {
    const uint32_t count = min(kPagePositions, row.position - page * kPagePositions + 1);
    const float* keys = p.cache + geometry.unit_offset(0, ids[page], kv_head);
    const auto* newest =
        reinterpret_cast<const float4*>(p.cache + geometry.unit_offset(1, ids[page], kv_head));
    float4 v[kEach];
#pragma unroll
    for (uint32_t j = 0; j < kEach; ++j) {
      const uint32_t at = group * kEach + j;
      v[j] = at < count ? newest[at * kColumns + column] : make_float4(0, 0, 0, 0);
    }
    // Scores: 8 lanes a position, 4 positions a warp at once.
    constexpr uint32_t kLanes = 8, kQuads = kDim / 4 / kLanes;
    for (uint32_t j = warp * 4 + lane / kLanes; j < kPagePositions; j += kWarps * 4) {
      float4 k[kQuads];
#pragma unroll
      for (uint32_t i = 0; i < kQuads; ++i)
        k[i] = j < count
                   ? reinterpret_cast<const float4*>(keys + size_t{j} * kDim)[lane % kLanes + i * kLanes]
                   : make_float4(0, 0, 0, 0);
#pragma unroll
      for (uint32_t q = 0; q < kQueries; ++q) {
        float score = 0;
#pragma unroll
        for (uint32_t i = 0; i < kQuads; ++i) {
          const float4 x = reinterpret_cast<const float4*>(queries[q])[lane % kLanes + i * kLanes];
          score = __fmaf_rn(x.x, k[i].x, score);
          score = __fmaf_rn(x.y, k[i].y, score);
          score = __fmaf_rn(x.z, k[i].z, score);
          score = __fmaf_rn(x.w, k[i].w, score);
        }
        for (uint32_t half = kLanes / 2; half > 0; half /= 2) score += __shfl_xor_sync(~0u, score, half);
        if (lane % kLanes == 0) weights[q][j] = j < count ? score * p.scale : -INFINITY;
      }
    }
    __syncthreads();
    for (uint32_t q = warp; q < kQueries; q += kWarps) {
      const float a = weights[q][lane], b = weights[q][lane + kWarp];
      const float before = part.max[q], now = fmaxf(before, warp_max(fmaxf(a, b)));
      const float x = expf(a - now), y = expf(b - now), sum = warp_sum(x + y);
      weights[q][lane] = x;
      weights[q][lane + kWarp] = y;
      __syncwarp();
      if (lane == 0) {
        const float factor = expf(before - now);
        rescale[q] = factor;
        part.max[q] = now;
        part.sum[q] = part.sum[q] * factor + sum;
      }
    }
    __syncthreads();
#pragma unroll
    for (uint32_t q = 0; q < kQueries; ++q) {
      const float factor = rescale[q];
      float4 sum =
          make_float4(values[q].x * factor, values[q].y * factor, values[q].z * factor, values[q].w * factor);
#pragma unroll
      for (uint32_t j = 0; j < kEach; ++j) {
        const float w = weights[q][group * kEach + j];
        sum = make_float4(__fmaf_rn(w, v[j].x, sum.x), __fmaf_rn(w, v[j].y, sum.y),
                          __fmaf_rn(w, v[j].z, sum.z), __fmaf_rn(w, v[j].w, sum.w));
      }
      values[q] = sum;
    }
    __syncthreads();  // before the next page's scores
  }
  for (uint32_t q = 0; q < kQueries; ++q) gathered[group][q][column] = values[q];
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < kQueries * kDim; i += kThreads) {
    const uint32_t q = i / kDim, d = i % kDim;
    float sum = 0;
    for (uint32_t g = 0; g < kGroups; ++g) sum += reinterpret_cast<const float*>(gathered[g][q])[d];
    part.values[q][d] = sum;
  }
  cluster.sync();
  constexpr uint32_t kSlice = kDim / kCluster;  // of each head, a block
  for (uint32_t i = threadIdx.x; i < kQueries * kSlice; i += kThreads) {
    const uint32_t q = i / kSlice, d = rank * kSlice + i % kSlice;
    float max = -INFINITY, sum = 0, total = 0;
    for (uint32_t b = 0; b < kCluster; ++b) max = fmaxf(max, cluster.map_shared_rank(&part, b)->max[q]);
    for (uint32_t b = 0; b < kCluster; ++b) {
      const auto* other = cluster.map_shared_rank(&part, b);
      const float factor = expf(other->max[q] - max);
      sum = __fmaf_rn(factor, other->values[q][d], sum);
      total = __fmaf_rn(factor, other->sum[q], total);
    }
    p.output[(size_t{kv_head} * kQueries + q) * kDim + d] = __fdiv_rn(sum, total);
  }
  cluster.sync();  // no block leaves while another reads its part
}

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

bool takes(const SetCall& call, std::span<const uint32_t> places) {
  if (call.rows != 1) return false;
  for (size_t m = 0; m < call.members.size(); ++m) {
    const backend::OpCall& member = call.members[m].call;
    if (places[m] == kAttend) {
      const auto& c = member.constants_as<AttentionConstants>();
      if (c.window != 0) return false;
      if ((c.head_dim != 64 && c.head_dim != 128) || c.heads % c.kv_heads != 0) return false;
      const uint32_t queries = c.heads / c.kv_heads;
      if (queries != 1 && queries != 2 && queries != 4 && queries != 8) return false;
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

AttentionSet describe(const BoundCommand& command) {
  std::array<const BoundMember*, std::size(kPlaces)> at{};
  for (const BoundMember& member : command.members) at[member.place] = &member;
  const auto& c = at[kAttend]->constants_as<AttentionConstants>();
  AttentionSet p;
  p.state = command.state;
  const BoundMember* query = at[kQueryNorm] != nullptr ? at[kQueryNorm] : at[kQueryRope];
  const BoundMember* key = at[kKeyNorm] != nullptr ? at[kKeyNorm] : at[kKeyRope];
  p.query = static_cast<const float*>(query->args[0]);
  p.key = static_cast<const float*>(key->args[0]);
  p.value = static_cast<const float*>(at[kWrite]->args[1]);
  if (at[kQueryNorm] != nullptr) {
    p.query_gain = static_cast<const float*>(at[kQueryNorm]->args[1]);
    p.query_eps = at[kQueryNorm]->constants_as<RmsNormConstants>().eps;
    p.key_gain = static_cast<const float*>(at[kKeyNorm]->args[1]);
    p.key_eps = at[kKeyNorm]->constants_as<RmsNormConstants>().eps;
  }
  p.frequencies = static_cast<const float*>(at[kQueryRope]->args[2]);
  p.row = static_cast<const StepRow*>(at[kAttend]->args[1]);
  p.table = {static_cast<const uint32_t*>(at[kAttend]->args[2]), c.slots, c.pages_per_slot, c.pages};
  p.cache = static_cast<float*>(at[kAttend]->args[3]);
  p.status = static_cast<uint32_t*>(at[kAttend]->args[4]);
  p.output = static_cast<float*>(at[kAttend]->args[5]);
  p.kv_heads = c.kv_heads;
  p.pages = c.pages;
  p.scale = c.scale;
  return p;
}

template <uint32_t kDim, uint32_t kQueries>
KernelEntry entry_of() {
  return {.function = reinterpret_cast<const void*>(attention_set<kDim, kQueries>),
          .parameter_bytes = sizeof(AttentionSet),
          .bind =
              [](const BoundCommand& command, std::byte* parameters) {
                const AttentionSet p = describe(command);
                std::memcpy(parameters, &p, sizeof(p));
              },
          .shape =
              [](const BoundCommand& command) {
                return GridShape{.blocks = uint64_t{describe(command).kv_heads} * kCluster,
                                 .threads = kThreads,
                                 .cluster = kCluster};
              },
          .waits_everywhere = true};
}

/// True when a set, whole or not, may be of this shape.
template <uint32_t kDim, uint32_t kQueries>
bool of_shape(const SetCall& call) {
  for (const backend::SetMember& member : call.members) {
    if (member.call.op->name != "attention") continue;
    const auto& c = member.call.constants_as<AttentionConstants>();
    return c.head_dim == kDim && c.heads == c.kv_heads * kQueries;
  }
  return true;
}

template <uint32_t kDim, uint32_t kQueries, size_t kCount>
backend::GroupKernel row() {
  static const KernelEntry kEntry = entry_of<kDim, kQueries>();
  return {.name = kCount == 6 ? "norm_rope_attention" : "rope_attention",
          .numerics = "fast, f32, pages modulo 8",
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
          .entry = &kEntry};
}

}  // namespace

std::span<const backend::GroupKernel> attention_sets_cuda() {
  static const backend::GroupKernel kKernels[] = {
      row<128, 1, 6>(), row<128, 2, 6>(), row<128, 4, 6>(), row<128, 8, 6>(),
      row<64, 1, 6>(),  row<64, 2, 6>(),  row<64, 4, 6>(),  row<64, 8, 6>(),
      row<128, 1, 4>(), row<128, 2, 4>(), row<128, 4, 4>(), row<128, 8, 4>(),
      row<64, 1, 4>(),  row<64, 2, 4>(),  row<64, 4, 4>(),  row<64, 8, 4>(),
  };
  return kKernels;
}

}  // namespace refrain::ops
