// The main() of the test programs: GoogleTest's, but for a program of which every test was skipped. It ends with a
// status of its own, so that ctest reports it as skipped, not as passed.
#include <gtest/gtest.h>

namespace {

constexpr int kAllSkipped = 77;  // SKIP_RETURN_CODE in cmake/refrain_test.cmake

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const int status = RUN_ALL_TESTS();
  const testing::UnitTest& unit = *testing::UnitTest::GetInstance();
  const bool all_skipped =
      unit.test_to_run_count() != 0 && unit.skipped_test_count() == unit.test_to_run_count();
  return status == 0 && all_skipped ? kAllSkipped : status;
}
