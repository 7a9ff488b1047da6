#include "refrain/backend/cuda/queues.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "refrain/backend/cuda/memory.h"
#include "refrain/core/error.h"

namespace refrain::backend::cuda {
namespace {

using std::chrono::nanoseconds;

constexpr size_t kWordStride = 16;  // words from queue to queue: a line of the cache each

// A wait spins as long as a step of a small model takes, then sleeps a sixteenth of what it has waited: late by 6 %.
constexpr nanoseconds kSpin = std::chrono::microseconds(100);
constexpr nanoseconds kLeastSleep = std::chrono::microseconds(10);
constexpr nanoseconds kMostSleep = std::chrono::milliseconds(1);
constexpr uint32_t kPollsPerQuery = 1024;

// The numbers of the driver's errors are those of the runtime.
cudaError_t driver_result(CUresult result) { return static_cast<cudaError_t>(result); }

}  // namespace

Queues::Queues(int ordinal, std::span<const int32_t> priorities, Health& health)
    : ordinal_(ordinal),
      health_(health),
      host_failure_(std::make_shared<const Failure>(
          Failure{{}, "it waited for a host point, and the host signals no more"})) {
  const auto driver = [&](const char* symbol) {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    health_.check(cudaGetDriverEntryPointByVersion(symbol, &function, 12000, cudaEnableDefault, &found),
                  symbol);
    if (function == nullptr || found != cudaDriverEntryPointSuccess)
      throw DeviceError(health_.device() + ": the driver lacks " + symbol);
    return function;
  };
  write_value_ = reinterpret_cast<PFN_cuStreamWriteValue64_v11070>(driver("cuStreamWriteValue64"));
  wait_value_ = reinterpret_cast<PFN_cuStreamWaitValue64_v11070>(driver("cuStreamWaitValue64"));
  void* words = nullptr;
  constexpr size_t kBytes = kCount * kWordStride * sizeof(uint64_t);
  health_.check(cudaHostAlloc(&words, kBytes, cudaHostAllocPortable | cudaHostAllocMapped),
                "memory for points");
  std::memset(words, 0, kBytes);
  words_ = static_cast<uint64_t*>(words);
  int least = 0, greatest = 0;
  health_.check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "priorities");
  for (uint32_t i = 0; i < kCount; ++i) {
    const int64_t wanted = i < priorities.size() ? -int64_t{priorities[i]} : 0;
    const int priority = static_cast<int>(std::clamp<int64_t>(wanted, greatest, least));
    health_.check(cudaStreamCreateWithPriority(&queues_[i].stream, cudaStreamNonBlocking, priority),
                  "stream");
  }
}

Queues::~Queues() {
  const CurrentDevice current(ordinal_);
  for (Queue& queue : queues_) {
    if (health_.lost()) break;
    if (queue.stream != nullptr) cudaStreamDestroy(queue.stream);
    queue.staging.free();
  }
  if (!health_.lost()) cudaFreeHost(words_);
}

uint64_t Queues::word(uint32_t queue) const noexcept {
  return std::atomic_ref<uint64_t>(words_[queue * kWordStride]).load(std::memory_order_acquire);
}

std::string Queues::name(uint32_t index, uint64_t value) const {
  std::string text = "submission " + std::to_string(value) + " of queue " + std::to_string(index);
  const Queue& queue = queues_[index];
  const CudaExecutable* const program = queue.programs[value % kKept];
  if (program != nullptr && queue.submitted.load() < value + kKept && !program->label.empty())
    text += " '" + program->label + "'";
  return text;
}

std::string Queues::under_way() const {
  const std::lock_guard lock(mutex_);
  std::string text;
  for (uint32_t i = 0; i < kCount; ++i) {
    const uint64_t done = ended(i);
    if (done < queues_[i].decided) text += (text.empty() ? "; under way: " : ", ") + name(i, done + 1);
  }
  return text;
}

const Queues::Failed* Queues::find_failed(const Queue& queue, uint64_t value) noexcept {
  const auto found = std::partition_point(queue.failed.begin(), queue.failed.end(),
                                          [&](const Failed& failed) { return failed.last < value; });
  return found == queue.failed.end() || found->first > value ? nullptr : &*found;
}

// What the stream has counted, and what failed right behind it.
uint64_t Queues::ended(uint32_t index) const noexcept {
  uint64_t value = word(index);
  if (!any_failed_.load(std::memory_order_acquire)) return value;
  const std::lock_guard lock(mutex_);
  while (const Failed* failed = find_failed(queues_[index], value + 1)) value = failed->last;
  return value;
}

bool Queues::has_failed(const Point& point) const noexcept {
  if (point.queue == kHostQueue) return host_ended_.load() && point.value > host_.load();
  return find_failed(queues_[point.queue], point.value) != nullptr;
}

