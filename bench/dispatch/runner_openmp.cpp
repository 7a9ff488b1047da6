// The same graph as OpenMP tasks. Built with -fopenmp where the compiler has it.
#include "bench/dispatch/runner.h"

namespace refrain::bench {

#ifdef _OPENMP
namespace {

class OpenMpRunner final : public Runner {
 public:
  OpenMpRunner(const TaskGraph& graph, uint32_t threads) : deps_(graph.deps), threads_(threads) {
    name = "openmp_tasks";
    cells.resize(graph.deps.size());
  }

  // One team for all replays, so that none pays for its start.
  void replay(uint32_t times) override {
    Cell* const all = cells.data();
    const auto count = static_cast<uint32_t>(cells.size());
#pragma omp parallel num_threads(threads_)
#pragma omp single
    for (uint32_t time = 0; time < times; ++time) {
      for (uint32_t i = 0; i < count; ++i) {
        const uint32_t* deps = deps_[i].data();
        const auto dep_count = static_cast<int>(deps_[i].size());
        Cell* const cell = &all[i];
        if (dep_count == 0) {
#pragma omp task depend(out : *cell) firstprivate(cell)
          ++cell->value;
        } else if (dep_count == 1) {
#pragma omp task depend(in : all[deps[0]]) depend(out : *cell) firstprivate(cell)
          ++cell->value;
        } else if (dep_count == 2) {
#pragma omp task depend(in : all[deps[0]], all[deps[1]]) depend(out : *cell) firstprivate(cell)
          ++cell->value;
        } else {
#pragma omp task depend(iterator(int k = 0 : dep_count), in : all[deps[k]]) depend(out : *cell) \
    firstprivate(cell)
          ++cell->value;
        }
      }
#pragma omp taskwait
    }
  }

 private:
  const std::vector<std::vector<uint32_t>> deps_;
  const uint32_t threads_;
};

}  // namespace

std::unique_ptr<Runner> make_openmp_runner(const TaskGraph& graph, uint32_t threads) {
  return std::make_unique<OpenMpRunner>(graph, threads);
}
#else
std::unique_ptr<Runner> make_openmp_runner(const TaskGraph&, uint32_t) { return nullptr; }
#endif

}  // namespace refrain::bench
