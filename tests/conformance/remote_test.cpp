// Memory that the host cannot reach: what touches it in place fails, what copies is counted, and a copy that is
// refused leaves everything usable. From the decorator up to a model.
#include "refrain/backend/remote/remote_backend.h"

#include <gtest/gtest.h>

#include <array>
#include <numeric>

#include "refrain/backend/cpu/cpu_backend.h"
#include "refrain/backend/fault/fault_backend.h"
#include "refrain/backend/null/null_backend.h"
#include "refrain/device/pool.h"
#include "refrain/model/model.h"
#include "refrain/ops/kernel_tables.h"
#include "refrain/ops/layouts.h"
#include "refrain/ops/testing.h"
#include "refrain/refrain.h"
#include "tests/conformance/test_kernels.h"
#include "tests/refusal.h"

namespace refrain::backend::testing {
namespace {

using test::refusal;

std::unique_ptr<Backend> cpu(std::span<const Kernel> kernels = test_kernels()) {
  CpuOptions options;
  options.threads = 2;
  return make_cpu(options, kernels);
}

TEST(Remote, MemoryIsOutOfReach) {
  const auto device = make_remote(make_null(test_kernels()));  // without threads, so that a fork may die
  EXPECT_FALSE(device->info.host_memory);
  EXPECT_EQ(device->info.backend, "remote");
  for (const size_t bytes : {size_t{1}, size_t{5000}, size_t{3} << 20}) {
    const Allocation* memory = device->allocate({bytes, "data"});
    EXPECT_EQ(memory->host, nullptr);
    ASSERT_NE(memory->device_address, 0u);
    device->write({memory, bytes - 1, 1}, std::array{std::byte{1}});
    // Neither end may be read or written, before a program has run there or after.
    for (const size_t at : {size_t{0}, bytes - 1}) {
      auto* address = reinterpret_cast<volatile char*>(memory->device_address + at);
      EXPECT_DEATH((void)*address, "") << bytes;
      EXPECT_DEATH(*address = 1, "") << bytes;
    }
    device->release(memory);
  }
}

TEST(Remote, CopiesAreCounted) {
  const auto device = make_remote(cpu());
  const Allocation* memory = device->allocate({200000, "data"});
  std::vector<std::byte> bytes(200000);
  device->write(view(memory), bytes);
  device->write(view(memory, 7, 5), std::span(bytes).first(5));
  device->read(view(memory), bytes);
  PlanBuilder builder;
  builder.add(kIncrement, {inout(view(memory, 0, 4))}, {});
  const auto program = device->prepare(builder.plan, {});
  const UpdateData update{view(memory, 0, 4), std::span(bytes).first(4)};
  const Point point = device->submit({program.get(), {&update, 1}, {}});
  EXPECT_TRUE(device->wait(point, std::chrono::seconds(60)));
  const RemoteCounters counters = remote_counters(*device);
  EXPECT_EQ(counters.writes, 2u);
  EXPECT_EQ(counters.write_bytes, 200005u);
  EXPECT_EQ(counters.reads, 1u);
  EXPECT_EQ(counters.read_bytes, 200000u);
  EXPECT_EQ(counters.updates, 1u);
  EXPECT_EQ(counters.update_bytes, 4u);
  EXPECT_THROW((void)remote_counters(*make_null({})), InvalidArgument);
}

TEST(Remote, RefusedStagingIsARefusal) {
  auto owned = make_fault(cpu());
  Backend* const inner = owned.get();
  const auto device = make_remote(std::move(owned));
  const Allocation* memory = device->allocate({200000, "data"});
  const size_t used = device->memory().used_bytes;
  std::vector<std::byte> bytes(200000, std::byte{3});
  const auto write = [&] { device->write(view(memory), bytes); };
  const auto read = [&] { device->read(view(memory), bytes); };
  for (const auto& copy : {std::function<void()>(write), std::function<void()>(read)}) {
    set_faults(*inner, {.allocation = 1});
    EXPECT_NE(refusal<DeviceError>(copy).find("bytes wanted for 'staging'"), std::string::npos);
    set_faults(*inner, {.copy = 3});  // in its midst
    EXPECT_NE(refusal<DeviceError>(copy).find("refused"), std::string::npos);
    EXPECT_EQ(device->memory().used_bytes, used) << "the staging memory is gone";
    EXPECT_NO_THROW(copy());
  }
  EXPECT_EQ(remote_counters(*device).writes, 1u) << "of those that were refused none";
  EXPECT_EQ(contents<uint8_t>(*device, memory), std::vector<uint8_t>(200000, 3));
  set_faults(*inner, {.loss = 1});
  EXPECT_NE(refusal<DeviceLost>(write).find("device lost"), std::string::npos);
  EXPECT_NE(refusal<DeviceLost>(read).find("device lost"), std::string::npos);
}

/// The user's device over a remote one, and what that has copied.
class RemoteDevice : public ::testing::Test {
 protected:
  RemoteCounters copied() const { return remote_counters(*backend_); }

