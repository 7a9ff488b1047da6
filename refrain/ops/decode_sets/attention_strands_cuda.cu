// Attention by strands (strand.cuh): the set of a layer's attention for one row (head norms, ropes, the write to the cache and attention
// itself), and attention alone for any rows, with the same bits.
#include <algorithm>
#include <array>

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
  __half* cache = nullptr;
  uint32_t* status = nullptr;
  float* output = nullptr;  // [rows, heads, D]
  uint32_t kv_heads = 0;
  uint32_t queries = 0;  // of a key-value head
  uint32_t pages = 0;
  uint32_t window = 0;
  float query_eps = 0, key_eps = 0;
  float scale = 1;  // of the scores, and log2(e): weights are powers of two
};

/// How parts of one sum are joined: by their greatest scores. A part of nothing has a greatest of -infinity.
template <uint32_t kCount>
struct Joint {
  float factors[kCount];
  float max = -INFINITY, sum = 0;

  /// `parts`: greatest score, sum of weights.
  __device__ Joint(const float2* parts, uint32_t stride) {
    float2 part[kCount];
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) {
      part[i] = parts[i * stride];
      max = fmaxf(max, part[i].x);
    }
    const float least = max == -INFINITY ? 0 : max;
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) {
      factors[i] = exp2f(part[i].x - least);
      sum = __fmaf_rn(factors[i], factors[i] == 0 ? 0 : part[i].y, sum);
    }
  }
  /// What part i adds to a value; nothing, whatever it is, where the part has none.
  __device__ float add(uint32_t i, float value, float to) const {
    return factors[i] == 0 ? to : __fmaf_rn(factors[i], value, to);
  }
};

/// What the blocks of a cluster tell each other: each of them joins a slice of the head's dimensions.
template <uint32_t kDim>
struct Parts {
  static constexpr uint32_t kSlice = kDim / kCluster;
  float2 sums[kCluster][kMostQueries];  // greatest score, sum of weights
  float values[kCluster][kMostQueries][kSlice];
  uint64_t arrived;

  __device__ static uint32_t bytes(uint32_t queries) {
    return kCluster * queries * static_cast<uint32_t>(sizeof(float2) + kSlice * sizeof(float));
  }
  __device__ static uint32_t address(const void* shared, uint32_t rank) {
    uint32_t result;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(result)
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "r"(rank));
    return result;
  }
  /// By one thread, before the cluster's blocks have met.
  __device__ void expect(uint32_t queries) {
    const auto barrier = static_cast<uint32_t>(__cvta_generic_to_shared(&arrived));
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes(queries))
                 : "memory");
  }
  __device__ void wait() {
    asm volatile(
        "{\n .reg .pred done;\n WAIT_%=:\n mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, "
        "[%0], 0;\n "
        "@!done bra WAIT_%=;\n}" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(&arrived)))
        : "memory");
  }
  /// Of a query to the block that joins these columns, with the sums once a slice. `column`: a multiple of 4.
  __device__ void send(uint32_t rank, uint32_t query, uint32_t column, float4 value, float2 sum) const {
    const uint32_t to = column / kSlice, within = column % kSlice;
    const uint32_t barrier = address(&arrived, to);
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
            address(&values[rank][query][within], to)),
        "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(barrier)
        : "memory");
    if (within != 0) return;
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
                     address(&sums[rank][query], to)),
                 "f"(sum.x), "f"(sum.y), "r"(barrier)
                 : "memory");
  }
};

