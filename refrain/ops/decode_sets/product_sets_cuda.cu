// Sets of products: norm and projections; norm, gate, up and silu_mul; a product and what it is added to.
#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "refrain/backend/set_pattern.h"
#include "refrain/ops/add/add.h"
#include "refrain/ops/decode_sets/product_many.cuh"
#include "refrain/ops/decode_sets/tables_cuda.h"
#include "refrain/ops/elementwise.cuh"
#include "refrain/ops/matmul/matmul.h"
#include "refrain/ops/rms_norm/rms_norm.h"

namespace refrain::ops {
namespace {

using namespace decode;
using backend::SetCall;
using backend::SetElided;
using backend::SetPattern;
using backend::SetWire;

constexpr std::string_view kNorm = "rms_norm", kProduct = "matmul";
constexpr std::string_view kNumerics = "fast, 12 bits of 128";
constexpr std::string_view kGatedNumerics = "fast, f32, elementwise, exp of CUDA";
constexpr backend::OpClass kClasses[] = {
    {kNorm, kNormNumerics}, {"silu_mul", kGatedNumerics}, {"add", kAddNumerics}};

// Arguments: rms_norm input, weight, output; matmul input, weight, output; add a, b, output; silu_mul the same.
constexpr uint32_t kInput = 0, kWeight = 1, kOutput = 2;

bool in_tiles(const backend::ArgumentInfo& weight) {
  return weight.layout != nullptr && weight.layout->name == "tiles_4x1024";
}

/// Norms that the kernels here take.
bool norm_in_tiles(const backend::OpCall& call) {
  const auto& c = call.constants_as<RmsNormConstants>();
  const backend::ArgumentInfo& gain = call.args[kWeight];
  return (!gain.bound || gain.layout->name == "vector_f32") && c.columns % 4 == 0 &&
         tile_chunks(c.columns) <= kMostTileChunks;
}

bool whole_rows(const backend::OpCall& call) {
  return norm_in_tiles(call) && call.args[kWeight].bound &&
         call.constants_as<RmsNormConstants>().vectors == 1;
}

/// Weights in tiles, norms of whole rows.
bool takes(const SetCall& call, std::span<const uint32_t>) {
  for (const backend::SetMember& member : call.members) {
    const auto& args = member.call.args;
    if (member.call.op->name == kProduct && !in_tiles(args[kWeight])) return false;
    if (member.call.op->name == kNorm && !whole_rows(member.call)) return false;
  }
  return true;
}

constexpr std::string_view kNormPlaces[] = {kNorm, kProduct, kProduct, kProduct};
constexpr SetWire kNormWires[] = {{0, kOutput, 1, kInput}, {0, kOutput, 2, kInput}, {0, kOutput, 3, kInput}};
constexpr SetElided kNormElided[] = {{0, kOutput}};
template <size_t kProducts>
constexpr SetPattern kNormProducts{std::span(kNormPlaces).first(1 + kProducts),
                                   std::span(kNormWires).first(kProducts), kNormElided, takes};

constexpr std::string_view kGatePlaces[] = {kNorm, kProduct, kProduct, "silu_mul"};
constexpr SetWire kGateWires[] = {
    {0, kOutput, 1, kInput}, {0, kOutput, 2, kInput}, {1, kOutput, 3, 0}, {2, kOutput, 3, 1}};
constexpr SetElided kGateElided[] = {{0, kOutput}, {1, kOutput}, {2, kOutput}};
constexpr SetPattern kGate{kGatePlaces, kGateWires, kGateElided, takes};

constexpr std::string_view kAddPlaces[] = {kProduct, "add"};
constexpr SetWire kAddWires[] = {{0, kOutput, 1, 1}};
constexpr SetElided kAddElided[] = {{0, kOutput}};
constexpr SetPattern kAdd{kAddPlaces, kAddWires, kAddElided, takes};

/// The members by place.
template <size_t kPlaces>
std::array<const BoundMember*, kPlaces> by_place(const BoundCommand& command) {
  std::array<const BoundMember*, kPlaces> result{};
  for (const BoundMember& member : command.members) result[member.place] = &member;
  return result;
}

void set_product(ProductParameters& p, uint32_t w, const BoundMember& product) {
  p.weights[w] = vectors_at<const std::byte>(product.args[kWeight]);
  p.outputs[w] = static_cast<float*>(product.args[kOutput]);
  const auto& c = product.constants_as<MatmulConstants>();
  p.rows[w] = c.outputs;
  p.columns = c.columns;
}

RowNorm row_norm(const RmsNormConstants& c) { return {c.eps, 1.0f / static_cast<float>(c.columns)}; }

void set_norm(ProductParameters& p, const BoundMember& norm) {
  p.input = vectors_at<const float>(norm.args[kInput]);
  p.gain = vectors_at<const float>(norm.args[kWeight]);
  p.norm = row_norm(norm.constants_as<RmsNormConstants>());
}

// Of the 227 KB that a block may have, the kernel's own left out.
constexpr size_t kMostSharedBytes = size_t{220} << 10;

/// Whether rows are multiplied one after another, weights being held in registers, in place of quantizing them by a kernel of
/// their own for the tensor cores. `units`: of a block and row. A rule of thumb: a row more is taken as 1 us and 45 ns a unit,
/// the tensor cores' road as 4 us; bench_decode_step --sequences 2 shows what it does.
constexpr bool one_by_one(uint32_t rows, uint32_t chunks, uint32_t units) {
  const bool held = units <= 2 * kMostWarps && chunks * kTileColumns <= kMostLoads * 4 * kMostWarps * kWarp;
  return rows <= 1 || (held && (rows - 1) * (22 + units) <= 88);
}

/// Of a thread of product_ring, a power of two. Where gains are held beside the row there are registers for fewer.
constexpr uint32_t most_ring_loads(Ending ending) { return ending == Ending::add ? 8 : kMostLoads; }

/// How a command of few rows is launched.
struct Division {
  uint32_t warps = 0;
  uint32_t loads = 0;    ///< of a thread, in which it takes its part of a row
  uint32_t units = 0;    ///< of a warp, in registers; 0: through a ring
  bool several = false;  ///< rows
};

/// Where tiles end; how many there are to divide among blocks.
uint32_t set_tiles(ProductParameters& p, Ending ending) {
  p.chunks = tile_chunks(p.columns);
  uint32_t tiles = 0;
  for (uint32_t w = 0; w < kMostWeights; ++w) p.tiles[w] = tiles += tiles_of(p.rows[w]);
  return ending == Ending::gate ? p.tiles[0] : tiles;
}

/// Of a block that takes a row tile of every so many.
uint32_t units_of(uint32_t tiles, uint32_t columns, Ending ending, uint32_t blocks) {
  return (tiles + blocks - 1) / blocks * tile_chunks(columns) * (ending == Ending::gate ? 2 : 1);
}

/// How many row tiles a block takes: all blocks the same, one block an SM. A warp a unit, where that is enough: more than 16
/// leave the next kernel no room.
Division divide(ProductParameters& p, Ending ending) {
  const uint32_t tiles = set_tiles(p, ending);
  p.tiles_per_block = (tiles + p.state.walkers - 1) / p.state.walkers;
  p.chunk_inverse = (1u << 31) / p.chunks + 1;
  const uint32_t units = units_of(tiles, p.columns, ending, p.state.walkers);
  Division division;
  division.units = units <= kMostWarps ? 1 : units <= 2 * kMostWarps ? 2 : 0;
  const uint32_t wanted = division.units == 0 ? units : (units + division.units - 1) / division.units;
  division.warps = std::clamp(wanted, 8u, kMostWarps);
  // Of whole chunks: what lies past the columns is zero, and has to be said so.
  const auto loads = [&] {
    return (p.chunks * kTileColumns + 4 * division.warps * kWarp - 1) / (4 * division.warps * kWarp);
  };
  if (division.units != 0 && loads() > kMostLoads) division.warps = kMostWarps;
  division.several = p.state.rows > 1;
  if (loads() > kMostLoads) division.units = 0;
  division.loads = loads();
  if (division.units != 0) return division;
  division.loads = std::min(std::bit_ceil(division.loads), most_ring_loads(ending));
  p.depth = std::min((units + division.warps - 1) / division.warps, kMostDepth);
  while (p.depth > 1 && ProductShape(p, division.warps, ending).bytes() > kMostSharedBytes) --p.depth;
  return division;
}

template <Ending kEnding>
const void* function_of(const Division& division) {
  using Function = void (*)(ProductParameters);
  if (division.units == 0) {
    static constexpr auto kRings = []<uint32_t... kLog>(std::integer_sequence<uint32_t, kLog...>) {
      return std::array<Function, sizeof...(kLog)>{product_ring<kEnding, 1u << kLog>...};
    }(std::make_integer_sequence<uint32_t, std::bit_width(most_ring_loads(kEnding))>());
    return reinterpret_cast<const void*>(kRings[std::bit_width(division.loads) - 1]);
  }
  static constexpr auto kOnce = []<uint32_t... kLess>(std::integer_sequence<uint32_t, kLess...>) {
    return std::array<std::array<Function, kMostLoads>, 4>{{{product_once<kEnding, kLess + 1, 1, false>...},
                                                            {product_once<kEnding, kLess + 1, 2, false>...},
                                                            {product_once<kEnding, kLess + 1, 1, true>...},
                                                            {product_once<kEnding, kLess + 1, 2, true>...}}};
  }(std::make_integer_sequence<uint32_t, kMostLoads>());
  return reinterpret_cast<const void*>(kOnce[division.units - 1 + division.several * 2][division.loads - 1]);
}

ProductParameters product(const BoundCommand& command) {
  ProductParameters p;
  p.state = command.state;
  set_product(p, 0, command.members.front());
  p.input = vectors_at<const float>(command.members.front().args[kInput]);
  return p;
}
template <size_t kProducts>
ProductParameters norm_products(const BoundCommand& command) {
  const auto members = by_place<1 + kProducts>(command);
  ProductParameters p;
  p.state = command.state;
  set_norm(p, *members[0]);
  for (uint32_t w = 0; w < kProducts; ++w) set_product(p, w, *members[1 + w]);
  return p;
}
ProductParameters gate(const BoundCommand& command) {
  const auto members = by_place<4>(command);
  ProductParameters p;
  p.state = command.state;
  set_norm(p, *members[0]);
  for (uint32_t w = 0; w < 2; ++w) set_product(p, w, *members[1 + w]);
  p.outputs[0] = static_cast<float*>(members[3]->args[kOutput]);
  return p;
}
ProductParameters product_add(const BoundCommand& command) {
  const auto members = by_place<2>(command);
  ProductParameters p;
  p.state = command.state;
  set_product(p, 0, *members[0]);
  p.input = vectors_at<const float>(members[0]->args[kInput]);
  p.residual = vectors_at<const float>(members[1]->args[0]);
  p.outputs[0] = static_cast<float*>(members[1]->args[kOutput]);
  return p;
}

/// How a command of many rows is launched.
struct ManyDivision {
  bool wide = false;
  uint32_t tiles = 0;  ///< of a block, of a gate of each weight
  uint32_t blocks = 0, splits = 1;

