#include "refrain/device/residency.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "refrain/device/device_state.h"

namespace refrain {
namespace {

using Key = std::tuple<uint64_t, size_t, size_t>;  // allocation id, offset, bytes

Key key_of(const backend::BufferView& view) { return {view.allocation->id, view.offset_bytes, view.bytes}; }

std::pair<std::shared_ptr<const AllocationHandle>, backend::BufferView> memory_of(const Weight& weight) {
  if (!weight) throw InvalidArgument("[residency] weight: expected a packed weight, got none");
  const Weight::State& state = *weight.state();
  return {state.memory, {&state.memory->allocation(), state.offset_bytes, state.bytes}};
}

std::pair<std::shared_ptr<const AllocationHandle>, backend::BufferView> memory_of(const Buffer& buffer) {
  return {buffer.memory(), buffer.device_view()};
}

}  // namespace

class ResidencySet::State final : public ResidencyStage {
 public:
  explicit State(const ResidencyOptions& options)
      : advice_(options.lock ? backend::Advice::resident : backend::Advice::will_need) {}

  void change(const std::shared_ptr<const AllocationHandle>& memory, const backend::BufferView& view,
              bool in) {
    const std::lock_guard lock(mutex_);
    forget_released();
    const auto found = members_.find(key_of(view));
    if (!in && (found == members_.end() || !found->second.wanted)) {
      throw InvalidArgument("[residency] remove: expected a view that was added");
    }
    Member& member = found != members_.end() ? found->second : members_[key_of(view)];
    member.memory = memory;
    member.view = view;
    member.wanted = in;
    member.until.clear();
    staged_.store(true, std::memory_order_release);
  }

  bool contains(const backend::BufferView& view) const {
    const std::lock_guard lock(mutex_);
    const auto found = members_.find(key_of(view));
    return found != members_.end() && found->second.wanted && !found->second.memory.expired();
  }

  std::pair<size_t, size_t> figures() const {
    const std::lock_guard lock(mutex_);
    std::pair<size_t, size_t> figures{0, 0};
    for (const auto& [key, member] : members_) {
      if (!member.wanted || member.memory.expired()) continue;
      ++figures.first;
      figures.second += member.view.bytes;
    }
    return figures;
  }

  void close() noexcept {
    const std::lock_guard lock(mutex_);
    for (auto& [key, member] : members_) {
      member.wanted = false;
      member.until.clear();
    }
    // In this order: closed with nothing staged is finished.
    staged_.store(!members_.empty(), std::memory_order_release);
    closed_.store(true, std::memory_order_release);
  }

  bool staged() const noexcept override { return staged_.load(std::memory_order_acquire); }
  bool finished() const noexcept override { return closed_.load(std::memory_order_acquire) && !staged(); }

  void apply(const DeviceState& device) noexcept override {
    // What these share is used below, and may be the last share: it is given up after the lock.
    std::vector<std::shared_ptr<const AllocationHandle>> held;
    try {
      const std::lock_guard lock(mutex_);
      std::vector<backend::BufferView> in, out;
      bool later = false;
      for (auto i = members_.begin(); i != members_.end();) {
        Member& member = i->second;
        auto memory = member.memory.lock();
        bool gone = memory == nullptr;
        if (!gone && !member.wanted) {
          if (member.applied && !completed(device, member)) {
            later = true;
          } else {
            if (member.applied) out.push_back(member.view);
            gone = true;
          }
        }
        if (memory != nullptr) held.push_back(std::move(memory));
        i = gone ? members_.erase(i) : std::next(i);
      }
      staged_.store(later, std::memory_order_release);
      // What goes makes room for what comes, and may share pages with what stays.
      if (!out.empty()) device.backend->advise(out, backend::Advice::evictable);
      for (auto& [key, member] : members_) {
        const auto neighbour = [&](const backend::BufferView& view) {
          return view.allocation == member.view.allocation;
        };
        if (member.wanted && (!member.applied || std::ranges::any_of(out, neighbour))) {
          in.push_back(member.view);
          member.applied = true;
        }
      }
      if (!in.empty()) device.backend->advise(in, advice_);
    } catch (const std::exception& error) {
      // Advice that the device does not take costs speed, not results.
      device.log(LogLevel::warning, error.what());
    }
  }

 private:
  struct Member {
    std::weak_ptr<const AllocationHandle> memory;
    backend::BufferView view;
    bool wanted = false;
    bool applied = false;
    std::vector<uint64_t> until;  // of a removal: what each queue had been given when it was first seen
  };

  // True when every submission has completed that was in flight when the removal was first seen here.
  static bool completed(const DeviceState& device, Member& member) {
    if (member.until.empty()) {
      std::vector<uint64_t> until(device.submissions.queues());
      for (uint32_t queue = 0; queue < until.size(); ++queue) until[queue] = device.submissions.last(queue);
      member.until = std::move(until);
    }
    for (uint32_t queue = 0; queue < member.until.size(); ++queue) {
      if (device.backend->completed(queue) < member.until[queue]) return false;
    }
    return true;
  }

  void forget_released() {
    std::erase_if(members_, [](const auto& entry) { return entry.second.memory.expired(); });
  }

  const backend::Advice advice_;
  mutable std::mutex mutex_;
  std::map<Key, Member> members_;
  std::atomic<bool> staged_{false};
  std::atomic<bool> closed_{false};
};

ResidencySet::ResidencySet(Device device, const ResidencyOptions& options)
    : device_(std::move(device)), state_(std::make_shared<State>(options)) {
  device_.live().residency.add(state_);
}

ResidencySet& ResidencySet::operator=(ResidencySet&& other) noexcept {
  if (this == &other) return *this;
  if (state_ != nullptr) state_->close();
  device_ = std::move(other.device_);
  state_ = std::move(other.state_);
  return *this;
}

ResidencySet::~ResidencySet() {
  if (state_ != nullptr) state_->close();
}

ResidencySet::State& ResidencySet::state() const {
  if (state_ == nullptr) throw InvalidArgument("[residency] expected a set, got one that was moved from");
  return *state_;
}

void ResidencySet::change(const std::shared_ptr<const AllocationHandle>& memory,
                          const backend::BufferView& view, bool in) {
  State& own = state();
  if (&memory->backend() != device_.live().backend.get()) {
    throw InvalidArgument("[residency] expected memory of this device, got another device's");
  }
  own.change(memory, view, in);
}

void ResidencySet::add(const Buffer& buffer) {
  const auto [memory, view] = memory_of(buffer);
  change(memory, view, true);
}
void ResidencySet::add(const Weight& weight) {
  const auto [memory, view] = memory_of(weight);
  change(memory, view, true);
}
void ResidencySet::remove(const Buffer& buffer) {
  const auto [memory, view] = memory_of(buffer);
  change(memory, view, false);
}
void ResidencySet::remove(const Weight& weight) {
  const auto [memory, view] = memory_of(weight);
  change(memory, view, false);
}
bool ResidencySet::contains(const Buffer& buffer) const { return state().contains(memory_of(buffer).second); }
bool ResidencySet::contains(const Weight& weight) const { return state().contains(memory_of(weight).second); }
size_t ResidencySet::size() const { return state().figures().first; }
size_t ResidencySet::bytes() const { return state().figures().second; }
bool ResidencySet::staged() const { return state().staged(); }
void ResidencySet::flush() { state().apply(device_.live()); }

}  // namespace refrain
