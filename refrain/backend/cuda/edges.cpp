#include "refrain/backend/cuda/edges.h"

#include <algorithm>
#include <string>
#include <utility>

#include "refrain/core/error.h"

namespace refrain::backend::cuda {

std::vector<Edge> make_edges(const PlanData& plan, const std::vector<bool>& waits, bool all_full) {
  std::vector<Edge> edges;
  const auto count = static_cast<uint32_t>(plan.commands.size());
  std::vector<bool> awaited(count, false);  // by a later command of its segment
  uint32_t segment = 0;                     // the first command after the last fence
  for (uint32_t i = 0; i < count; ++i) {
    const PlanCommand& command = plan.commands[i];
    if (command.kind == CommandKind::fence) {
      for (uint32_t before = segment; before < i; ++before) {
        if (!awaited[before]) edges.push_back({before, i});
      }
      if (segment == i && i > 0) edges.push_back({i - 1, i});  // the fence before it
      segment = i + 1;
      continue;
    }
    const size_t first = edges.size();
    for (uint32_t k = 0; k < command.deps.count; ++k) {
      const uint32_t dep = plan.deps[command.deps.first + k];
      if (dep < segment) continue;  // the fence implies it
      awaited[dep] = true;
      edges.push_back({dep, i});
    }
    if (edges.size() == first) {
      if (segment > 0) edges.push_back({segment - 1, i});
      continue;
    }
    if (all_full || !waits[i]) continue;
    const auto latest = std::max_element(edges.begin() + static_cast<ptrdiff_t>(first), edges.end(),
                                         [](const Edge& a, const Edge& b) { return a.from < b.from; });
    latest->programmatic = waits[latest->from];
  }
  return edges;
}

void check_edges(const PlanData& plan, const std::vector<bool>& waits, const std::vector<Edge>& edges) {
  const auto count = static_cast<uint32_t>(plan.commands.size());
  const auto fail = [](uint32_t command, const std::string& what) {
    throw DeviceError("cuda: edges of command " + std::to_string(command) + ": " + what);
  };
  std::vector<std::vector<uint32_t>> into(count);
  std::vector<bool> programmatic(count, false);
  for (const Edge& edge : edges) {
    if (edge.from >= edge.to || edge.to >= count) fail(edge.to, "expected one from an earlier command");
    into[edge.to].push_back(edge.from);
    if (!edge.programmatic) continue;
    if (programmatic[edge.to]) fail(edge.to, "expected at most one programmatic, got two");
    if (!waits[edge.from] || !waits[edge.to]) fail(edge.to, "a programmatic one, but not both ends wait");
    programmatic[edge.to] = true;
  }
  // Row i, a bit a command: those that have completed when i has.
  const size_t words = (size_t{count} + 63) / 64;
  std::vector<uint64_t> before(words * count, 0);
  uint32_t fence = kNone;
  for (uint32_t i = 0; i < count; ++i) {
    uint64_t* const row = before.data() + words * i;
    for (const uint32_t from : into[i]) {
      row[from / 64] |= uint64_t{1} << from % 64;
      for (size_t word = 0; word <= from / 64; ++word) row[word] |= before[words * from + word];
    }
    const auto expect = [&](uint32_t earlier) {
      if ((row[earlier / 64] >> earlier % 64 & 1) == 0)
        fail(i, "none leads from command " + std::to_string(earlier));
    };
    const PlanCommand& command = plan.commands[i];
    for (uint32_t k = 0; k < command.deps.count; ++k) expect(plan.deps[command.deps.first + k]);
    if (fence != kNone) expect(fence);
    if (command.kind != CommandKind::fence) continue;
    for (uint32_t k = 0; k < i; ++k) expect(k);
    fence = i;
  }
}

Completion::Completion(const std::vector<Edge>& edges, std::vector<bool> late)
    : into_(late.size()), late_(std::move(late)) {
  for (const Edge& edge : edges) into_[edge.to].push_back(edge);
}

std::vector<bool> Completion::at_begin(uint32_t command) const {
  std::vector<bool> completed(command, false);
  std::vector<uint32_t> ended;  // have completed, their ancestors not yet looked at
  const auto end = [&](uint32_t one) {
    if (!completed[one]) ended.push_back(one);
    completed[one] = true;
  };
  uint32_t begun = command;
  for (bool more = true; more;) {
    more = false;
    const uint32_t at = begun;
    for (const Edge& edge : into_[at]) {
      if (!edge.programmatic) {
        end(edge.from);
      } else if (late_[edge.from]) {
        for (const Edge& before : into_[edge.from]) end(before.from);
      } else {
        begun = edge.from;
        more = true;
      }
    }
  }
  while (!ended.empty()) {
    const uint32_t one = ended.back();
    ended.pop_back();
    for (const Edge& edge : into_[one]) end(edge.from);
  }
  return completed;
}

bool may_read_ahead(const PlanData& plan, const Completion& completion, uint32_t command,
                    const std::vector<BufferView>& views) {
  const std::vector<bool> completed = completion.at_begin(command);
  const auto overlaps = [&](const BufferView& written) {
    return std::ranges::any_of(views, [&](const BufferView& view) {
      return view.bytes != 0 && written.allocation == view.allocation &&
             written.offset_bytes < view.offset_bytes + view.bytes &&
             view.offset_bytes < written.offset_bytes + written.bytes;
    });
  };
  for (uint32_t i = 0; i < command; ++i) {
    if (completed[i]) continue;
    const Range& args = plan.commands[i].args;
    for (uint32_t a = args.first; a < args.first + args.count; ++a) {
      if (plan.args[a].access != Access::in && overlaps(plan.args[a].view)) return false;
    }
  }
  return true;
}

}  // namespace refrain::backend::cuda
