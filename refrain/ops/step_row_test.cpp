// The bounds of what a step block says, each at the value that is still good and at the first that is not. The
// tables here are longer than what the kernel is told, so that a bound that is off by one shows and hurts
// nothing.
#include "refrain/ops/step_row.h"

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <thread>
#include <vector>

namespace refrain::ops {
namespace {

constexpr uint32_t kSlots = 2, kPagesPerSlot = 3, kCachePages = 9;

/// The tables of two slots, and what lies behind them.
struct Step {
  std::array<uint32_t, (kSlots + 1) * kPagesPerSlot + 1> ids{7, 6, 5, 4, 3, 8, 0, 0, 0, 0};
  StepRow row{0, 191, 1, 0};  // the last position of the last page of the last slot

  CheckedRow check(uint32_t first_position = 0) const {
    return check_row(row, {ids.data(), kSlots, kPagesPerSlot, kCachePages}, first_position);
  }
};

void expect_good(const std::function<void(Step&)>& change, uint32_t first_position = 0) {
  Step step;
  change(step);
  const CheckedRow row = step.check(first_position);
  EXPECT_EQ(row.status_bits, 0u);
  EXPECT_EQ(row.position, step.row.position);
  EXPECT_EQ(row.pages, step.ids.data() + size_t{step.row.slot} * kPagesPerSlot);
}

void expect_refused(uint32_t bits, uint32_t word, const std::function<void(Step&)>& change,
                    uint32_t first_position = 0) {
  Step step;
  change(step);
  const CheckedRow row = step.check(first_position);
  EXPECT_EQ(row.status_bits, bits);
  EXPECT_EQ(row.status_word, word);
  EXPECT_EQ(row.pages, nullptr);
}

TEST(CheckRow, TheLastOfEachIsGood) {
  expect_good([](Step&) {});
  expect_good([](Step& s) { s.row.slot = 0; });
  for (const uint32_t position : {0u, 63u, 64u, 127u, 128u})
    expect_good([&](Step& s) { s.row.position = position; });
  for (const uint32_t page : {3u, 4u, 5u}) expect_good([&](Step& s) { s.ids[page] = kCachePages - 1; });
}

TEST(CheckRow, TheSlotIsOneOfThose) {
  expect_refused(kSlotOutOfRange, kSlots, [](Step& s) { s.row.slot = kSlots; });
  expect_refused(kSlotOutOfRange, kSlots, [](Step& s) { s.row.slot = kIdle - 1; });
  Step idle;
  idle.row = {0, UINT32_MAX, kIdle, 0};
  EXPECT_EQ(idle.check().pages, nullptr);
  EXPECT_EQ(idle.check().status_bits, 0u) << "it is no row";
}

TEST(CheckRow, ThePositionIsInOneOfItsPages) {
  for (const uint32_t slot : {0u, 1u}) {
    for (const uint32_t position : {192u, 193u, UINT32_MAX}) {
      expect_refused(kPositionOutOfRange, slot, [&](Step& s) {
        s.row.slot = slot;
        s.row.position = position;
      });
    }
  }
}

TEST(CheckRow, EveryPageThatIsReadIsOneOfTheCache) {
  for (const uint32_t page : {3u, 4u, 5u}) {
    expect_refused(kPageOutOfRange, 1, [&](Step& s) { s.ids[page] = kCachePages; });
    expect_refused(kPageOutOfRange, 1, [&](Step& s) { s.ids[page] = UINT32_MAX; });
  }
  // Neither its neighbours' pages nor those that its position does not reach.
  for (const uint32_t page : {0u, 1u, 2u, 6u}) expect_good([&](Step& s) { s.ids[page] = UINT32_MAX; });
  expect_good([](Step& s) {
    s.row.position = 127;
    s.ids[5] = UINT32_MAX;
  });
  // From the page of the first position that is read.
  expect_good([](Step& s) { s.ids[3] = s.ids[4] = UINT32_MAX; }, 128);
  expect_good([](Step& s) { s.ids[3] = UINT32_MAX; }, 64);
  expect_refused(
      kPageOutOfRange, 1, [](Step& s) { s.ids[3] = UINT32_MAX; }, 63);
  expect_refused(
      kPageOutOfRange, 1, [](Step& s) { s.ids[5] = UINT32_MAX; }, 191);
}

TEST(CheckRow, StatusBitsOfManyWorkersAreAllKept) {
  std::array<uint32_t, 3> status{};
  std::vector<std::thread> workers;
  for (uint32_t worker = 0; worker < 4; ++worker) {
    workers.emplace_back([&, worker] {
      for (uint32_t bit = worker; bit < 32; bit += 4) raise_status(status.data(), 1, 1u << bit);
    });
  }
  for (std::thread& worker : workers) worker.join();
  EXPECT_EQ(status, (std::array<uint32_t, 3>{0, UINT32_MAX, 0}));
}

}  // namespace
}  // namespace refrain::ops
