// What an op is: its arguments, what it does to each, and what may be known of a call before it runs.
// Types only; the ops themselves are values in ops/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <span>
#include <string_view>

#include "refrain/core/dtype.h"
#include "refrain/core/shape.h"
#include "refrain/core/tensor_source.h"

namespace refrain::backend {

/// What a kernel does to an argument. Stated once, in the schema; all ordering is derived from it.
enum class Access : uint8_t {
  in = 1,          ///< read only
  out = 2,         ///< nothing of the view is read, every live row of it is written
  inout = 3,       ///< anything else, a scattered write for example
  accumulate = 4,  ///< u32 words, only OR-ed into atomically: in any order among themselves
};

/// What an access means for the order of two commands that share bytes.
enum class Effect : uint8_t { read, accumulate, write };

inline Effect effect_of(Access access) {
  return access == Access::in           ? Effect::read
         : access == Access::accumulate ? Effect::accumulate
                                        : Effect::write;
}

/// Reads commute with reads and accumulations with accumulations; all else keeps the recorded order.
inline bool conflict(Effect a, Effect b) { return a != b || a == Effect::write; }
inline bool conflict(Access a, Access b) { return conflict(effect_of(a), effect_of(b)); }

/// Arguments that an op may have: as many as ArgumentSpec::in_place has bits.
inline constexpr size_t kMaxArguments = 32;

struct ArgumentSpec {
  std::string_view name;
  Access access = Access::in;
  /// The first dimension counts rows, as many as that of the other row arguments, and may carry a live count.
  bool rows = false;
  bool optional = false;  ///< may be left unbound
  uint32_t in_place = 0;  ///< out: bit i: may be exactly the bytes of argument i; no other overlap is allowed
  /// Each row divides into the op's units, all of one size: the part of a unit is contiguous, the parts lie in
  /// the order of the units and fill the row, and only its unit touches a part. Fusing relies on it: what one
  /// op writes by units, another reads by multiples or divisors of them.
  bool units = false;
  /// Of elements: a tensor has one of these, checked where it is recorded and, once the plan has given activations
  /// theirs, where it is planned. Empty: a weight, or what OpSchema::check and the kernels judge alone.
  DTypes dtypes = {};
};

/// How an op walks its rows: with OpSchema::units, all that fusing asks of an op.
enum class Iteration : uint8_t {
  other,          ///< never fused
  elementwise,    ///< each element from those at its place
  row_reduction,  ///< each vector of a row from all of that vector
  contraction,    ///< each output from a whole row of the input and its own part of a weight
  per_head,       ///< each head of a row from that head
  gather,         ///< rows fetched by index
  scatter,        ///< parts of a row written to places read from memory
};

/// What a weight will be used for; a layout must serve all of its uses.
enum class Use : uint8_t {
  matvec = 1,  ///< product with a few rows
  matmul = 2,  ///< product with many rows
  gather = 4,  ///< rows fetched by index
  vector = 8,  ///< a short vector that a kernel reads whole, such as the weight of a norm
};

class Uses {
 public:
  Uses(std::initializer_list<Use> uses) {
    for (const Use use : uses) bits_ |= static_cast<uint8_t>(use);
  }
  /// True when every use of this set is in `other`.
  bool within(Uses other) const { return (bits_ & ~other.bits_) == 0; }

 private:
  uint8_t bits_ = 0;
};

/// What a weight is, apart from where its bytes are.
struct WeightInfo {
  const WeightFormat* format = nullptr;
  Shape shape;  ///< logical, [rows, columns] for matrices

