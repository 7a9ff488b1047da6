#include "refrain/backend/backend.h"

#include <random>

#include "refrain/core/error.h"

namespace refrain::backend {

uint64_t Backend::draw_id() {
  std::random_device random;
  uint64_t id = 0;
  while (id == 0) id = uint64_t{random()} << 32 | random();
  return id;
}

const void* Backend::compile(const KernelSource& source) {
  throw InvalidArgument("[kernels] " + std::string(source.name) + ": device " + info.backend +
                        " compiles no source; expected a C++ function");
}

}  // namespace refrain::backend