// Streams can see to the rest.
bool Queues::ready(const Point& point) const noexcept {
  if (point.queue == kHostQueue) return point.value <= host_.load() || host_ended_.load();
  return point.value <= queues_[point.queue].decided;
}

// What the stream of queue `index` does from now on comes after a point that has been decided.
void Queues::order_behind(uint32_t index, const Point& point) {
  if (point.queue == kHostQueue || point.queue == index) return;
  // No stream counts what has failed: behind the last before it that was launched.
  uint64_t value = point.value;
  while (const Failed* failed = find_failed(queues_[point.queue], value)) value = failed->first - 1;
  if (word(point.queue) >= value) return;
  const auto address = reinterpret_cast<CUdeviceptr>(words_ + point.queue * kWordStride);
  health_.check(driver_result(wait_value_(queues_[index].stream, address, value, CU_STREAM_WAIT_VALUE_GEQ)),
                "wait of a queue");
}

void Queues::launch(uint32_t index, const CudaExecutable& program, std::span<const Copy> copies,
                    std::span<const Point> waits, std::span<const Point> after) {
  Queue& queue = queues_[index];
  try {
    for (const Point& point : waits) order_behind(index, point);
    for (const Point& point : after) order_behind(index, point);
    for (const Copy& copy : copies)
      health_.check(cudaMemcpyAsync(copy.to, copy.from, copy.bytes, cudaMemcpyDefault, queue.stream),
                    "update");
    program.launch(queue.stream);
    const auto address = reinterpret_cast<CUdeviceptr>(words_ + index * kWordStride);
    health_.check(
        driver_result(write_value_(queue.stream, address, queue.decided + 1, CU_STREAM_WRITE_VALUE_DEFAULT)),
        "point");
  } catch (const DeviceError&) {
    health_.note(cudaStreamSynchronize(queue.stream), "a submission");  // what was launched of it has ended
    throw;
  }
  ++queue.decided;
}

// The oldest that is held has failed.
void Queues::fail_next(Queue& queue, std::shared_ptr<const Failure> failure, bool refused) noexcept {
  const uint64_t value = queue.decided + 1;
  if (!refused && !queue.failed.empty() && queue.failed.back().last + 1 == value &&
      queue.failed.back().failure == failure) {
    queue.failed.back().last = value;
  } else {
    queue.failed.push_back({value, value, refused, std::move(failure)});  // there is room
  }
  queue.decided = value;
  queue.held.pop_front();
  any_failed_.store(true, std::memory_order_release);
}

// Null when memory is short: nobody is there to be told, but those who will wait.
std::shared_ptr<const Queues::Failure> Queues::refusal(uint32_t index,
                                                       const std::exception& error) const noexcept try {
  return std::make_shared<const Failure>(Failure{name(index, queues_[index].decided + 1), error.what()});
} catch (const std::bad_alloc&) {
  return nullptr;
}

// Launches the oldest that is held, or fails it; false when it has to wait, or there is none.
bool Queues::advance_queue(uint32_t index) noexcept {
  Queue& queue = queues_[index];
  if (queue.held.empty() || health_.lost()) return false;
  if (queue.stopped) {
    fail_next(queue, queue.stopper, false);
    return true;
  }
  const Held& next = queue.held.front();
  const auto cause = std::ranges::find_if(next.waits, [&](const Point& point) { return has_failed(point); });
  if (cause != next.waits.end()) {
    fail_next(queue,
              cause->queue == kHostQueue ? host_failure_
                                         : find_failed(queues_[cause->queue], cause->value)->failure,
              false);
    return true;
  }
  const auto is_ready = [&](const Point& point) { return ready(point); };
  if (!std::ranges::all_of(next.waits, is_ready) || !std::ranges::all_of(next.after, is_ready)) return false;
  try {
    launch(index, *next.program, next.copies, next.waits, next.after);
    queue.held.pop_front();
  } catch (const DeviceLost&) {
    return false;
  } catch (const std::exception& error) {
    queue.stopped = true;
    queue.stopper = refusal(index, error);
    fail_next(queue, queue.stopper, true);
  }
  return true;
}

void Queues::advance() noexcept {
  for (bool more = true; more;) {
    more = false;
    for (uint32_t index = 0; index < kCount; ++index) {
      while (advance_queue(index)) more = true;
    }
  }
}

