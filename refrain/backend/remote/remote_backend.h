// A decorator that takes the memory of a device out of the host's reach, as memory of a GPU is, and counts the
// copies between the two. A judge without a GPU: what runs on it touches no memory of the device in place.
//
// Memory of kind device has no Allocation::host, and its device_address is one of pages that fault whoever
// touches them; only the inner device knows where the bytes are. Memory of the other kinds is the inner one's.
#pragma once

#include <cstdint>
#include <memory>

#include "refrain/backend/backend.h"

namespace refrain::backend {

/// What a remote backend has copied so far.
struct RemoteCounters {
  uint64_t writes = 0;  ///< calls of write()
  uint64_t write_bytes = 0;
  uint64_t reads = 0;  ///< calls of read()
  uint64_t read_bytes = 0;
  uint64_t updates = 0;  ///< of submissions
  uint64_t update_bytes = 0;
};

/// Points, programs and allocations of the result are its own: `inner` is not used beside it. Refuses memory of
/// kind import_device, since nobody else allocates where it does. write() and read() go through staging memory
/// of kind host of the inner device, whose refusal they pass on.
std::unique_ptr<Backend> make_remote(std::unique_ptr<Backend> inner);

/// The counters of a backend that make_remote() made. Throws InvalidArgument for another one.
RemoteCounters remote_counters(const Backend& backend);

}  // namespace refrain::backend
