// SIGINT and its like while there is something to end tidily: a text in the middle of a character, files half written.
#pragma once

#include <atomic>
#include <initializer_list>

namespace refrain::cli {

/// While it lives, the first signal of those given is only noted, and a second one ends the process as ever. Signals
/// that the program was started to ignore stay ignored. One at a time.
class Interrupts {
 public:
  explicit Interrupts(std::initializer_list<int> signals);
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  /// Whether one has come.
  static const std::atomic<bool>& seen();
  /// Ends the command, by an exception, with the exit code that says so if one has come.
  static void check();
};

}  // namespace refrain::cli
