// The null backend: counts and does nothing. For tests and measurements of everything that is not a device.
//
// Copying this folder is how a new backend begins: rename Null, then give each function of null_backend.cpp a
// real body, in the order in which they stand there, until tests/conformance passes without the exceptions
// that tests/conformance/devices.cpp lists for null.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "refrain/backend/backend.h"

namespace refrain::backend {

/// What a null backend has been asked to do so far.
struct NullCounters {
  uint64_t programs = 0;
  uint64_t submissions = 0;
  uint64_t commands = 0;  ///< visited by submissions
  uint64_t updates = 0;
  uint64_t update_bytes = 0;
  uint64_t checksum = 0;  ///< of the commands visited, so that the visit is not optimised away
};

/// Submissions complete within submit(), whatever they wait for. `features` and `compute_units` are what
/// the device says of itself, so that kernels are chosen and scratch is planned as for another device.
std::unique_ptr<Backend> make_null(std::span<const Kernel> kernels, uint64_t features = 0,
                                   uint32_t compute_units = 1);

/// The counters of a backend that make_null() made. Throws InvalidArgument for another one.
NullCounters null_counters(const Backend& backend);

}  // namespace refrain::backend
