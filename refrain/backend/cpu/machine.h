// What the machine grants to this process: CPUs to run on, memory, a name. Reads proc/ and sys/ under a root.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace refrain::backend::cpu {

/// The CPUs of the calling thread's affinity mask, ascending; at least one.
std::vector<uint32_t> affinity_cpus();

/// How many distinct cores `cpus` lie on, after sys/devices/system/cpu; a CPU of unknown core counts as one.
uint32_t count_cores(std::span<const uint32_t> cpus, const std::string& root);

/// CPUs' worth of time that the control groups (v2 and v1) of this process grant; nothing when unlimited.
std::optional<double> quota_cpus(const std::string& root);

/// How many workers can run at the same time: CPUs, at most the floor of the quota, which may be 0.
uint32_t whole_cpus(std::span<const uint32_t> cpus, const std::string& root);

/// One worker a core, at most the floor of the quota, at least 1.
uint32_t choose_workers(std::span<const uint32_t> cpus, const std::string& root);

/// Bytes that can still be allocated: of the machine and of the memory control groups.
size_t available_bytes(const std::string& root);

/// The model of the first CPU; `CPU` when it is not known.
std::string model_name(const std::string& root);

}  // namespace refrain::backend::cpu
