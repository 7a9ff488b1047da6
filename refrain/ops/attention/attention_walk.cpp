#include "refrain/ops/attention/attention_walk.h"

#include <algorithm>

#include "refrain/core/checked.h"
#include "refrain/ops/attention_merge/attention_merge.h"
#include "refrain/ops/attention_part/attention_part.h"
#include "refrain/ops/step_row.h"

namespace refrain::ops {
namespace {

/// Where the result of some positions goes: of one row, for the query heads of one key-value head.
struct Part {
  AttentionSums* sums;
  float* weighted;
};

/// A block of rows and a key-value head. Query, rows, page table, cache and status are arguments 0 to 4.
class Tile {
 public:
  Tile(const AttentionArithmetic& arithmetic, const backend::TileArgs& args, const AttentionConstants& c,
       uint32_t block, uint32_t kv_head)
      : arithmetic_(arithmetic),
        args_(args),
        c_(c),
        kv_head_(kv_head),
        heads_(c.heads / c.kv_heads),
        first_row_(block * attention_rows_per_block(c)),
        rows_(std::min(attention_rows_per_block(c), args.live_rows - first_row_)) {
    const PageTable table = {.ids = args.arg<const uint32_t>(2),
                             .slots = c.slots,
                             .pages_per_slot = c.pages_per_slot,
                             .cache_pages = c.pages};
    for (uint32_t r = 0; r < rows_; ++r) {
      const StepRow& row = args.arg<const StepRow>(1)[first_row_ + r];
      begins_[r] = c.first_position(row.position);
      checked_[r] = check_row(row, table, begins_[r]);
      if (refused(r)) {
        raise_status(args.arg<uint32_t>(4), checked_[r].status_word, checked_[r].status_bits);
      } else {
        begin_chunk_ = std::min(begin_chunk_, first_chunk(r));
        end_chunk_ = std::max(end_chunk_, last_chunk(r) + 1);
      }
    }
  }

  uint32_t rows() const { return rows_; }
  uint32_t heads() const { return heads_; }
  /// Chunks that any row sees; none: no less than end_chunk().
  uint32_t begin_chunk() const { return begin_chunk_; }
  uint32_t end_chunk() const { return end_chunk_; }

  /// True for a row that is idle or names what is not there.
  bool refused(uint32_t r) const { return checked_[r].pages == nullptr; }
  uint32_t first_chunk(uint32_t r) const { return begins_[r] / kAttentionChunk; }
  uint32_t last_chunk(uint32_t r) const { return checked_[r].position / kAttentionChunk; }
  bool sees(uint32_t r, uint32_t chunk) const {
    return !refused(r) && first_chunk(r) <= chunk && chunk <= last_chunk(r);
  }
  size_t row(uint32_t r) const { return first_row_ + size_t{r}; }
  /// The tile's first query head, of the list-th of lists of all heads.
  size_t head(size_t list) const { return list * c_.heads + size_t{kv_head_} * heads_; }

  /// Computes a chunk for every row that sees it. `where`: the Part of a row.
  template <class Where>
  void compute(uint32_t chunk, const Where& where) const {
    for (uint32_t r = 0; r < rows_; ++r) {
      if (!sees(r, chunk)) continue;
      const Part part = where(r);
      std::fill_n(part.sums, heads_, AttentionSums());
      std::fill_n(part.weighted, size_t{heads_} * c_.head_dim, 0.0f);
    }
    const CacheGeometry geometry = {c_.pages, c_.kv_heads, c_.head_dim};
    const auto* cache = args_.arg<const std::byte>(3);
    const size_t element = size_bytes(c_.cache_type);
    for (uint32_t page = chunk * kAttentionChunkPages; page < (chunk + 1) * kAttentionChunkPages; ++page) {
      const uint32_t first_position = page * kPagePositions;
      for (uint32_t r = 0; r < rows_; ++r) {
        const CheckedRow& row = checked_[r];
        if (refused(r) || row.position < first_position || begins_[r] / kPagePositions > page) continue;
        const Part part = where(r);
        arithmetic_.add_block({.query = args_.arg<const float>(0) + head(this->row(r)) * c_.head_dim,
                               .keys = cache + element * geometry.unit_offset(0, row.pages[page], kv_head_),
                               .values = cache + element * geometry.unit_offset(1, row.pages[page], kv_head_),
                               .sums = part.sums,
                               .weighted = part.weighted,
                               .heads = heads_,
                               .head_dim = c_.head_dim,
                               .begin = std::max(begins_[r], first_position) - first_position,
                               .end = std::min(kPagePositions, row.position - first_position + 1),
                               .scale = c_.scale,
                               .softcap = c_.softcap,
                               .cache_type = c_.cache_type});
      }
    }
  }

