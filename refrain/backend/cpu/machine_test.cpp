// Team sizes, quotas, memory limits and features from invented proc/ and sys/ trees, and options of make_cpu.
#include "refrain/backend/cpu/machine.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <thread>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/cpu/features.h"
#include "refrain/backend/cpu/residency.h"
#include "refrain/core/error.h"

namespace refrain::backend::cpu {
namespace {

namespace fs = std::filesystem;

class Machine : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ =
        fs::path(::testing::TempDir()) /
        (std::string("refrain_machine_") + ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& path, const std::string& content) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << content << '\n';
  }
  void cpu(uint32_t index, const std::string& siblings, const char* name = "core_cpus_list") const {
    write("sys/devices/system/cpu/cpu" + std::to_string(index) + "/topology/" + name, siblings);
  }
  std::string root() const { return root_.string(); }

  fs::path root_;
  const std::vector<uint32_t> four_ = {0, 1, 2, 3};
};

TEST_F(Machine, AffinityHasACpu) { EXPECT_GE(affinity_cpus().size(), 1u); }

#if defined(__linux__)
TEST_F(Machine, AffinityIsTheThreads) {
  const std::vector<uint32_t> all = affinity_cpus();
  if (all.back() >= CPU_SETSIZE) GTEST_SKIP() << "more CPUs than this test can name";
  std::vector<uint32_t> found;
  bool pinned = false;
  std::thread([&] {
    cpu_set_t last;
    CPU_ZERO(&last);
    CPU_SET(all.back(), &last);
    pinned = sched_setaffinity(0, sizeof(last), &last) == 0;
    found = affinity_cpus();
  }).join();
  if (!pinned) GTEST_SKIP() << "a thread may not be bound to a CPU here";
  EXPECT_EQ(found, std::vector<uint32_t>{all.back()});
}
#endif

TEST_F(Machine, UnknownTopologyCountsCpus) {
  EXPECT_EQ(count_cores(four_, root()), 4u);
  EXPECT_EQ(choose_workers(four_, root()), 4u);
}

TEST_F(Machine, OneWorkerACore) {
  for (const uint32_t i : four_) cpu(i, i % 2 == 0 ? "0,2" : "1,3");
  EXPECT_EQ(count_cores(four_, root()), 2u);
  const std::vector<uint32_t> siblings = {1, 3};
  EXPECT_EQ(choose_workers(siblings, root()), 1u) << "the mask counts, not the machine";
}

TEST_F(Machine, OlderNameOfTheTopology) {
  for (const uint32_t i : four_) cpu(i, i < 2 ? "0-1" : "2-3", "thread_siblings_list");
  EXPECT_EQ(count_cores(four_, root()), 2u);
}

TEST_F(Machine, QuotaV2) {
  write("proc/self/cgroup", "0::/a/b");
  write("sys/fs/cgroup/a/b/cpu.max", "max 100000");
  EXPECT_FALSE(quota_cpus(root()).has_value());
  write("sys/fs/cgroup/a/cpu.max", "250000 100000");
  EXPECT_DOUBLE_EQ(quota_cpus(root()).value(), 2.5) << "an ancestor limits too";
  EXPECT_EQ(choose_workers(four_, root()), 2u) << "the floor";
  write("sys/fs/cgroup/a/b/cpu.max", "50000 100000");
  EXPECT_EQ(choose_workers(four_, root()), 1u) << "at least one";
}

TEST_F(Machine, QuotaV1) {
  write("proc/self/cgroup", "3:cpuset:/x\n2:cpu,cpuacct:/docker/1\n1:memory:/x");
  write("sys/fs/cgroup/cpuset/x/cpu.cfs_quota_us", "100000");  // of another controller
  write("sys/fs/cgroup/cpuset/x/cpu.cfs_period_us", "100000");
  EXPECT_EQ(choose_workers(four_, root()), 4u);
  write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "300000");
  write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000");
  EXPECT_EQ(choose_workers(four_, root()), 3u) << "the path of the group does not exist in a container";
  write("sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us", "-1");
  write("sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us", "100000");
  EXPECT_EQ(choose_workers(four_, root()), 3u);
  write("sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us", "200000");
  EXPECT_EQ(choose_workers(four_, root()), 2u);
}

TEST_F(Machine, WorkersBeyondTheQuotaSleepInsteadOfSpinning) {
  write("proc/self/cgroup", "0::/");
  write("sys/fs/cgroup/cpu.max", "100000 100000");
  CpuOptions options;
  options.system_root = root();
  options.spin = std::chrono::seconds(10);
  constexpr double kSpun = 0.05;  // seconds of a CPU
  const auto idle = [&](uint32_t threads, int most) {
    options.threads = threads;
    const auto device = make_cpu(options, {});
    const std::clock_t begin = std::clock();
    double used = 0;
    for (int i = 0; i < most && used < kSpun; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      used = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
    }
    return used;
  };
  EXPECT_GE(idle(1, 1000), kSpun);
  EXPECT_LT(idle(2, 20), kSpun);
}

