// What planning costs, pass by pass: a model of 28 layers, and large graphs of simple forms at two sizes, so that
// a pass whose time grows faster than its graph shows. A line `name value unit` for each.
//
//   bench_planning [COMMANDS]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "bench/lookahead.h"
#include "refrain/backend/null/null_backend.h"
#include "refrain/device/device.h"
#include "refrain/format/plain.h"
#include "refrain/graph/accesses.h"
#include "refrain/graph/expand.h"
#include "refrain/graph/fuse.h"
#include "refrain/graph/lower.h"
#include "refrain/model/kv_cache.h"
#include "refrain/model/slots.h"
#include "refrain/model/step.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/layouts.h"
#include "refrain/ops/ops.h"

namespace {

using namespace refrain;

Weight weight(Device& device, const Shape& shape, Uses uses) {
  const std::vector<float> values(static_cast<size_t>(shape.elements()));
  return device.pack(format::plain_tensor("weight", DType::f32, shape, std::as_bytes(std::span(values))),
                     uses);
}

/// Median time of each pass over the plans of a recording, and of all together.
void measure(Device& device, const std::string& name, const std::function<void(CommandEncoder&)>& record,
             const PlanOptions& options, int rounds) {
  std::vector<std::string> order;
  std::map<std::string, std::vector<double>> times;
  PlanReport last;
  for (int round = 0; round < rounds; ++round) {
    CommandEncoder encoder = device.encoder();
    record(encoder);
    auto [plan, report] = device.plan(encoder.finish(), options);
    double total = 0;
    for (const auto& pass : report.passes) {
      if (round == 0) order.push_back(pass.name);
      times[pass.name].push_back(pass.us);
      total += pass.us;
    }
    times["all"].push_back(total);
    last = std::move(report);
  }
  order.emplace_back("all");
  for (const std::string& pass : order) {
    std::vector<double>& list = times[pass];
    std::ranges::sort(list);
    std::string shown = pass;
    std::ranges::replace(shown, ' ', '_');
    std::printf("planning/%s/%s %.1f us\n", name.c_str(), shown.c_str(), list[list.size() / 2]);
  }
  std::printf("planning/%s/recorded %zu commands\n", name.c_str(), last.recorded_commands);
  std::printf("planning/%s/planned %zu commands\n", name.c_str(), last.commands);
}

/// What the peer's look-ahead would cost on the fused recording, and how many barriers it leaves.
void measure_lookahead(Device& device, const std::string& name,
                       const std::function<void(CommandEncoder&)>& record) {
  CommandEncoder encoder = device.encoder();
  record(encoder);
  ComputeGraph graph = encoder.finish();
  const std::vector<backend::Kernel> kernels = ops::null_kernels();
  graph::expand(graph, graph::Mode::exact);
  graph::fuse(graph, kernels, device.info());
  const graph::AccessList list = graph::accesses(graph::lower(graph, kernels, device.info()));
  std::vector<double> times;
  graph::Reordering found;
  for (int round = 0; round < 51; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    found = bench::order_by_lookahead(list);
    times.push_back(
        std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
  }
  std::ranges::sort(times);
  std::printf("planning/%s/reorder %.1f us\n", name.c_str(), times[times.size() / 2]);
  std::printf("planning/%s/barriers %zu of %zu\n", name.c_str(), found.sections_after - 1,
              found.sections_before - 1);
}

/// The plain ops of Qwen3 0.6B. All layers share their weights, which changes no plan: nothing writes them.
void measure_model() {
  Device device(backend::make_null(ops::null_kernels()), ops::cpu_layouts(), {});
  model::Config config;
  constexpr uint32_t kLayers = 28;
  constexpr int64_t kHidden = 1024, kWide = 3072, kRows = 8;
  constexpr int64_t heads = 16, kv_heads = 8, head_dim = 128;
  config.state.assign(kLayers, model::KvState{kv_heads, head_dim});
  const model::KvCache cache(device, config, 1, 64);
  const model::Slots slots(device, {}, cache);
  const model::StepBlock step(device, {kRows, 1, kRows});
  const Buffer &status = slots.status(), &pages = slots.page_table(0);
  const Buffer out = device.buffer(DType::f32, {kRows, kHidden}).with_live_rows(step.live_rows);
  const auto matrix = [&](int64_t outputs, int64_t inputs) {
    return weight(device, {outputs, inputs}, {Use::matvec, Use::matmul});
  };
  const Weight q_weight = matrix(heads * head_dim, kHidden), kv_weight = matrix(kv_heads * head_dim, kHidden),
               o_weight = matrix(kHidden, heads * head_dim), up_weight = matrix(kWide, kHidden),
               down_weight = matrix(kHidden, kWide), norm = weight(device, {kHidden}, {Use::vector}),
               head_norm = weight(device, {head_dim}, {Use::vector}),
               frequencies = weight(device, {head_dim / 2}, {Use::vector});
  const auto record = [&](CommandEncoder& e) {
    const auto temp = [&](int64_t width) {
      return e.temp(DType::activation, {kRows, width}, step.live_rows);
    };
    const Shape q_heads{kRows, heads, head_dim}, k_heads{kRows, kv_heads, head_dim};
    Temp x = temp(kHidden);
    ops::add(e, {out, out, x});
    for (uint32_t i = 0; i < kLayers; ++i) {
      const Buffer layer = cache.layer(i);
      const Temp h = temp(kHidden), q = temp(heads * head_dim), k = temp(kv_heads * head_dim),
                 v = temp(kv_heads * head_dim), q_normed = temp(heads * head_dim).view(q_heads),
                 k_normed = temp(kv_heads * head_dim).view(k_heads),
                 q_rope = temp(heads * head_dim).view(q_heads),
                 k_rope = temp(kv_heads * head_dim).view(k_heads), mixed = temp(heads * head_dim),
                 o = temp(kHidden), sum = temp(kHidden), n = temp(kHidden), gate = temp(kWide),
                 up = temp(kWide), gated = temp(kWide), down = temp(kHidden), next = temp(kHidden);
      ops::rms_norm(e, {.input = x, .weight = norm, .output = h});
      ops::matmul(e, {h, q_weight, q});
      ops::matmul(e, {h, kv_weight, k});
      ops::matmul(e, {h, kv_weight, v});
      ops::rms_norm(e, {.input = q.view(q_heads), .weight = head_norm, .output = q_normed});
      ops::rms_norm(e, {.input = k.view(k_heads), .weight = head_norm, .output = k_normed});
      ops::rope(e, {.input = q_normed, .rows = step.rows, .frequencies = frequencies, .output = q_rope});
      ops::rope(e, {.input = k_normed, .rows = step.rows, .frequencies = frequencies, .output = k_rope});
      ops::kv_write(e, {.key = k_rope,
                        .value = v.view(k_heads),
                        .rows = step.rows,
                        .page_table = pages,
                        .cache = layer,
                        .status = status});
      ops::attention(e, {.query = q_rope,
                         .rows = step.rows,
                         .page_table = pages,
                         .cache = layer,
                         .status = status,
                         .output = mixed.view(q_heads),
                         .scale = 1});
      ops::matmul(e, {mixed, o_weight, o});
      ops::add(e, {x, o, sum});
      ops::rms_norm(e, {.input = sum, .weight = norm, .output = n});
      ops::matmul(e, {n, up_weight, gate});
      ops::matmul(e, {n, up_weight, up});
      ops::silu_mul(e, {gate, up, gated});
      ops::matmul(e, {gated, down_weight, down});
      ops::add(e, {sum, down, next});
      x = next;
    }
    ops::add(e, {x, x, out});
  };
  PlanOptions options;
  options.check = false;
  measure(device, "qwen3-28", record, options, 51);
  options.order = graph::CommandOrder::levels;
  measure(device, "qwen3-28-levels", record, options, 51);
  measure_lookahead(device, "qwen3-28-lookahead", record);
  options.order = graph::CommandOrder::recorded;
  options.fuse = false;
  measure(device, "qwen3-28-plain", record, options, 51);
}

void measure_forms(uint32_t commands) {
  Device device(backend::make_null(ops::null_kernels()), ops::cpu_layouts(), {});
  constexpr int64_t kRows = 4, kWidth = 16;
  const Weight w = weight(device, {kWidth, kWidth}, {Use::matvec, Use::matmul});
  const Buffer x = device.buffer(DType::f32, {kRows, kWidth});
  const auto temp = [](CommandEncoder& e) { return e.temp(DType::f32, {kRows, kWidth}); };
  const std::string size = std::to_string(commands);
  PlanOptions options;
  options.check = false;
  const auto each = [&](const char* name, const std::function<void(CommandEncoder&)>& record) {
    measure(device, name + ("-" + size), record, options, 3);
  };
  // Each product reads the sum before it.
  each("chain", [&](CommandEncoder& e) {
    Temp last = temp(e);
    ops::add(e, {x, x, last});
    for (uint32_t i = 0; i < commands; i += 2) {
      const Temp y = temp(e), sum = temp(e);
      ops::matmul(e, {last, w, y});
      ops::add(e, {last, y, sum});
      last = sum;
    }
  });
  // As before, and each product has a sum that nothing reads.
  each("comb", [&](CommandEncoder& e) {
    Temp last = temp(e);
    ops::add(e, {x, x, last});
    for (uint32_t i = 0; i < commands; i += 2) {
      const Temp y = temp(e), sum = temp(e);
      ops::matmul(e, {last, w, y});
      ops::add(e, {x, y, sum});
      last = y;
    }
  });
  // Products of one input.
  each("siblings", [&](CommandEncoder& e) {
    for (uint32_t i = 0; i < commands; ++i) ops::matmul(e, {x, w, temp(e)});
  });
  // One product, and sums of its value that do not depend on each other.
  each("wide", [&](CommandEncoder& e) {
    const Temp y = temp(e);
    ops::matmul(e, {x, w, y});
    for (uint32_t i = 1; i < commands; ++i) ops::add(e, {x, y, temp(e)});
  });
  // Products of one input with a fence behind each.
  each("fences", [&](CommandEncoder& e) {
    for (uint32_t i = 0; i < commands; i += 2) {
      ops::matmul(e, {x, w, temp(e)});
      e.barrier();
    }
  });
}

}  // namespace

int main(int count, char** arguments) {
  const int commands = count > 1 ? std::atoi(arguments[1]) : 10000;
  if (commands < 4) {
    std::fprintf(stderr, "bench_planning: COMMANDS: expected 4 or more, got %s\n", arguments[1]);
    return 2;
  }
  measure_model();
  for (const int size : {commands / 4, commands}) measure_forms(static_cast<uint32_t>(size));
}
