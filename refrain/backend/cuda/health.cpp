#include "refrain/backend/cuda/health.h"

#include <new>

#include "refrain/core/error.h"

namespace refrain::backend::cuda {

bool is_sticky(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

void Health::check(cudaError_t result, const char* what) {
  check_live();
  if (result == cudaSuccess) return;
  cudaGetLastError();  // a refusal is not seen again by the next call
  if (is_sticky(result)) {
    lose(result, what);
    throw_lost();
  }
  throw DeviceError(device_ + ": " + what + ": " + cudaGetErrorString(result));
}

bool Health::note(cudaError_t result, const char* what) noexcept {
  if (lost()) return false;
  if (result == cudaSuccess || result == cudaErrorNotReady) return true;
  cudaGetLastError();
  if (!is_sticky(result)) return true;
  lose(result, what);
  return false;
}

void Health::lose(cudaError_t result, const char* what) noexcept {
  std::string message;
  try {
    message = device_ + ": lost: " + what + ": " + cudaGetErrorString(result);
    if (running) message += running();
  } catch (const std::bad_alloc&) {
    message.clear();
  }
  const std::lock_guard lock(mutex_);
  if (lost()) return;
  message_ = std::move(message);
  lost_.store(true, std::memory_order_release);
}

void Health::throw_lost() const { throw DeviceLost(message_.empty() ? device_ + ": lost" : message_); }

}  // namespace refrain::backend::cuda