 private:
  const AttentionArithmetic& arithmetic_;
  const backend::TileArgs& args_;
  const AttentionConstants& c_;
  const uint32_t kv_head_, heads_, first_row_, rows_;
  CheckedRow checked_[kAttentionMaxBlockRows];
  uint32_t begins_[kAttentionMaxBlockRows];  // the first position of each row
  uint32_t begin_chunk_ = UINT32_MAX, end_chunk_ = 0;
};

}  // namespace

void attention_tiles(const AttentionArithmetic& arithmetic, const backend::TileArgs& args, uint32_t begin,
                     uint32_t end) {
  const auto& c = args.constants_as<AttentionConstants>();
  const uint32_t heads = c.heads / c.kv_heads, block_rows = attention_rows_per_block(c);
  auto* totals = reinterpret_cast<AttentionSums*>(args.scratch);  // [block_rows, heads]
  AttentionSums* sums = totals + block_rows * heads;              // of a chunk, likewise
  auto* weighted = reinterpret_cast<float*>(sums + block_rows * heads);
  for (uint32_t index = begin; index < end; ++index) {
    const Tile tile(arithmetic, args, c, index / c.kv_heads, index % c.kv_heads);
    const auto output = [&](uint32_t r) { return args.arg<float>(5) + tile.head(tile.row(r)) * c.head_dim; };
    for (uint32_t chunk = tile.begin_chunk(); chunk < tile.end_chunk(); ++chunk) {
      // A row's first chunk is what the others are joined to.
      tile.compute(chunk, [&](uint32_t r) {
        const size_t at = size_t{r} * heads;
        return chunk == tile.first_chunk(r) ? Part{totals + at, output(r)}
                                            : Part{sums + at, weighted + at * c.head_dim};
      });
      for (uint32_t r = 0; r < tile.rows(); ++r) {
        if (!tile.sees(r, chunk) || chunk == tile.first_chunk(r)) continue;
        for (uint32_t h = 0; h < heads; ++h) {
          const size_t at = size_t{r} * heads + h;
          arithmetic.join(c.head_dim, totals[at], output(r) + size_t{h} * c.head_dim, sums[at],
                          weighted + at * c.head_dim);
        }
      }
    }
    for (uint32_t r = 0; r < tile.rows(); ++r) {
      if (tile.refused(r)) {
        std::fill_n(output(r), size_t{heads} * c.head_dim, 0.0f);
        continue;
      }
      for (uint32_t h = 0; h < heads; ++h)
        arithmetic.divide(c.head_dim, output(r) + size_t{h} * c.head_dim, totals[size_t{r} * heads + h].sum);
    }
  }
}

backend::Launch attention_launch(const backend::OpCall& call, const backend::DeviceInfo&) {
  const auto& c = call.constants_as<AttentionConstants>();
  const uint32_t block_rows = attention_rows_per_block(c);
  const size_t heads = size_t{block_rows} * (c.heads / c.kv_heads);
  return {
      .rows = c.rows,
      .rows_per_block = block_rows,
      .tiles_per_block = c.kv_heads,
      .scratch_bytes = align_up(heads * (2 * sizeof(AttentionSums) + c.head_dim * sizeof(float)), 64),
  };
}

void attention_part_tiles(const AttentionArithmetic& arithmetic, const backend::TileArgs& args,
                          uint32_t begin, uint32_t end) {
  const auto& constants = args.constants_as<AttentionPartConstants>();
  const AttentionConstants& c = constants.attention;
  const uint32_t parts = constants.parts, chunks = c.chunks();
  for (uint32_t index = begin; index < end; ++index) {
    const uint32_t part = index / c.kv_heads % parts;
    const Tile tile(arithmetic, args, c, index / c.kv_heads / parts, index % c.kv_heads);
    const auto part_of = [&](uint32_t r, uint32_t chunk) {
      const size_t head = tile.head(tile.row(r) * chunks + chunk);
      return Part{args.arg<AttentionSums>(5) + head, args.arg<float>(6) + head * c.head_dim};
    };
    for (uint32_t r = 0; r < tile.rows() && part == 0; ++r) {
      if (tile.refused(r)) std::fill_n(part_of(r, 0).sums, tile.heads(), AttentionSums());
    }
    for (uint32_t chunk = tile.begin_chunk(); chunk < tile.end_chunk(); ++chunk) {
      if (chunk % parts == part)
        tile.compute(chunk, [&](uint32_t r) { return part_of(r, chunk - tile.first_chunk(r)); });
    }
  }
}

namespace {

/// Query heads [begin, end) of a row.
void merge_heads(const AttentionArithmetic& arithmetic, const backend::TileArgs& args, size_t row,
                 uint32_t begin, uint32_t end) {
  const auto& c = args.constants_as<AttentionMergeConstants>();
  const uint32_t chunks = c.chunks_of(args.arg<const StepRow>(2)[row].position);
  for (uint32_t h = begin; h < end; ++h) {
    float* output = args.arg<float>(3) + (row * c.heads + h) * c.head_dim;
    AttentionSums total;
    for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
      const size_t head = (row * c.chunks + chunk) * c.heads + h;
      const AttentionSums& part = args.arg<const AttentionSums>(0)[head];
      const float* weighted = args.arg<const float>(1) + head * c.head_dim;
      if (chunk == 0) {
        total = part;
        if (total.sum == 0) break;
        std::copy_n(weighted, c.head_dim, output);
      } else {
        arithmetic.join(c.head_dim, total, output, part, weighted);
      }
    }
    if (total.sum == 0) {
      std::fill_n(output, c.head_dim, 0.0f);
    } else {
      arithmetic.divide(c.head_dim, output, total.sum);
    }
  }
}

}  // namespace

void attention_merge_tiles(const AttentionArithmetic& arithmetic, const backend::TileArgs& args,
                           uint32_t begin, uint32_t end) {
  const uint32_t heads = args.constants_as<AttentionMergeConstants>().heads;
  for (uint32_t tile = begin; tile < end; ++tile)
    merge_heads(arithmetic, args, tile / heads, tile % heads, tile % heads + 1);
}

void attention_merge_rows(const AttentionArithmetic& arithmetic, const backend::TileArgs& args,
                          uint32_t row_begin, uint32_t row_end) {
  const uint32_t heads = args.constants_as<AttentionMergeConstants>().heads;
  for (size_t row = row_begin; row < row_end; ++row) merge_heads(arithmetic, args, row, 0, heads);
}

}  // namespace refrain::ops