/// Dynamic shared memory: [warps][queries][D] floats. kSet: of one row, with norms, ropes and the write of key and value
/// to the cache.
template <uint32_t kDim, bool kSet>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kAttentionThreads, 2)
    attention_strands(const __grid_constant__ AttentionStrands p) {
#if __CUDA_ARCH__ >= 900  // its kernels need kFeatureHopper
  __shared__ __align__(16) Queries<kDim> queries;
  __shared__ __align__(16) __half newest[2][kDim];  // key, value
  __shared__ float cosines[kDim / 2], sines[kDim / 2];
  __shared__ float2 warp_sums[kAttentionWarps][kMostQueries];
  __shared__ __align__(16) Parts<kDim> parts;
  extern __shared__ __align__(16) float warp_values[];
  const uint32_t rank = blockIdx.x % kCluster, unit = blockIdx.x / kCluster;
  const uint32_t kv_head = unit % p.kv_heads, r = unit / p.kv_heads;
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const CacheGeometry geometry{p.pages, p.kv_heads, kDim};

  StepRow row;
  const uint32_t* ids = nullptr;  // of the slot's pages; null: the row is idle or refused
  uint32_t bits = 0;              // for the status
  uint32_t first_position = 0, c = 0, last = 0;
  Chunk<kDim> chunk;  // the warp's next
  uint32_t page = 0;  // of the chunk behind it, as soon as it is known that there is one
  const auto page_of = [&](uint32_t at) { return __ldcg(ids + at / (kPagePositions / kChunk)); };
  const auto rows_of = [&](uint32_t kind, uint32_t of_page, uint32_t at) {
    return p.cache + geometry.unit_offset(kind, of_page, kv_head) +
           size_t{at % (kPagePositions / kChunk)} * kChunk * kDim;
  };
  const auto load_first = [&] {
    if (ids == nullptr || c > last) return;
    const uint32_t of_page = page_of(c);
    if (of_page >= p.table.cache_pages) return;  // found out again below
    chunk.load_keys(rows_of(0, of_page, c));
    chunk.load_values(rows_of(1, of_page, c));
    if (c + kStrands <= last) page = page_of(c + kStrands);
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
    for (uint32_t i = first_position / kPagePositions + threadIdx.x;
         ids != nullptr && i <= row.position / kPagePositions; i += kAttentionThreads)
      missing = missing || __ldcg(ids + i) >= p.table.cache_pages;
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
    if (item < p.queries) return p.query + (size_t{unit} * p.queries + item) * kDim;
    return (item == p.queries ? p.key : p.value) + size_t{kv_head} * kDim;
  };
  const auto load_gain = [&](Head<kDim>& gain, uint32_t item) {
    if (kSet && p.query_gain != nullptr && item <= p.queries)
      gain.load_sealed(item < p.queries ? p.query_gain : p.key_gain);
  };
  Head<kDim> head, gain;  // the warp's first vector
  const auto prepare = [&] {
    find_row();
    if constexpr (kSet) {
      load_first();
      find_angles();
    }
    check_pages();
  };
  const bool ahead = p.state.ahead;
  if (threadIdx.x == 0) parts.expect(p.queries);
  const Running run(p.state, [&] {
    load_gain(gain, warp);
    if (ahead) prepare();
  });
  if (!ahead) prepare();
  const bool writes = kSet && last % kCluster == rank;
  const uint32_t items = p.queries + (writes ? 2u : 0u);
  if (warp < items) head.load(vector_of(warp));  // before anything is waited for: a plan has memory for it
  if (r >= run.rows) return;
  if (ids == nullptr) {
    constexpr uint32_t kSlice = Parts<kDim>::kSlice;
    for (uint32_t i = threadIdx.x; i < p.queries * kSlice; i += kAttentionThreads)
      p.output[(size_t{unit} * p.queries + i / kSlice) * kDim + rank * kSlice + i % kSlice] = 0;
    if (kv_head == 0 && rank == 0 && threadIdx.x == 0)
      raise_status(p.status, bits == kSlotOutOfRange ? p.table.slots : row.slot, bits);
    return;
  }
  // That all blocks of it have begun is waited for below; only their barriers have to be seen by then.
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
  if constexpr (!kSet) load_first();

  if constexpr (kSet) __syncthreads();  // the angles
  for (uint32_t item = warp; item < items; item += kAttentionWarps) {
    if (item != warp) {
      head.load(vector_of(item));
      load_gain(gain, item);
    }
    if (kSet && item <= p.queries) {
      if (p.query_gain != nullptr) head.normalize(gain, item < p.queries ? p.query_eps : p.key_eps);
      head.rotate(cosines, sines);
    }
    if (item < p.queries) {
      queries.store(item, head);
      continue;
    }
    const uint32_t kind = item - p.queries;  // 0: key, 1: value
    __half* to =
        p.cache + geometry.unit_offset(kind, page_of(last), kv_head) + row.position % kPagePositions * kDim;
#pragma unroll
    for (uint32_t i = 0; i < head.kCount; ++i) {
      const __half element = head.cached(i);
      newest[kind][lane + i * kWarp] = element;
      to[lane + i * kWarp] = element;
    }
  }
  __syncthreads();

  const uint32_t query = min(Chunk<kDim>::group(), p.queries - 1);
  Strand<kDim> strand;
  const bool any = c <= last;
  for (; c <= last; c += kStrands) {
    const uint32_t position = c * kChunk;
    const uint32_t begin = position < first_position ? first_position - position : 0;
    const uint32_t end = row.position + 1 - position;
    if (kSet && c == last) chunk.replace(row.position % kChunk, newest[0], newest[1]);
    if (begin != 0 || end < kChunk) chunk.clear_values(begin, end);
    const auto weights = strand.weigh(chunk, queries, query, p.scale, begin, end);
    const uint32_t next = c + kStrands, of_page = page;
    if (next <= last) chunk.load_keys(rows_of(0, of_page, next));
    strand.add(chunk, weights);
    if (next <= last) {
      chunk.load_values(rows_of(1, of_page, next));
      if (next + kStrands <= last) page = page_of(next + kStrands);
    }
  }
  strand.finish(any, warp_values + size_t{warp} * p.queries * kDim, p.queries);
  if (lane % 4 == 0) warp_sums[warp][Chunk<kDim>::group()] = make_float2(strand.max, strand.sum);
  __syncthreads();
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");

  for (uint32_t i = threadIdx.x; i < p.queries * kDim / 4; i += kAttentionThreads) {
    const uint32_t q = 4 * i / kDim, column = 4 * i % kDim;
    const Joint<kAttentionWarps> joint(&warp_sums[0][q], kMostQueries);
    float4 value = make_float4(0, 0, 0, 0);
#pragma unroll
    for (uint32_t w = 0; w < kAttentionWarps; ++w) {
      const float4 part =
          *reinterpret_cast<const float4*>(warp_values + (size_t{w} * p.queries + q) * kDim + column);
      value = make_float4(joint.add(w, part.x, value.x), joint.add(w, part.y, value.y),
                          joint.add(w, part.z, value.z), joint.add(w, part.w, value.w));
    }
    parts.send(rank, q, column, value, make_float2(joint.max, joint.sum));
  }
  parts.wait();
  constexpr uint32_t kSlice = Parts<kDim>::kSlice;
  if (threadIdx.x >= p.queries * kSlice) return;
  const uint32_t q = threadIdx.x / kSlice, d = threadIdx.x % kSlice;
  const Joint<kCluster> joint(&parts.sums[0][q], kMostQueries);
  float value = 0;
#pragma unroll
  for (uint32_t i = 0; i < kCluster; ++i) value = joint.add(i, parts.values[i][q][d], value);
  p.output[(size_t{unit} * p.queries + q) * kDim + rank * kSlice + d] = __fdiv_rn(value, joint.sum);
#endif
}

