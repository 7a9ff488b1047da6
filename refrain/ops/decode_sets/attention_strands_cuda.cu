// Attention by strands (strand.cuh): the set of a layer's attention (head norms, ropes, the write to the cache and attention
// itself), for one row as one kernel, for more as two; and attention alone, for rows few or many (strands_many.cuh). All give
// the same bits.
#include <algorithm>
#include <array>

#include "refrain/backend/set_pattern.h"
#include "refrain/ops/attention/attention.h"
#include "refrain/ops/decode_sets/strands_many.cuh"
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

static_assert(kPagePositions % kChunk == 0);

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
  using OfRow = Parts<kDim, kMostQueries>;
  __shared__ __align__(16) struct {
    OfRow parts;
    uint64_t arrived;
  } told;
  extern __shared__ __align__(16) float warp_values[];
  const uint32_t rank = blockIdx.x % kCluster, unit = blockIdx.x / kCluster;
  const uint32_t kv_head = unit % p.kv_heads, r = unit / p.kv_heads;
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const CacheGeometry geometry{p.pages, p.kv_heads, kDim};

  FoundRow found;
  uint32_t c = 0, last = 0;
  Chunk<kDim> chunk;  // the warp's next
  uint32_t page = 0;  // of the chunk behind it, as soon as it is known that there is one
  const auto page_of = [&](uint32_t at) { return __ldcg(found.ids + at / (kPagePositions / kChunk)); };
  const auto rows_of = [&](uint32_t kind, uint32_t of_page, uint32_t at) {
    return p.cache + geometry.unit_offset(kind, of_page, kv_head) +
           size_t{at % (kPagePositions / kChunk)} * kChunk * kDim;
  };
  const auto load_first = [&] {
    if (found.ids == nullptr || c > last) return;
    const uint32_t of_page = page_of(c);
    if (of_page >= p.table.cache_pages) return;  // found out again below
    chunk.load_keys(rows_of(0, of_page, c));
    chunk.load_values(rows_of(1, of_page, c));
    if (c + kStrands <= last) page = page_of(c + kStrands);
  };
  const auto find_row = [&] {
    found.find(p, r);
    last = found.row.position / kChunk;
    // The warp's first chunk: the first of its strand that is not before the window.
    const uint32_t first = found.first_position / kChunk, strand = warp * kCluster + rank;
    c = first + (strand - first) % kStrands;
  };
  const auto check_pages = [&] {
    if (__syncthreads_or(found.lacks_page(p.table, threadIdx.x, kAttentionThreads)) != 0) found.refuse_page();
    converge();
  };
  const auto find_angles = [&] {
    if (!kSet || threadIdx.x >= kDim / 2) return;
    find_angle(found.row.position, __ldg(p.frequencies + threadIdx.x), cosines[threadIdx.x],
               sines[threadIdx.x]);
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
  if (threadIdx.x == 0) {
    OfRow::begin(told.arrived);
    OfRow::expect(told.arrived, p.queries);
  }
  const Running run(p.state, [&] {
    load_gain(gain, warp);
    if (ahead) prepare();
  });
  if (!ahead) prepare();
  const bool writes = kSet && last % kCluster == rank;
  const uint32_t items = p.queries + (writes ? 2u : 0u);
  if (warp < items) head.load(vector_of(warp));  // before anything is waited for: a plan has memory for it
  if (r >= run.rows) return;
  if (found.ids == nullptr) {
    constexpr uint32_t kSlice = OfRow::kSlice;
    for (uint32_t i = threadIdx.x; i < p.queries * kSlice; i += kAttentionThreads)
      p.output[(size_t{unit} * p.queries + i / kSlice) * kDim + rank * kSlice + i % kSlice] = 0;
    if (kv_head == 0 && rank == 0 && threadIdx.x == 0) found.raise(p);
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
    __half* to = p.cache + geometry.unit_offset(kind, page_of(last), kv_head) +
                 found.row.position % kPagePositions * kDim;
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
    const uint32_t begin = position < found.first_position ? found.first_position - position : 0;
    const uint32_t end = found.row.position + 1 - position;
    if (kSet && c == last) chunk.replace(found.row.position % kChunk, newest[0], newest[1]);
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
    const float4 value = joint.values(warp_values + q * kDim + column, p.queries * kDim);
    told.parts.send(told.arrived, rank, q, column, value, make_float2(joint.max, joint.sum));
  }
  OfRow::wait(told.arrived, 0);
  constexpr uint32_t kSlice = OfRow::kSlice;
  if (threadIdx.x >= p.queries * kSlice) return;
  const uint32_t q = threadIdx.x / kSlice, d = threadIdx.x % kSlice;
  p.output[(size_t{unit} * p.queries + q) * kDim + rank * kSlice + d] = told.parts.value(q, d);
#endif
}

