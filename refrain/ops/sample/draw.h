// The drawing of one token, as source that every CPU kernel of `sample` compiles for its own instruction set.
// Only operations that IEEE 754 rounds exactly, in one order, so that all of them draw the same tokens.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "refrain/ops/sample/exponential.h"
#include "refrain/ops/sample/philox.h"
#include "refrain/ops/sample/sample.h"
#include "refrain/ops/step_row.h"

namespace refrain::ops::sampling {

struct Candidate {
  float logit;
  uint32_t id;
};

/// Descending logit, the lower id of equals first.
inline bool before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/// For heaps whose top is the first.
inline bool after(const Candidate& a, const Candidate& b) { return before(b, a); }

inline constexpr uint32_t kBlock = 32;  // one word of the mask
inline constexpr float kLowest = -std::numeric_limits<float>::infinity();

/// The logits of one row as 32 at a time, with minus infinity for what is no candidate.
struct Logits {
  const float* values;
  const uint32_t* allowed;  ///< null: all
  uint32_t vocabulary;

  REFRAIN_SAMPLE_INLINE uint32_t mask(uint32_t first) const {
    const uint32_t count = vocabulary - first;
    const uint32_t inside = count >= kBlock ? ~0u : (1u << count) - 1;
    return allowed == nullptr ? inside : inside & allowed[first / kBlock];
  }
  REFRAIN_SAMPLE_INLINE void load(uint32_t first, float* block) const {
    const uint32_t bits = mask(first);
    if (bits == ~0u) {
      for (uint32_t i = 0; i < kBlock; ++i)
        block[i] = values[first + i] > kLowest ? values[first + i] : kLowest;
    } else {
      for (uint32_t i = 0; i < kBlock; ++i) {
        block[i] = (bits >> i & 1) != 0 && values[first + i] > kLowest ? values[first + i] : kLowest;
      }
    }
  }
};

/// The greatest candidate's logit and the number of candidates.
struct Survey {
  float greatest = kLowest;
  uint32_t candidates = 0;
};

REFRAIN_SAMPLE_INLINE Survey survey(const Logits& logits) {
  float greatest[kBlock];
  uint32_t counts[kBlock] = {};
  std::fill_n(greatest, kBlock, kLowest);
  float block[kBlock];
  for (uint32_t first = 0; first < logits.vocabulary; first += kBlock) {
    logits.load(first, block);
    for (uint32_t i = 0; i < kBlock; ++i) {
      greatest[i] = block[i] > greatest[i] ? block[i] : greatest[i];
      counts[i] += block[i] > kLowest ? 1u : 0u;
    }
  }
  Survey result;
  for (uint32_t i = 0; i < kBlock; ++i) {
    result.greatest = std::max(result.greatest, greatest[i]);
    result.candidates += counts[i];
  }
  return result;
}

/// The first admitted id whose logit equals `wanted`; failing that the least admitted id; failing that 0.
inline uint32_t first_equal(const Logits& logits, float wanted) {
  uint32_t least = UINT32_MAX;
  for (uint32_t id = 0; id < logits.vocabulary; ++id) {
    if ((logits.mask(id / kBlock * kBlock) >> (id % kBlock) & 1) == 0) continue;
    if (logits.values[id] == wanted) return id;
    least = std::min(least, id);
  }
  return least == UINT32_MAX ? 0 : least;
}

/// The `count` first candidates in order, at the beginning of `list` (one place for each id).
inline void collect_first(const Logits& logits, uint32_t count, Candidate* list) {
  // The list is cut back to `count` whenever it is full; from then on only greater logits can enter, since
  // ids ascend and the lower id of equals wins.
  const size_t limit = std::min<size_t>(logits.vocabulary, std::max<size_t>(size_t{2} * count, 1024));
  size_t size = 0;
  float threshold = kLowest;
  float block[kBlock];
  for (uint32_t first = 0; first < logits.vocabulary; first += kBlock) {
    logits.load(first, block);
    for (uint32_t i = 0; i < kBlock; ++i) {
      if (!(block[i] > threshold)) continue;
      if (size == limit) {
        std::nth_element(list, list + (count - 1), list + size, before);
        size = count;
        threshold = list[count - 1].logit;
        if (!(block[i] > threshold)) continue;
      }
      list[size++] = {block[i], first + i};
    }
  }
  if (count < size) std::nth_element(list, list + (count - 1), list + size, before);
  std::sort(list, list + std::min<size_t>(count, size), before);
}

/// All candidates, in order of id.
inline size_t collect_all(const Logits& logits, Candidate* list) {
  size_t size = 0;
  float block[kBlock];
  for (uint32_t first = 0; first < logits.vocabulary; first += kBlock) {
    logits.load(first, block);
    for (uint32_t i = 0; i < kBlock; ++i) {
      if (block[i] > kLowest) list[size++] = {block[i], first + i};
    }
  }
  return size;
}

/// The running sums of the weights in order of id (0 for what is no candidate). Gives the last; `sums` may be
/// null.
REFRAIN_SAMPLE_INLINE double running_sums(const Logits& logits, float greatest, double temperature,
                                          double* sums) {
  double total = 0;
  float block[kBlock];
  double weights[kBlock];
  for (uint32_t first = 0; first < logits.vocabulary; first += kBlock) {
    logits.load(first, block);
    for (uint32_t i = 0; i < kBlock; ++i) {
      // Minus infinity weighs 0, also by an infinite temperature: the quotient is then a NaN.
      weights[i] =
          exp_of_negative((static_cast<double>(block[i]) - static_cast<double>(greatest)) / temperature);
    }
    const uint32_t count = std::min(kBlock, logits.vocabulary - first);
    for (uint32_t i = 0; i < count; ++i) {
      total += weights[i];
      if (sums != nullptr) sums[first + i] = total;
    }
  }
  return total;
}

/// The token of one row. `scratch` holds eight bytes for each id.
REFRAIN_SAMPLE_INLINE uint32_t draw(const Logits& logits, const Slot& slot, uint32_t position,
                                    std::byte* scratch) {
  const Survey found = survey(logits);
  const bool finite = found.greatest > kLowest && found.greatest < std::numeric_limits<float>::infinity();
  if (!(slot.temperature > 0) || !finite) return first_equal(logits, found.greatest);

  const double temperature = static_cast<double>(slot.temperature);
  const std::array<uint32_t, 4> words = philox4x32_10(
      {position, 0, 0, 0}, {static_cast<uint32_t>(slot.seed), static_cast<uint32_t>(slot.seed >> 32)});
  const double uniform = static_cast<double>(words[0]) * 0x1p-32;
  const bool top_k = slot.top_k > 0 && slot.top_k < found.candidates;
  const bool top_p = slot.top_p < 1;

  if (!top_k && !top_p) {
    double* sums = reinterpret_cast<double*>(scratch);
    const double total = running_sums(logits, found.greatest, temperature, sums);
    // The greatest logit weighs 1 and uniform < 1, so the last sum exceeds the threshold.
    return static_cast<uint32_t>(std::upper_bound(sums, sums + logits.vocabulary, uniform * total) - sums);
  }

  const auto weight = [&](const Candidate& candidate) {
    return exp_of_negative((static_cast<double>(candidate.logit) - static_cast<double>(found.greatest)) /
                           temperature);
  };
  Candidate* list = reinterpret_cast<Candidate*>(scratch);
  size_t kept = slot.top_k;
  double total = 0;
  if (top_k) {
    collect_first(logits, slot.top_k, list);
    for (size_t i = 0; i < kept; ++i) total += weight(list[i]);
  } else {
    total = running_sums(logits, found.greatest, temperature, nullptr);
    kept = collect_all(logits, list);
    std::make_heap(list, list + kept, after);
  }
  if (top_p) {
    const double wanted = static_cast<double>(slot.top_p) * total;
    const size_t size = kept;
    double sum = 0;
    kept = 0;
    do {
      // The first of a heap moves to the end of it; a list of top_k is in order already.
      if (!top_k) std::pop_heap(list, list + (size - kept), after);
      sum += weight(top_k ? list[kept] : list[size - 1 - kept]);
      ++kept;
    } while (kept < size && sum < wanted);
    total = sum;
    if (!top_k) {
      list += size - kept;
      std::reverse(list, list + kept);
    }
  }
  const double threshold = uniform * total;
  double running = 0;
  for (size_t i = 0; i < kept; ++i) {
    running += weight(list[i]);
    if (running > threshold) return list[i].id;
  }
  return list[kept - 1].id;
}

/// Other tiles may write the same word, when an index is given twice.
inline void write_sampled(StepRow& row, uint32_t token) {
  std::atomic_ref<uint32_t>(row.sampled).store(token, std::memory_order_relaxed);
}

/// Tiles [begin, end) of `sample`.
REFRAIN_SAMPLE_INLINE void sample_tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<SampleConstants>();
  const uint32_t* index = args.arg<const uint32_t>(1);
  StepRow* rows = args.arg<StepRow>(2);
  const Slot* slots = args.arg<const Slot>(3);
  const uint32_t* masks = args.arg<const uint32_t>(4);
  uint32_t* status = args.arg<uint32_t>(5);
  for (uint32_t o = begin; o < end; ++o) {
    if (index[o] >= c.step_rows) {
      if (index[o] != kIdle) raise_status(status, c.slots, kOutputOutOfRange);
      continue;
    }
    StepRow& row = rows[index[o]];
    const bool in_table = row.slot < c.slots;
    const uint32_t mask = in_table ? slots[row.slot].mask : kNoTable;
    if (!in_table || (mask != kNoTable && mask >= c.masks)) {
      if (row.slot != kIdle)
        raise_status(status, in_table ? row.slot : c.slots, in_table ? kTableOutOfRange : kSlotOutOfRange);
      write_sampled(row, kNoToken);
      continue;
    }
    const size_t mask_words = (c.vocabulary + size_t{kBlock} - 1) / kBlock;
    const Logits logits = {args.arg<const float>(0) + size_t{o} * c.vocabulary,
                           mask == kNoTable ? nullptr : masks + mask * mask_words, c.vocabulary};
    const uint32_t token = draw(logits, slots[row.slot], row.position, args.scratch);
    if (!std::isfinite(logits.values[token])) raise_status(status, row.slot, kNotFinite);
    write_sampled(row, token);
  }
}

}  // namespace refrain::ops::sampling
