// The same graph in oneTBB. Built with REFRAIN_BENCH_TBB where the library was found.
#include "bench/dispatch/runner.h"

#ifdef REFRAIN_BENCH_TBB
#include <oneapi/tbb/flow_graph.h>
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/task_arena.h>
#endif

namespace refrain::bench {

#ifdef REFRAIN_BENCH_TBB
namespace {

class TbbRunner final : public Runner {
 public:
  TbbRunner(const TaskGraph& graph, uint32_t threads)
      : limit_(tbb::global_control::max_allowed_parallelism, threads), arena_(static_cast<int>(threads)) {
    name = "tbb_flow_graph";
    cells.resize(graph.deps.size());
    arena_.execute([&] { graph_ = std::make_unique<tbb::flow::graph>(); });
    for (uint32_t i = 0; i < graph.deps.size(); ++i) {
      Cell* cell = &cells[i];
      nodes_.push_back(std::make_unique<Node>(*graph_, [cell](const Message&) { ++cell->value; }));
      for (const uint32_t dep : graph.deps[i]) tbb::flow::make_edge(*nodes_[dep], *nodes_[i]);
      if (graph.deps[i].empty()) roots_.push_back(nodes_[i].get());
    }
  }

  void replay(uint32_t times) override {
    arena_.execute([&] {
      for (uint32_t i = 0; i < times; ++i) {
        for (Node* root : roots_) root->try_put(Message());
        graph_->wait_for_all();
      }
    });
  }

 private:
  using Message = tbb::flow::continue_msg;
  using Node = tbb::flow::continue_node<Message>;

  tbb::global_control limit_;
  tbb::task_arena arena_;
  std::unique_ptr<tbb::flow::graph> graph_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::vector<Node*> roots_;
};

}  // namespace

std::unique_ptr<Runner> make_tbb_runner(const TaskGraph& graph, uint32_t threads) {
  return std::make_unique<TbbRunner>(graph, threads);
}
#else
std::unique_ptr<Runner> make_tbb_runner(const TaskGraph&, uint32_t) { return nullptr; }
#endif

}  // namespace refrain::bench
