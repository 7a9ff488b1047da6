// An op of one's own: a schema that says what it reads and writes, and C++ functions over parts of the work. It
// is recorded, ordered, fused, planned and replayed like the ops of the library, and mixes with them.
#include <refrain/refrain.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

using namespace refrain;
using backend::Access;

// output[r][c] = max(input[r][c], 0)^2: the activation of a few models.
struct SquaredReluConstants {
  uint32_t columns;
};

// The first dimension counts rows. `units`: an element of a row needs and touches nothing of its neighbours.
constexpr backend::ArgumentSpec kArgs[] = {
    {.name = "input", .access = Access::in, .rows = true, .units = true, .dtypes = {DType::f32}},
    {.name = "output",
     .access = Access::out,
     .rows = true,
     .in_place = 1,
     .units = true,
     .dtypes = {DType::f32}}};

void check(const backend::OpCall& call) {
  if (call.args[0].shape != call.args[1].shape || call.args[0].shape.rank() != 2)
    throw InvalidArgument("[squared_relu] output: expected the shape of input, [rows, columns]");
}

// `iteration` and `units` let passes fuse it with a product before it. Without these two, and without `region`
// below, it would work as well, as a command of its own.
constexpr backend::OpSchema kSquaredRelu{
    .name = "squared_relu",
    .args = kArgs,
    .constants_bytes = sizeof(SquaredReluConstants),
    .check = check,
    .iteration = backend::Iteration::elementwise,
    .units = [](const backend::OpCall& call) { return call.constants_as<SquaredReluConstants>().columns; }};

// Any rectangle of rows and units: what a group asks for.
void region(const backend::TileArgs& args, uint32_t row_begin, uint32_t row_end, uint32_t unit_begin,
            uint32_t unit_end) {
  const size_t columns = args.constants_as<SquaredReluConstants>().columns;
  for (size_t row = row_begin; row < row_end; ++row) {
    for (size_t i = row * columns + unit_begin; i < row * columns + unit_end; ++i) {
      const float x = std::max(args.arg<float>(0)[i], 0.0f);
      args.arg<float>(1)[i] = x * x;
    }
  }
}

// On its own, one tile is one row: any worker, any order, each once.
void tiles(const backend::TileArgs& args, uint32_t begin, uint32_t end) {
  region(args, begin, end, 0, args.constants_as<SquaredReluConstants>().columns);
}

// What calls look like in code that records.
void squared_relu(CommandEncoder& encoder, const Operand& input, const Operand& output) {
  dispatch(encoder, kSquaredRelu, std::array{input, output},
           SquaredReluConstants{static_cast<uint32_t>(input.shape()[1])});
}

int main() {
  constexpr int64_t kRows = 4, kColumns = 64;
  Device device = Device::open("auto");
  device.kernels().add(
      {.name = "squared_relu_f32",
       .op = &kSquaredRelu,
       .entry = {.prefetch = nullptr, .prologue = nullptr, .tiles = tiles, .region = region}});

  std::vector<float> twice(kColumns * kColumns);  // a matrix that doubles
  for (size_t i = 0; i < kColumns; ++i) twice[i * kColumns + i] = 2;
  Weight weight = device.pack(
      format::plain_tensor("twice", DType::f32, {kColumns, kColumns}, std::as_bytes(std::span(twice))),
      {Use::matvec, Use::matmul});
  Buffer x = device.buffer(DType::f32, {kRows, kColumns}), y = device.buffer(DType::f32, {kRows, kColumns});
  std::vector<float> input(kRows * kColumns);
  for (size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i % 32) - 16;
  device.write(x, input);

  // Nobody says what comes before what, or what belongs together.
  CommandEncoder encoder = device.encoder();
  Temp h = encoder.temp(DType::f32, {kRows, kColumns}), a = encoder.temp(DType::f32, {kRows, kColumns});
  ops::matmul(encoder, {.input = x, .weight = weight, .output = h});
  squared_relu(encoder, h, a);
  ops::add(encoder, {.a = a, .b = x, .output = y});

  auto [plan, report] = device.plan(encoder.finish("custom op"));
  std::printf("%zu ops became %zu command\n", report.recorded_commands, report.commands);
  for (const std::string& fusion : report.fusions) std::printf("fused: %s\n", fusion.c_str());
  device.wait(device.submit(device.prepare(plan)), std::chrono::seconds(1));

  const std::vector<float> output = device.read<float>(y);
  bool right = true;
  for (size_t i = 0; i < input.size(); ++i) {
    const float positive = std::max(2 * input[i], 0.0f);
    right = right && output[i] == positive * positive + input[i];
  }
  std::printf("%s: y[31] = %g\n", right ? "right" : "wrong", output[31]);
  return right ? 0 : 1;
}
