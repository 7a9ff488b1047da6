#include "refrain/backend/set_pattern.h"

#include <algorithm>
#include <array>

namespace refrain::backend {
namespace {

// Places of a pattern: bits of a word.
constexpr size_t kMostPlaces = 32;

class Matcher {
 public:
  Matcher(const SetPattern& pattern, const SetCall& call, std::span<uint32_t> places)
      : pattern_(pattern), call_(call), places_(places) {
    member_of_.fill(kNone);
  }

  Fit run() {
    if (call_.members.size() > pattern_.places.size() || pattern_.places.size() > kMostPlaces) return Fit::no;
    if (!assign(0)) return Fit::no;
    return call_.members.size() == pattern_.places.size() ? Fit::whole : Fit::part;
  }

 private:
  /// Tries every place for member `m` and all that follow.
  bool assign(size_t m) {
    if (m == call_.members.size()) return complete();
    for (uint32_t place = 0; place < pattern_.places.size(); ++place) {
      if (member_of_[place] != kNone || pattern_.places[place] != call_.members[m].call.op->name) continue;
      member_of_[place] = static_cast<uint32_t>(m);
      places_[m] = place;
      if (wires_hold(place) && assign(m + 1)) return true;
      member_of_[place] = kNone;
    }
    return false;
  }

  bool wires_hold(uint32_t place) const {
    return std::ranges::all_of(pattern_.wires, [&](const SetWire& wire) {
      if (wire.from != place && wire.to != place) return true;
      const uint32_t from = member_of_[wire.from], to = member_of_[wire.to];
      if (from == kNone || to == kNone) return true;
      const uint32_t value = call_.members[from].args[wire.from_argument].value;
      return value != kNone && value == call_.members[to].args[wire.to_argument].value;
    });
  }

  bool complete() const {
    if (call_.members.size() != pattern_.places.size()) return true;
    for (const SetElided& elided : pattern_.elided) {
      if (call_.members[member_of_[elided.place]].args[elided.argument].outside) return false;
    }
    return pattern_.accepts == nullptr || pattern_.accepts(call_, places_);
  }

  const SetPattern& pattern_;
  const SetCall& call_;
  const std::span<uint32_t> places_;
  std::array<uint32_t, kMostPlaces> member_of_;  // of each place
};

}  // namespace

Fit match(const SetPattern& pattern, const SetCall& call, std::span<uint32_t> places) {
  return Matcher(pattern, call, places).run();
}

bool elides(const SetPattern& pattern, const SetCall& call, uint32_t member, uint32_t argument) {
  std::array<uint32_t, kMostPlaces> places{};
  if (match(pattern, call, std::span(places).first(call.members.size())) != Fit::whole) return false;
  const uint32_t value = call.members[member].args[argument].value;
  return std::ranges::any_of(pattern.elided, [&](const SetElided& elided) {
    for (uint32_t m = 0; m < call.members.size(); ++m) {
      if (places[m] == elided.place)
        return value != kNone && call.members[m].args[elided.argument].value == value;
    }
    return false;
  });
}

}  // namespace refrain::backend