  /// `tiles`: row tiles to divide. `units`: SMs.
  ManyDivision(uint32_t rows, uint32_t columns, uint32_t all_tiles, Ending ending, uint32_t units)
      : wide(rows > NarrowShape::kRows) {
    static_assert(WideShape::kTiles == NarrowShape::kTiles);
    tiles = ending == Ending::gate ? WideShape::kTiles / 2 : WideShape::kTiles;
    const uint32_t at_once = wide ? WideShape::kRows : NarrowShape::kRows;
    blocks = (all_tiles + tiles - 1) / tiles * ((rows + at_once - 1) / at_once);
    splits = std::clamp(units * (wide ? WideShape::kPerSm : NarrowShape::kPerSm) / blocks, 1u,
                        tile_chunks(columns));
  }
  size_t partial_bytes(uint32_t columns) const {
    return splits == 1 ? 0
                       : size_t{tile_chunks(columns)} * blocks *
                             (wide ? WideShape::kPartialBytes : NarrowShape::kPartialBytes);
  }
};

backend::Launch launch_of(uint32_t rows, uint32_t columns, uint32_t tiles, Ending ending, uint32_t units) {
  backend::Launch launch{.rows = rows, .walkers = units};
  if (one_by_one(rows, tile_chunks(columns), units_of(tiles, columns, ending, units))) return launch;
  const ManyDivision division(rows, columns, tiles, ending, units);
  launch.workspace_bytes = octets_bytes(rows, columns) + division.partial_bytes(columns);
  launch.ticket_bytes = division.splits == 1 ? 0 : division.blocks * sizeof(uint32_t);
  return launch;
}

template <Ending kEnding>
backend::Launch launch_of_set(const SetCall& call, const backend::DeviceInfo& info) {
  uint32_t tiles = 0, columns = 0;
  for (const backend::SetMember& member : call.members) {
    if (member.call.op->name != kProduct) continue;
    const auto& c = member.call.constants_as<MatmulConstants>();
    columns = c.columns;
    tiles = kEnding == Ending::gate ? tiles_of(c.outputs) : tiles + tiles_of(c.outputs);
  }
  return launch_of(call.rows, columns, tiles, kEnding, info.compute_units);
}

template <Ending kEnding, ProductParameters (*kDescribe)(const BoundCommand&)>
struct ProductEntry {
  static bool many(ProductParameters& p) {
    const uint32_t tiles = set_tiles(p, kEnding);
    return !one_by_one(p.state.rows, p.chunks, units_of(tiles, p.columns, kEnding, p.state.walkers));
  }
  static ManyDivision divide_many(ProductParameters& p) {
    const uint32_t tiles = set_tiles(p, kEnding);
    const ManyDivision division(p.state.rows, p.columns, tiles, kEnding, p.state.walkers);
    p.tiles_per_block = division.tiles;
    p.splits = division.splits;
    p.items = division.blocks * division.splits;
    return division;
  }

