#include "refrain/device/failures.h"

#include <fmt/format.h>

#include <algorithm>

namespace refrain {

bool Failures::note(const backend::Point& point, const std::string& message) {
  const std::lock_guard lock(mutex_);
  auto& rows = failed_[point.queue];
  if (!rows.empty() && rows.back().second >= point.value) return false;
  messages_.push_back({point.queue, point.value, message});
  if (!rows.empty() && rows.back().second + 1 == point.value) {
    ++rows.back().second;
  } else {
    try {
      rows.emplace_back(point.value, point.value);
    } catch (...) {
      messages_.pop_back();
      throw;
    }
  }
  if (messages_.size() > kMaxMessages) messages_.pop_front();
  any_.store(true, std::memory_order_release);
  return true;
}

std::string Failures::find(const backend::Point& point) const {
  if (!any() || point.queue >= failed_.size()) return {};
  const std::lock_guard lock(mutex_);
  const auto& rows = failed_[point.queue];
  const auto row = std::ranges::partition_point(rows, [&](const auto& r) { return r.second < point.value; });
  if (row == rows.end() || row->first > point.value) return {};
  for (const Message& message : messages_) {
    if (message.queue == point.queue && message.value == point.value) return message.text;
  }
  return fmt::format("[submission] {} of queue {}: failed, before {} others", point.value, point.queue,
                     kMaxMessages);
}

}  // namespace refrain
