// Graphs of commands that every runner replays: who waits for whom, and nothing else.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace refrain::bench {

struct TaskGraph {
  std::string name;
  std::vector<std::vector<uint32_t>> deps;  ///< of each command, earlier ones
};

inline constexpr uint32_t kCommands = 1000;

/// Each command waits for the one before it.
TaskGraph chain();
/// Layers of eight; each command waits for its own predecessor and a neighbour's.
TaskGraph width_8();
/// Two predecessors each, drawn from the 16 commands before it.
TaskGraph random_graph();
/// The edges that planning derives for a Qwen3 model of 28 layers, from token to logits: a model of small
/// width with random weights, written to a temporary folder and recorded as any other is.
TaskGraph qwen3_28_layers();

}  // namespace refrain::bench
