#include "refrain/stream/encoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>
#include <utility>

#include "refrain/core/checked.h"
#include "refrain/core/error.h"
#include "refrain/stream/device_state.h"

namespace refrain {

using device::Access;
using device::ArgumentSpec;
using graph::Binding;
using graph::kNone;

namespace {

// More than any device has, and so little that the sum of all temps of a recording fits into size_t.
constexpr size_t kMaxTempBytes = size_t{1} << 44;

/// As ==, in line: shapes of few dimensions are compared for every argument recorded.
bool same_dims(const Shape& a, const Shape& b) {
  if (a.rank() != b.rank()) return false;
  for (size_t axis = 0; axis < a.rank(); ++axis) {
    if (a[axis] != b[axis]) return false;
  }
  return true;
}

}  // namespace

struct CommandEncoder::Recording {
  std::shared_ptr<const void> id =
      std::make_shared<char>();  // shared with its temps, so that others are noticed
  ComputeGraph graph;
  std::vector<bool> temp_written;
  std::vector<device::ArgumentInfo> infos;  // of the dispatch being recorded
  std::array<const void*, 64> retained{};   // recently retained, so that most repeats are skipped
  std::array<uint32_t, 64> recent_infos{};  // into graph.infos: recently added, for the same reason
  uint32_t label = 0;
  uint64_t dispatches = 0;
  struct OpenScope {
    std::string text;  // with the scopes around it
    uint32_t label_before = 0;
    uint64_t serial = 0;
  };
  std::vector<OpenScope> scopes;
  uint64_t last_scope = 0;
  std::shared_ptr<Recording*> self;  // for scopes, made with the first; nobody else holds it

  void set_label(std::string_view text) {
    if (text.empty()) {
      label = 0;
    } else if (label == 0 || graph.labels[label] != text) {
      graph.labels.emplace_back(text);
      label = static_cast<uint32_t>(graph.labels.size() - 1);
    }
  }

