// A decorator that makes a device fail when and where a test says: refuses a call, fails a submission or one
// of its commands, shows completions late, loses the device. Without orders it only passes on.
//
// It keeps the contract of backend.h on failure and loss for any backend inside. A failed submission takes its
// place among the inner submissions without its commands, so order and values of points stay as they are.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "refrain/backend/backend.h"

namespace refrain::backend {

/// What is to fail. Each number counts from the moment that the plan is set; the first is 1, and 0 is never.
struct FaultPlan {
  uint64_t allocation = 0;  ///< this allocate() throws DeviceError
  uint64_t copy = 0;        ///< this write() or read() throws DeviceError, as one without staging does
  uint64_t prepare = 0;     ///< this prepare() throws DeviceError
  uint64_t submit = 0;      ///< this submit() throws DeviceError; nothing has been submitted
  uint64_t execution = 0;   ///< this submission fails before its first command
  uint64_t command = 0;     ///< the submission that holds this command fails there; those before it have run
  /// At this call the device is lost: one of allocate, advise, compile, memory, write, read, prepare, submit, wait and
  /// timestamps.
  uint64_t loss = 0;
  /// A submission is not seen as completed earlier than this after its submit(), nor is what waits for it.
  std::chrono::nanoseconds delay{0};
};

/// What has been asked for since the plan was set, refused calls included.
struct FaultCounts {
  uint64_t allocations = 0;
  uint64_t copies = 0;
  uint64_t prepares = 0;
  uint64_t submits = 0;
  uint64_t executions = 0;  ///< submissions that were accepted
  uint64_t commands = 0;    ///< of those
  uint64_t calls = 0;       ///< that can lose the device
  uint64_t faults = 0;      ///< injected: refusals, failures that are no consequence of another, the loss
};

/// Points, programs and allocations of the result are its own: `inner` is not used beside it.
std::unique_ptr<Backend> make_fault(std::unique_ptr<Backend> inner, const FaultPlan& plan = {});

/// Replaces the plan of a backend that make_fault() made and counts from the beginning. What has failed or is
/// lost stays so. Any thread may call it. Throws InvalidArgument for another backend.
void set_faults(Backend& backend, const FaultPlan& plan);

/// The counts of a backend that make_fault() made. Throws InvalidArgument for another one.
FaultCounts fault_counts(const Backend& backend);

}  // namespace refrain::backend