TEST_F(Machine, QuotaBeyondTheMaskChangesNothing) {
  write("proc/self/cgroup", "0::/");
  write("sys/fs/cgroup/cpu.max", "6400000 100000");
  EXPECT_EQ(choose_workers(four_, root()), 4u);
}

TEST_F(Machine, WorkersThatRunAtTheSameTime) {
  EXPECT_EQ(whole_cpus(four_, root()), 4u);
  write("proc/self/cgroup", "0::/");
  write("sys/fs/cgroup/cpu.max", "250000 100000");
  EXPECT_EQ(whole_cpus(four_, root()), 2u) << "a third worker that spins takes the time of those that work";
  write("sys/fs/cgroup/cpu.max", "50000 100000");
  EXPECT_EQ(whole_cpus(four_, root()), 0u);
  write("sys/fs/cgroup/cpu.max", "900000 100000");
  EXPECT_EQ(whole_cpus(four_, root()), 4u);
}

TEST_F(Machine, BrokenFilesAreIgnored) {
  write("proc/self/cgroup", "nonsense\n0::/a\n:");
  write("sys/fs/cgroup/a/cpu.max", "many");
  write("sys/fs/cgroup/cpu.max", "-5 0");
  EXPECT_FALSE(quota_cpus(root()).has_value());
}

TEST_F(Machine, AvailableBytes) {
  EXPECT_EQ(available_bytes(root()), SIZE_MAX);
  write("proc/meminfo", "MemTotal:       99 kB\nMemAvailable:   1000 kB");
  EXPECT_EQ(available_bytes(root()), 1024000u);
  write("proc/self/cgroup", "4:memory:/m\n0::/u");
  write("sys/fs/cgroup/u/memory.max", "900000");
  write("sys/fs/cgroup/u/memory.current", "100000");
  EXPECT_EQ(available_bytes(root()), 800000u);
  write("sys/fs/cgroup/u/memory.stat", "anon 1\ninactive_file 60000\nactive_file 30000\n");
  EXPECT_EQ(available_bytes(root()), 890000u);
  write("sys/fs/cgroup/memory/m/memory.limit_in_bytes", "700000");
  write("sys/fs/cgroup/memory/m/memory.usage_in_bytes", "800000");
  EXPECT_EQ(available_bytes(root()), 0u);
}

TEST_F(Machine, ModelName) {
  EXPECT_EQ(model_name(root()), "CPU");
  write("proc/cpuinfo", "processor\t: 0\nmodel name\t: Test Processor 9000\n");
  EXPECT_EQ(model_name(root()), "Test Processor 9000");
}

TEST_F(Machine, DeviceFollowsTheQuota) {
  write("proc/self/cgroup", "0::/");
  write("sys/fs/cgroup/cpu.max", "100000 100000");
  write("proc/cpuinfo", "model name\t: Test Processor 9000\n");
  CpuOptions options;
  options.system_root = root();
  options.features = 0;
  const auto device = make_cpu(options, {});
  EXPECT_EQ(device->info.compute_units, 1u);
  EXPECT_EQ(device->info.name, "Test Processor 9000, 1 worker, portable");
  options.threads = 3;
  EXPECT_EQ(make_cpu(options, {})->info.compute_units, 3u) << "what is asked for overrides";
}

TEST_F(Machine, FeaturesCanBeMasked) {
  const uint64_t found = detect_features();
  CpuOptions options;
  options.threads = 1;
  EXPECT_EQ(make_cpu(options, {})->info.features, found);
  options.features = ~uint64_t{kFeatureAvx2};
  EXPECT_EQ(make_cpu(options, {})->info.features, 0u) << "all others need AVX2";
  options.features = kFeatureAvx2;
  EXPECT_EQ(make_cpu(options, {})->info.features, found & kFeatureAvx2);
}

#if defined(__x86_64__) && defined(__GNUC__)
TEST_F(Machine, FeaturesAgreeWithTheCompiler) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  EXPECT_EQ((detect_features() & kFeatureAvx2) != 0, avx2);
  EXPECT_EQ((detect_features() & kFeatureAvx512) != 0,
            avx2 && __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0);
}
#endif

/// The features of a processor whose CPUID and XCR0 have all bits that are asked for and no others, but for those that
/// are taken away.
struct Processor {
  uint32_t leaf1_ecx = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29;
  CpuidWords leaf7{1, 1u << 5 | 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31, 1u << 11, 0};
  uint32_t leaf7_1_eax = 1u << 5;
  uint64_t xcr0 = 0xE6;