  template <class Shape>
  static GridShape many_shape(const ProductParameters& p) {
    return {.blocks = std::min(p.items, p.state.walkers * Shape::kPerSm),
            .threads = Shape::kThreads + kCopyWarps * kWarp,
            .shared_bytes = Shape::kSharedBytes,
            .function = reinterpret_cast<const void*>(product_many<Shape, kEnding>)};
  }

  static void bind(const BoundCommand& command, std::byte* parameters) {
    ProductParameters p = kDescribe(command);
    if (many(p)) {
      divide_many(p);
    } else {
      divide(p, kEnding);
    }
    std::memcpy(parameters, &p, sizeof(p));
  }
  static GridShape shape(const BoundCommand& command) {
    ProductParameters p = kDescribe(command);
    if (many(p)) {
      const ManyDivision division = divide_many(p);
      return division.wide ? many_shape<WideShape>(p) : many_shape<NarrowShape>(p);
    }
    const Division division = divide(p, kEnding);
    const uint32_t tiles = p.tiles[BlockWork<kEnding>::kWeights - 1];
    return {.blocks = (tiles + p.tiles_per_block - 1) / p.tiles_per_block,
            .threads = division.warps * kWarp,
            .shared_bytes = ProductShape(p, division.warps, kEnding).bytes(),
            .exclusive_per_sm = division.warps >= 12,
            .function = function_of<kEnding>(division)};
  }
  static GridShape before(const BoundCommand& command) {
    ProductParameters p = kDescribe(command);
    if (!many(p)) return {};
    const bool for_groups = divide_many(p).wide && WideShape::kWarpGroups;
    return {.blocks = (p.state.rows + kOctet - 1) / kOctet * kOctet,
            .threads = kQuantizeThreads,
            .function = for_groups ? reinterpret_cast<const void*>(quantize_rows<kEnding, true>)
                                   : reinterpret_cast<const void*>(quantize_rows<kEnding, false>)};
  }
  static KernelEntry entry() {
    return {.function = function_of<kEnding>({.loads = 1}),
            .parameter_bytes = sizeof(ProductParameters),
            .bind = bind,
            .shape = shape,
            .before = before,
            .waits_everywhere = true,
            .triggers_late = trigger_of(kEnding) == Trigger::late};
  }
};

template <const SetPattern& kPattern, Ending kEnding>
backend::GroupKernel row(std::string_view name, const KernelEntry& entry) {
  return {
      .name = name,
      .numerics = kNumerics,
      .needs = kFeatureHopper | backend::kFeatureFast,
      .fits = [](const SetCall& call, std::span<uint32_t> places) { return match(kPattern, call, places); },
      .elides = [](const SetCall& call, uint32_t member,
                   uint32_t argument) { return elides(kPattern, call, member, argument); },
      .launch = launch_of_set<kEnding>,
      .entry = &entry,
      .classes = kClasses};
}

using RmsNormParameters = Parameters<RmsNormConstants, 3>;
constexpr uint32_t kNormThreads = 256, kNormLoads = 2;

/// rms_norm as the sets take it: a block a vector.
__global__ void __launch_bounds__(kNormThreads) rms_norm_tiles(const __grid_constant__ RmsNormParameters p) {
  const Running run(p.state);
  const RmsNormConstants& c = p.constants;
  if (blockIdx.x >= size_t{run.rows} * c.vectors) return;
  __shared__ __align__(16) float squares[kMostTileChunks * kTileColumns / (4 * kWarp)];
  const float* input = p.arg<const float>(kInput) + size_t{blockIdx.x} * c.columns;
  const float* gain = p.arg<const float>(kWeight);
  float* output = p.arg<float>(kOutput) + size_t{blockIdx.x} * c.columns;
  const uint32_t chunks = tile_chunks(c.columns);
  RowPart<kNormLoads> row;
  for (uint32_t part = row.parts(c.columns); part-- > 0;) {
    row.load(input, part, c.columns);
    sum_squares(row, part, chunks * kTileColumns, squares);
  }
  __syncthreads();
  const float factor = norm_factor(squares, chunks, {c.eps, 1.0f / static_cast<float>(c.columns)});
  for (uint32_t part = 0; part < row.parts(c.columns); ++part) {
    RowPart<kNormLoads> gains;
    if (gain != nullptr) gains.template load<true>(gain, part, c.columns);
    if (part != 0) row.load(input, part, c.columns);
    for (uint32_t i = 0; i < kNormLoads; ++i) {
      const uint32_t column = row.column(part, i);
      if (column < c.columns)
        *reinterpret_cast<float4*>(output + column) =
            normalized(row.v[i], factor, gain != nullptr ? gains.v[i] : make_float4(1, 1, 1, 1));
    }
  }
}

struct Gated {
  __device__ static float of(const ElementwiseConstants&, float gate, float up) { return gated(gate, up); }
};

PluginKernel gated_kernel() {
  PluginKernel kernel = elementwise_cuda_kernel<Gated>("silu_mul", "silu_mul_f32_fast", kGatedNumerics);
  kernel.kernel.needs = kFeatureHopper | backend::kFeatureFast;
  return kernel;
}

}  // namespace

std::span<const PluginKernel> tiles_cuda_kernels() {
  static const KernelEntry kPlain = ProductEntry<Ending::store, product>::entry();
  static const KernelEntry kNormEntry = [] {
    KernelEntry entry = plain_entry(rms_norm_tiles, [](const BoundCommand& command) {
      const auto& c = command.members[0].constants_as<RmsNormConstants>();
      return GridShape{.blocks = uint64_t{c.rows} * c.vectors, .threads = kNormThreads};
    });
    entry.bind = [](const BoundCommand& command, std::byte* parameters) {
      for (const uint32_t argument : {kInput, kWeight, kOutput})
        vectors_at<void>(command.members[0].args[argument]);
      bind_parameters<RmsNormConstants, 3>(command, parameters);
    };
    return entry;
  }();
  static const PluginKernel kKernels[] = {
      gated_kernel(),
      {.op = kNorm,
       .kernel = {.name = "rms_norm_tiles",
                  .numerics = kNormNumerics,
                  .needs = kFeatureHopper | backend::kFeatureFast,
                  .accepts = norm_in_tiles,
                  .launch =
                      [](const backend::OpCall& call, const backend::DeviceInfo&) {
                        return backend::Launch{.rows = call.constants_as<RmsNormConstants>().rows};
                      },
                  .entry = &kNormEntry}},
      {.op = kProduct,
       .kernel = {.name = "matmul_tiles_q4",
                  .numerics = kNumerics,
                  .needs = kFeatureHopper | backend::kFeatureFast,
                  .accepts = [](const backend::OpCall& call) { return in_tiles(call.args[kWeight]); },
                  .launch =
                      [](const backend::OpCall& call, const backend::DeviceInfo& info) {
                        const auto& c = call.constants_as<MatmulConstants>();
                        return launch_of(c.rows, c.columns, tiles_of(c.outputs), Ending::store,
                                         info.compute_units);
                      },
                  .entry = &kPlain}},
  };
  return kKernels;
}

std::span<const backend::GroupKernel> product_sets_cuda() {
  static const KernelEntry kThree = ProductEntry<Ending::store, norm_products<3>>::entry();
  static const KernelEntry kOne = ProductEntry<Ending::store, norm_products<1>>::entry();
  static const KernelEntry kGated = ProductEntry<Ending::gate, gate>::entry();
  static const KernelEntry kAdded = ProductEntry<Ending::add, product_add>::entry();
  static const backend::GroupKernel kKernels[] = {
      row<kGate, Ending::gate>("norm_gate_up_silu_q4", kGated),
      row<kNormProducts<3>, Ending::store>("norm_qkv_q4", kThree),
      row<kNormProducts<1>, Ending::store>("norm_product_q4", kOne),
      row<kAdd, Ending::add>("product_add_q4", kAdded),
  };
  return kKernels;
}

}  // namespace refrain::ops
