// What replays a TaskGraph: this library's CPU device and its peers, each with the same work for a command.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bench/dispatch/task_graph.h"

namespace refrain::bench {

/// A counter with a cache line of its own: all the work of a command is to add one to its counter.
struct alignas(64) Cell {
  uint32_t value = 0;
};

class Runner {
 public:
  virtual ~Runner() = default;
  /// `times` replays, one after the other; returns when all are done.
  virtual void replay(uint32_t times) = 0;

  std::string name;
  std::vector<Cell> cells;  ///< of the commands
};

std::unique_ptr<Runner> make_refrain_runner(const TaskGraph& graph, uint32_t threads);
/// oneTBB's flow graph: a continue_node a command. Null where it was not found.
std::unique_ptr<Runner> make_tbb_runner(const TaskGraph& graph, uint32_t threads);
/// OpenMP tasks with depend clauses, created anew in each replay, which is their only way. Null where there
/// is no OpenMP.
std::unique_ptr<Runner> make_openmp_runner(const TaskGraph& graph, uint32_t threads);

}  // namespace refrain::bench
