// The kernels that a device chooses among: those it was opened with, and a user's own.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "refrain/backend/backend.h"

namespace refrain {

/// An immutable table that plans choose from. Of the rows that accept a call, the first is taken.
using KernelTable = std::vector<backend::Kernel>;

/// A kernel of the user's, for an op with a schema: C++ functions over tiles, for a device that walks tiles on the host, or
/// source text, for one that compiles.
struct UserKernel {
  std::string name;  ///< "scale_f32"; no two of a registry are equal
  /// Says what each argument is, hence the order of commands. Its address is the op: static storage, or
  /// memory that outlives the device. A built-in op's schema gives that op another kernel, which is
  /// preferred.
  const backend::OpSchema* op = nullptr;
  std::string numerics = "user";  ///< equal classes give equal bits of a row
  uint64_t needs = 0;             ///< as backend::Kernel::needs
  uint64_t prefetches = 0;        ///< as backend::Kernel::prefetches
  /// True for the calls that it can run; null: all that pass the schema's check.
  bool (*accepts)(const backend::OpCall& call) = nullptr;
  /// How the work divides; null: one tile for each row of the first argument that has rows, else one tile. A
  /// plan throws InvalidArgument for what cannot be walked.
  backend::Launch (*launch)(const backend::OpCall& call, const backend::DeviceInfo& info) = nullptr;
  /// Unless there is source, `tiles` is required. With `region`, for an op whose schema has units, it can be part of a group if
  /// the rows of its launch are those of its arguments; `rows_prologue` asks for row_scratch_bytes. What it
  /// throws fails the submission.
  backend::TileKernel entry = {};
  /// Compiled when the kernel is added, for the device's own grid: see Backend::compile.
  std::string source = {};
  std::string source_entry = {};  ///< the function in it
};

/// Device::kernels. Any thread may use it. Plans made earlier keep the kernels that they chose.
class KernelRegistry {
 public:
  /// `backend` outlives this.
  explicit KernelRegistry(backend::Backend& backend);
  KernelRegistry(const KernelRegistry&) = delete;
  KernelRegistry& operator=(const KernelRegistry&) = delete;

  /// Throws InvalidArgument when the name is empty or taken, there is no op, not one of `tiles` and source that the device
  /// can use, no numerics class, or the schema contradicts itself.
  void add(const UserKernel& kernel);

  /// The table as it is now: the user's in the order of their registration, then the built-in ones.
  std::shared_ptr<const KernelTable> table() const;

 private:
  struct Owned {
    std::string name, numerics;
    backend::TileKernel entry;
  };

  const void* entry_of(const UserKernel& kernel) const;

  backend::Backend& backend_;
  mutable std::mutex mutex_;
  std::shared_ptr<std::deque<Owned>> owned_;  // shared with every table that points into it
  size_t user_kernels_ = 0;
  std::shared_ptr<const KernelTable> table_;
};

}  // namespace refrain
