#include "refrain/backend/cuda/memory.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "refrain/core/error.h"

namespace refrain::backend::cuda {
Memory::Memory(int ordinal, Health& health) : ordinal_(ordinal), health_(health) {
  health_.check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream of copies");
}

Memory::~Memory() {
  const CurrentDevice current(ordinal_);
  if (!health_.lost()) {
    for (const auto& [allocation, block] : blocks_) {
      if (block->kind == MemoryKind::device) cudaFree(reinterpret_cast<void*>(block->device_address));
      if (block->kind == MemoryKind::host) cudaFreeHost(block->host);
      if (block->kind == MemoryKind::import_host) cudaHostUnregister(block->host);
    }
  }
  cudaStreamDestroy(stream_);
}

// Throws what the front shows to the user: how much was wanted, and what there is.
void Memory::expect(const BufferSpec& spec, cudaError_t result) {
  if (result == cudaSuccess) return;
  if (is_sticky(result)) health_.check(result, "memory");
  cudaGetLastError();
  size_t free_bytes = 0, total_bytes = 0;
  health_.check(cudaMemGetInfo(&free_bytes, &total_bytes), "free memory");
  const char* const why = result == cudaErrorMemoryAllocation ? "out of memory" : cudaGetErrorString(result);
  throw DeviceError(health_.device() + ": " + why + ": " + std::to_string(spec.bytes) +
                    " bytes wanted for '" + spec.label + "', " + std::to_string(used_bytes_) +
                    " bytes in use here, " + std::to_string(free_bytes) + " of " +
                    std::to_string(total_bytes) + " bytes free");
}

void* Memory::take(const BufferSpec& spec, Block& block) {
  void* address = nullptr;
  switch (spec.kind) {
    case MemoryKind::device:
      expect(spec, cudaMalloc(&address, spec.bytes));
      break;
    case MemoryKind::host:
      expect(spec, cudaHostAlloc(&block.host, spec.bytes, cudaHostAllocPortable | cudaHostAllocMapped));
      std::memset(block.host, 0, spec.bytes);
      expect(spec, cudaHostGetDevicePointer(&address, block.host, 0));
      break;
    case MemoryKind::import_host: {
      constexpr unsigned kFlags = cudaHostRegisterPortable | cudaHostRegisterMapped;
      cudaError_t result = cudaHostRegister(spec.host, spec.bytes, kFlags);
      if (result != cudaSuccess) {  // perhaps it may not be written, as a file that is mapped
        cudaGetLastError();
        result = cudaHostRegister(spec.host, spec.bytes, kFlags | cudaHostRegisterReadOnly);
      }
      expect(spec, result);
      block.host = spec.host;
      expect(spec, cudaHostGetDevicePointer(&address, block.host, 0));
      break;
    }
    case MemoryKind::import_device:
      address = reinterpret_cast<void*>(spec.device_address);
      break;
  }
  return address;
}

const Allocation* Memory::allocate(const BufferSpec& spec) {
  health_.check_live();
  const CurrentDevice current(ordinal_);
  auto block = std::make_unique<Block>();
  block->bytes = spec.bytes;
  block->kind = spec.kind;
  const std::lock_guard lock(mutex_);
  const auto [entry, added] = blocks_.try_emplace(block.get());
  try {
    void* const address = take(spec, *block);
    block->device_address = reinterpret_cast<uint64_t>(address);
    if (spec.kind == MemoryKind::device) {
      // The stream keeps its order, but queues have streams of their own.
      const cudaError_t zeroed = cudaMemsetAsync(address, 0, spec.bytes, stream_);
      const cudaError_t done = zeroed == cudaSuccess ? cudaStreamSynchronize(stream_) : zeroed;
      if (done != cudaSuccess) cudaFree(address);
      health_.check(done, "zeroing memory");
    }
  } catch (...) {
    blocks_.erase(entry);
    throw;
  }
  (is_import(spec.kind) ? imported_bytes_ : used_bytes_) += spec.bytes;
  block->id = ++last_id_;
  entry->second = std::move(block);
  return entry->first;
}

void Memory::release(const Allocation* allocation) noexcept {
  const CurrentDevice current(ordinal_);
  std::unique_ptr<Block> block;
  {
    const std::lock_guard lock(mutex_);
    const auto found = blocks_.find(allocation);
    if (found == blocks_.end()) return;
    block = std::move(found->second);
    (is_import(block->kind) ? imported_bytes_ : used_bytes_) -= block->bytes;
    blocks_.erase(found);
  }
  if (health_.lost()) return;
  cudaError_t result = cudaSuccess;
  if (block->kind == MemoryKind::device) result = cudaFree(reinterpret_cast<void*>(block->device_address));
  if (block->kind == MemoryKind::host) result = cudaFreeHost(block->host);
  if (block->kind == MemoryKind::import_host) result = cudaHostUnregister(block->host);
  health_.note(result, "release");
}

MemoryUsage Memory::usage() const {
  health_.check_live();
  const CurrentDevice current(ordinal_);
  size_t free_bytes = 0, total_bytes = 0;
  health_.check(cudaMemGetInfo(&free_bytes, &total_bytes), "free memory");
  const std::lock_guard lock(mutex_);
  MemoryUsage usage;
  usage.used_bytes = used_bytes_;
  usage.budget_bytes = std::max(total_bytes, used_bytes_);
  usage.resident_bytes = used_bytes_ + imported_bytes_;
  return usage;
}

// Of pageable memory the driver stages the copy itself.
void Memory::copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, const char* what) {
  const CurrentDevice current(ordinal_);
  health_.check(cudaMemcpyAsync(to, from, bytes, kind, stream_), what);
  health_.check(cudaStreamSynchronize(stream_), what);
}

void Memory::write(const BufferView& to, std::span<const std::byte> from) {
  health_.check_live();
  if (from.empty()) return;
  if (to.allocation->host != nullptr) {
    std::ranges::copy(from, host_bytes(to));
  } else {
    copy(device_bytes(to), from.data(), from.size(), cudaMemcpyHostToDevice, "write");
  }
}

void Memory::read(const BufferView& from, std::span<std::byte> to) {
  health_.check_live();
  if (to.empty()) return;
  if (from.allocation->host != nullptr) {
    std::copy_n(host_bytes(from), to.size(), to.begin());
  } else {
    copy(to.data(), device_bytes(from), to.size(), cudaMemcpyDeviceToHost, "read");
  }
}

}  // namespace refrain::backend::cuda
