// The CUDA backend for the suites of tests/conformance, with the test kernels in place of the ops'. Only where a GPU is to
// be tested.
#pragma once

#include <memory>
#include <string>

#include "refrain/backend/backend.h"

namespace refrain::backend::testing {

/// "cuda:0" where REFRAIN_TEST_DEVICE says so; empty: none is tested.
std::string cuda_under_test();

/// A backend that takes the plans of tests, whose kernels it finds by name. Throws DeviceError where there is no GPU.
std::unique_ptr<Backend> cuda_device(bool full_edges = false);

}  // namespace refrain::backend::testing