/// Of many rows. Dynamic shared memory: ManyShared.
template <uint32_t kDim>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kAttentionThreads, 2)
    attention_strands_many(const __grid_constant__ AttentionStrands p) {
#if __CUDA_ARCH__ >= 900  // its kernels need kFeatureHopper
  extern __shared__ __align__(16) std::byte many_memory[];
  auto& shared = *reinterpret_cast<ManyShared<kDim>*>(many_memory);
  using OfColumns = Parts<kDim, kMostColumns>;
  constexpr uint32_t kSlice = OfColumns::kSlice;
  const Running run(p.state);
  const uint32_t rank = blockIdx.x % kCluster, unit = blockIdx.x / kCluster;
  const uint32_t kv_head = unit % p.kv_heads, groups = gridDim.x / (kCluster * p.kv_heads);
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const CacheGeometry geometry{p.pages, p.kv_heads, kDim};
  // The last rows of a prompt first, which take the longest.
  const uint32_t first_row = (groups - 1 - unit / p.kv_heads) * p.group_rows;
  if (first_row >= run.rows) return;
  const uint32_t count = min(p.group_rows, run.rows - first_row);
  const auto vector_of = [&](uint32_t row, uint32_t query) {
    return ((first_row + row) * p.kv_heads + kv_head) * p.queries + query;
  };

  for (uint32_t i = warp; i < count; i += kAttentionWarps) {
    FoundRow found;
    found.find(p, first_row + i);
    if (__any_sync(~0u, found.lacks_page(p.table, lane, kWarp))) found.refuse_page();
    if (lane == 0)
      shared.rows[i] = {found.ids != nullptr ? found.row.slot : kIdle, found.row.position,
                        found.first_position};
    if (found.ids != nullptr) continue;
    for (uint32_t e = lane; e < p.queries * kSlice; e += kWarp)
      p.output[size_t{vector_of(i, e / kSlice)} * kDim + rank * kSlice + e % kSlice] = 0;
    if (kv_head == 0 && rank == 0 && lane == 0) found.raise(p);
  }
  if (threadIdx.x == 0) OfColumns::begin(shared.arrived);
  __syncthreads();
  uint64_t live = 0, starts = 0;  // rows that are computed; of them, those that a run begins with
#pragma unroll
  for (uint32_t half = 0; half < kMostGroupRows; half += kWarp) {
    const uint32_t i = half + lane;
    const bool computed = i < count && shared.rows[i].slot != kIdle;
    const bool start = computed && (i == 0 || shared.rows[i - 1].slot != shared.rows[i].slot);
    live |= uint64_t{__ballot_sync(~0u, computed)} << half;
    starts |= uint64_t{__ballot_sync(~0u, start)} << half;
  }

  uint32_t next_row = 0, next_tile = 0;  // the tile of a run that begins there
  for (uint32_t round = 0;; ++round) {
    uint32_t dealt = 0, begin = 0, end = 0, tile = 0;  // the run of the warp's tile
    bool team = false, spread = false, has_tile = false;
    while (dealt < kAttentionWarps && !team && !spread && next_row < kMostGroupRows) {
      const uint64_t rest = live >> next_row << next_row;
      if (rest == 0) break;
      next_row = __ffsll(static_cast<long long>(rest)) - 1;
      const uint64_t stops = (starts | ~live) & ~((uint64_t{2} << next_row) - 1);
      const uint32_t stop = stops == 0 ? kMostGroupRows : __ffsll(static_cast<long long>(stops)) - 1;
      const uint32_t tiles = ((stop - next_row) * p.queries + kProductColumns - 1) / kProductColumns;
      const bool for_team = tiles - next_tile >= kTeamTiles;
      const bool deep = shared.rows[next_row].position - shared.rows[next_row].first_position >= kDeep;
      if ((for_team || deep) && dealt != 0) break;
      team = for_team;
      spread = deep && !for_team;
      const uint32_t taken = spread ? 1 : min(tiles - next_tile, kAttentionWarps - dealt);
      if (team || spread || (dealt <= warp && warp < dealt + taken)) {
        begin = next_row;
        end = stop;
        tile = spread ? next_tile : next_tile + warp - dealt;
        has_tile = spread || warp < dealt + taken;
      }
      dealt += taken;
      next_tile += taken;
      if (next_tile == tiles) {
        next_row = stop;
        next_tile = 0;
      }
    }
    if (dealt == 0) return;

    if (round != 0) __syncthreads();  // what the last round has left is no longer read
    if (threadIdx.x < kAttentionWarps) {
      shared.full[threadIdx.x].begin(kWarp, round != 0);
      shared.empty[threadIdx.x].begin(kAttentionWarps, round != 0);
    }
    if (threadIdx.x == 0) OfColumns::expect(shared.arrived, dealt * kProductColumns);

    // Column g of the tile. Those that a run's last tile has too many are the last one again, and are not kept.
    const uint32_t last_column = (end - begin) * p.queries - 1;
    const uint32_t column = tile * kProductColumns + lane / 4, taken_column = min(column, last_column);
    const uint32_t row = begin + taken_column / p.queries;
    if (has_tile && lane % 4 == 0)
      shared.columns[warp * kProductColumns + lane / 4] =
          vector_of(row, taken_column % p.queries) | (column <= last_column ? 0 : kNotKept);
    __syncthreads();
    float* memory = shared.tiles[warp];
    Tile<kDim> mine;
    uint32_t position = 0, first_position = 0, low = ~0u, high = 0;
    if (has_tile) {
      position = shared.rows[row].position;
      first_position = shared.rows[row].first_position;
      low = first_position;
      high = position;
    }
    if (team) {
      for (uint32_t i = begin + lane; i < end; i += kWarp) {
        low = min(low, shared.rows[i].first_position);
        high = max(high, shared.rows[i].position);
      }
    }
    low = __reduce_min_sync(~0u, low);
    high = __reduce_max_sync(~0u, high);
    RankChunks at{low / kChunk, high / kChunk};
    const uint32_t step = team ? kAttentionWarps : 1;
    uint32_t chunks = 0, items = 0;  // of the first walk, and of both
    if (spread) {
      items = at.begin_strand(warp * kCluster + rank);
    } else if (team || has_tile) {
      chunks = at.begin(rank);
      items = 2 * chunks;
    }

    // What finds room is copied once for both walks.
    const bool kept = !spread && chunks <= step;
    const uint32_t copies = kept ? chunks : items;

    // The warp's part of the ring: it copies item after item of its own there, ahead of who reads them.
    const uint32_t slot = team || has_tile ? shared.rows[begin].slot : 0;
    RankChunks ahead = at;
    uint32_t next = team ? warp : 0, page = 0;
    const auto find_page = [&] {
      // One that no row looks at, between those of rows that do, may be none.
      page = __ldcg(p.table.ids + size_t{slot} * p.table.pages_per_slot +
                    ahead.chunk / (kPagePositions / kChunk));
      if (page >= p.table.cache_pages) page = 0;
    };
    const auto copy_next = [&] {
      SharedChunk<kDim>& to = shared.chunks[warp];
      const uint32_t offset = ahead.chunk % (kPagePositions / kChunk) * kChunk * kDim;
      to.copy(to.keys, p.cache + geometry.unit_offset(0, page, kv_head) + offset);
      if (kept || next >= chunks)
        to.copy(to.values, p.cache + geometry.unit_offset(1, page, kv_head) + offset);
      shared.full[warp].arrive_after_copies();
      next += step;
      if (next >= copies) return;
      for (uint32_t i = 0; i < step; ++i) ahead.next();
      find_page();
    };
    if (next < copies) {
      for (uint32_t i = 0; i < next; ++i) ahead.next();
      find_page();
    }
    for (uint32_t k = 0; k < items; ++k) {
      // Of a team into memory that all have read by and by.
      if (next < copies && next <= k + (team ? kAttentionWarps / 2 : 0)) {
        if (next >= kAttentionWarps && team) shared.empty[warp].wait(next / kAttentionWarps - 1);
        copy_next();
      }
      if (k == 0 && has_tile) mine.load_queries(p.query, shared.columns + warp * kProductColumns, memory);
      const uint32_t copy = kept && k >= chunks ? k - chunks : k;
      const uint32_t from = team ? copy % kAttentionWarps : warp;
      shared.full[from].wait(team ? copy / kAttentionWarps : copy);
      converge();
      if (has_tile) {
        const SharedChunk<kDim>& chunk = shared.chunks[from];
        const uint32_t of_chunk = at.chunk * kChunk;
        const uint32_t from_position = first_position > of_chunk ? first_position - of_chunk : 0;
        const uint32_t to_position = position >= of_chunk ? min(position + 1 - of_chunk, kChunk) : 0;
        const uint32_t looking = __ballot_sync(~0u, from_position < to_position);
        if (looking != 0) {
          if (k < chunks) {
            float scores[2][2];
            mine.score(chunk, p.scale, from_position, to_position, scores);
            mine.greatest = fmaxf(mine.greatest, Softmax::greatest(scores));
          } else {
            mine.add(chunk, p.scale, from_position, to_position, looking);
          }
        }
        if (k + 1 == chunks) mine.greatest = Softmax::greatest(mine.greatest);
        if (k >= chunks && !spread && at.ends_strand()) mine.join(memory);
      }
      at.next();
      converge();
      if (team && lane == 0) shared.empty[from].arrive();
    }
    // What the blocks tell each other comes in the place of chunks, which all of them have read by then.
    converge();
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    if (has_tile) {
      spread ? mine.softmax.finish() : mine.take_joined(memory);
      mine.lay_out(memory);
    }
    if (spread) {
      if (lane % 4 == 0) shared.sums[warp][lane / 4] = make_float2(mine.softmax.max, mine.softmax.sum);
      __syncthreads();
    }
    converge();
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
    if (spread) {
      for (uint32_t i = threadIdx.x; i < kProductColumns * kDim / 4; i += kAttentionThreads) {
        const uint32_t of = 4 * i / kDim, dimension = 4 * i % kDim;
        const Joint<kAttentionWarps> joint(&shared.sums[0][of], kProductColumns);
        const float4 value =
            joint.values(shared.tiles[0] + of * shared.kStride + dimension, shared.kTileFloats);
        shared.parts.send(shared.arrived, rank, of, dimension, value, make_float2(joint.max, joint.sum));
      }
    } else if (has_tile) {
      for (uint32_t i = lane; i < kProductColumns * kDim / 4; i += kWarp) {
        const uint32_t of = 4 * i / kDim, dimension = 4 * i % kDim;
        const float2 sums =
            make_float2(__shfl_sync(~0u, mine.greatest, of * 4), __shfl_sync(~0u, mine.sum, of * 4));
        shared.parts.send(shared.arrived, rank, warp * kProductColumns + of, dimension,
                          *reinterpret_cast<const float4*>(memory + of * shared.kStride + dimension), sums);
      }
    }
    OfColumns::wait(shared.arrived, round % 2);
    for (uint32_t i = threadIdx.x; i < dealt * kProductColumns * kSlice; i += kAttentionThreads) {
      const uint32_t of = shared.columns[i / kSlice];
      if ((of & kNotKept) != 0) continue;
      p.output[size_t{of} * kDim + rank * kSlice + i % kSlice] = shared.parts.value(i / kSlice, i % kSlice);
    }
  }
#endif
}

