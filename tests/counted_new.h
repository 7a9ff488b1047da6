// Replaces operator new and delete of the program that includes it, once, by ones that count, and of which new fails
// when told. The sanitizers bring their own; under them nothing is replaced, kCountsHeap is false, and tests that
// count are skipped.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__has_feature)
#define REFRAIN_HAS_FEATURE(x) __has_feature(x)
#else
#define REFRAIN_HAS_FEATURE(x) 0
#endif

namespace refrain::test {
inline std::atomic<uint64_t> heap_allocations{0};  ///< refused ones included
inline std::atomic<int64_t> heap_blocks{0};        ///< that live: allocated and not freed
inline std::atomic<uint64_t> heap_refusal{0};      ///< the number of the allocation that fails; 0: none does

/// While it lives, the n-th allocation from now on fails, on whichever thread.
class RefuseNth {
 public:
  explicit RefuseNth(uint64_t n) : number_(heap_allocations + n) { heap_refusal = number_; }
  ~RefuseNth() { heap_refusal = 0; }
  RefuseNth(const RefuseNth&) = delete;
  RefuseNth& operator=(const RefuseNth&) = delete;

  /// True once it has failed.
  bool refused() const { return heap_allocations >= number_; }

 private:
  const uint64_t number_;
};
}  // namespace refrain::test

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    REFRAIN_HAS_FEATURE(address_sanitizer) || REFRAIN_HAS_FEATURE(thread_sanitizer)
namespace refrain::test {
inline constexpr bool kCountsHeap = false;
}
#else
namespace refrain::test {
inline constexpr bool kCountsHeap = true;

/// `alignment` 0: that of malloc.
inline void* counted(size_t bytes, size_t alignment) noexcept {
  const uint64_t number = heap_allocations.fetch_add(1, std::memory_order_relaxed) + 1;
  if (number == heap_refusal.load(std::memory_order_relaxed)) return nullptr;
  if (bytes == 0) bytes = 1;
  void* memory = alignment == 0
                     ? std::malloc(bytes)
                     : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory != nullptr) heap_blocks.fetch_add(1, std::memory_order_relaxed);
  return memory;
}

inline void uncounted(void* memory) noexcept {
  if (memory != nullptr) heap_blocks.fetch_sub(1, std::memory_order_relaxed);
  std::free(memory);
}

inline void* counted_or_throw(size_t bytes, size_t alignment) {
  if (void* memory = counted(bytes, alignment)) return memory;
  throw std::bad_alloc();
}
}  // namespace refrain::test

// Not inlined: compilers take a free() that they see for that of another allocator.
#define REFRAIN_NOINLINE [[gnu::noinline]]
REFRAIN_NOINLINE void* operator new(size_t bytes) { return refrain::test::counted_or_throw(bytes, 0); }
REFRAIN_NOINLINE void* operator new[](size_t bytes) { return refrain::test::counted_or_throw(bytes, 0); }
REFRAIN_NOINLINE void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return refrain::test::counted(bytes, 0);
}
REFRAIN_NOINLINE void* operator new[](size_t bytes, const std::nothrow_t&) noexcept {
  return refrain::test::counted(bytes, 0);
}
REFRAIN_NOINLINE void* operator new(size_t bytes, std::align_val_t alignment) {
  return refrain::test::counted_or_throw(bytes, static_cast<size_t>(alignment));
}
REFRAIN_NOINLINE void* operator new[](size_t bytes, std::align_val_t alignment) {
  return refrain::test::counted_or_throw(bytes, static_cast<size_t>(alignment));
}
REFRAIN_NOINLINE void operator delete(void* memory) noexcept { refrain::test::uncounted(memory); }
REFRAIN_NOINLINE void operator delete[](void* memory) noexcept { refrain::test::uncounted(memory); }
REFRAIN_NOINLINE void operator delete(void* memory, size_t) noexcept { refrain::test::uncounted(memory); }
REFRAIN_NOINLINE void operator delete[](void* memory, size_t) noexcept { refrain::test::uncounted(memory); }
REFRAIN_NOINLINE void operator delete(void* memory, const std::nothrow_t&) noexcept {
  refrain::test::uncounted(memory);
}
REFRAIN_NOINLINE void operator delete[](void* memory, const std::nothrow_t&) noexcept {
  refrain::test::uncounted(memory);
}
REFRAIN_NOINLINE void operator delete(void* memory, std::align_val_t) noexcept {
  refrain::test::uncounted(memory);
}
REFRAIN_NOINLINE void operator delete[](void* memory, std::align_val_t) noexcept {
  refrain::test::uncounted(memory);
}
REFRAIN_NOINLINE void operator delete(void* memory, size_t, std::align_val_t) noexcept {
  refrain::test::uncounted(memory);
}
REFRAIN_NOINLINE void operator delete[](void* memory, size_t, std::align_val_t) noexcept {
  refrain::test::uncounted(memory);
}
#undef REFRAIN_NOINLINE
#endif
