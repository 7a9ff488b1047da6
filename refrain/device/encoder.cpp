#include "refrain/device/encoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>
#include <utility>

#include "refrain/core/checked.h"
#include "refrain/core/deadline.h"
#include "refrain/core/error.h"
#include "refrain/device/device_state.h"
#include "refrain/device/encoder_recording.h"

namespace refrain {

using backend::Access;
using backend::ArgumentSpec;
using graph::Binding;
using graph::kNone;

namespace {

// More than any device has, and so little that the sum of all temps of a recording fits into size_t.
constexpr size_t kMaxTempBytes = size_t{1} << 44;

void check_temp(DType dtype, const Shape& shape) {
  if (shape.elements() == 0) {
    throw InvalidArgument(fmt::format("[encoder] temp: expected elements, got {}", to_string(shape)));
  }
  const size_t element_bytes = std::max<size_t>(size_bytes(dtype), 4);  // activations have at most 4
  if (static_cast<uint64_t>(shape.elements()) > kMaxTempBytes / element_bytes) {
    throw InvalidArgument(fmt::format("[encoder] temp: {} {} is too large", name(dtype), to_string(shape)));
  }
}

/// `[op] argument: `
std::string site(const backend::OpSchema& op, size_t index) {
  return fmt::format("[{}] {}: ", op.name, op.args[index].name);
}

bool same_view(const backend::BufferView& a, const backend::BufferView& b) {
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

/// Throws when the row arguments have no rows or not equally many.
void check_rows(const backend::OpSchema& op, std::span<const backend::ArgumentInfo> args) {
  size_t first = args.size();
  for (size_t i = 0; i < args.size(); ++i) {
    if (!op.args[i].rows || !args[i].bound) continue;
    const Shape& shape = args[i].shape;
    if (shape.rank() == 0) throw InvalidArgument(site(op, i) + "expected rows, got " + to_string(shape));
    if (first == args.size()) first = i;
    if (shape[0] == args[first].shape[0]) continue;
    throw InvalidArgument(fmt::format("{}expected {} rows as {} has, got {}", site(op, i),
                                      args[first].shape[0], op.args[first].name, to_string(shape)));
  }
}

/// Throws when what the command changes shares bytes with another argument in a way that the op does not
/// allow, or with the live count, which every worker reads when it begins.
void check_overlap(const backend::OpSchema& op, std::span<const Binding> bindings,
                   const backend::BufferView* live) {
  Binding count;
  if (live != nullptr) count.view = *live;
  for (size_t i = 0; i < op.args.size(); ++i) {
    if (op.args[i].access == Access::in || !bindings[i].bound()) continue;
    if (live != nullptr && overlap(bindings[i], count)) {
      throw InvalidArgument(site(op, i) + "shares bytes with the live row count; expected separate memory");
    }
    for (size_t j = 0; j < op.args.size(); ++j) {
      if (i == j || !bindings[j].bound() || !overlap(bindings[i], bindings[j])) continue;
      if (!backend::conflict(op.args[i].access, op.args[j].access)) continue;
      const bool in_place = (op.args[i].in_place >> j & 1) != 0;
      if (in_place && same_bytes(bindings[i], bindings[j])) continue;
      throw InvalidArgument(fmt::format("{}shares bytes with {}; expected separate memory{}", site(op, i),
                                        op.args[j].name, in_place ? " or exactly the same" : ""));
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
  result.info_ = 0;
  return result;
}

const Shape& Operand::shape() const {
  static const Shape none;
  switch (kind_) {
    case Kind::buffer:
      return buffer().shape();
    case Kind::temp:
      return temp().shape();
    case Kind::weight:
      return weight().shape();
    case Kind::none:
      break;
  }
  return none;
}

DType Operand::dtype() const {
  if (kind_ == Kind::buffer) return buffer().dtype();
  return kind_ == Kind::temp ? temp().dtype() : DType::f32;
}

CommandEncoder::CommandEncoder(std::shared_ptr<DeviceState> device)
    : device_(std::move(device)), recording_(std::make_unique<Recording>()) {
  recording_->graph = device_->take_storage();
  recording_->graph.labels.emplace_back();
  recording_->graph.infos.resize(kLiveCount + 1);
  recording_->graph.infos[kLiveCount] = {true, DType::u32, {1}, nullptr, nullptr};
}

CommandEncoder::~CommandEncoder() { drop(); }

CommandEncoder::CommandEncoder(CommandEncoder&& other) { *this = std::move(other); }

CommandEncoder& CommandEncoder::operator=(CommandEncoder&& other) {
  if (this == &other) return *this;
  check_own("move");
  other.check_own("move");
  drop();
  device_ = std::move(other.device_);
  recording_ = std::move(other.recording_);
  state_ = std::exchange(other.state_, EncoderState::moved_from);
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

Temp CommandEncoder::temp(DType dtype, Shape shape) {
  Recording& r = recording("temp");
  check_temp(dtype, shape);
  Temp temp;
  temp.recording_ = r.id;
  temp.id_ = static_cast<uint32_t>(r.graph.temps.size());
  temp.info_ = r.info(dtype, shape);
  temp.dtype_ = dtype;
  temp.shape_ = shape;
  r.temp_written.resize(r.graph.temps.size() + 1);
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
  check_temp(dtype, shape);
  recording_->retain(live_rows.memory());
  Temp result = temp(dtype, shape);
  result.live_ = live_rows.device_view();
  return result;
}

/// Appends the binding of an argument. Returns its live count, null when it can have none.
inline const backend::BufferView* CommandEncoder::bind(const backend::OpSchema& op, size_t index,
                                                       const Operand& operand) {
  Recording& r = *recording_;
  const ArgumentSpec& spec = op.args[index];
  Binding& binding = r.graph.bindings.emplace_back();
  binding.access = spec.access;
  const backend::BufferView* live = nullptr;
  switch (operand.kind_) {
    case Operand::Kind::none:
      if (!spec.optional)
        throw InvalidArgument(site(op, index) + "expected a buffer, temp or weight, got nothing");
      break;
    case Operand::Kind::buffer: {
      const Buffer& buffer = operand.buffer();
      if (buffer.bytes_ == 0) {
        throw InvalidArgument(site(op, index) + "expected elements, got " + to_string(buffer.shape_));
      }
      if (&buffer.memory_->backend() != device_->backend.get()) {
        throw InvalidArgument(site(op, index) + "expected a buffer of this device, got another device's");
      }
      if (buffer.read_only() && spec.access != Access::in) {
        throw InvalidArgument(site(op, index) + "expected memory to write, got a read-only buffer");
      }
      binding.view = {&buffer.memory_->allocation(), buffer.offset_bytes_, buffer.bytes_};
      r.retain(buffer.memory_);
      binding.info = r.info(buffer.dtype_, buffer.shape_);
      live = &buffer.live_;
      if (spec.rows && live->allocation != nullptr) r.retain(buffer.live_memory_);
      break;
    }
    case Operand::Kind::temp: {
      const Temp& temp = operand.temp();
      if (temp.recording_ != r.id)
        throw InvalidArgument(site(op, index) + "expected a temp of this recording");
      if (spec.access == Access::accumulate) {
        throw InvalidArgument(site(op, index) + "expected memory for status words, got a temp");
      }
      if (spec.access != Access::out && r.temp_written[temp.id_] == 0) {
        throw InvalidArgument(site(op, index) + "expected a value, got a temp that no command has written");
      }
      binding.temp = temp.id_;
      binding.info = temp.info_ != 0 ? temp.info_ : r.info(temp.dtype_, temp.shape_);
      live = &temp.live_;
      break;
    }
    case Operand::Kind::weight: {
      const Weight::State& weight = *operand.weight().state();
      const std::span<const int64_t> dims = weight.info.shape.dims();
      if (std::ranges::find(dims, 0) != dims.end()) {
        throw InvalidArgument(site(op, index) + "expected elements, got " + to_string(weight.info.shape));
      }
      if (&weight.memory->backend() != device_->backend.get()) {
        throw InvalidArgument(site(op, index) + "expected a weight of this device, got another device's");
      }
      if (spec.access != Access::in)
        throw InvalidArgument(site(op, index) + "expected memory to write, got a weight");
      binding.view = {&weight.memory->allocation(), weight.offset_bytes, weight.bytes};
      binding.sealed = true;
      r.retain(operand.weight().state());
      binding.info = r.info(weight.info.dtype(), weight.info.shape, &weight.info, weight.layout);
      static constexpr backend::BufferView kEveryRow;
      live = &kEveryRow;
      break;
    }
  }
  r.infos[index] = r.graph.infos[binding.info];
  return live;
}

void CommandEncoder::dispatch(const Dispatch& dispatch) {
  Recording& r = recording("dispatch");
  if (dispatch.op == nullptr) throw InvalidArgument("[encoder] dispatch: expected an op, got none");
  const backend::OpSchema& op = *dispatch.op;
  const size_t count = op.args.size();
  if (count > backend::kMaxArguments) {
    throw InvalidArgument(fmt::format("[{}] arguments: expected a schema of at most {}, got {}", op.name,
                                      backend::kMaxArguments, count));
  }
  if (dispatch.args.size() != count) {
    throw InvalidArgument(
        fmt::format("[{}] arguments: expected {}, got {}", op.name, count, dispatch.args.size()));
  }
  if (dispatch.constants.size() != op.constants_bytes) {
    throw InvalidArgument(fmt::format("[{}] constants: expected {} bytes, got {}", op.name,
                                      op.constants_bytes, dispatch.constants.size()));
  }

  const Recording::Mark mark = r.mark();
  if (mark.constants + dispatch.constants.size() > UINT32_MAX || mark.bindings + count >= UINT32_MAX) {
    throw InvalidArgument(fmt::format(
        "[{}] constants: expected less than 4 GiB in one recording, and as many arguments, got {} "
        "bytes and {} arguments",
        op.name, mark.constants + dispatch.constants.size(), mark.bindings + count));
  }
  try {
    const backend::BufferView* live = nullptr;  // of the row arguments so far
    bool listed = true;                         // every dtype is one of the schema's
    for (size_t i = 0; i < count; ++i) {
      const backend::BufferView* of_this = bind(op, i, dispatch.args[i]);
      listed = listed && backend::takes_dtype(op.args[i], r.infos[i]);
      if (!op.args[i].rows || of_this == nullptr) continue;
      if (live != nullptr && !same_view(*live, *of_this)) {
        throw InvalidArgument(site(op, i) +
                              "expected the live row count of the other row arguments, got another");
      }
      live = of_this;
    }
    if (live != nullptr && live->allocation == nullptr) live = nullptr;

    r.graph.constants.resize(mark.constants + align_up(dispatch.constants.size(), 16));
    const std::span constants =
        std::span(r.graph.constants).subspan(mark.constants, dispatch.constants.size());
    std::ranges::copy(dispatch.constants, constants.begin());
    const backend::OpCall call{&op, std::span(r.infos.data(), count), constants};
    if (!listed) backend::check_dtypes(call);  // says which
    if (op.check != nullptr) op.check(call);
    if (op.complete != nullptr) op.complete(call, constants.data());
    check_rows(op, std::span(r.infos.data(), count));
    check_overlap(op, std::span(r.graph.bindings).subspan(mark.bindings), live);

    if (live != nullptr) {
      Binding& binding = r.graph.bindings.emplace_back();
      binding.info = kLiveCount;
      binding.view = *live;
    }
    if (op.unknown_access) barrier();
    graph::Command& command = r.graph.commands.emplace_back();
    command.op = &op;
    command.bindings = {static_cast<uint32_t>(mark.bindings),
                        static_cast<uint32_t>(count + (live != nullptr))};
    command.constants = {static_cast<uint32_t>(mark.constants),
                         static_cast<uint32_t>(dispatch.constants.size())};
    command.live = live != nullptr;
    command.label = r.label;
    if (op.unknown_access) barrier();
  } catch (...) {
    r.restore(mark);
    throw;
  }
  for (size_t i = 0; i < count; ++i) {
    const Binding& binding = r.graph.bindings[mark.bindings + i];
    if (binding.temp != kNone && binding.access != Access::in) r.temp_written[binding.temp] = 1;
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
  if (r.self == nullptr) r.self = std::make_shared<Recording*>(&r);
  r.scopes.push_back({std::move(text), before, ++r.last_scope});
  Scope scope(r.self, r.scopes.size() - 1, r.last_scope);  // ends it should the label throw
  r.set_label(r.scopes.back().text);
  return scope;
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
  graph.owner = device_->backend->id;
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
  recording("commit");
  check_options(options.queue, options.waits);
  // While the recording can still be kept.
  device_->submissions.make_room(options.queue, deadline_after(device_->options.patience));
  PrepareOptions prepare;
  prepare.queue = options.queue;
  prepare.timestamps = timed != nullptr;
  const auto [plan, report] = device_->plan(take(EncoderState::failed, options.label), options.plan);
  const Program program = device_->prepare(plan, prepare, true);
  const Point point = device_->submit(program, {}, options.waits, Submissions::Limit::checked);
  if (timed != nullptr) *timed = program;
  state_ = EncoderState::committed;
  device_->counters.change([](Counters& counters) { ++counters.commits; });
  return point;
}

}  // namespace refrain