constexpr std::string_view kNumerics = "fast, two f16 a factor, 64 strands of 16 positions";
constexpr backend::OpClass kClasses[] = {
    {"rms_norm", kNormNumerics}, {"rope", kRopeNumerics}, {"kv_write", kKvWriteF16Numerics}};

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
      if (!has_kernel(member.constants_as<AttentionConstants>()) || member.args[3].dtype != DType::f16)
        return false;
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

/// What attention itself says.
void set_attention(AttentionStrands& p, const BoundMember& member) {
  const auto& c = member.constants_as<AttentionConstants>();
  p.query = static_cast<const float*>(member.args[0]);
  p.rows = vectors_at<const StepRow>(member.args[1]);
  p.table = {static_cast<const uint32_t*>(member.args[2]), c.slots, c.pages_per_slot, c.pages};
  p.cache = vectors_at<__half>(member.args[3]);
  p.status = static_cast<uint32_t*>(member.args[4]);
  p.output = static_cast<float*>(member.args[5]);
  p.kv_heads = c.kv_heads;
  p.queries = c.heads / c.kv_heads;
  p.pages = c.pages;
  p.window = c.window;
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

template <uint32_t kDim, bool kSet>
KernelEntry entry_of() {
  return {.function = reinterpret_cast<const void*>(attention_strands<kDim, kSet>),
          .parameter_bytes = sizeof(AttentionStrands),
          .bind = kSet ? bind_set : bind_rows,
          .shape =
              [](const BoundCommand& command) {
                for (const BoundMember& member : command.members) {
                  if (member.place != (kSet ? uint32_t{kAttend} : 0u)) continue;
                  const auto& c = member.constants_as<AttentionConstants>();
                  return GridShape{
                      .blocks = uint64_t{c.rows} * c.kv_heads * kCluster,
                      .threads = kAttentionThreads,
                      .shared_bytes = size_t{kAttentionWarps} * (c.heads / c.kv_heads) * kDim * sizeof(float),
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

/// True when a set, whole or not, may be of this head size.
template <uint32_t kDim>
bool of_dim(const SetCall& call) {
  for (const backend::SetMember& member : call.members) {
    if (member.call.op->name == "attention")
      return member.call.constants_as<AttentionConstants>().head_dim == kDim;
  }
  return true;
}

template <uint32_t kDim, size_t kCount>
backend::GroupKernel set_row() {
  static const KernelEntry kEntry = entry_of<kDim, true>();
  return {.name = kCount == 6 ? "norm_rope_attention" : "rope_attention",
          .numerics = kNumerics,
          .needs = kFeatureHopper | backend::kFeatureFast,
          .fits =
              [](const SetCall& call, std::span<uint32_t> places) {
                return of_dim<kDim>(call) ? match(kPattern<kCount>, call, places) : backend::Fit::no;
              },
          .elides = [](const SetCall& call, uint32_t member,
                       uint32_t argument) { return elides(kPattern<kCount>, call, member, argument); },
          .launch = [](const SetCall& call,
                       const backend::DeviceInfo&) { return backend::Launch{.rows = call.rows}; },
          .entry = &kEntry,
          .classes = kClasses};
}

template <uint32_t kDim>
PluginKernel row() {
  static const KernelEntry kEntry = entry_of<kDim, false>();
  return {.op = "attention",
          .kernel = {.name = "attention_strands",
                     .numerics = kNumerics,
                     .needs = kFeatureHopper | backend::kFeatureFast,
                     .accepts =
                         [](const backend::OpCall& call) {
                           const auto& c = call.constants_as<AttentionConstants>();
                           return c.head_dim == kDim && has_kernel(c) && call.args[3].dtype == DType::f16;
                         },
                     .launch =
                         [](const backend::OpCall& call, const backend::DeviceInfo&) {
                           return backend::Launch{.rows = call.constants_as<AttentionConstants>().rows};
                         },
                     .entry = &kEntry}};
}

}  // namespace

std::span<const PluginKernel> attention_strands_cuda_kernels() {
  static const PluginKernel kKernels[] = {row<128>(), row<64>()};
  return kKernels;
}

std::span<const backend::GroupKernel> attention_sets_cuda() {
  // With head norms first: of two sets that fit, the larger.
  static const backend::GroupKernel kKernels[] = {set_row<128, 6>(), set_row<64, 6>(), set_row<128, 4>(),
                                                  set_row<64, 4>()};
  return kKernels;
}

}  // namespace refrain::ops
