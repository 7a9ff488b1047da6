#include "refrain/device/registry.h"

#include <fmt/format.h>

#include <algorithm>

#include "refrain/core/error.h"

namespace refrain {
namespace {

bool accept_all(const backend::OpCall&) { return true; }

backend::Launch launch_rows(const backend::OpCall& call, const backend::DeviceInfo&) {
  for (size_t i = 0; i < call.args.size(); ++i) {
    if (!call.op->args[i].rows || !call.args[i].bound || call.args[i].shape.rank() == 0) continue;
    const int64_t rows = call.args[i].shape[0];
    if (rows > UINT32_MAX) {
      throw InvalidArgument(fmt::format("[{}] {}: expected at most {} rows, got {}", call.op->name,
                                        call.op->args[i].name, UINT32_MAX, rows));
    }
    return {static_cast<uint32_t>(rows), 1, 1, 0};
  }
  return {};
}

void check_schema(const std::string& kernel, const backend::OpSchema& op) {
  const auto refuse = [&](const std::string& what) {
    throw InvalidArgument(fmt::format("[kernels] {}: op '{}': {}", kernel, op.name, what));
  };
  if (op.name.empty()) refuse("expected a name, got none");
  if (op.args.size() > backend::kMaxArguments) {
    refuse(fmt::format("expected at most {} arguments, got {}", backend::kMaxArguments, op.args.size()));
  }
  for (size_t i = 0; i < op.args.size(); ++i) {
    const backend::ArgumentSpec& arg = op.args[i];
    if (arg.name.empty()) refuse(fmt::format("argument {}: expected a name, got none", i));
    if (arg.access < backend::Access::in || arg.access > backend::Access::accumulate) {
      refuse(fmt::format("{}: expected in, out, inout or status, got {}", arg.name,
                         static_cast<int>(arg.access)));
    }
    if (arg.in_place == 0) continue;
    if (arg.access != backend::Access::out) refuse(fmt::format("{}: in place: expected an output", arg.name));
    if (uint64_t{arg.in_place} >> op.args.size() != 0 || (arg.in_place >> i & 1) != 0) {
      refuse(fmt::format("{}: in place: expected other arguments of the op", arg.name));
    }
    for (size_t j = 0; j < op.args.size(); ++j) {
      if ((arg.in_place >> j & 1) == 0 || op.args[j].access == backend::Access::in) continue;
      refuse(fmt::format("{}: in place of {}: expected an input", arg.name, op.args[j].name));
    }
  }
}

}  // namespace

KernelRegistry::KernelRegistry(backend::Backend& backend)
    : backend_(backend),
      owned_(std::make_shared<std::deque<Owned>>()),
      table_(std::make_shared<const KernelTable>(backend.kernels.begin(), backend.kernels.end())) {}

/// Of a kernel from source, what the backend makes of it; null for C++ functions.
const void* KernelRegistry::entry_of(const UserKernel& kernel) const {
  const bool functions = kernel.entry.tiles != nullptr;
  if (kernel.source.empty()) {
    if (!functions)
      throw InvalidArgument(fmt::format("[kernels] {}: tiles: expected a function, got none", kernel.name));
    if (!backend_.info.composes) {
      throw InvalidArgument(fmt::format("[kernels] {}: device {} walks no C++ functions; expected source",
                                        kernel.name, backend_.info.backend));
    }
    return nullptr;
  }
  if (functions)
    throw InvalidArgument(fmt::format("[kernels] {}: expected tiles or source, got both", kernel.name));
  if (kernel.source_entry.empty())
    throw InvalidArgument(fmt::format("[kernels] {}: source_entry: expected a name, got none", kernel.name));
  return backend_.compile({kernel.name, kernel.source, kernel.source_entry});
}

void KernelRegistry::add(const UserKernel& kernel) {
  if (kernel.name.empty()) throw InvalidArgument("[kernels] name: expected one, got none");
  if (kernel.op == nullptr)
    throw InvalidArgument(fmt::format("[kernels] {}: op: expected one, got none", kernel.name));
  if (kernel.numerics.empty())
    throw InvalidArgument(fmt::format("[kernels] {}: numerics: expected a class, got none", kernel.name));
  check_schema(kernel.name, *kernel.op);
  const auto refuse_taken = [&] {
    if (std::ranges::find(*table_, kernel.name, &backend::Kernel::name) != table_->end())
      throw InvalidArgument(fmt::format("[kernels] {}: there is a kernel of this name", kernel.name));
  };
  std::unique_lock lock(mutex_);
  refuse_taken();
  lock.unlock();  // compiling takes its time, and what it makes stays with the backend
  const void* const compiled = entry_of(kernel);
  lock.lock();
  refuse_taken();
  // A new table, since plans that are being made look at the old one.
  struct Holder {
    std::shared_ptr<const std::deque<Owned>> owned;
    KernelTable table;
  };
  auto holder = std::make_shared<Holder>(Holder{owned_, {}});
  holder->table.reserve(table_->size() + 1);
  holder->table = *table_;
  const Owned& owned = owned_->emplace_back(Owned{kernel.name, kernel.numerics, kernel.entry});
  // From here on nothing throws.
  backend::Kernel row;
  row.name = owned.name;
  row.op = kernel.op;
  row.numerics = owned.numerics;
  row.needs = kernel.needs;
  row.prefetches = kernel.prefetches;
  row.accepts = kernel.accepts != nullptr ? kernel.accepts : accept_all;
  row.launch = kernel.launch != nullptr ? kernel.launch : launch_rows;
  row.entry = compiled != nullptr ? compiled : &owned.entry;
  row.regions = kernel.entry.region != nullptr;
  row.keeps_rows = kernel.entry.rows_prologue != nullptr;
  holder->table.insert(holder->table.begin() + static_cast<std::ptrdiff_t>(user_kernels_), row);
  ++user_kernels_;
  table_ = std::shared_ptr<const KernelTable>(holder, &holder->table);
}

std::shared_ptr<const KernelTable> KernelRegistry::table() const {
  const std::lock_guard lock(mutex_);
  return table_;
}

}  // namespace refrain
