// When do runs leave the order between heavy commands, those that may not join one, as it was? Call a command's
// frontier the heavy commands that it waits for directly or over cheap ones alone, and let all members of a
// run have the same. Then a path from heavy A over runs to heavy B is one of the plan as well: A comes before
// the member at which the path enters a run, so it is in that one's frontier or before a command there; the
// frontier is also that of the member from which the path leaves, so A comes before this one too, and so on to
// B. The order between cheap commands, and between them and heavy ones, does grow: by a run's length at most.
#include "refrain/backend/cpu/units.h"

#include <algorithm>

namespace refrain::backend::cpu {
namespace {

// Cheap commands that do not depend on each other can still share the cores run by run, and who waits for one
// of them waits no longer than this.
constexpr uint32_t kRunNs = 1000;

constexpr size_t kMaxFrontier = 8;  // a command whose frontier is larger counts as heavy

}  // namespace

Units make_units(std::span<const Work> commands, std::span<const uint32_t> deps) {
  const auto count = static_cast<uint32_t>(commands.size());
  Units units;
  units.all.reserve(count);
  units.deps.reserve(deps.size());
  std::vector<uint32_t> unit_of(count), waits_for;  // waits_for: of each unit, the last one that noted it
  waits_for.reserve(count);
  struct Part {
    size_t first = 0, count = 0;
  };
  std::vector<uint32_t> frontiers;  // sorted, those of members of runs
  std::vector<Part> frontier_of(count);
  std::vector<bool> member(count, false);

  uint32_t run_ns = 0;  // of the last unit; 0: not to be joined
  for (uint32_t i = 0; i < count; ++i) {
    const Work& work = commands[i];
    const auto own_deps = deps.subspan(work.dep_first, work.dep_count);
    bool joins = false;
    member[i] = work.ns <= kMemberNs;
    if (member[i]) {
      Part& own = frontier_of[i];
      own.first = frontiers.size();
      for (const uint32_t dep : own_deps) {
        if (!member[dep]) {
          frontiers.push_back(dep);
        } else {
          for (size_t k = 0; k < frontier_of[dep].count; ++k)
            frontiers.push_back(frontiers[frontier_of[dep].first + k]);
        }
      }
      const auto begin = frontiers.begin() + static_cast<ptrdiff_t>(own.first);
      std::sort(begin, frontiers.end());
      frontiers.erase(std::unique(begin, frontiers.end()), frontiers.end());
      own.count = frontiers.size() - own.first;
      member[i] = own.count <= kMaxFrontier;
      if (member[i] && run_ns != 0 && run_ns + work.ns <= kRunNs) {
        const Part& run = frontier_of[i - 1];
        joins = std::equal(begin, frontiers.end(), frontiers.begin() + static_cast<ptrdiff_t>(run.first),
                           frontiers.begin() + static_cast<ptrdiff_t>(run.first + run.count));
      }
      if (!member[i] || joins) frontiers.resize(own.first);
      if (joins) own = frontier_of[i - 1];
    }
    if (!joins) {
      units.all.push_back(
          {i, work.ns == Work::kFence ? 0u : 1u, static_cast<uint32_t>(units.deps.size()), 0});
      waits_for.push_back(UINT32_MAX);
      run_ns = 0;
    } else {
      ++units.all.back().count;
    }
    if (member[i]) run_ns += std::max(1u, work.ns);
    const auto index = static_cast<uint32_t>(units.all.size()) - 1;
    unit_of[i] = index;
    for (const uint32_t dep : own_deps) {
      const uint32_t before = unit_of[dep];
      if (before == index || waits_for[before] == index) continue;
      waits_for[before] = index;
      units.deps.push_back(before);
      ++units.all[index].dep_count;
    }
  }
  return units;
}

}  // namespace refrain::backend::cpu