uint64_t Queues::submit(const CudaExecutable& program, const Submission& submission) {
  const CurrentDevice current(ordinal_);
  const std::lock_guard lock(mutex_);
  health_.check_live();
  Queue& queue = queues_[program.queue];
  const uint64_t value = queue.submitted.load() + 1;
  // Who fails what is held has nobody to tell that memory is short.
  const size_t room = queue.failed.size() + queue.held.size() + 1;
  if (queue.failed.capacity() < room) queue.failed.reserve(2 * room);
  queue.copies.clear();
  for (const UpdateData& update : submission.updates) {
    if (update.from.empty()) continue;
    std::byte* const staged = queue.staging.take(update.from.size(), value, word(program.queue), health_);
    std::memcpy(staged, update.from.data(), update.from.size());
    queue.copies.push_back({device_bytes(update.to), staged, update.from.size()});
  }
  queue.programs[value % kKept] = &program;
  const auto goes = [&](const Point& point) { return ready(point); };
  const auto failed = [&](const Point& point) { return has_failed(point); };
  if (queue.held.empty() && !queue.stopped && std::ranges::none_of(submission.waits, failed) &&
      std::ranges::all_of(submission.waits, goes) && std::ranges::all_of(submission.after, goes)) {
    launch(program.queue, program, queue.copies, submission.waits, submission.after);
    queue.submitted.store(value, std::memory_order_release);
  } else {
    queue.held.push_back({&program,
                          {submission.waits.begin(), submission.waits.end()},
                          {submission.after.begin(), submission.after.end()},
                          queue.copies});
    queue.submitted.store(value, std::memory_order_release);
    advance();
  }
  return value;
}

// Asks the driver whether the device is still there.
void Queues::query(uint32_t queue) noexcept {
  const CurrentDevice current(ordinal_);
  health_.note(cudaStreamQuery(queues_[queue].stream), "a submission");
}

uint64_t Queues::completed(uint32_t index) const noexcept {
  if (index == kHostQueue) return host_.load(std::memory_order_acquire);
  const Queue& queue = queues_[index];
  if (health_.lost()) return queue.submitted.load(std::memory_order_acquire);
  const uint64_t done = ended(index);
  // Who only polls learns of a loss too.
  if (done < queue.submitted.load(std::memory_order_relaxed) &&
      polls_.fetch_add(1, std::memory_order_relaxed) % kPollsPerQuery == kPollsPerQuery - 1)
    const_cast<Queues*>(this)->query(index);
  return done;
}

// Throws when a point has failed.
void Queues::check_failure(const Point& point) const {
  if (point.queue == kHostQueue) {
    if (!has_failed(point)) return;
    throw DeviceError(health_.device() + ": the host signals no more, and has not signalled " +
                      std::to_string(point.value));
  }
  if (!any_failed_.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(mutex_);
  const Failed* const failed = find_failed(queues_[point.queue], point.value);
  if (failed == nullptr) return;
  std::string text = health_.device() + ": ";
  if (!failed->refused || point.value != failed->first) {
    text += "did not run: ";
    if (failed->failure == nullptr) text += "a submission failed: ";
    if (failed->failure != nullptr && !failed->failure->submission.empty())
      text += failed->failure->submission + " failed: ";
  }
  throw DeviceError(text +
                    (failed->failure == nullptr ? "there was no memory to say why" : failed->failure->what));
}

bool Queues::wait(const Point& point, nanoseconds timeout) {
  struct Waiter {
    std::atomic<uint32_t>& count;
    explicit Waiter(std::atomic<uint32_t>& waiters) : count(waiters) { ++count; }
    ~Waiter() { --count; }
  };
  const Waiter waiter(waiters_);
  const auto begin = std::chrono::steady_clock::now();
  for (;;) {
    health_.check_live();
    const bool reached = completed(point.queue) >= point.value;
    if (reached || point.queue == kHostQueue) check_failure(point);
    if (reached) {
      health_.check_live();  // a loss counts everything as completed
      return true;
    }
    const nanoseconds waited = std::chrono::steady_clock::now() - begin;
    if (waited >= timeout) return false;
    if (waited < kSpin) continue;
    if (point.queue != kHostQueue) query(point.queue);
    std::this_thread::sleep_for(std::min(std::clamp(waited / 16, kLeastSleep, kMostSleep), timeout - waited));
  }
}

void Queues::signal_host(uint64_t value) noexcept {
  const std::lock_guard lock(mutex_);
  if (health_.lost() || host_ended_.load() || value <= host_.load(std::memory_order_relaxed)) return;
  host_.store(value, std::memory_order_release);
  const CurrentDevice current(ordinal_);
  advance();
}

void Queues::end_host() noexcept {
  const std::lock_guard lock(mutex_);
  if (health_.lost()) return;
  host_ended_.store(true);
  const CurrentDevice current(ordinal_);
  advance();
}

void Queues::recover(uint32_t queue) noexcept {
  const std::lock_guard lock(mutex_);
  queues_[queue].stopped = false;
  queues_[queue].stopper = nullptr;
}

void Queues::close() noexcept {
  const CurrentDevice current(ordinal_);
  end_host();
  // Points are of earlier submissions, and the host's have ended: what is left either runs or has failed.
  for (const Queue& queue : queues_) {
    if (queue.stream != nullptr && !health_.lost())
      health_.note(cudaStreamSynchronize(queue.stream), "closing");
  }
  while (waiters_.load() > 0) std::this_thread::sleep_for(kLeastSleep);
}

}  // namespace refrain::backend::cuda