  DType dtype() const { return format->dtype; }
};

/// Rows [begin, end) of a weight, of row_count().
struct RowRange {
  size_t begin = 0;
  size_t end = 0;
};

/// The product of all dimensions but the last; of a vector, its elements.
inline size_t row_count(const Shape& shape) {
  const auto elements = static_cast<size_t>(shape.elements());
  if (shape.rank() < 2 || elements == 0) return elements;
  return elements / static_cast<size_t>(shape[shape.rank() - 1]);
}

/// Bytes [offset_bytes, +bytes) of a packed form, to be filled before the next are asked for.
using PackedBytes = std::function<std::span<std::byte>(size_t offset_bytes, size_t bytes)>;

/// Among the features that kernels and layouts need: granted where the arithmetic of the mode `fast` is asked for.
inline constexpr uint64_t kFeatureFast = uint64_t{1} << 62;

/// How the bytes of a weight are arranged for the kernels that read it. A value in ops/.
struct WeightLayout {
  std::string_view name;
  /// True when a weight of this kind can be laid out so and the layout serves `uses`.
  bool (*accepts)(const WeightInfo& weight, Uses uses) = nullptr;
  /// Bytes of the packed form.
  size_t (*packed_bytes)(const WeightInfo& weight) = nullptr;
  /// Writes the rows `rows` of `source` to where they lie in the packed form. Ranges that together are all rows
  /// once fill each byte of it once, padding included; any threads may write different ranges.
  void (*pack)(const TensorSource& source, const WeightInfo& weight, RowRange rows,
               const PackedBytes& packed) = nullptr;
  /// Writes the logical values of `rows`, row-major, to `values`: what the format's decode() gives. `packed`: all of the
  /// packed form.
  void (*unpack)(const WeightInfo& weight, const std::byte* packed, RowRange rows, float* values) = nullptr;
  /// True when the packed form is the source's only segment unchanged, so that it can be used in place.
  bool as_stored = false;
  uint32_t pack_rows = 1;  ///< ranges to pack begin at multiples of this
  uint64_t needs = 0;      ///< features required, as of a Kernel
};

/// What is known of a bound argument before there is an address.
struct ArgumentInfo {
  bool bound = false;
  DType dtype = DType::f32;              ///< of elements; a weight: as in WeightInfo
  Shape shape;                           ///< a weight: its logical shape
  const WeightInfo* weight = nullptr;    ///< null: a row-major tensor, not a weight
  const WeightLayout* layout = nullptr;  ///< of a weight
};

struct OpSchema;

/// One call of an op, for checks, kernel choice and cost. `args` are in the order of the schema.
struct OpCall {
  const OpSchema* op = nullptr;
  std::span<const ArgumentInfo> args;
  std::span<const std::byte> constants;

  /// The constants as the op's own struct.
  template <class T>
  const T& constants_as() const {
    return *reinterpret_cast<const T*>(constants.data());
  }
};

/// Work of a call with all rows live.
struct Cost {
  uint64_t bytes = 0;  ///< read and written, each once
  uint64_t flops = 0;
};

/// Throws InvalidArgument, `[op] argument: expected f32, got u32`, for the first argument whose dtype its schema does not
/// list. DType::activation stands for any dtype that a plan may make of it.
void check_dtypes(const OpCall& call);
/// What it checks of one argument; DType::activation may become any of the dtypes of activations.
inline bool takes_dtype(const ArgumentSpec& spec, const ArgumentInfo& argument) {
  constexpr DTypes kActivations{DType::f32, DType::f16, DType::bf16};
  if (spec.dtypes.empty() || !argument.bound) return true;
  if (argument.weight != nullptr) return false;
  return argument.dtype == DType::activation ? spec.dtypes.has_any(kActivations)
                                             : spec.dtypes.has(argument.dtype);
}

struct TileArgs;

/// An op. A value in ops/, one a folder.
struct OpSchema {
  std::string_view name;
  std::span<const ArgumentSpec> args;
  size_t constants_bytes = 0;  ///< size of the op's constants struct
  void (*check)(const OpCall& call) =
      nullptr;  ///< throws InvalidArgument; what it asks of constants is what is not implied
  /// Writes what of the constants the arguments imply, once they are checked; who records gives the rest. Null: gives all.
  void (*complete)(const OpCall& call, std::byte* constants) = nullptr;
  /// Null: taken as one flop for each element of a row argument and, a row, two for each of another.
  Cost (*cost)(const OpCall& call) = nullptr;
  /// All live rows, computed in double and rounded once on output. The oracle of the op's tests.
  void (*reference)(const TileArgs& args) = nullptr;
  Iteration iteration = Iteration::other;
  /// Into how many equal units, each of which can be computed apart, one row of the work divides. From the
  /// constants alone. Null: into none.
  uint32_t (*units)(const OpCall& call) = nullptr;
  /// Touches memory that no argument names, though no weight. Each dispatch is then a fence before and behind it, and its
  /// submission runs beside none of another queue.
  bool unknown_access = false;
};

}  // namespace refrain::backend
