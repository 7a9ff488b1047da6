// Linux only in what it reads; elsewhere every question has its neutral answer.
#include "refrain/backend/cpu/machine.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>
#include <set>
#include <string_view>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace refrain::backend::cpu {
namespace {

std::optional<std::string> first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!file || !std::getline(file, line)) return std::nullopt;
  return line;
}

std::optional<int64_t> to_integer(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end == text.data()) return std::nullopt;
  return value;
}

std::optional<int64_t> read_integer(const std::string& path) {
  const auto line = first_line(path);
  return line ? to_integer(*line) : std::nullopt;
}

// The number of the line "KEY 123" of a file; 0 when there is none.
int64_t read_field(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key)) return to_integer(std::string_view(line).substr(key.size())).value_or(0);
  }
  return 0;
}

// One line of proc/self/cgroup, "4:memory:/a/b": the controllers ("" for v2) and the path.
struct Membership {
  std::string controllers;
  std::string path;
};

std::vector<Membership> memberships(const std::string& root) {
  std::vector<Membership> result;
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    result.push_back({line.substr(first + 1, second - first - 1), line.substr(second + 1)});
  }
  return result;
}

bool names_controller(const std::string& controllers, std::string_view wanted) {
  size_t begin = 0;
  while (begin <= controllers.size()) {
    const size_t end = std::min(controllers.find(',', begin), controllers.size());
    if (std::string_view(controllers).substr(begin, end - begin) == wanted) return true;
    begin = end + 1;
  }
  return false;
}

// Calls visit(folder) for the group and each of its ancestors: any of them may hold a limit. Inside a
// container the path may not exist below the mount; the mount itself is then the group.
template <class Visit>
void walk_up(const std::string& mount, std::string path, const Visit& visit) {
  while (!path.empty() && path.back() == '/') path.pop_back();
  while (!path.empty()) {
    visit(mount + path);
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
  visit(mount);
}

// Calls v2(folder) and v1(folder) for every group of `controller` that this process is in.
template <class V2, class V1>
void visit_groups(const std::string& root, std::string_view controller, const V2& v2, const V1& v1) {
  const std::string mount = root + "/sys/fs/cgroup";
  for (const Membership& member : memberships(root)) {
    if (member.controllers.empty()) {
      walk_up(mount, member.path, v2);
    } else if (names_controller(member.controllers, controller)) {
      walk_up(mount + "/" + member.controllers, member.path, v1);
      if (member.controllers != controller) walk_up(mount + "/" + std::string(controller), member.path, v1);
    }
  }
}

}  // namespace

std::vector<uint32_t> affinity_cpus() {
  std::vector<uint32_t> cpus;
#if defined(__linux__)
  // The kernel refuses a set that is smaller than its own, so the set grows until it fits.
  for (size_t count = 1024; cpus.empty() && count <= size_t{1} << 20; count *= 4) {
    cpu_set_t* set = CPU_ALLOC(count);
    if (set == nullptr) break;
    const size_t set_bytes = CPU_ALLOC_SIZE(count);
    CPU_ZERO_S(set_bytes, set);
    if (sched_getaffinity(0, set_bytes, set) == 0) {
      for (size_t cpu = 0; cpu < count; ++cpu) {
        if (CPU_ISSET_S(cpu, set_bytes, set)) cpus.push_back(static_cast<uint32_t>(cpu));
      }
    }
    CPU_FREE(set);
  }
#endif
  if (cpus.empty()) {
    for (uint32_t cpu = 0; cpu < std::max(1u, std::thread::hardware_concurrency()); ++cpu)
      cpus.push_back(cpu);
  }
  return cpus;
}

uint32_t count_cores(std::span<const uint32_t> cpus, const std::string& root) {
  std::set<std::string> cores;
  uint32_t unknown = 0;
  for (const uint32_t cpu : cpus) {
    const std::string folder = root + "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    auto siblings = first_line(folder + "core_cpus_list");
    if (!siblings) siblings = first_line(folder + "thread_siblings_list");
    if (siblings) {
      cores.insert(*siblings);
    } else {
      ++unknown;
    }
  }
  return static_cast<uint32_t>(cores.size()) + unknown;
}

std::optional<double> quota_cpus(const std::string& root) {
  std::optional<double> least;
  const auto limit = [&least](int64_t quota, int64_t period) {
    if (quota <= 0 || period <= 0) return;
    const double cpus = static_cast<double>(quota) / static_cast<double>(period);
    if (!least || cpus < *least) least = cpus;
  };
  visit_groups(
      root, "cpu",
      [&](const std::string& folder) {  // "max 100000" or "150000 100000"
        const auto line = first_line(folder + "/cpu.max");
        if (!line) return;
        const size_t space = line->find(' ');
        if (space == std::string::npos) return;
        const auto quota = to_integer(std::string_view(*line).substr(0, space));
        const auto period = to_integer(std::string_view(*line).substr(space + 1));
        if (quota && period) limit(*quota, *period);
      },
      [&](const std::string& folder) {
        const auto quota = read_integer(folder + "/cpu.cfs_quota_us");
        const auto period = read_integer(folder + "/cpu.cfs_period_us");
        if (quota && period) limit(*quota, *period);
      });
  return least;
}

uint32_t whole_cpus(std::span<const uint32_t> cpus, const std::string& root) {
  const auto count = static_cast<uint32_t>(cpus.size());
  const auto quota = quota_cpus(root);
  return quota && *quota < count ? static_cast<uint32_t>(std::floor(*quota)) : count;
}

uint32_t choose_workers(std::span<const uint32_t> cpus, const std::string& root) {
  return std::max(1u, std::min(count_cores(cpus, root), whole_cpus(cpus, root)));
}

size_t available_bytes(const std::string& root) {
  size_t available = std::numeric_limits<size_t>::max();
  std::ifstream file(root + "/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    constexpr std::string_view kKey = "MemAvailable:";
    if (!line.starts_with(kKey)) continue;
    const size_t digits = line.find_first_of("0123456789");
    if (digits == std::string::npos) break;
    if (const auto kib = to_integer(std::string_view(line).substr(digits)))
      available = static_cast<size_t>(*kib) * 1024;
    break;
  }
  // Pages of files count as used, but give way: those of a model that was read before, for example.
  const auto limit = [&available](std::optional<int64_t> most, std::optional<int64_t> used, int64_t files) {
    if (!most || *most < 0) return;
    const int64_t left = std::max<int64_t>(0, *most - std::max<int64_t>(0, used.value_or(0) - files));
    available = std::min(available, static_cast<size_t>(left));
  };
  visit_groups(
      root, "memory",
      [&](const std::string& folder) {
        const int64_t files = read_field(folder + "/memory.stat", "inactive_file ") +
                              read_field(folder + "/memory.stat", "active_file ");
        limit(read_integer(folder + "/memory.max"), read_integer(folder + "/memory.current"), files);
      },
      [&](const std::string& folder) {
        const int64_t files = read_field(folder + "/memory.stat", "total_inactive_file ") +
                              read_field(folder + "/memory.stat", "total_active_file ");
        limit(read_integer(folder + "/memory.limit_in_bytes"),
              read_integer(folder + "/memory.usage_in_bytes"), files);
      });
  return available;
}

std::string model_name(const std::string& root) {
  std::ifstream file(root + "/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "CPU";
}

}  // namespace refrain::backend::cpu