constexpr uint32_t kPrepareThreads = 256;

/// Ahead of the attention of a set of several rows: norms, ropes and the write to the cache, a block a row. Queries go to the
/// workspace. Rows that are idle, or whose key and value have no place, are left out: attention refuses them.
template <uint32_t kDim>
__global__ void __launch_bounds__(kPrepareThreads) prepare_rows(const __grid_constant__ AttentionStrands p) {
  __shared__ float cosines[kDim / 2], sines[kDim / 2];
  const Running run(p.state);
  const uint32_t r = blockIdx.x, heads = p.kv_heads * p.queries;
  if (r >= run.rows) return;
  FoundRow found;
  found.find(p, r);
  if (found.ids == nullptr) return;
  const uint32_t page = __ldcg(found.ids + found.row.position / kPagePositions);
  if (page >= p.table.cache_pages) return;
  if (threadIdx.x < kDim / 2)
    find_angle(found.row.position, __ldg(p.frequencies + threadIdx.x), cosines[threadIdx.x],
               sines[threadIdx.x]);
  __syncthreads();
  const CacheGeometry geometry{p.pages, p.kv_heads, kDim};
  for (uint32_t i = threadIdx.x / kWarp; i < heads + 2 * p.kv_heads; i += kPrepareThreads / kWarp) {
    const bool is_query = i < heads;
    const uint32_t kind = is_query ? 0 : (i - heads) / p.kv_heads;  // of what is cached, 0: key, 1: value
    const uint32_t kv_head = is_query ? 0 : (i - heads) % p.kv_heads;
    Head<kDim> head;
    head.load(is_query ? p.source + (size_t{r} * heads + i) * kDim
                       : (kind == 0 ? p.key : p.value) + (size_t{r} * p.kv_heads + kv_head) * kDim);
    if (kind == 0) {
      if (p.query_gain != nullptr) {
        Head<kDim> gain;
        gain.load_sealed(is_query ? p.query_gain : p.key_gain);
        head.normalize(gain, is_query ? p.query_eps : p.key_eps);
      }
      head.rotate(cosines, sines);
    }
    const uint32_t lane = threadIdx.x % kWarp;
    float* const query = reinterpret_cast<float*>(p.state.workspace) + (size_t{r} * heads + i) * kDim;
    __half* const cached =
        p.cache + geometry.unit_offset(kind, page, kv_head) + found.row.position % kPagePositions * kDim;
#pragma unroll
    for (uint32_t e = 0; e < head.kCount; ++e) {
      if (is_query) {
        query[lane + e * kWarp] = head.e[e];
      } else {
        cached[lane + e * kWarp] = head.cached(e);
      }
    }
  }
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

/// Head sizes and queries a key-value head that there are kernels for; none has a cap of scores.
bool has_kernel(const AttentionConstants& c) {
  if (c.softcap != 0) return false;
  if ((c.head_dim != 64 && c.head_dim != 128) || c.heads % c.kv_heads != 0) return false;
  return c.heads <= kMostQueries * c.kv_heads;
}

/// 0: attention is not there yet.
uint32_t head_dim(const SetCall& call) {
  for (const backend::SetMember& member : call.members) {
    if (member.call.op->name == "attention") return member.call.constants_as<AttentionConstants>().head_dim;
  }
  return 0;
}

bool takes(const SetCall& call, std::span<const uint32_t> places) {
  for (size_t m = 0; m < call.members.size(); ++m) {
    const backend::OpCall& member = call.members[m].call;
    if (places[m] == kAttend) {
      if (!has_kernel(member.constants_as<AttentionConstants>()) || member.args[3].dtype != DType::f16)
        return false;
    } else if (places[m] == kQueryRope || places[m] == kKeyRope) {
      const auto& c = member.constants_as<RopeConstants>();
      if (c.interleaved != 0 || c.scale != 1 || c.growth != 0 || 2 * c.pairs != c.head_dim ||
          member.args[2].layout->name != "vector_f32")
        return false;
    } else if (places[m] == kQueryNorm || places[m] == kKeyNorm) {
      if (!member.args[1].bound || member.args[1].layout->name != "vector_f32" ||
          member.constants_as<RmsNormConstants>().columns != head_dim(call))
        return false;
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
  const auto& c = command.members.front().constants_as<AttentionConstants>();
  p.group_rows = group_rows(c.rows, c.kv_heads, p.queries);
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
  p.source = static_cast<const float*>(query->args[0]);
  p.query = command.state.rows == 1 ? p.source : reinterpret_cast<const float*>(command.state.workspace);
  p.group_rows = group_rows(command.state.rows, p.kv_heads, p.queries);
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

/// What attention says of itself in a command.
template <bool kSet>
const AttentionConstants& attention_of(const BoundCommand& command) {
  const auto is_attention = [](const BoundMember& m) { return m.place == (kSet ? uint32_t{kAttend} : 0u); };
  const BoundMember& member = *std::ranges::find_if(command.members, is_attention);
  return member.constants_as<AttentionConstants>();
}

template <uint32_t kDim, bool kSet>
GridShape shape(const BoundCommand& command) {
  const auto& c = attention_of<kSet>(command);
  const uint32_t queries = c.heads / c.kv_heads, groups = group_rows(c.rows, c.kv_heads, queries);
  if (c.rows > kFewRows) {
    return {.blocks = uint64_t{(c.rows + groups - 1) / groups} * c.kv_heads * kCluster,
            .threads = kAttentionThreads,
            .shared_bytes = sizeof(ManyShared<kDim>),
            .cluster = kCluster,
            .function = reinterpret_cast<const void*>(attention_strands_many<kDim>)};
  }
  const bool alone = !kSet || c.rows > 1;
  return {.blocks = uint64_t{c.rows} * c.kv_heads * kCluster,
          .threads = kAttentionThreads,
          .shared_bytes = size_t{kAttentionWarps} * queries * kDim * sizeof(float),
          .cluster = kCluster,
          .function = alone ? reinterpret_cast<const void*>(attention_strands<kDim, false>)
                            : reinterpret_cast<const void*>(attention_strands<kDim, true>)};
}

template <uint32_t kDim>
GridShape before(const BoundCommand& command) {
  const uint32_t rows = command.state.rows;
  return {.blocks = rows > 1 ? rows : 0,
          .threads = kPrepareThreads,
          .function = reinterpret_cast<const void*>(prepare_rows<kDim>)};
}

template <uint32_t kDim, bool kSet>
KernelEntry entry_of() {
  return {
      .function = reinterpret_cast<const void*>(attention_strands<kDim, kSet>),
      .parameter_bytes = sizeof(AttentionStrands),
      .bind = kSet ? bind_set : bind_rows,
      .shape = shape<kDim, kSet>,
      .before = kSet ? before<kDim> : nullptr,
      .waits_everywhere = true,
      // The row and its pages; of a set the cache too, whose newest position it writes itself: of more rows than one
      // that is done ahead of attention, which then loads nothing of the cache before it waits.
      .reads_ahead = [](uint32_t place, uint32_t argument) {
        if (place != (kSet ? uint32_t{kAttend} : 0u)) return false;
        return argument == 1 || argument == 2 || (kSet && argument == 3);
      }};
}

/// True when a set, whole or not, may be of this head size.
template <uint32_t kDim>
bool of_dim(const SetCall& call) {
  const uint32_t dim = head_dim(call);
  return dim == 0 || dim == kDim;
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
          .launch =
              [](const SetCall& call, const backend::DeviceInfo&) {
                backend::Launch launch{.rows = call.rows};
                for (const backend::SetMember& member : call.members) {
                  if (member.call.op->name != "attention" || call.rows == 1) continue;
                  const auto& c = member.call.constants_as<AttentionConstants>();
                  launch.workspace_bytes = size_t{c.rows} * c.heads * c.head_dim * sizeof(float);
                }
                return launch;
              },
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
