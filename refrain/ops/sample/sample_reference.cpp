// Sampling, the reference: everything sorted, every step as the definition has it.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "refrain/ops/sample/philox.h"
#include "refrain/ops/sample/sample.h"
#include "refrain/ops/step_block.h"

namespace refrain::ops {
namespace {

using Candidate = std::pair<double, uint32_t>;  // logit, id

bool before(const Candidate& a, const Candidate& b) {
  return a.first > b.first || (a.first == b.first && a.second < b.second);
}

uint32_t draw(const float* logits, uint32_t vocabulary, const uint32_t* allowed, const Slot& slot,
              uint32_t position) {
  std::vector<Candidate> admitted, candidates;
  uint32_t fallback = UINT32_MAX;
  for (uint32_t id = 0; id < vocabulary; ++id) {
    if (allowed != nullptr && (allowed[id / 32] >> (id % 32) & 1) == 0) continue;
    fallback = std::min(fallback, id);
    const double logit = static_cast<double>(logits[id]);
    if (std::isnan(logit)) continue;
    admitted.emplace_back(logit, id);
    if (logit != -INFINITY) candidates.emplace_back(logit, id);
  }
  if (fallback == UINT32_MAX) return 0;
  if (admitted.empty()) return fallback;
  const Candidate greatest = *std::min_element(admitted.begin(), admitted.end(), before);
  const double temperature = static_cast<double>(slot.temperature);
  if (!(temperature > 0) || std::isinf(greatest.first)) return greatest.second;

  const bool top_k = slot.top_k > 0 && slot.top_k < candidates.size();
  const bool top_p = slot.top_p < 1;
  const auto weight = [&](const Candidate& candidate) {
    const double x = (candidate.first - greatest.first) / temperature;
    return x < -700 ? 0 : std::exp(x);
  };
  const auto sum = [&] {
    double total = 0;
    for (const Candidate& candidate : candidates) total += weight(candidate);
    return total;
  };
  if (top_k) {
    std::sort(candidates.begin(), candidates.end(), before);
    candidates.resize(slot.top_k);
  }
  double total = sum();
  if (top_p) {
    std::sort(candidates.begin(), candidates.end(), before);
    double kept = 0;
    size_t count = 0;
    do {
      kept += weight(candidates[count++]);
    } while (count < candidates.size() && kept < static_cast<double>(slot.top_p) * total);
    candidates.resize(count);
    total = sum();
  }
  const auto words = philox4x32_10(
      {position, 0, 0, 0}, {static_cast<uint32_t>(slot.seed), static_cast<uint32_t>(slot.seed >> 32)});
  const double threshold = static_cast<double>(words[0]) * 0x1p-32 * total;
  double running = 0;
  for (const Candidate& candidate : candidates) {
    running += weight(candidate);
    if (running > threshold) return candidate.second;
  }
  return candidates.back().second;
}

}  // namespace

void sample_reference(const backend::TileArgs& args) {
  const auto& c = args.constants_as<SampleConstants>();
  const uint32_t* index = args.arg<const uint32_t>(1);
  StepRow* rows = args.arg<StepRow>(2);
  uint32_t* status = args.arg<uint32_t>(5);
  for (size_t o = 0; o < args.live_rows; ++o) {
    if (index[o] == 0xFFFFFFFF) continue;
    if (index[o] >= c.step_rows) {
      status[c.slots] |= kOutputOutOfRange;
      continue;
    }
    StepRow& row = rows[index[o]];
    row.sampled = 0xFFFFFFFF;
    if (row.slot == 0xFFFFFFFF) continue;
    if (row.slot >= c.slots) {
      status[c.slots] |= kSlotOutOfRange;
      continue;
    }
    const Slot& slot = args.arg<const Slot>(3)[row.slot];
    const uint32_t* mask = nullptr;
    if (slot.mask != 0xFFFFFFFF) {
      if (slot.mask >= c.masks) {
        status[row.slot] |= kTableOutOfRange;
        continue;
      }
      mask = args.arg<const uint32_t>(4) + uint64_t{slot.mask} * ((uint64_t{c.vocabulary} + 31) / 32);
    }
    const float* logits = args.arg<const float>(0) + o * c.vocabulary;
    row.sampled = draw(logits, c.vocabulary, mask, slot, row.position);
    if (!std::isfinite(logits[row.sampled])) status[row.slot] |= kNotFinite;
  }
}

}  // namespace refrain::ops
