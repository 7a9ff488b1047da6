// Replaces operator new of the program that includes it, once, by one that counts. The sanitizers bring an
// operator new of their own; under them nothing is replaced, kCountsHeap is false, and tests that count are
// skipped.
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
inline std::atomic<uint64_t> heap_allocations{0};
inline std::atomic<uint64_t> heap_refusal{0};  ///< the number of the allocation that fails; 0: none does
}  // namespace refrain::test

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    REFRAIN_HAS_FEATURE(address_sanitizer) || REFRAIN_HAS_FEATURE(thread_sanitizer)
namespace refrain::test {
inline constexpr bool kCountsHeap = false;
}
#else
namespace refrain::test {
inline constexpr bool kCountsHeap = true;

inline void* counted(size_t bytes) noexcept {
  const uint64_t number = heap_allocations.fetch_add(1, std::memory_order_relaxed) + 1;
  if (number == heap_refusal.load(std::memory_order_relaxed)) return nullptr;
  return std::malloc(bytes == 0 ? 1 : bytes);
}

inline void* counted_or_throw(size_t bytes) {
  if (void* memory = counted(bytes)) return memory;
  throw std::bad_alloc();
}
}  // namespace refrain::test

void* operator new(size_t bytes) { return refrain::test::counted_or_throw(bytes); }
void* operator new[](size_t bytes) { return refrain::test::counted_or_throw(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return refrain::test::counted(bytes); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return refrain::test::counted(bytes); }
// Not inlined: GCC would see free() take what some other operator new gave.
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
#endif
