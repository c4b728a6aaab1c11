#include "regard/ops/block_tiles.h"

#include "regard/ops/call.h"

namespace regard::ops {
namespace {

at::TensorOptions integers(const at::Tensor& like) { return like.options().dtype(at::kLong); }

/// Blocks of one tensor (B, Hx, L, D) for (T, X) block numbers of tiles: (T, 1, X * size, D). Query head h reads head
/// h // (H / Hx). Block -1 holds zeros, and so does the last block behind L.
at::Tensor gather_blocks(const at::Tensor& t, const Blocked& call, const Tiles& tiles, const at::Tensor& numbers,
                         const c10::SymInt& count, int64_t size) {
  const c10::SymInt heads = t.sym_size(1), group = call.H / heads;
  const c10::SymInt missing = (count + 1) * size - t.sym_size(2);
  const at::Tensor blocks = at::constant_pad_nd_symint(t, {0, 0, 0, missing})
                                .reshape_symint({call.B * heads * (count + 1), size * t.sym_size(3)});
  const at::Tensor head = at::div(tiles.head, at::Scalar(group), "floor");
  const at::Tensor first = (tiles.batch * at::Scalar(heads) + head) * at::Scalar(count + 1);
  const at::Tensor place =
      first.unsqueeze(1) + at::where(numbers.lt(0), at::scalar_tensor(at::Scalar(count), integers(numbers)), numbers);
  return blocks.index_select(0, place.flatten())
      .reshape_symint({numbers.sym_size(0), 1, numbers.sym_size(1) * size, t.sym_size(3)});
}

/// (T, X) block numbers to the tokens in them, (T, X * size), and which of these exist.
struct Tokens {
  at::Tensor index, exists;
};
Tokens tokens_of(const at::Tensor& numbers, const c10::SymInt& length, int64_t size) {
  const at::Tensor inside = at::arange(size, numbers.options());
  const at::Tensor index = (numbers.unsqueeze(2) * size + inside).flatten(1);
  const at::Tensor exists = at::logical_and(index.ge(0), index.lt(at::Scalar(length)));
  return {index.masked_fill(exists.logical_not(), 0), exists};
}

/// The spec of a tile: indices of the whole call in place of the tile's own, and only pairs of the index.
class TileSpec {
 public:
  TileSpec(const Blocked& call, const Tiles& tiles, const AttentionSpec& spec, const c10::SymInt& query_offset)
      : call_(call) {
    const auto options = integers(tiles.batch);
    const Tokens rows = tokens_of(tiles.rows, call.M, call.query_block);
    const Tokens columns = tokens_of(tiles.columns, call.N, call.key_block);
    const Expr row = integer("blocks_row", rows.index, {batch(), regard::row()});
    const Expr column = integer("blocks_column", columns.index, {batch(), regard::column()});
    Expr query = row;
    if (!(query_offset == 0))
      query = integer("blocks_query", rows.index + at::Scalar(query_offset), {batch(), regard::row()});
    const auto count = [&](const char* name, const c10::SymInt& n) {
      return integer(name, at::full({1}, at::Scalar(n), options), {Expr(0)});
    };
    replaced_ = {{batch(), integer("blocks_batch", tiles.batch, {batch()})},
                 {head(), integer("blocks_head", tiles.head, {batch()})},
                 {regard::row(), row},
                 {regard::column(), column},
                 {regard::query(), query},
                 {key(), column},
                 {batches(), count("blocks_batches", call.B)},
                 {heads(), count("blocks_heads", call.H)},
                 {queries(), count("blocks_queries", call.M)},
                 {keys(), count("blocks_keys", call.N)}};

    const Expr exists = boolean("blocks_row_exists", rows.exists, {batch(), regard::row()}) &
                        boolean("blocks_column_exists", columns.exists, {batch(), regard::column()});
    const AttentionSpec whole = spec.resolved();
    result = whole;
    result.positions = {};
    result.normalizer.sinks = false;
    result.score = local(whole.score);
    result.weight = local(whole.weight);
    Expr keep = local(whole.keep);
    if (tiles.full.defined())
      keep = keep | boolean("blocks_full", tiles.full,
                            {batch(), floor_div(regard::row(), Expr(call.query_block)),
                             floor_div(regard::column(), Expr(call.key_block))});
    result.keep = exists & keep;
    result.counted = spec.counted.defined() ? exists & local(whole.counted) : Expr();
    for (auto& pair : result.pair_outputs) {
      pair.value = local(pair.value);
      if (pair.bucket.defined()) pair.bucket = local(pair.bucket);
    }
  }

  AttentionSpec result;
  std::map<std::string, at::Tensor> captures;

 private:
  Expr integer(const char* name, const at::Tensor& tensor, std::vector<Expr> indices) {
    captures[name] = tensor;
    return capture(name, Type::integer, std::move(indices));
  }
  Expr boolean(const char* name, const at::Tensor& tensor, std::vector<Expr> indices) {
    captures[name] = tensor;
    return capture(name, Type::boolean, std::move(indices));
  }
  Expr local(const Expr& expr) const { return substitute(expr, replaced_); }

