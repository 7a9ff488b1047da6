#include "refrain/stream/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>

namespace refrain {
namespace {

std::string json_string(std::string_view text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      json += '\\';
      json += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      json += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      json += c;
    }
  }
  return json + '"';
}

}  // namespace

Profile::Profile(const Device& device, const Program& program) {
  const std::vector<std::pair<double, double>> times = device.timestamps_ns(program);
  const device::Plan& plan = program.plan().data();
  label_ = program.label();
  for (uint32_t i = 0; i < plan.commands.size(); ++i) {
    const device::Command& command = plan.commands[i];
    if (command.kind == device::CommandKind::fence) continue;
    ProfileSpan& span = spans_.emplace_back();
    span.command = i;
    span.level = command.level;
    span.kernel = device::title(plan, command);
    if (command.label < plan.labels.size()) span.label = plan.labels[command.label];
    span.begin_ns = times[i].first;
    span.end_ns = times[i].second;
  }
}

double Profile::duration_ns() const {
  if (spans_.empty()) return 0;
  const double begin = std::ranges::min_element(spans_, {}, &ProfileSpan::begin_ns)->begin_ns;
  return std::ranges::max_element(spans_, {}, &ProfileSpan::end_ns)->end_ns - begin;
}

double Profile::busy_ns() const {
  return std::accumulate(spans_.begin(), spans_.end(), 0.0, [](double sum, const ProfileSpan& span) {
    return sum + (span.end_ns - span.begin_ns);
  });
}

void Profile::append(const Profile& other) {
  if (label_.empty()) label_ = other.label_;
  const std::vector<ProfileSpan> more = other.spans_;  // which may be this one
  spans_.insert(spans_.end(), more.begin(), more.end());
}

std::vector<ProfileRow> Profile::rows(ProfileKey key) const {
  std::map<std::string_view, ProfileRow> sums;
  for (const ProfileSpan& span : spans_) {
    const std::string& name = key == ProfileKey::kernel ? span.kernel : span.label;
    ProfileRow& row = sums[name];
    row.name = name;
    ++row.commands;
    row.total_ns += span.end_ns - span.begin_ns;
  }
  const double busy = busy_ns();
  std::vector<ProfileRow> rows;
  for (auto& [name, row] : sums) {
    row.share = busy > 0 ? row.total_ns / busy : 0;
    rows.push_back(std::move(row));
  }
  std::ranges::stable_sort(rows, std::greater<>(), &ProfileRow::total_ns);
  return rows;
}

std::string Profile::table(ProfileKey key) const {
  const std::vector<ProfileRow> all = rows(key);
  size_t width = 5;
  for (const ProfileRow& row : all) width = std::max(width, row.name.size());
  std::string text = fmt::format("{:<{}}  commands    total us   share\n",
                                 key == ProfileKey::kernel ? "kernel" : "label", width);
  for (const ProfileRow& row : all) {
    text += fmt::format("{:<{}}  {:>8}  {:>10.1f}  {:>5.1f} %\n", row.name, width, row.commands,
                        row.total_ns / 1e3, row.share * 100);
  }
  return text;
}

std::string Profile::chrome_trace() const {
  std::vector<const ProfileSpan*> order;
  for (const ProfileSpan& span : spans_) order.push_back(&span);
  std::ranges::stable_sort(order, {}, &ProfileSpan::begin_ns);
  const double origin = order.empty() ? 0 : order[0]->begin_ns;
  std::string json = fmt::format(
      "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n"
      "{{\"ph\":\"M\",\"pid\":1,\"name\":\"process_name\",\"args\":{{\"name\":{}}}}}",
      json_string(label_));
  std::vector<double> rows;  // the end of the last span in each
  for (const ProfileSpan* span : order) {
    size_t row = 0;
    while (row < rows.size() && rows[row] > span->begin_ns) ++row;
    if (row == rows.size()) rows.push_back(0);
    rows[row] = span->end_ns;
    json += fmt::format(
        ",\n{{\"ph\":\"X\",\"pid\":1,\"tid\":{},\"name\":{},\"cat\":{},\"ts\":{:.3f},\"dur\":{:.3f},"
        "\"args\":{{\"command\":{},\"level\":{},\"label\":{}}}}}",
        row, json_string(span->kernel), json_string(span->label.empty() ? "command" : span->label),
        (span->begin_ns - origin) / 1e3, (span->end_ns - span->begin_ns) / 1e3, span->command, span->level,
        json_string(span->label));
  }
  return json + "\n]}\n";
}

}  // namespace refrain
