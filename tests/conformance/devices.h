// The devices that the conformance suite runs on, and where each may differ from the contract.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "refrain/backend/backend.h"

namespace refrain::backend::testing {

struct DeviceCase {
  std::string name;
  std::function<std::unique_ptr<Backend>()> make;
};

/// A test that a device cannot pass, and why.
struct Exception {
  std::string device;
  std::string test;
  std::string reason;
};

const std::vector<DeviceCase>& devices();

/// The reason why `test` is not run on `device`; empty when it is run.
std::string exception(const std::string& device, const std::string& test);

}  // namespace refrain::backend::testing
