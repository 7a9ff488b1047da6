// A decorator that checks the contract of backend.h on every call, for tests and for whoever writes a backend
// or a front.
//
// Every breach is an InvalidArgument `[validate] call: what, where`. What a function that cannot throw finds
// (release, the end of a program) is thrown by the next call that can, and what was to end stays until it is
// safe.
#pragma once

#include <memory>

#include "refrain/backend/backend.h"

namespace refrain::backend {

/// Points, programs and allocations of the result are its own: `inner` is not used beside it.
std::unique_ptr<Backend> make_validate(std::unique_ptr<Backend> inner);

}  // namespace refrain::backend
