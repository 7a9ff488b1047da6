#include "refrain/device/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>

namespace refrain {
namespace {

/// Bytes of the UTF-8 sequence that `text` begins with; 0 when it begins with none.
size_t utf8_sequence_bytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  const size_t bytes = first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 : 4;
  if (first < 0xc2 || first > 0xf4 || text.size() < bytes) return 0;
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  // Longer than needed, a half of a surrogate pair, or beyond U+10FFFF.
  if ((first == 0xe0 && byte(1) < 0xa0) || (first == 0xed && byte(1) > 0x9f) ||
      (first == 0xf0 && byte(1) < 0x90) || (first == 0xf4 && byte(1) > 0x8f)) {
    return 0;
  }
  return bytes;
}

std::string json_string(std::string_view text) {
  std::string json = "\"";
  while (!text.empty()) {
    const char c = text[0];
    const size_t bytes = utf8_sequence_bytes(text);
    if (bytes == 0) {
      json += "\\ufffd";
    } else if (c == '"' || c == '\\') {
      json += '\\';
      json += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      json += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      json += text.substr(0, bytes);
    }
    text.remove_prefix(std::max<size_t>(bytes, 1));
  }
  return json + '"';
}

const std::string& name_of(const ProfileSpan& span, ProfileKey key) {
  if (key == ProfileKey::kernel) return span.kernel;
  return key == ProfileKey::label ? span.label : span.submission;
}

}  // namespace

Profile::Profile(const Device& device, const Program& program) {
  const std::vector<CommandTimes> times = device.timestamps_ns(program);
  const backend::PlanData& plan = program.plan().data();
  label_ = program.label();
  for (uint32_t i = 0; i < plan.commands.size(); ++i) {
    const backend::PlanCommand& command = plan.commands[i];
    if (command.kind == backend::CommandKind::fence) continue;
    ProfileSpan& span = spans_.emplace_back();
    span.command = i;
    span.level = command.level;
    span.kernel = backend::title(plan, command);
    if (command.label < plan.labels.size()) span.label = plan.labels[command.label];
    span.submission = label_;
    span.begin_ns = times[i].begin_ns;
    span.ready_ns = times[i].ready_ns;
    span.end_ns = times[i].end_ns;
  }
}

double Profile::duration_ns() const {
  if (spans_.empty()) return 0;
  const double begin = std::ranges::min_element(spans_, {}, &ProfileSpan::begin_ns)->begin_ns;
  return std::ranges::max_element(spans_, {}, &ProfileSpan::end_ns)->end_ns - begin;
}

double Profile::busy_ns() const {
  return std::accumulate(spans_.begin(), spans_.end(), 0.0, [](double sum, const ProfileSpan& span) {
    return sum + (span.end_ns - span.ready_ns);
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
    const std::string& name = name_of(span, key);
    ProfileRow& row = sums[name];
    row.name = name;
    ++row.commands;
    row.total_ns += span.end_ns - span.ready_ns;
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
  std::vector<ProfileRow> all = rows(key);
  const std::string_view title = key == ProfileKey::kernel  ? "kernel"
                                 : key == ProfileKey::label ? "label"
                                                            : "submission";
  size_t width = title.size();
  for (ProfileRow& row : all) {
    std::ranges::replace_if(
        row.name, [](char c) { return static_cast<unsigned char>(c) < 0x20; }, '?');
    width = std::max(width, row.name.size());
  }
  std::string text = fmt::format("{:<{}}  commands    total us   share\n", title, width);
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
        "\"args\":{{\"waited_us\":{:.3f},\"command\":{},\"level\":{},\"label\":{},\"submission\":{}}}}}",
        row, json_string(span->kernel), json_string(span->label.empty() ? "command" : span->label),
        (span->begin_ns - origin) / 1e3, (span->end_ns - span->begin_ns) / 1e3,
        (span->ready_ns - span->begin_ns) / 1e3, span->command, span->level, json_string(span->label),
        json_string(span->submission));
  }
  return json + "\n]}\n";
}

}  // namespace refrain
