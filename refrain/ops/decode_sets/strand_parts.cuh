// Attention by strands (strand.cuh) for any number of rows: its parameters, how a row is found, and how parts of a sum are
// joined.
#pragma once

#include <cstring>

#include "refrain/ops/decode_sets/barriers.cuh"
#include "refrain/ops/decode_sets/strand.cuh"
#include "refrain/ops/step_row.h"

namespace refrain::ops::decode {

struct AttentionStrands {
  CommandState state;
  const float* query = nullptr;  // [rows, heads, D]; of a set of one row before norm and rope
  // Of a set, before norm and rope; of more rows than one the queries as well, which then go to the workspace.
  const float* source = nullptr;  // [rows, heads, D]
  const float* key = nullptr;     // [rows, kv_heads, D]
  const float* value = nullptr;   // [rows, kv_heads, D]
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
  float scale = 1;          // of the scores, and log2(e): weights are powers of two
  uint32_t group_rows = 0;  // of many rows: what a cluster takes
};

/// A row of a step. Its pages are still to be checked.
struct FoundRow {
  StepRow row;
  const uint32_t* ids = nullptr;  // of the slot's pages; null: the row is idle or refused
  uint32_t bits = 0;              // for the status
  uint32_t first_position = 0;    // that it looks at

  __device__ void find(const AttentionStrands& p, uint32_t r) {
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
  }
  /// True when of its pages the one `at`, or one of every `step` behind it, is none of the cache.
  __device__ bool lacks_page(const PageTable& table, uint32_t at, uint32_t step) const {
    bool missing = false;
    for (uint32_t i = first_position / kPagePositions + at;
         ids != nullptr && i <= row.position / kPagePositions; i += step)
      missing = missing || __ldcg(ids + i) >= table.cache_pages;
    return missing;
  }
  __device__ void refuse_page() {
    bits = kPageOutOfRange;
    ids = nullptr;
  }
  __device__ void raise(const AttentionStrands& p) const {
    raise_status(p.status, bits == kSlotOutOfRange ? p.table.slots : row.slot, bits);
  }
};

/// What a part adds to a value; nothing, whatever it is, where the part has none.
__device__ inline float joined(float factor, float value, float to) {
  return factor == 0 ? to : __fmaf_rn(factor, value, to);
}

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
  __device__ float add(uint32_t i, float value, float to) const { return joined(factors[i], value, to); }
  /// Four neighbouring values, of which each part has its own, `stride` floats behind those of the part before it.
  __device__ float4 values(const float* of_parts, uint32_t stride) const {
    float4 value = make_float4(0, 0, 0, 0);
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) {
      const float4 part = *reinterpret_cast<const float4*>(of_parts + size_t{i} * stride);
      value = make_float4(add(i, part.x, value.x), add(i, part.y, value.y), add(i, part.z, value.z),
                          add(i, part.w, value.w));
    }
    return value;
  }
};

/// What the blocks of a cluster tell each other of columns, which are queries of one row or of many: each of them joins a
/// slice of the head's dimensions. A barrier in shared memory, `arrived`, says when all of it is there.
template <uint32_t kDim, uint32_t kColumns>
struct Parts {
  static constexpr uint32_t kSlice = kDim / kCluster;
  float2 sums[kCluster][kColumns];  // greatest score, sum of weights
  float values[kCluster][kColumns][kSlice];

  __device__ static uint32_t bytes(uint32_t columns) {
    return kCluster * columns * static_cast<uint32_t>(sizeof(float2) + kSlice * sizeof(float));
  }
  __device__ static uint32_t address(const void* shared, uint32_t rank) {
    uint32_t result;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(result) : "r"(shared_address(shared)), "r"(rank));
    return result;
  }
  /// By one thread, before the cluster's blocks have met.
  __device__ static void begin(uint64_t& arrived) {
    init_barrier(shared_address(&arrived), 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  /// By one thread, before the cluster's blocks have met again.
  __device__ static void expect(uint64_t& arrived, uint32_t columns) {
    expect_bytes(shared_address(&arrived), bytes(columns));
  }
  /// `phase`: how often the barrier has been waited for, modulo two.
  __device__ static void wait(uint64_t& arrived, uint32_t phase) {
    asm volatile(
        "{\n .reg .pred done;\n WAIT_%=:\n mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, "
        "[%0], %1;\n "
        "@!done bra WAIT_%=;\n}" ::"r"(shared_address(&arrived)),
        "r"(phase)
        : "memory");
  }
  /// Of a column to the block that joins these dimensions, with the sums once a slice. `dimension`: a multiple of 4.
  __device__ void send(const uint64_t& arrived, uint32_t rank, uint32_t column, uint32_t dimension,
                       float4 value, float2 sum) const {
    const uint32_t to = dimension / kSlice, within = dimension % kSlice;
    const uint32_t barrier = address(&arrived, to);
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
            address(&values[rank][column][within], to)),
        "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(barrier)
        : "memory");
    if (within != 0) return;
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
                     address(&sums[rank][column], to)),
                 "f"(sum.x), "f"(sum.y), "r"(barrier)
                 : "memory");
  }
  /// A column's value of dimension d of the slice, all ranks joined.
  __device__ float value(uint32_t column, uint32_t d) const {
    const Joint<kCluster> joint(&sums[0][column], kColumns);
    float value = 0;
#pragma unroll
    for (uint32_t i = 0; i < kCluster; ++i) value = joint.add(i, values[i][column][d], value);
    return __fdiv_rn(value, joint.sum);
  }
};

}  // namespace refrain::ops::decode
