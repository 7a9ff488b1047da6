// The exceptions that the library throws. It never prints, exits or aborts.
#pragma once

#include <stdexcept>
#include <string>

namespace refrain {

/// Base of every exception that the library throws on purpose.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Wrong use, found before anything runs. The message names the op or call, the argument, what was
/// expected and what was found: `[rms_norm] weight: expected [4096], got [2048]`.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

/// A file that cannot be read, or whose content breaks its format. The message starts with the path.
class FileError : public Error {
 public:
  using Error::Error;
};

/// The device refused a request (out of memory, launch rejected); it can still be used.
class DeviceError : public Error {
 public:
  using Error::Error;
};

/// The device is gone. Every outstanding Point has failed and every later call throws this again.
class DeviceLost : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

/// A wait's time ran out. Nothing was freed or cancelled; wait again.
class TimeoutError : public Error {
 public:
  using Error::Error;
};

}  // namespace refrain
