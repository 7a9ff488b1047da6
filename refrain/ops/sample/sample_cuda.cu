// Sampling, CUDA kernel: blocks that share a row look for its greatest logit; the last of them draws. Sums run in the order
// that the op names, by one thread; all else is shared by the block. The operations are those of the CPU's kernels, so it
// draws the same tokens.
#include <algorithm>
#include <limits>

#include "refrain/backend/cuda/device.cuh"
#include "refrain/backend/cuda/plugin.h"
#include "refrain/core/checked.h"
#include "refrain/ops/order_key.cuh"
#include "refrain/ops/sample/exponential.h"
#include "refrain/ops/sample/philox.h"
#include "refrain/ops/sample/sample.h"
#include "refrain/ops/step_row.h"

namespace refrain::ops {
namespace {

using namespace backend::cuda;

constexpr uint32_t kThreads = 1024;
constexpr uint32_t kWalkers = 16;            // rows at a time; each has memory to sort all ids in
constexpr uint32_t kMostParts = 32;          // blocks of a row, where each walker has one row only
constexpr uint32_t kPartIds = 4 * kThreads;  // that are worth a block
using SampleParameters = Parameters<SampleConstants, 6>;

/// Memory of the block.
struct Shared {
  OrderKey keys[kThreads / kWarp];
  uint32_t counts[kThreads / kWarp];
  double weights[kThreads];
  double total;
  uint32_t count;
  bool stop;
};

struct Logits {
  const float* values;
  const uint32_t* allowed;  ///< null: all
  uint32_t vocabulary;

