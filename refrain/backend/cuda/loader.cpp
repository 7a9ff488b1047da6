#include "refrain/backend/cuda/loader.h"

#include <dlfcn.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "refrain/core/error.h"

namespace refrain::backend::cuda {
namespace {

namespace fs = std::filesystem;

/// Folders where the plugin may lie when nobody says where.
std::vector<fs::path> default_folders() {
  std::vector<fs::path> folders;
  const auto add = [&](const fs::path& file) {
    if (file.empty()) return;
    const fs::path folder = file.parent_path();
    for (const fs::path& candidate : {folder, (folder / ".." / "lib").lexically_normal()}) {
      if (std::find(folders.begin(), folders.end(), candidate) == folders.end()) folders.push_back(candidate);
    }
  };
  // The file that holds this function: a shared library, or the program.
  Dl_info info{};
  std::error_code error;
  if (dladdr(reinterpret_cast<const void*>(&open_plugin), &info) != 0 && info.dli_fname != nullptr)
    add(fs::canonical(info.dli_fname, error));
  add(fs::read_symlink("/proc/self/exe", error));
  return folders;
}

fs::path find_plugin(const std::string& path, const std::string& device) {
  std::error_code error;
  std::vector<fs::path> candidates;
  if (!path.empty()) {
    candidates.push_back(fs::is_directory(path, error) ? fs::path(path) / kPluginFile : fs::path(path));
  } else {
    for (const fs::path& folder : default_folders()) candidates.push_back(folder / kPluginFile);
  }
  std::string tried;
  for (const fs::path& candidate : candidates) {
    if (fs::exists(candidate, error)) return candidate;
    tried += (tried.empty() ? "" : ", ") + candidate.string();
  }
  throw DeviceError(device + ": the plugin was not found: expected " + (tried.empty() ? kPluginFile : tried));
}

std::string hex(uint64_t value) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (int shift = 60; shift >= 0; shift -= 4) text += kDigits[value >> shift & 15];
  return text;
}

}  // namespace

const Plugin& open_plugin(const std::string& path, std::string_view device) {
  const std::string prefix = std::string(device) + ": ";
  const fs::path file = find_plugin(path, std::string(device));
  // Never closed: threads of the driver, kernels and exceptions may outlive every handle.
  std::error_code error;
  void* const library = dlopen(fs::absolute(file, error).c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) {
    const char* const why = dlerror();
    throw DeviceError(prefix + file.string() + " cannot be loaded: " + (why != nullptr ? why : "unknown"));
  }
  const auto function = reinterpret_cast<PluginFunction>(dlsym(library, kPluginSymbol));
  const Plugin* const plugin = function != nullptr ? function() : nullptr;
  if (plugin == nullptr)
    throw DeviceError(prefix + file.string() + ": expected a plugin with the symbol " + kPluginSymbol);
  if (plugin->abi != plugin_abi()) {
    throw DeviceError(prefix + file.string() + " is of another build: expected ABI " + hex(plugin_abi()) +
                      ", got " + hex(plugin->abi));
  }
  return *plugin;
}

Bundle bind_plugin(const Plugin& plugin, std::span<const OpSchema* const> schemas,
                   std::span<const WeightLayout> layouts) {
  const auto refuse = [](std::string_view kernel, const std::string& what) {
    throw DeviceError("cuda: kernel " + std::string(kernel) + what);
  };
  const auto schema_of = [&](std::string_view kernel, std::string_view op) {
    const auto found = std::ranges::find(schemas, op, &OpSchema::name);
    if (found == schemas.end())
      refuse(kernel, " is for the op " + std::string(op) + ", which does not exist");
    return *found;
  };
  const auto check_class = [&](std::string_view kernel, std::string_view numerics) {
    if (numerics.empty()) refuse(kernel, ": expected a numerics class, got none");
  };
  Bundle bundle;
  bundle.kernels.reserve(plugin.kernels.size());
  for (const PluginKernel& row : plugin.kernels) {
    bundle.kernels.push_back(row.kernel);
    bundle.kernels.back().op = schema_of(row.kernel.name, row.op);
    check_class(row.kernel.name, row.kernel.numerics);
  }
  for (const GroupKernel& row : plugin.group_kernels) {
    check_class(row.name, row.numerics);
    for (const OpClass& of : row.classes) {
      schema_of(row.name, of.op);
      check_class(row.name, of.numerics);
    }
  }
  bundle.group_kernels = plugin.group_kernels;
  for (const WeightLayout& row : plugin.layouts) {
    const auto found = std::ranges::find(layouts, row.name, &WeightLayout::name);
    if (row.accepts == nullptr && found == layouts.end())
      throw DeviceError("cuda: layout " + std::string(row.name) + " does not exist");
    bundle.layouts.push_back(row.accepts != nullptr ? row : *found);
  }
  return bundle;
}

}  // namespace refrain::backend::cuda