  /// The index of `info` in graph.infos.
  uint32_t add(const device::ArgumentInfo& info) {
    if (!info.bound) return 0;
    uint64_t hash = reinterpret_cast<uintptr_t>(info.weight) / 16 + static_cast<uint64_t>(info.dtype);
    for (const int64_t dim : info.shape.dims())
      hash = hash * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(dim);
    uint32_t& recent = recent_infos[hash * 0x9e3779b97f4a7c15u >> 58];
    const device::ArgumentInfo& old = graph.infos[recent];
    if (!old.bound || old.dtype != info.dtype || old.weight != info.weight || old.layout != info.layout ||
        !same_dims(old.shape, info.shape)) {
      graph.infos.push_back(info);
      recent = static_cast<uint32_t>(graph.infos.size() - 1);
    }
    return recent;
  }
};

namespace {

/// `[op] argument: `
std::string site(const device::OpSchema& op, size_t index) {
  return fmt::format("[{}] {}: ", op.name, op.args[index].name);
}

bool same_view(const device::BufferView& a, const device::BufferView& b) {
  return a.allocation == b.allocation && a.offset_bytes == b.offset_bytes && a.bytes == b.bytes;
}

/// True when the two bindings share bytes. A temp is always bound whole.
bool overlap(const Binding& a, const Binding& b) {
  if (a.temp != kNone || b.temp != kNone) return a.temp == b.temp;
  return a.view.allocation == b.view.allocation && a.view.offset_bytes < b.view.offset_bytes + b.view.bytes &&
         b.view.offset_bytes < a.view.offset_bytes + a.view.bytes;
}

bool same_bytes(const Binding& a, const Binding& b) {
  return a.temp == b.temp && (a.temp != kNone || same_view(a.view, b.view));
}

/// Throws when an output of the command shares bytes with another argument in a way that the op does not
/// allow, or with the live count, which every worker reads when it begins.
void check_overlap(const device::OpSchema& op, std::span<const Binding> bindings,
                   const device::BufferView& live) {
  Binding count;
  count.view = live;
  for (size_t i = 0; i < op.args.size(); ++i) {
    if (op.args[i].access == Access::in || op.args[i].access == Access::status || !bindings[i].bound())
      continue;
    if (live.allocation != nullptr && overlap(bindings[i], count)) {
      throw InvalidArgument(site(op, i) + "shares bytes with the live row count; expected separate memory");
    }
    for (size_t j = 0; j < op.args.size(); ++j) {
      if (i == j || !bindings[j].bound() || op.args[j].access == Access::status) continue;
      if (!overlap(bindings[i], bindings[j])) continue;
      if ((op.args[i].in_place >> j & 1) != 0 && same_bytes(bindings[i], bindings[j])) continue;
      throw InvalidArgument(fmt::format("{}shares bytes with {}; expected separate memory{}", site(op, i),
                                        op.args[j].name,
                                        (op.args[i].in_place >> j & 1) != 0 ? " or exactly the same" : ""));
    }
  }
}

}  // namespace

Temp Temp::view(Shape shape) const {
  if (shape.elements() != shape_.elements()) {
    throw InvalidArgument(fmt::format("[temp] view: expected {} elements as in {}, got {}", shape_.elements(),
                                      to_string(shape_), to_string(shape)));
  }
  if (live_.allocation != nullptr && (shape.rank() == 0 || shape[0] != shape_[0])) {
    throw InvalidArgument(fmt::format("[temp] view: expected {} rows, of which a count is live, got {}",
                                      shape_[0], to_string(shape)));
  }
  Temp result = *this;
  result.shape_ = shape;
  return result;
}

const Shape& Operand::shape() const {
  static const Shape none;
  if (buffer_ != nullptr) return buffer_->shape();
  if (temp_ != nullptr) return temp_->shape();
  return weight_ != nullptr ? weight_->shape() : none;
}

CommandEncoder::CommandEncoder(std::shared_ptr<DeviceState> device)
    : device_(std::move(device)), recording_(std::make_unique<Recording>()) {
  recording_->graph = device_->take_storage();
  recording_->graph.labels.emplace_back();
  recording_->graph.infos.emplace_back();
}

CommandEncoder::~CommandEncoder() { drop(); }

CommandEncoder::CommandEncoder(CommandEncoder&& other) noexcept
    : device_(std::move(other.device_)),
      recording_(std::move(other.recording_)),
      state_(std::exchange(other.state_, EncoderState::moved_from)),
      lent_(std::exchange(other.lent_, false)) {}

CommandEncoder& CommandEncoder::operator=(CommandEncoder&& other) noexcept {
  if (this == &other) return *this;
  drop();
  device_ = std::move(other.device_);
  recording_ = std::move(other.recording_);
  state_ = std::exchange(other.state_, EncoderState::moved_from);
  lent_ = std::exchange(other.lent_, false);
  return *this;
}

void CommandEncoder::drop() noexcept {
  if (!recording_) return;
  if (const size_t commands = recording_->graph.commands.size(); commands > 0 && device_->options.log) {
    try {
      device_->log(LogLevel::warning,
                   fmt::format("[encoder] dropped with {} commands that were neither committed nor finished",
                               commands));
    } catch (const std::bad_alloc&) {
      // Nothing to say it with.
    }
  }
  device_->dispatches_recorded.fetch_add(recording_->dispatches, std::memory_order_relaxed);
  device_->keep_storage(std::move(recording_->graph));
  recording_.reset();
}

void CommandEncoder::refuse(const char* call) const {
  const char* what = state_ == EncoderState::committed  ? "was committed"
                     : state_ == EncoderState::finished ? "was finished"
                     : state_ == EncoderState::failed   ? "failed to commit"
                                                        : "was moved from";
  throw InvalidArgument(fmt::format(
      "[encoder] {}: expected one that records, got one that {}; make a new encoder", call, what));
}

void CommandEncoder::check_own(const char* call) const {
  if (!lent_) return;
  throw InvalidArgument(fmt::format(
      "[encoder] {}: expected an encoder of your own, got a session's stage; end it there", call));
}

template <class T>
void CommandEncoder::retain(const std::shared_ptr<T>& owner) {
  Recording& r = *recording_;
  // Objects made by make_shared lie 16 bytes or more apart; two multiples of that spread them over the slots.
  const auto address = reinterpret_cast<uintptr_t>(owner.get());
  const void*& slot = r.retained[(address / 16 ^ address / 1024) % r.retained.size()];
  if (slot == owner.get()) return;
  r.graph.resources.push_back(owner);
  slot = owner.get();
}

Temp CommandEncoder::temp(DType dtype, Shape shape) {
  Recording& r = recording("temp");
  if (shape.elements() == 0) {
    throw InvalidArgument(fmt::format("[encoder] temp: expected elements, got {}", to_string(shape)));
  }
  const size_t element_bytes = std::max<size_t>(size_bytes(dtype), 4);  // activations have at most 4
  if (static_cast<uint64_t>(shape.elements()) > kMaxTempBytes / element_bytes) {
    throw InvalidArgument(fmt::format("[encoder] temp: {} {} is too large", name(dtype), to_string(shape)));
  }
  Temp temp;
  temp.recording_ = r.id;
  temp.id_ = static_cast<uint32_t>(r.graph.temps.size());
  temp.dtype_ = dtype;
  temp.shape_ = shape;
  r.temp_written.push_back(false);
  r.graph.temps.push_back({dtype, shape});
  return temp;
}

Temp CommandEncoder::temp(DType dtype, Shape shape, const Buffer& live_rows) {
  recording("temp");
  if (shape.rank() == 0) throw InvalidArgument("[encoder] temp: expected a first dimension that counts rows");
  if (!live_rows || live_rows.dtype() != DType::u32 || live_rows.shape().elements() != 1) {
    throw InvalidArgument("[encoder] temp: live rows: expected a u32 buffer of one element");
  }
  if (&live_rows.memory()->backend() != device_->backend.get()) {
    throw InvalidArgument(
        "[encoder] temp: live rows: expected a buffer of this device, got another device's");
  }
  Temp result = temp(dtype, shape);
  result.live_ = live_rows.device_view();
  retain(live_rows.memory());
  return result;
}

void CommandEncoder::bind(const device::OpSchema& op, size_t index, const Operand& operand) {
  Recording& r = *recording_;
  const ArgumentSpec& spec = op.args[index];
  Binding& binding = r.graph.bindings.emplace_back();
  binding.access = spec.access;
  device::ArgumentInfo& info = r.infos.emplace_back();
  if (!operand) {
    if (!spec.optional)
      throw InvalidArgument(site(op, index) + "expected a buffer, temp or weight, got nothing");
    return;
  }
  info.bound = true;
  info.shape = operand.shape();
  if (std::ranges::find(info.shape.dims(), 0) != info.shape.dims().end()) {
    throw InvalidArgument(site(op, index) + "expected elements, got " + to_string(info.shape));
  }
  if (const Buffer* buffer = operand.buffer_) {
    if (&buffer->memory_->backend() != device_->backend.get()) {
      throw InvalidArgument(site(op, index) + "expected a buffer of this device, got another device's");
    }
    info.dtype = buffer->dtype();
    binding.view = {&buffer->memory_->allocation(), buffer->offset_bytes_, buffer->bytes_};
    retain(buffer->memory());
  } else if (const Temp* temp = operand.temp_) {
    if (temp->recording_ != r.id)
      throw InvalidArgument(site(op, index) + "expected a temp of this recording");
    if (spec.access == Access::status) {
      throw InvalidArgument(site(op, index) + "expected memory for status words, got a temp");
    }
    info.dtype = temp->dtype();
    binding.temp = temp->id_;
    const bool reads = spec.access != Access::out;
    if (reads && !r.temp_written[temp->id_]) {
      throw InvalidArgument(site(op, index) + "expected a value, got a temp that no command has written");
    }
  } else {
    const Weight::State& weight = *operand.weight_->state();
    if (&weight.memory->backend() != device_->backend.get()) {
      throw InvalidArgument(site(op, index) + "expected a weight of this device, got another device's");
    }
    if (spec.access != Access::in)
      throw InvalidArgument(site(op, index) + "expected memory to write, got a weight");
    info.dtype = weight.info.dtype;
    info.weight = &weight.info;
    info.layout = weight.layout;
    binding.view = {&weight.memory->allocation(), weight.offset_bytes, weight.bytes};
    binding.sealed = true;
    retain(operand.weight_->state());
  }
}

void CommandEncoder::dispatch(const Dispatch& dispatch) {
  Recording& r = recording("dispatch");
  if (dispatch.op == nullptr) throw InvalidArgument("[encoder] dispatch: expected an op, got none");
  const device::OpSchema& op = *dispatch.op;
  if (dispatch.args.size() != op.args.size()) {
    throw InvalidArgument(
        fmt::format("[{}] arguments: expected {}, got {}", op.name, op.args.size(), dispatch.args.size()));
  }
  if (dispatch.constants.size() != op.constants_bytes) {
    throw InvalidArgument(fmt::format("[{}] constants: expected {} bytes, got {}", op.name,
                                      op.constants_bytes, dispatch.constants.size()));
  }

  r.infos.clear();
  const size_t first = r.graph.bindings.size();
  const size_t first_constant = r.graph.constants.size();
  const size_t first_resource = r.graph.resources.size();
  try {
    device::BufferView live;
    bool live_known = false;
    for (size_t i = 0; i < op.args.size(); ++i) {
      const Operand& operand = dispatch.args[i];
      bind(op, i, operand);
      if (!op.args[i].rows || !operand) continue;
      device::BufferView view;
      if (operand.buffer_ != nullptr) {
        view = operand.buffer_->live_;
        if (view.allocation != nullptr) retain(operand.buffer_->live_memory_);
      } else if (operand.temp_ != nullptr) {
        view = operand.temp_->live_;
      }
      if (live_known && !same_view(live, view)) {
        throw InvalidArgument(site(op, i) +
                              "expected the live row count of the other row arguments, got another");
      }
      live = view;
      live_known = true;
    }

    if (op.check != nullptr) op.check({&op, r.infos, dispatch.constants});
    check_overlap(op, std::span(r.graph.bindings).subspan(first), live);

    for (size_t i = 0; i < op.args.size(); ++i) r.graph.bindings[first + i].info = r.add(r.infos[i]);
    graph::Command command;
    command.op = &op;
    command.label = r.label;
    if (live.allocation != nullptr) {
      Binding& binding = r.graph.bindings.emplace_back();
      binding.info = r.add({true, DType::u32, {1}, nullptr, nullptr});
      binding.view = live;
      command.live = true;
    }
    command.bindings = {static_cast<uint32_t>(first), static_cast<uint32_t>(r.graph.bindings.size() - first)};
    r.graph.constants.resize(align_up(r.graph.constants.size(), 16));
    command.constants = {static_cast<uint32_t>(r.graph.constants.size()),
                         static_cast<uint32_t>(dispatch.constants.size())};
    r.graph.constants.insert(r.graph.constants.end(), dispatch.constants.begin(), dispatch.constants.end());
    r.graph.commands.push_back(command);
  } catch (...) {
    r.graph.bindings.resize(first);
    r.graph.constants.resize(first_constant);
    if (r.graph.resources.size() != first_resource) {
      r.graph.resources.resize(first_resource);
      r.retained.fill(nullptr);
    }
    throw;
  }
  for (size_t i = first; i < r.graph.bindings.size(); ++i) {
    const Binding& binding = r.graph.bindings[i];
    if (binding.temp != kNone && binding.access != Access::in) r.temp_written[binding.temp] = true;
  }
  ++r.dispatches;
}

void CommandEncoder::barrier() {
  Recording& r = recording("barrier");
  graph::Command command;
  command.label = r.label;
  command.bindings.first = static_cast<uint32_t>(r.graph.bindings.size());
  r.graph.commands.push_back(command);
}

void CommandEncoder::label(std::string_view label) {
  Recording& r = recording("label");
  if (r.scopes.empty()) {
    r.set_label(label);
  } else if (label.empty()) {
    r.set_label(r.scopes.back().text);
  } else {
    r.set_label(fmt::format("{} / {}", r.scopes.back().text, label));
  }
}

CommandEncoder::Scope CommandEncoder::scope(std::string_view label) {
  Recording& r = recording("scope");
  if (label.empty()) throw InvalidArgument("[encoder] scope: expected a label, got none");
  const uint32_t before = r.label;
  std::string text =
      r.scopes.empty() ? std::string(label) : fmt::format("{} / {}", r.scopes.back().text, label);
  r.set_label(text);
  r.scopes.push_back({std::move(text), before, ++r.last_scope});
  if (r.self == nullptr) r.self = std::make_shared<Recording*>(&r);
  return Scope(r.self, r.scopes.size() - 1, r.last_scope);
}

CommandEncoder::Scope::~Scope() {
  const std::shared_ptr<Recording*> self = recording_.lock();
  if (self == nullptr) return;
  Recording& r = **self;
  // A scope ends those within it; what these do later finds others in their places.
  if (r.scopes.size() <= depth_ || r.scopes[depth_].serial != serial_) return;
  r.label = r.scopes[depth_].label_before;
  r.scopes.resize(depth_);
}

ComputeGraph CommandEncoder::take(EncoderState next, std::string_view label) {
  recording_->graph.labels[0] = label;
  ComputeGraph graph = std::move(recording_->graph);
  graph.owner = device_->backend.get();
  device_->dispatches_recorded.fetch_add(recording_->dispatches, std::memory_order_relaxed);
  recording_.reset();
  state_ = next;
  return graph;
}

ComputeGraph CommandEncoder::finish(std::string_view label) {
  recording("finish");
  check_own("finish");
  return take(EncoderState::finished, label);
}

Point CommandEncoder::commit(const CommitOptions& options) {
  recording("commit");
  check_own("commit");
  return submit(options);
}

void CommandEncoder::check_options(uint32_t queue, std::span<const Point> waits) const {
  if (queue >= device_->backend->info.queue_count) {
    throw InvalidArgument(fmt::format("[encoder] commit: queue: expected less than {}, got {}",
                                      device_->backend->info.queue_count, queue));
  }
  for (const Point& point : waits) device_->check(point, "commit");
}

Point CommandEncoder::submit(const CommitOptions& options, Program* timed) {
  check_options(options.queue, options.waits);
  PrepareOptions prepare;
  prepare.queue = options.queue;
  prepare.timestamps = timed != nullptr;
  const auto [plan, report] = device_->plan(take(EncoderState::failed, options.label), options.plan);
  const Program program = device_->prepare(plan, prepare, true);
  const Point point = device_->submit(program, {}, options.waits);
  if (timed != nullptr) *timed = program;
  state_ = EncoderState::committed;
  const std::lock_guard lock(device_->mutex);
  ++device_->counters.commits;
  return point;
}

}  // namespace refrain