  __device__ bool admitted(uint32_t id) const {
    return allowed == nullptr || (allowed[id / 32] >> id % 32 & 1) != 0;
  }
  __device__ bool candidate(uint32_t id) const {
    return admitted(id) && values[id] > -std::numeric_limits<float>::infinity();
  }
};

/// Calls visit(i, weight(i)) in one thread for i = 0, 1, ... below `count`, until it gives true. Weights are computed by all.
template <class Weight, class Visit>
__device__ void in_order(uint32_t count, Shared& shared, Weight weight, Visit visit) {
  for (uint32_t first = 0; first < count; first += kThreads) {
    const uint32_t i = first + threadIdx.x;
    shared.weights[threadIdx.x] = i < count ? weight(i) : 0.0;
    __syncthreads();
    if (threadIdx.x == 0) {
      const uint32_t size = min(kThreads, count - first);
      shared.stop = false;
      for (uint32_t k = 0; k < size && !shared.stop; ++k) shared.stop = visit(first + k, shared.weights[k]);
    }
    __syncthreads();
    if (shared.stop) return;
  }
}

/// Sorts `size` keys, a power of two, in descending order.
__device__ void sort_descending(OrderKey* keys, uint32_t size) {
  for (uint32_t run = 2; run <= size; run *= 2) {
    for (uint32_t stride = run / 2; stride > 0; stride /= 2) {
      __syncthreads();
      for (uint32_t pair = threadIdx.x; pair < size / 2; pair += kThreads) {
        const uint32_t low = pair / stride * stride * 2 + pair % stride;
        const OrderKey a = keys[low], b = keys[low + stride];
        const bool descending = (low & run) == 0;
        if ((a < b) == descending) {
          keys[low] = b;
          keys[low + stride] = a;
        }
      }
    }
  }
  __syncthreads();
}

constexpr uint32_t sorted_size(uint32_t vocabulary) {
  uint32_t size = 1;
  while (size < vocabulary) size *= 2;
  return size;
}

/// Of some ids: the greatest that is admitted, 0 if none is, and how many may be drawn.
struct Greatest {
  OrderKey best = 0;
  unsigned long long count = 0;
};

/// In every thread, of part `part` of `parts` of the ids.
__device__ Greatest greatest_of(const Logits& logits, uint32_t part, uint32_t parts, Shared& shared) {
  OrderKey best = 0;
  uint32_t count = 0;
#pragma unroll 4
  for (uint32_t id = part * kThreads + threadIdx.x; id < logits.vocabulary; id += parts * kThreads) {
    const float value = logits.values[id];
    if (!logits.admitted(id)) continue;
    best = max(best, order_key(value, id));
    count += value > -std::numeric_limits<float>::infinity() ? 1 : 0;
  }
  best = block_join<kThreads>(best, shared.keys, [](OrderKey a, OrderKey b) { return max(a, b); });
  count = block_join<kThreads>(count, shared.counts, [](uint32_t a, uint32_t b) { return a + b; });
  return {best, count};
}

/// In every thread of the last of the blocks of a row, of all ids; false in the others. `seen`: a Greatest a part.
__device__ bool join_parts(Greatest& greatest, uint32_t parts, Greatest* seen, uint32_t* ticket,
                           Shared& shared) {
  if (parts == 1) return true;
  if (threadIdx.x == 0) {
    seen[blockIdx.x % parts] = greatest;
    __threadfence();
    shared.stop = atomicInc(ticket, parts - 1) == parts - 1;  // and zero again
    __threadfence();
  }
  __syncthreads();
  if (!shared.stop) return false;
  OrderKey best = 0;
  uint32_t count = 0;
  if (threadIdx.x < parts) {
    best = __ldcg(&seen[threadIdx.x].best);
    count = static_cast<uint32_t>(__ldcg(&seen[threadIdx.x].count));
  }
  best = block_join<kThreads>(best, shared.keys, [](OrderKey a, OrderKey b) { return max(a, b); });
  count = block_join<kThreads>(count, shared.counts, [](uint32_t a, uint32_t b) { return a + b; });
  greatest = {best, count};
  return true;
}

/// The token of one row, in every thread.
__device__ uint32_t draw(const Logits& logits, const Greatest& seen, const Slot& slot, uint32_t position,
                         OrderKey* list, Shared& shared) {
  const OrderKey best = seen.best;
  const auto count = static_cast<uint32_t>(seen.count);
  if (best == 0) return 0;  // nothing is admitted
  const float greatest = logits.values[id_of(best)];
  if (!(slot.temperature > 0) || count == 0 || !isfinite(greatest)) return id_of(best);

  const double temperature = static_cast<double>(slot.temperature);
  const auto weigh = [&](float logit) {
    return sampling::exp_of_negative((static_cast<double>(logit) - static_cast<double>(greatest)) /
                                     temperature);
  };
  const auto by_id = [&](uint32_t id) { return logits.candidate(id) ? weigh(logits.values[id]) : 0.0; };
  const std::array<uint32_t, 4> words = philox4x32_10(
      {position, 0, 0, 0}, {static_cast<uint32_t>(slot.seed), static_cast<uint32_t>(slot.seed >> 32)});
  const double uniform = static_cast<double>(words[0]) * 0x1p-32;
  const bool top_k = slot.top_k > 0 && slot.top_k < count;
  const bool top_p = slot.top_p < 1;

  double sum = 0;  // of thread 0, until it is shared
  const auto share_total = [&] {
    __syncthreads();
    if (threadIdx.x == 0) shared.total = sum;
    __syncthreads();
    return shared.total;
  };
  const auto add = [&](uint32_t, double weight) {
    sum += weight;
    return false;
  };
  uint32_t chosen = 0;  // of thread 0
  // The first at which the running sum exceeds the threshold; failing that the last.
  const auto choose = [&](double threshold) {
    return [&, threshold](uint32_t i, double weight) {
      sum += weight;
      chosen = i;
      return sum > threshold;
    };
  };
  const auto share_chosen = [&] {
    __syncthreads();
    if (threadIdx.x == 0) shared.count = chosen;
    __syncthreads();
    return shared.count;
  };

  if (!top_k && !top_p) {
    in_order(logits.vocabulary, shared, by_id, add);
    const double total = share_total();
    sum = 0;
    in_order(logits.vocabulary, shared, by_id, choose(uniform * total));
    return share_chosen();
  }

  const uint32_t size = sorted_size(logits.vocabulary);
  for (uint32_t id = threadIdx.x; id < size; id += kThreads)
    list[id] = id < logits.vocabulary && logits.candidate(id) ? order_key(logits.values[id], id) : 0;
  sort_descending(list, size);
  const auto by_rank = [&](uint32_t i) { return weigh(logits.values[id_of(list[i])]); };
  uint32_t kept = top_k ? slot.top_k : count;
  if (top_k) {
    in_order(kept, shared, by_rank, add);
  } else {
    in_order(logits.vocabulary, shared, by_id, add);
  }
  double total = share_total();
  if (top_p) {
    const double wanted = static_cast<double>(slot.top_p) * total;
    sum = 0;
    in_order(kept, shared, by_rank, [&](uint32_t i, double weight) {
      sum += weight;
      chosen = i + 1;
      return !(sum < wanted);
    });
    kept = share_chosen();
    total = share_total();
  }
  sum = 0;
  in_order(kept, shared, by_rank, choose(uniform * total));
  return id_of(list[share_chosen()]);
}

/// What is to be drawn for an output.
struct Wanted {
  uint32_t index = kIdle;  ///< of the row
  uint32_t position = 0;
  uint32_t slot = kIdle;
  uint32_t mask = kNoTable;
};

__device__ Wanted wanted_of(const SampleParameters& p, uint32_t output) {
  Wanted wanted;
  wanted.index = __ldcg(p.arg<const uint32_t>(1) + output);
  if (wanted.index >= p.constants.step_rows) return wanted;
  const StepRow& row = p.arg<const StepRow>(2)[wanted.index];
  wanted.position = __ldcg(&row.position);
  wanted.slot = __ldcg(&row.slot);
  if (wanted.slot < p.constants.slots) wanted.mask = __ldcg(&p.arg<const Slot>(3)[wanted.slot].mask);
  return wanted;
}

__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ SampleParameters p) {
  const SampleConstants& c = p.constants;
  __shared__ Shared shared;
  // A walker's blocks follow each other; with more than one of them it has one row.
  const uint32_t parts = gridDim.x / p.state.walkers, walker = blockIdx.x / parts;
  Wanted wanted;
  const Running run(p.state, [&] {
    if (p.state.ahead) wanted = wanted_of(p, walker);
  });
  auto* list = reinterpret_cast<OrderKey*>(p.state.scratch + walker * p.state.scratch_bytes);
  auto* seen = reinterpret_cast<Greatest*>(p.state.workspace) + walker * parts;
  const Slot* slots = p.arg<const Slot>(3);
  uint32_t* status = p.arg<uint32_t>(5);
  for (uint32_t o = walker; o < run.rows; o += p.state.walkers) {
    if (o != walker || !p.state.ahead) wanted = wanted_of(p, o);
    if (wanted.index >= c.step_rows) {
      if (wanted.index != kIdle && threadIdx.x == 0) raise_status(status, c.slots, kOutputOutOfRange);
      continue;
    }
    uint32_t& sampled = p.arg<StepRow>(2)[wanted.index].sampled;
    const bool in_table = wanted.slot < c.slots;
    if (!in_table || (wanted.mask != kNoTable && wanted.mask >= c.masks)) {
      if (threadIdx.x == 0) {
        if (wanted.slot != kIdle)
          raise_status(status, in_table ? wanted.slot : c.slots,
                       in_table ? kTableOutOfRange : kSlotOutOfRange);
        atomicExch(&sampled, kNoToken);
      }
      continue;
    }
    const uint32_t* masks = p.arg<const uint32_t>(4);
    const Logits logits = {
        p.arg<const float>(0) + size_t{o} * c.vocabulary,
        wanted.mask == kNoTable ? nullptr : masks + wanted.mask * ((c.vocabulary + size_t{31}) / 32),
        c.vocabulary};
    Greatest greatest = greatest_of(logits, blockIdx.x % parts, parts, shared);
    if (!join_parts(greatest, parts, seen, p.state.tickets + walker, shared)) return;
    const uint32_t token = draw(logits, greatest, slots[wanted.slot], wanted.position, list, shared);
    if (threadIdx.x == 0) {
      if (!isfinite(logits.values[token])) raise_status(status, wanted.slot, kNotFinite);
      atomicExch(&sampled, token);  // an index may be given twice
    }
    __syncthreads();
  }
}

/// Blocks that share a row.
uint32_t parts_of(const SampleConstants& c) {
  return c.rows > kWalkers ? 1 : std::min(ceil_div(c.vocabulary, kPartIds), kMostParts);
}

GridShape shape(const BoundCommand& command) {
  return {.blocks =
              uint64_t{command.state.walkers} * parts_of(command.members[0].constants_as<SampleConstants>()),
          .threads = kThreads};
}

backend::Launch launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& c = call.constants_as<SampleConstants>();
  return {.rows = c.rows,
          .scratch_bytes = align_up(sorted_size(c.vocabulary) * sizeof(OrderKey), 64),
          .walkers = std::min(c.rows, kWalkers),
          .workspace_bytes = c.rows > kWalkers ? 0 : c.rows * parts_of(c) * sizeof(Greatest),
          .ticket_bytes = c.rows > kWalkers ? 0 : c.rows * sizeof(uint32_t)};
}

}  // namespace

std::span<const PluginKernel> sample_cuda_kernels() {
  static const KernelEntry kEntry = [] {
    KernelEntry entry = plain_entry(sample_kernel, shape);
    entry.reads_ahead = [](uint32_t, uint32_t argument) { return argument >= 1 && argument <= 3; };
    return entry;
  }();
  static const PluginKernel kKernels[] = {
      {.op = "sample",
       .kernel = {.name = "sample_f32_cuda",
                  .numerics = "exact, f64 without FMA",
                  .accepts = [](const backend::OpCall&) { return true; },
                  .launch = launch,
                  .entry = &kEntry}},
  };
  return kKernels;
}

}  // namespace refrain::ops
