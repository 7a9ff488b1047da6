// Waiting for what another thread does, with an end: what fails must not hang.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <stop_token>
#include <thread>

namespace refrain::test {

/// True as soon as `condition()` holds. False, and a failure of the test, when it does not within 20 s or the
/// thread that waits is asked to stop: then the test has gone on without it.
template <class Condition>
bool eventually(const Condition& condition, const std::stop_token& stop = {}) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (stop.stop_requested()) {
      ADD_FAILURE() << "the test went on before what it was to wait for";
      return false;
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      ADD_FAILURE() << "waited 20 s in vain";
      return false;
    }
    std::this_thread::yield();
  }
  return true;
}

}  // namespace refrain::test
