#include "refrain/graph/numerics.h"

#include <fmt/format.h>

#include <algorithm>

#include "refrain/backend/plan.h"
#include "refrain/core/error.h"

namespace refrain::graph {
namespace {

using backend::ArgumentInfo;
using backend::kNone;

const WeightFormat* format_of(const ArgumentInfo& info) {
  return info.weight != nullptr ? info.weight->format : nullptr;
}

std::string types_text(std::span<const ArgumentInfo> types) {
  std::string text;
  for (const ArgumentInfo& info : types) {
    if (!info.bound) continue;
    text += text.empty() ? "" : ", ";
    text += info.weight != nullptr ? info.weight->format->name : name(info.dtype);
  }
  return text;
}

[[noreturn]] void refuse(const char* where, std::string_view op, std::string_view types,
                         std::string_view kernel, std::string_view numerics, std::string_view other_kernel,
                         std::string_view other_numerics) {
  throw InvalidArgument(fmt::format(
      "[plan] {} of {}: expected one numerics class in {}, got kernel {} of the class '{}' and kernel {} of "
      "the class '{}'",
      op, types, where, kernel, numerics, other_kernel, other_numerics));
}

}  // namespace

bool NumericsBook::same_types(const Entry& entry, const backend::OpCall& call) {
  return std::ranges::equal(entry.types, call.args, [](const ArgumentInfo& a, const ArgumentInfo& b) {
    return a.bound == b.bound && a.dtype == b.dtype && format_of(a) == format_of(b);
  });
}

void NumericsBook::add(const backend::OpCall& call, std::string_view kernel, std::string_view numerics,
                       uint32_t recorded, bool elided) {
  // Layers repeat what those before them have called, mostly in the same order.
  const size_t count = entries_.size();
  uint32_t found = kNone;
  for (size_t i = 0; i < count && found == kNone; ++i) {
    const size_t at = next_ + i < count ? next_ + i : next_ + i - count;
    const Entry& entry = entries_[at];
    if (entry.op != call.op || entry.elided != elided || !same_types(entry, call)) continue;
    if (entry.numerics == numerics) {
      found = static_cast<uint32_t>(at);
    } else if (!elided) {
      refuse("a plan", call.op->name, types_text(call.args), entry.kernel, entry.numerics, kernel, numerics);
    }
  }
  if (found == kNone) {
    found = static_cast<uint32_t>(entries_.size());
    entries_.push_back({call.op, {call.args.begin(), call.args.end()}, numerics, kernel, elided});
  }
  next_ = found + 1 < entries_.size() ? found + 1 : 0;
  if (recorded == kNone) return;
  if (of_.size() <= recorded) of_.resize(size_t{recorded} + 1, kNone);
  of_[recorded] = found;
}

void NumericsBook::report(PlanReport& report) const {
  for (const Entry& entry : entries_) {
    report.numerics.push_back({std::string(entry.op->name), types_text(entry.types),
                               std::string(entry.numerics), std::string(entry.kernel), entry.elided});
  }
  report.numerics_of = of_;
}

void require_same_numerics(const PlanReport& first, const PlanReport& other) {
  const size_t commands = std::min(first.numerics_of.size(), other.numerics_of.size());
  for (size_t i = 0; i < commands; ++i) {
    if (first.numerics_of[i] == kNone || other.numerics_of[i] == kNone) continue;
    const OpNumerics& a = first.numerics[first.numerics_of[i]];
    const OpNumerics& b = other.numerics[other.numerics_of[i]];
    if (a.op == b.op && a.numerics != b.numerics)
      refuse("the plans of a model", a.op, a.types, a.kernel, a.numerics, b.kernel, b.numerics);
  }
}

}  // namespace refrain::graph