  std::vector<Kernel> kernels_ = ops::cpu_kernels();
  std::unique_ptr<Backend> owned_ = make_fault(cpu(kernels_));
  Backend* const inner_ = owned_.get();
  std::shared_ptr<Backend> backend_ = make_remote(std::move(owned_));
  refrain::Device device_{backend_, ops::cpu_layouts(), {}};
};

TEST_F(RemoteDevice, SpansAreRefusedAndCopiesServe) {
  const Buffer x = device_.buffer(DType::f32, {4, 16}, "activations");
  const std::string refused =
      "[buffer] span: 'activations' is memory of device remote that the host cannot reach in place: expected "
      "Device::write and Device::read, or a buffer of MemoryKind::host";
  EXPECT_EQ(refusal([&] { (void)x.span<float>(); }), refused);
  EXPECT_EQ(refusal([&] { (void)x.slice(1, 2).span<const float>(); }), refused);
  EXPECT_EQ(refusal([&] { (void)x.host_span(); }), refused);
  std::vector<float> values(64);
  std::iota(values.begin(), values.end(), 1.0f);
  device_.write(x, values);
  device_.write(x.slice(2, 1), std::array<float, 16>{});
  std::fill_n(values.begin() + 32, 16, 0.0f);
  EXPECT_EQ(device_.read<float>(x), values);
  EXPECT_EQ(device_.read<float>(x.slice(3, 1)), std::vector(values.begin() + 48, values.end()));

  const Buffer both = device_.buffer(DType::f32, {4, 16}, "both", MemoryKind::host);
  both.span<float>()[3] = 5;
  EXPECT_EQ(device_.read<float>(both)[3], 5);
  device_.write(both, values);
  EXPECT_EQ(both.span<const float>()[3], 4);
  EXPECT_EQ(device_.counters().writes, 3u);
  EXPECT_EQ(device_.counters().write_bytes, 2 * 256u + 64u);
  EXPECT_EQ(device_.counters().reads, 3u);
  EXPECT_EQ(device_.counters().read_bytes, 2 * 256u + 64u);
  EXPECT_EQ(copied().writes, 3u);
}

TEST_F(RemoteDevice, MisuseOfCopies) {
  const Buffer x = device_.buffer(DType::f32, {4}, "x");
  refrain::Device other(make_remote(cpu(kernels_)), {}, {});
  const Buffer foreign = other.buffer(DType::f32, {4});
  const std::vector<float> four(4), three(3);
  EXPECT_EQ(refusal([&] { device_.write(x, three); }), "[write] 'x': expected 16 bytes, got 12");
  EXPECT_EQ(refusal([&] { device_.write(x, std::vector<uint32_t>(4)); }),
            "[write] 'x': expected elements of f32, got u32");
  EXPECT_EQ(refusal([&] { (void)device_.read<uint32_t>(x); }),
            "[read] 'x': expected elements of f32, got u32");
  std::vector<std::byte> bytes(15);
  EXPECT_EQ(refusal([&] { device_.read(x, bytes); }), "[read] 'x': expected 16 bytes, got 15");
  for (const Buffer& buffer : {foreign, Buffer()}) {
    EXPECT_EQ(refusal([&] { device_.write(buffer, four); }),
              "[write] buffer: expected one of this device, got another's or none");
    EXPECT_EQ(refusal([&] { (void)device_.read<float>(buffer); }),
              "[read] buffer: expected one of this device, got another's or none");
  }
  alignas(64) static const std::array<float, 4> fixed = {1, 2, 3, 4};
  const Buffer import = device_.import_memory(fixed.data(), DType::f32, {4}, nullptr, "fixed");
  EXPECT_EQ(refusal([&] { device_.write(import, four); }),
            "[write] 'fixed': expected memory to write, got a read-only buffer");
  EXPECT_EQ(device_.read<float>(import)[3], 4);
  EXPECT_EQ(refusal([&] { device_.buffer(DType::f32, {4}, "x", MemoryKind::import_host); }),
            "[buffer] x: expected new memory, got the kind of an import");
  EXPECT_EQ(copied().writes, 0u) << "what is refused copies nothing";
}

TEST_F(RemoteDevice, CopiesKnowWhatIsInFlight) {
  const Buffer a = device_.buffer(DType::f32, {2, 8}, "a"), b = device_.buffer(DType::f32, {2, 8}, "b"),
               sum = device_.buffer(DType::f32, {2, 8}, "sum");
  device_.write(a, std::vector<float>(16, 1));
  CommandEncoder encoder = device_.encoder();
  ops::add(encoder, {.a = a, .b = b, .output = sum});
  const refrain::Point later = device_.host_point();
  const refrain::Point point = encoder.commit({.label = "sum", .waits = {later}});
  const std::string rest =
      " by submission 1 of queue 0 'sum', which is in flight: wait for it, or synchronize";
  EXPECT_EQ(refusal([&] { device_.write(a, std::vector<float>(16)); }), "[write] 'a' is used" + rest);
  EXPECT_EQ(refusal([&] { (void)device_.read<float>(sum); }), "[read] 'sum' is written" + rest);
  EXPECT_EQ(device_.read<float>(a)[0], 1) << "both read";
  device_.signal(later);
  device_.synchronize(sum);
  EXPECT_EQ(device_.read<float>(sum), std::vector<float>(16, 1));
  device_.wait(point);
  set_faults(*inner_, {.loss = 1});
  EXPECT_NE(refusal<DeviceLost>([&] { device_.write(a, std::vector<float>(16)); }), "nothing was thrown");
  EXPECT_NE(refusal<DeviceLost>([&] { (void)device_.read<float>(a); }), "nothing was thrown");
}

/// A weight of three parts.
format::EncodedTensor affine_tensor(int64_t rows, int64_t columns) {
  ops::harness::Random random(static_cast<uint64_t>(rows));
  return ops::harness::random_tensor(format::mlx_affine({4, 64}, DType::bf16), {rows, columns}, random);
}

/// The packed bytes of a weight.
std::vector<std::byte> bytes_of(const Backend& backend, const Weight& weight) {
  std::vector<std::byte> bytes(weight.bytes());
  backend.read({&weight.state()->memory->allocation(), weight.state()->offset_bytes, bytes.size()}, bytes);
  return bytes;
}

TEST_F(RemoteDevice, PackingCopiesEachPackedByteOnce) {
  // From a part of a row of groups to several parts of 4 MB, with padding behind rows and without.
  for (const auto& [rows, columns] :
       {std::pair<int64_t, int64_t>{1, 64}, {5, 192}, {3000, 4096}, {301, 32768}}) {
    const format::EncodedTensor affine = affine_tensor(rows, columns);
    const backend::WeightLayout& layout = ops::grouped();
    const RemoteCounters before = copied();
    std::vector<size_t> seen;
    const Weight weight =
        device_.pack(affine.source("w"), {Use::matvec}, {.progress = [&](size_t done, size_t packed) {
                       EXPECT_EQ(packed, layout.packed_bytes({affine.format, affine.shape}));
                       seen.push_back(done);
                     }});
    EXPECT_EQ(copied().write_bytes - before.write_bytes, weight.bytes());
    EXPECT_TRUE(std::ranges::is_sorted(seen));
    EXPECT_EQ(seen.back(), weight.bytes());
    std::vector<std::byte> whole(weight.bytes(), std::byte{0xEE});
    ops::pack_whole(layout, affine.source("w"), weight.state()->info, whole);
    EXPECT_TRUE(bytes_of(*backend_, weight) == whole) << rows;
  }
}

TEST_F(RemoteDevice, APackingThatIsRefusedOrCancelledLeavesNothing) {
  const format::EncodedTensor affine = affine_tensor(3000, 4096), small = affine_tensor(1, 64);
  device_.pack(small.source("w"), {Use::matvec});  // staging is kept from now on
  const size_t used = device_.memory().used_bytes;
  const auto pack = [&] { device_.pack(affine.source("w"), {Use::matvec}); };
  set_faults(*inner_, {.allocation = 2});
  EXPECT_NE(refusal<DeviceError>(pack).find("wanted for 'staging'"), std::string::npos);
  set_faults(*inner_, {.copy = 70});
  EXPECT_NE(refusal<DeviceError>(pack).find("refused"), std::string::npos);
  set_faults(*inner_, {});
  EXPECT_EQ(refusal<FileError>([&] {
              device_.pack(affine.source("w"), {Use::matvec},
                           {.progress = [](size_t, size_t) { throw FileError("enough"); }});
            }),
            "enough");
  EXPECT_EQ(device_.memory().used_bytes, used);
  EXPECT_EQ(refusal<DeviceError>(pack), "nothing was thrown");
}

TEST_F(RemoteDevice, LoadingAModelCopiesItsWeights) {
  const model::Model model = model::Model::load(device_, "models/tales-qwen3-4bit");
  EXPECT_EQ(model.weights().in_place_bytes, 0u) << "there is no memory to use in place";
  constexpr size_t kFrequenciesBytes =
      32 * sizeof(float);  // of heads of 64: computed, and no tensor of the file
  EXPECT_EQ(copied().write_bytes, model.weights().bytes + kFrequenciesBytes);
  EXPECT_EQ(device_.counters().write_bytes, copied().write_bytes);
  EXPECT_EQ(copied().reads, 0u);
}

TEST_F(RemoteDevice, APoolZeroesWhatIsUsedAgain) {
  BufferPool pool(device_);
  for (const int64_t bytes : {int64_t{300}, int64_t{200000}}) {
    device_.write(pool.buffer(DType::u8, {bytes}), std::vector<uint8_t>(static_cast<size_t>(bytes), 7));
    EXPECT_EQ(device_.read<uint8_t>(pool.buffer(DType::u8, {bytes})),
              std::vector<uint8_t>(static_cast<size_t>(bytes)));
  }
  EXPECT_EQ(pool.usage().reused, 2u);
}

TEST(RemoteOpened, ByName) {
  DeviceOptions options;
  options.threads = 1;
  refrain::Device device = refrain::Device::open("remote", options);
  EXPECT_EQ(device.info().backend, "remote");
  EXPECT_FALSE(device.info().host_memory);
  const Buffer x = device.buffer(DType::u32, {3});
  device.write(x, std::array{1u, 2u, 3u});
  EXPECT_EQ(device.read<uint32_t>(x)[2], 3u);
}

}  // namespace
}  // namespace refrain::backend::testing
