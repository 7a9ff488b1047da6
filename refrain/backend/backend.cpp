#include "refrain/backend/backend.h"

#include <random>

namespace refrain::backend {

uint64_t Backend::draw_id() {
  std::random_device random;
  uint64_t id = 0;
  while (id == 0) id = uint64_t{random()} << 32 | random();
  return id;
}

}  // namespace refrain::backend