  uint64_t features() const {
    const auto cpuid = [&](uint32_t leaf, uint32_t subleaf) -> CpuidWords {
      if (leaf == 1) return {0, 0, leaf1_ecx, 0};
      if (leaf != 7) return {};
      return subleaf == 0 ? leaf7 : CpuidWords{leaf7_1_eax, 0, 0, 0};
    };
    return features_of(cpuid, [&] {
      EXPECT_NE(leaf1_ecx & 1u << 27, 0u) << "XCR0 may not be read";
      return xcr0;
    });
  }
};

TEST_F(Machine, FeaturesOfInventedProcessors) {
  constexpr uint64_t kAvx512 = kFeatureAvx2 | kFeatureAvx512;
  constexpr uint64_t kAll = kAvx512 | kFeatureAvx512Vnni | kFeatureAvx512Bf16;
  EXPECT_EQ(Processor{}.features(), kAll);
  const auto after = [](auto change) {
    Processor processor;
    change(processor);
    return processor.features();
  };
  for (const uint32_t bit : {12, 27, 28, 29})
    EXPECT_EQ(after([&](Processor& p) { p.leaf1_ecx &= ~(1u << bit); }), 0u) << "leaf 1, bit " << bit;
  EXPECT_EQ(after([](Processor& p) { p.leaf7.ebx &= ~(1u << 5); }), 0u) << "all others need AVX2";
  for (const uint32_t bit : {16, 17, 28, 30, 31}) {
    EXPECT_EQ(after([&](Processor& p) { p.leaf7.ebx &= ~(1u << bit); }), kFeatureAvx2)
        << "leaf 7, bit " << bit;
  }
  for (const uint32_t bit : {1, 2, 5, 6, 7}) {
    EXPECT_EQ(after([&](Processor& p) { p.xcr0 &= ~(uint64_t{1} << bit); }), bit < 5 ? 0 : kFeatureAvx2)
        << "XCR0, bit " << bit;
  }
  EXPECT_EQ(after([](Processor& p) { p.leaf7.ecx = 0; }), kAll & ~kFeatureAvx512Vnni);
  EXPECT_EQ(after([](Processor& p) { p.leaf7_1_eax = 0; }), kAll & ~kFeatureAvx512Bf16);
  EXPECT_EQ(after([](Processor& p) { p.leaf7.eax = 0; }), kAll & ~kFeatureAvx512Bf16) << "no subleaf 1";
}

TEST_F(Machine, DescribesFeatures) {
  EXPECT_EQ(describe_features(0), "portable");
  EXPECT_EQ(describe_features(kFeatureAvx2 | kFeatureAvx512), "avx2, avx512");
}

TEST_F(Machine, MemoryLimit) {
  CpuOptions options;
  options.threads = 1;
  options.memory_limit_bytes = 1 << 20;
  const auto device = make_cpu(options, {});
  const Allocation* half = device->allocate({size_t{1} << 19, "half"});
  EXPECT_THROW(device->allocate({(size_t{1} << 19) + 1, "too much"}), DeviceError);
  device->release(half);
  EXPECT_NE(device->allocate({size_t{1} << 20, "all"}), nullptr);
}

TEST_F(Machine, SmallAllocationsCountAgainstTheBudget) {
  write("proc/meminfo", "MemAvailable:   1000 kB");
  CpuOptions options;
  options.threads = 1;
  options.system_root = root();
  const auto device = make_cpu(options, {});
  const Allocation* first = device->allocate({600000, "first"});
  EXPECT_THROW(device->allocate({600000, "second"}), DeviceError);
  device->release(first);
  EXPECT_NE(device->allocate({600000, "third"}), nullptr);
}

TEST_F(Machine, UntouchedAllocationsCountAgainstTheBudget) {
  write("proc/meminfo", "MemAvailable:   131072 kB");
  CpuOptions options;
  options.threads = 1;
  options.system_root = root();
  const auto device = make_cpu(options, {});
  const size_t budget = device->memory().budget_bytes;
  const Allocation* half = device->allocate({budget / 2, "half"});
  EXPECT_EQ(device->memory().budget_bytes, budget);
  EXPECT_THROW(device->allocate({budget - budget / 4, "too much"}), DeviceError);
  device->release(half);
}

TEST_F(Machine, LargeAllocationsLieOnHugePages) {
  CpuOptions options;
  options.threads = 1;
  const auto device = make_cpu(options, {});
  const Allocation* large = device->allocate({(size_t{5} << 20) + 3, "large"});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(large->host) % (size_t{2} << 20), 0u);
  static_cast<char*>(large->host)[large->bytes - 1] = 1;
}

