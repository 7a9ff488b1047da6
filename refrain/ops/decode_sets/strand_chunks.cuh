// Attention by strands for many rows (strands_many.cuh): chunks of keys and values in shared memory, and their order.
#pragma once

#include "refrain/ops/decode_sets/barriers.cuh"
#include "refrain/ops/decode_sets/strand.cuh"

namespace refrain::ops::decode {

/// A barrier in shared memory that a number of arrivals ends a phase of.
struct PhaseBarrier {
  uint64_t word;

  __device__ void begin(uint32_t arrivals, bool again) {
    if (again) asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(&word)) : "memory");
    init_barrier(shared_address(&word), arrivals);
  }
  __device__ void arrive() { decode::arrive(shared_address(&word)); }
  __device__ void arrive_after_copies() { decode::arrive_after_copies(shared_address(&word)); }
  __device__ void wait(uint32_t phase) { await(shared_address(&word), phase & 1); }
};

/// A chunk in shared memory, padded so that the lanes of a load meet no bank twice.
template <uint32_t kDim>
struct SharedChunk {
  __half keys[kChunk][kDim + 32];
  __half values[kChunk][kDim + 8];

  /// Of one kind, by a warp. `from`: [kChunk][kDim].
  template <uint32_t kStride>
  __device__ static void copy(__half (&to)[kChunk][kStride], const __half* from) {
    constexpr uint32_t kPieces = kDim / 8;  // 16 bytes each
#pragma unroll
    for (uint32_t i = 0; i < kChunk * kPieces / kWarp; ++i) {
      const uint32_t piece = i * kWarp + threadIdx.x % kWarp;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                       shared_address(&to[piece / kPieces][piece % kPieces * 8])),
                   "l"(from + piece * 8)
                   : "memory");
    }
  }
  /// The left operand of a product for the values of 16 dimensions: lane (g, t) gets of dimensions g and 8 + g positions 2 t
  /// and 2 t + 1, then 8 + 2 t and 9 + 2 t.
  __device__ void load_values(uint32_t dimension, uint32_t (&a)[4]) const {
    const uint32_t lane = threadIdx.x % kWarp;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(shared_address(&values[lane / 16 * 8 + lane % 8][dimension + lane / 8 % 2 * 8]))
                 : "memory");
  }
};

/// The chunks of a rank within [first, last], strand after strand; and again from the first one.
struct RankChunks {
  uint32_t first, last;
  uint32_t chunk = 0;

  /// Returns how many there are.
  __device__ uint32_t begin(uint32_t rank) {
    const uint32_t least = first + (rank - first) % kCluster;
    if (least > last) return 0;
    chunk = first + (rank - first) % kStrands;
    settle();
    return (last - least) / kCluster + 1;
  }
  /// As begin(), of one strand alone.
  __device__ uint32_t begin_strand(uint32_t strand) {
    chunk = first + (strand - first) % kStrands;
    return chunk > last ? 0 : (last - chunk) / kStrands + 1;
  }
  /// Where there is one.
  __device__ void next() {
    chunk += kStrands;
    settle();
  }
  __device__ bool ends_strand() const { return chunk + kStrands > last; }

 private:
  /// The next strand of the rank is the next of its residues; behind the last one comes the first.
  __device__ void settle() {
    while (chunk > last) chunk = first + (chunk + kCluster - first) % kStrands;
  }
};

}  // namespace refrain::ops::decode
