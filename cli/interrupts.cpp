#include "cli/interrupts.h"

#include <CLI/CLI.hpp>
#include <csignal>

namespace refrain::cli {
namespace {

std::atomic<bool> interrupted{false};
std::atomic<int> which{0};
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

void on_signal(int signal) {
  which.store(signal, std::memory_order_relaxed);
  interrupted.store(true, std::memory_order_relaxed);
  std::signal(signal, SIG_DFL);
}

}  // namespace

Interrupts::Interrupts(std::initializer_list<int> signals) {
  for (const int signal : signals) {
    if (std::signal(signal, on_signal) == SIG_IGN) std::signal(signal, SIG_IGN);
  }
}

Interrupts::~Interrupts() {
  for (const int signal : {SIGHUP, SIGINT, SIGTERM}) {
    if (std::signal(signal, SIG_DFL) == SIG_IGN) std::signal(signal, SIG_IGN);
  }
}

const std::atomic<bool>& Interrupts::seen() { return interrupted; }

void Interrupts::check() {
  if (interrupted.load(std::memory_order_relaxed))
    throw CLI::RuntimeError(128 + which.load(std::memory_order_relaxed));
}

}  // namespace refrain::cli