/// Whether the system says that huge pages are wished for where `address` lies.
bool wishes_huge_pages(const void* address) {
  std::ifstream file("/proc/self/smaps");
  bool here = false;
  for (std::string line; std::getline(file, line);) {
    uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &begin, &end) == 2) {
      const auto at = reinterpret_cast<uintptr_t>(address);
      here = begin <= at && at < end;
    } else if (here && line.starts_with("VmFlags:")) {
      return line.find(" hg") != std::string::npos;
    }
  }
  return false;
}

#if defined(MADV_HUGEPAGE)
TEST_F(Machine, LargeAllocationsWishForHugePages) {
  constexpr size_t kBytes = size_t{4} << 20;
  void* wished = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(wished, MAP_FAILED);
  const bool shown = madvise(wished, kBytes, MADV_HUGEPAGE) == 0 && wishes_huge_pages(wished);
  munmap(wished, kBytes);
  if (!shown) GTEST_SKIP() << "the system knows no such wish, or does not say so";
  CpuOptions options;
  options.threads = 1;
  const auto device = make_cpu(options, {});
  EXPECT_TRUE(wishes_huge_pages(device->allocate({kBytes, "large"})->host));
}
#endif

/// What the system says is locked of this process.
size_t locked() {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("VmLck:")) return std::stoul(line.substr(6)) * 1024;
  }
  return 0;
}

// A refusal in the middle, as at a limit: what lies before it is locked, noted, and given back.
TEST_F(Machine, LocksWhatCanBeLocked) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t before = locked();
  void* mapping = mmap(nullptr, 8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(mapping, MAP_FAILED);
  const auto begin = reinterpret_cast<uintptr_t>(mapping);
  ASSERT_EQ(munmap(reinterpret_cast<void*>(begin + 5 * page), page), 0);
  if (mlock(mapping, 5 * page) != 0) GTEST_SKIP() << "not even a few pages may be locked here";
  if (locked() != before + 5 * page) GTEST_SKIP() << "a sanitizer locks nothing, and says that it has";
  ASSERT_EQ(munlock(mapping, 5 * page), 0);
  LockedPages pages;
  pages.lock(begin, begin + 8 * page);
  EXPECT_EQ(pages.bytes(), 5 * page);
  EXPECT_EQ(locked(), before + 5 * page);
  pages.lock(begin, begin + 4 * page);
  EXPECT_EQ(pages.bytes(), 5 * page) << "locked already";
  pages.unlock(begin + 2 * page, begin + 3 * page);
  EXPECT_EQ(pages.bytes(), 4 * page);
  pages.lock(begin + 1, begin + 5 * page - 1);
  EXPECT_EQ(pages.bytes(), 5 * page) << "the gap, and no page that lies outside in part";
  pages.unlock(begin + 2 * page - 1, begin + 3 * page + 1);
  EXPECT_EQ(pages.bytes(), 2 * page) << "each page that is touched";
  EXPECT_EQ(locked(), before + 2 * page);
  pages.unlock(begin + 2 * page, begin + 3 * page);
  EXPECT_EQ(pages.bytes(), 2 * page) << "none of these is locked";
  pages.unlock(begin, begin + 8 * page);
  EXPECT_EQ(pages.bytes(), 0u);
  EXPECT_EQ(locked(), before);
  munmap(mapping, 8 * page);
}

// A page that cannot be brought into memory: the system refuses, and has marked those behind it.
TEST_F(Machine, WhatARefusalLeavesLockedIsUnlocked) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t before = locked();
  void* mapping = mmap(nullptr, 8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(mapping, MAP_FAILED);
  const auto begin = reinterpret_cast<uintptr_t>(mapping);
  ASSERT_EQ(mprotect(reinterpret_cast<void*>(begin + 5 * page), page, PROT_NONE), 0);
  const bool refused = mlock(mapping, 8 * page) != 0;
  const bool left = locked() == before + 8 * page;
  ASSERT_EQ(munlock(mapping, 8 * page), 0);
  if (!refused || !left) GTEST_SKIP() << "here a refusal leaves nothing locked, or there is none";
  LockedPages pages;
  pages.lock(begin, begin + 8 * page);
  EXPECT_EQ(pages.bytes(), 5 * page);
  EXPECT_EQ(locked(), before + 5 * page);
  pages.unlock(begin, begin + 8 * page);
  EXPECT_EQ(locked(), before);
  munmap(mapping, 8 * page);
}

TEST_F(Machine, TooManyThreads) {
  CpuOptions options;
  options.threads = 1000000;
  EXPECT_THROW(make_cpu(options, {}), InvalidArgument);
}

}  // namespace
}  // namespace refrain::backend::cpu
