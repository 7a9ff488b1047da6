// The child runs and ends by exit(), where ThreadSanitizer turns a report into its exit code; the parent
// reads both.
#include "tests/tsan/edge_mutation.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <numeric>
#include <stdexcept>

#include "refrain/backend/cpu/cpu_backend.h"

#if defined(__SANITIZE_THREAD__)
#define REFRAIN_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define REFRAIN_THREAD_SANITIZER 1
#endif
#endif

namespace refrain::backend::testing {
namespace {

constexpr int kReportedCode = 66;  // ThreadSanitizer's own default
constexpr int kFailedCode = 3;

// A plan without one edge. The order of plan.deps stays: the last dep of the command takes the place of the
// dropped.
PlanData without(const PlanData& plan, const Edge& edge) {
  PlanData result = plan;
  Range& deps = result.commands[edge.command].deps;
  result.deps[edge.position] = result.deps[deps.first + deps.count - 1];
  --deps.count;
  return result;
}

// What the child does. Returns when the plan has run.
void run(const MutationInput& input, const PlanData& plan) {
  CpuOptions options;
  const auto count = static_cast<uint32_t>(plan.commands.size());
  options.threads = input.sharing_workers != 0 ? input.sharing_workers : count;
  options.spin = kSpinForever;
  const std::unique_ptr<Backend> device = make_cpu(options, input.kernels);
  std::vector<uint32_t> placement(input.sharing_workers != 0 ? 0 : count);
  std::iota(placement.begin(), placement.end(), 0u);
  ExecutableOptions prepare;
  prepare.placement = placement;
  if (plan.arena_bytes > 0) {
    const Allocation* arena = device->allocate({plan.arena_bytes, "arena"});
    prepare.arena = {arena, 0, plan.arena_bytes};
  }
  const auto program = device->prepare(plan, prepare);
  for (uint32_t i = 0; i < input.submissions; ++i) {
    const Point point = device->submit({program.get(), input.updates, {}});
    if (!device->wait(point, std::chrono::seconds(120))) throw std::runtime_error("the plan did not end");
  }
}

std::string read_all(int file) {
  std::string text;
  char buffer[4096];
  while (true) {
    const ssize_t count = read(file, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return text;
    text.append(buffer, static_cast<size_t>(count));
  }
}

}  // namespace

bool under_thread_sanitizer() {
#if defined(REFRAIN_THREAD_SANITIZER)
  return true;
#else
  return false;
#endif
}

std::vector<Edge> edges(const PlanData& plan) {
  std::vector<Edge> result;
  for (uint32_t command = 0; command < plan.commands.size(); ++command) {
    if (plan.commands[command].kind == CommandKind::fence) continue;
    const Range& deps = plan.commands[command].deps;
    for (uint32_t position = deps.first; position < deps.first + deps.count; ++position) {
      const uint32_t dep = plan.deps[position];
      if (plan.commands[dep].kind != CommandKind::fence) result.push_back({position, command, dep});
    }
  }
  return result;
}

RunResult run_with_edge_dropped(const MutationInput& input, const Edge* dropped) {
  RunResult result;
  result.failed = true;
  int ends[2] = {-1, -1};
  if (pipe(ends) != 0) {
    result.output = std::string("pipe: ") + std::strerror(errno);
    return result;
  }
  std::fflush(nullptr);  // or the child would write again what is buffered
  const pid_t child = fork();
  if (child == 0) {
    close(ends[0]);
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
    int code = 0;
    try {
      run(input, dropped == nullptr ? *input.plan : without(*input.plan, *dropped));
    } catch (const std::exception& error) {
      const std::string message = error.what();
      if (write(STDERR_FILENO, message.data(), message.size()) < 0) code = kFailedCode;
      code = kFailedCode;
    }
    std::exit(code);  // not _exit: ThreadSanitizer sets its exit code on the way out
  }
  close(ends[1]);
  if (child < 0) {
    close(ends[0]);
    result.output = std::string("fork: ") + std::strerror(errno);
    return result;
  }
  result.output = read_all(ends[0]);
  close(ends[0]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  result.reported = code == kReportedCode && result.output.find("data race") != std::string::npos;
  result.failed = !result.reported && code != 0;
  return result;
}

}  // namespace refrain::backend::testing
