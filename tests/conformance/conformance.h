// The fixture of the suite that runs on every device of devices.cpp.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/conformance/devices.h"
#include "tests/conformance/test_kernels.h"

namespace refrain::backend::testing {

inline constexpr std::chrono::nanoseconds kLong = std::chrono::seconds(60);
inline constexpr uint32_t kRows = 8;  // of a test buffer of u32
inline constexpr size_t kRowsBytes = kRows * sizeof(uint32_t);

class Conformance : public ::testing::TestWithParam<DeviceCase> {
 protected:
  void SetUp() override {
    std::string test = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    test.resize(test.find('/'));
    const std::string reason = exception(GetParam().name, test);
    if (!reason.empty()) GTEST_SKIP() << reason;
    device_ = GetParam().make();
  }

  const Allocation* allocate(size_t bytes, const char* label = "test") {
    return device_->allocate({bytes, label});
  }
  const Allocation* cells(uint32_t count = kRows) { return allocate(count * sizeof(uint32_t)); }

  Point submit(const Executable& program, std::span<const UpdateData> updates = {},
               std::span<const Point> waits = {}) {
    return device_->submit({&program, updates, waits});
  }
  bool wait(const Point& point) { return device_->wait(point, kLong); }
  template <class T>
  std::vector<T> contents(const Allocation* allocation) const {
    return testing::contents<T>(*device_, allocation);
  }
  Point host_point(uint64_t value) const { return {device_->id, kHostQueue, value}; }

  static Launch rows(uint32_t count) { return {count, 1, 1, 0}; }

  std::unique_ptr<Backend> device_;
};

}  // namespace refrain::backend::testing
