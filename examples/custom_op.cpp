// An op of one's own: a schema that says what it reads and writes, and a C++ function over tiles. It is
// recorded, ordered, planned and replayed like the ops of the library, and mixes with them.
#include <refrain/refrain.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

using namespace refrain;
using device::Access;
using device::ArgumentSpec;

// output[r] = max(input[r], 0)^2: the activation of a few models.
struct SquaredReluConstants {
  uint32_t columns;
};

constexpr ArgumentSpec kArgs[] = {{.name = "input", .access = Access::in, .rows = true},
                                  {.name = "output", .access = Access::out, .rows = true, .in_place = 1}};

void check(const device::OpCall& call) {
  if (call.args[0].dtype != DType::f32 || call.args[1].dtype != DType::f32)
    throw InvalidArgument("[squared_relu] input, output: expected f32");
  if (call.args[0].shape != call.args[1].shape || call.args[0].shape.rank() != 2)
    throw InvalidArgument("[squared_relu] output: expected the shape of input, [rows, columns]");
}

constexpr device::OpSchema kSquaredRelu{.name = "squared_relu",
                                        .doc = "output = max(input, 0)^2, row by row; may be in place.",
                                        .args = kArgs,
                                        .constants_bytes = sizeof(SquaredReluConstants),
                                        .check = check};

// One tile is one row: any worker, any order, each once.
void tiles(const device::TileArgs& args, uint32_t begin, uint32_t end) {
  const size_t columns = args.constants_as<SquaredReluConstants>().columns;
  for (size_t i = begin * columns; i < end * columns; ++i) {
    const float x = std::max(args.arg<float>(0)[i], 0.0f);
    args.arg<float>(1)[i] = x * x;
  }
}

// What calls look like in code that records.
void squared_relu(CommandEncoder& encoder, const Operand& input, const Operand& output) {
  dispatch(encoder, kSquaredRelu, std::array{input, output},
           SquaredReluConstants{static_cast<uint32_t>(input.shape()[1])});
}

int main() {
  Device device = Device::open("auto");
  device.kernels().add({.name = "squared_relu_f32", .op = &kSquaredRelu, .entry = {nullptr, nullptr, tiles}});

  Buffer x = device.buffer(DType::f32, {4, 8}), y = device.buffer(DType::f32, {4, 8});
  for (size_t i = 0; i < 32; ++i) x.span<float>()[i] = static_cast<float>(i) - 16;

  CommandEncoder encoder = device.encoder();
  Temp h = encoder.temp(DType::f32, {4, 8});
  {
    const auto scope = encoder.scope("mlp");
    squared_relu(encoder, x, h);
    ops::add(encoder, {.a = h, .b = x, .output = y});  // one of the library's, after it: nobody had to say so
  }
  device.wait(encoder.commit({.label = "custom op"}), std::chrono::seconds(1));

  bool right = true;
  for (size_t i = 0; i < 32; ++i) {
    const float input = x.span<float>()[i], positive = std::max(input, 0.0f);
    right = right && y.span<float>()[i] == positive * positive + input;
  }
  std::printf("%s: y[31] = %g\n", right ? "right" : "wrong", y.span<float>()[31]);
  return right ? 0 : 1;
}