  const Blocked& call_;
  std::vector<std::pair<Expr, Expr>> replaced_;
};

Tiles tiles_by_query(const Blocked& call) {
  const auto options = integers(call.blocks);
  const c10::SymInt count = call.B * call.H * call.Q;
  const at::Tensor pair = at::div(at::arange(at::Scalar(count), options), at::Scalar(call.Q), "floor");
  Tiles tiles;
  tiles.batch = at::div(pair, at::Scalar(call.H), "floor");
  tiles.head = at::remainder(pair, at::Scalar(call.H));
  tiles.rows = call.queries.reshape_symint({count, 1});
  tiles.columns = call.blocks.reshape_symint({count, call.K});
  if (call.full.defined()) tiles.full = call.full.reshape_symint({count, 1, call.K});
  return tiles;
}

/// Entries sorted by (batch, head, key block), each group cut into tiles of R rows: a tile lists the query blocks that
/// chose its key block. The number of tiles is read off the index where its entries can be read, else it is bounded by
/// their number and the number of groups.
Tiles tiles_by_key(const Blocked& call) {
  const auto options = integers(call.blocks);
  // As many queries as keys in a tile: gathered keys and gathered queries then take the same memory.
  const int64_t R = (call.key_block + call.query_block - 1) / call.query_block;
  const c10::SymInt groups = call.B * call.H * call.key_blocks, row = call.Q * call.K, entries = call.B * call.H * row;
  const at::Tensor entry = at::arange(at::Scalar(entries), options);
  const at::Tensor block = call.blocks.reshape_symint({entries});
  const at::Tensor query = call.queries.unsqueeze(3).expand_as(call.blocks).reshape_symint({entries});
  const at::Tensor none = at::logical_or(block.lt(0), query.lt(0));
  const at::Tensor group = at::where(none, at::scalar_tensor(at::Scalar(groups), options),
                                     at::div(entry, at::Scalar(row), "floor") * at::Scalar(call.key_blocks) + block);
  const auto [sorted, order] = at::sort(group, /*stable=*/true, 0, /*descending=*/false);

  const at::Tensor begins = at::searchsorted(sorted, at::arange(at::Scalar(groups + 1), options));
  const at::Tensor counts = begins.slice(0, 1) - begins.slice_symint(0, 0, groups);
  const at::Tensor needed = at::div(counts + (R - 1), R, "floor"), ends = at::cumsum(needed, 0);
  c10::SymInt count = call.B * call.H * (row / R + call.key_blocks);
  if (concrete(call.blocks)) count = needed.sum().item<int64_t>();

  // A row of the tile for each entry in order; entries that are not kept come last and share the place T * R.
  const at::Tensor last = sorted.eq(at::Scalar(groups));
  const at::Tensor own = sorted.masked_fill(last, 0);
  const at::Tensor rank = entry - begins.index_select(0, sorted);
  const at::Tensor padded_ends = at::constant_pad_nd(ends, {1, 0});  // tiles before each group
  const at::Tensor place =
      at::where(last, at::scalar_tensor(at::Scalar(count * R), options), padded_ends.index_select(0, own) * R + rank);
  Tiles tiles;
  tiles.places = at::zeros_like(entry).scatter(0, order, place).reshape_symint(call.blocks.sym_sizes());
  const at::Tensor held = at::full_symint({count * R + 1}, -1, options)
                              .scatter(0, place, order.masked_fill(last, -1))
                              .slice_symint(0, 0, count * R);
  const at::Tensor empty = held.lt(0), shown = held.masked_fill(empty, 0);
  tiles.rows = query.index_select(0, shown).masked_fill(empty, -1).reshape_symint({count, R});
  if (call.full.defined())
    tiles.full = call.full.reshape_symint({entries}).index_select(0, shown).reshape_symint({count, R, 1});
  const at::Tensor tile_group = at::searchsorted(ends, at::arange(at::Scalar(count), options), /*out_int32=*/false,
                                                 /*right=*/true)
                                    .clamp_max(at::Scalar(groups - 1));
  const at::Tensor pair = at::div(tile_group, at::Scalar(call.key_blocks), "floor");
  tiles.columns = at::remainder(tile_group, at::Scalar(call.key_blocks)).unsqueeze(1);
  tiles.batch = at::div(pair, at::Scalar(call.H), "floor");
  tiles.head = at::remainder(pair, at::Scalar(call.H));
  return tiles;
}

}  // namespace

Tiles make_tiles(const Blocked& call) { return call.by_query() ? tiles_by_query(call) : tiles_by_key(call); }

AttentionOutput attend_tiles(const Blocked& call, const Tiles& tiles, const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, const AttentionSpec& spec, const AttentionArguments& arguments) {
  TileSpec local(call, tiles, spec, arguments.query_offset);
  const auto names = spec.captures(), operands = spec.operands();
  AttentionArguments own;
  own.path = arguments.path;
  own.named_captures = std::move(local.captures);
  for (size_t i = 0; i < names.size(); ++i) own.named_captures[names[i]] = arguments.captures[i];
  const auto of_queries = [&](const at::Tensor& t) {
    return gather_blocks(t, call, tiles, tiles.rows, call.query_blocks, call.query_block);
  };
  const auto of_keys = [&](const at::Tensor& t) {
    return gather_blocks(t, call, tiles, tiles.columns, call.key_blocks, call.key_block);
  };
  for (size_t i = 0; i < operands.size(); ++i)
    own.named_operands[operands[i]] = {of_queries(arguments.operands[2 * i]), of_keys(arguments.operands[2 * i + 1])};
  return attention(of_queries(q), of_keys(k), of_keys(v), local.result, own);
}

}  // namespace regard::ops
