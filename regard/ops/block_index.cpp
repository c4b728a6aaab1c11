#include "regard/ops/block_index.h"

#include <limits>
#include <sstream>

#include "regard/base/error.h"
#include "regard/ops/block_map.h"
#include "regard/ops/block_tiles.h"
#include "regard/ops/call.h"
#include "regard/ops/paths.h"

namespace regard {
namespace {

constexpr const char* function = "attention_blocks";
constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::string shown(const at::Tensor& t) {
  if (!t.defined()) return "none";
  std::ostringstream text;
  text << toString(t.scalar_type()) << " of shape " << t.sym_sizes();
  return text.str();
}

c10::SymInt blocks_in(const c10::SymInt& length, int64_t size) { return (length + (size - 1)) / size; }

void check_spec(const AttentionSpec& spec) {
  require(spec.normalizer.kind == Normalizer::Kind::softmax, function, "the normalizer softmax (its parts merge)",
          name_of(spec.normalizer.kind));
  require(spec.dropout == 0, function, "a spec without dropout", std::to_string(spec.dropout));
  for (const auto& name : spec.captures())
    require(name.rfind("blocks_", 0) != 0, function, "captures whose names do not start with 'blocks_'", name);
  std::vector<Expr> roots = {spec.score, spec.weight};
  for (const auto& pair : spec.pair_outputs) roots.push_back(pair.value);
  for (const auto& entry : flatten(roots).entries)
    require(entry.expr.op() != Op::dot || entry.expr.node().only_head < 0, function,
            "dots of each query head's own operands", "a dot of head " + std::to_string(entry.expr.node().only_head));
}

void check_shapes(const BlockIndex& index, const c10::SymInt& B, const c10::SymInt& H, const c10::SymInt& rows) {
  require(index.query_block > 0 && index.key_block > 0, function, "query_block > 0 and key_block > 0",
          std::to_string(index.query_block) + " and " + std::to_string(index.key_block));
  const at::Tensor& blocks = index.blocks;
  const auto leads = [&](const at::Tensor& t) {
    return (t.sym_size(0) == 1 || t.sym_size(0) == B) && t.sym_size(1) > 0 && H % t.sym_size(1) == 0;
  };
  if (!blocks.defined() || blocks.scalar_type() != at::kLong || blocks.dim() != 4 || !leads(blocks))
    fail(function, "blocks (B or 1, index heads that divide the query heads, Q, K) int64", shown(blocks));
  if (index.full.defined() && (index.full.scalar_type() != at::kBool || index.full.sym_sizes() != blocks.sym_sizes()))
    fail(function, "full, bool, of the shape of blocks", shown(index.full));
  const at::Tensor& queries = index.queries;
  if (!queries.defined()) {
    require(!index.otherwise.defined(), function, "queries beside otherwise (without, every query is selected)",
            "otherwise alone");
    std::ostringstream expected;
    expected << "blocks with " << rows << " rows, one a query block (or queries)";
    if (blocks.sym_size(2) != rows) fail(function, expected.str(), shown(blocks));
  } else if (queries.scalar_type() != at::kLong || queries.dim() != 3 ||
             queries.sym_sizes() != blocks.sym_sizes().slice(0, 3)) {
    fail(function, "queries int64 of the shape of blocks without its last dimension", shown(queries));
  }
}

/// Entries in [-1, count), none twice along the last dimension.
void check_entries(const char* name, const at::Tensor& t, const c10::SymInt& count) {
  const auto most = count.maybe_as_int();
  if (!most || !ops::concrete(t) || t.numel() == 0) return;
  const int64_t least = t.min().item<int64_t>(), greatest = t.max().item<int64_t>();
  if (least < -1 || greatest >= *most)
    fail(function, std::string(name) + " in [0, " + std::to_string(*most) + "), or -1 for none",
         std::to_string(least < -1 ? least : greatest));
  const at::Tensor sorted = std::get<0>(t.sort(-1));
  const at::Tensor before = sorted.slice(-1, 0, -1), after = sorted.slice(-1, 1);
  const at::Tensor twice = at::logical_and(before.eq(after), after.ge(0));
  if (twice.any().item<bool>())
    fail(function, std::string(name) + ", each at most once a row",
         std::to_string(after.masked_select(twice)[0].item<int64_t>()) + " twice");
}

ops::Blocked blocked(const at::Tensor& q, const at::Tensor& k, const BlockIndex& index) {
  ops::Blocked call;
  call.B = q.sym_size(0), call.H = q.sym_size(1), call.M = q.sym_size(2), call.N = k.sym_size(2);
  require(index.query_block > 0 && index.key_block > 0, function, "query_block > 0 and key_block > 0",
          std::to_string(index.query_block) + " and " + std::to_string(index.key_block));
  call.query_block = index.query_block, call.key_block = index.key_block;
  call.query_blocks = blocks_in(call.M, call.query_block), call.key_blocks = blocks_in(call.N, call.key_block);
  check_shapes(index, call.B, call.H, call.query_blocks);
  call.Q = index.blocks.sym_size(2), call.K = index.blocks.sym_size(3);
  if (!index.trusted) {
    check_entries("blocks", index.blocks, call.key_blocks);
    if (index.queries.defined()) check_entries("queries", index.queries, call.query_blocks);
  }
  const auto whole = [&](const at::Tensor& t) {
    std::vector<c10::SymInt> shape = t.sym_sizes().vec();
    const c10::SymInt heads = shape[1];
    shape[0] = call.B;
    at::Tensor all = t.expand_symint(shape);
    if (heads == call.H) return all;
    all = all.unsqueeze(2);
    shape.insert(shape.begin() + 2, call.H / heads);
    return all.expand_symint(shape).flatten(1, 2);
  };
  call.blocks = whole(index.blocks);
  if (index.full.defined()) call.full = whole(index.full);
  if (call.K == 0) {  // nothing is kept anywhere: one slot that holds nothing, so that there is something to merge
    call.K = 1;
    call.blocks = at::full_symint({call.B, call.H, call.Q, 1}, -1, index.blocks.options());
    if (call.full.defined()) call.full = at::zeros_symint({call.B, call.H, call.Q, 1}, index.full.options());
  }
  call.queries = index.queries.defined()
                     ? whole(index.queries)
                     : at::arange(at::Scalar(call.Q), index.blocks.options()).expand_symint({call.B, call.H, call.Q});
  return call;
}

/// Of each query block's K parts, o (..., K, m, D) and lse (..., K, m): the states merged over K.
AttentionOutput merged(const AttentionOutput& parts, bool detach) {
  const at::Tensor lse = detach ? parts.lse.detach() : parts.lse;
  at::Tensor top = lse.detach().amax(-2, /*keepdim=*/true);
  top = top.masked_fill(top.eq(-kInfinity), 0);
  const at::Tensor weights = at::exp(lse - top), sum = weights.sum(-2, /*keepdim=*/true);
  const at::Tensor empty = sum.eq(0), safe = sum.masked_fill(empty, 1);
  const at::Tensor shares = (weights / safe).unsqueeze(-1);
  const auto mean = [&](const at::Tensor& t) { return (t.to(lse.scalar_type()) * shares).sum(-3).to(t.scalar_type()); };
  return {mean(parts.o), (top + at::log(safe)).masked_fill(empty, -kInfinity).squeeze(-2), mean(parts.pairs)};
}

/// Rows of tiles to the query blocks of the index: o (B,H,Q,query_block,Dv) and so on.
AttentionOutput by_query_block(const ops::Blocked& call, const ops::Tiles& tiles, const AttentionOutput& out,
                               bool detach) {
  const int64_t m = call.query_block;
  if (!tiles.places.defined()) {
    const auto rows = [&](const at::Tensor& t) {
      return t.reshape_symint({call.B, call.H, call.Q, m, t.sym_size(-1)});
    };
    return {rows(out.o), out.lse.reshape_symint({call.B, call.H, call.Q, m}), rows(out.pairs)};
  }
  // Parts that were not kept are an empty state behind the last tile.
  const at::Tensor places = tiles.places.flatten();
  const auto parts = [&](const at::Tensor& t, double none) {  // (T, 1, R * m, D)
    const c10::SymInt width = t.sym_size(3);
    const at::Tensor rows = t.reshape_symint({t.sym_size(0) * t.sym_size(2) / m, m * width});
    return at::constant_pad_nd(rows, {0, 0, 0, 1}, none)
        .index_select(0, places)
        .reshape_symint({call.B, call.H, call.Q, call.K, m, width});
  };
  return merged({parts(out.o, 0), parts(out.lse.unsqueeze(3), -kInfinity).squeeze(-1), parts(out.pairs, 0)}, detach);
}

/// Query blocks of the index (B,H,Q,m,D) to queries (B,H,M,D); `rest` (B,H,M,D) of queries that are not selected.
at::Tensor to_queries(const ops::Blocked& call, bool selected, const at::Tensor& t, const at::Tensor& rest) {
  const c10::SymInt width = t.sym_size(4);
  const int64_t m = call.query_block;
  if (!selected) return t.reshape_symint({call.B, call.H, call.Q * m, width}).slice_symint(2, 0, call.M);
  // One more block a head takes the rows that the index does not use.
  const c10::SymInt count = call.query_blocks + 1;
  const at::Tensor base = at::constant_pad_nd_symint(rest, {0, 0, 0, count * m - call.M})
                              .reshape_symint({call.B * call.H * count, m * width});
  const at::Tensor block =
      at::where(call.queries.lt(0), at::scalar_tensor(at::Scalar(count - 1), call.queries.options()), call.queries);
  const at::Tensor first = at::arange(at::Scalar(call.B * call.H), block.options()).unsqueeze(1) * at::Scalar(count);
  const at::Tensor place = (first + block.reshape_symint({call.B * call.H, call.Q})).flatten();
  return base.index_copy(0, place, t.reshape_symint({call.B * call.H * call.Q, m * width}))
      .reshape_symint({call.B, call.H, count * m, width})
      .slice_symint(2, 0, call.M);
}

/// Sinks take weight and bring no value: one more state with o = 0, for the queries that attend at all.
AttentionOutput with_sinks(const AttentionOutput& out, const at::Tensor& sinks, bool detach) {
  const at::Tensor all = (sinks.dim() == 1 ? sinks.unsqueeze(1) : sinks).to(out.lse.scalar_type());
  const at::Tensor own = at::logsumexp(all, {1}).view_symint({1, -1, 1});
  const at::Tensor lse = at::logaddexp(out.lse, own);
  at::Tensor share =
      at::exp(out.lse.masked_fill(out.lse.eq(-kInfinity), 0) - lse).masked_fill(out.lse.eq(-kInfinity), 0);
  if (detach) share = share.detach();
  const auto scaled = [&](const at::Tensor& t) {
    return (t.to(lse.scalar_type()) * share.unsqueeze(-1)).to(t.scalar_type());
  };
  return {scaled(out.o), lse, scaled(out.pairs)};
}

ops::Call check_tensors(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSpec& spec,
                        const AttentionArguments& arguments) {
  const bool seeded = arguments.seed.defined();
  require(!seeded, function, "no seed, since nothing is dropped", "seed");
  return ops::make_call(function, q, k, v, to_json(spec), arguments.captures, arguments.operands,
                        arguments.sinks.defined() ? std::optional<at::Tensor>(arguments.sinks) : std::nullopt,
                        std::nullopt, arguments.query_offset);
}

}  // namespace

at::Tensor BlockIndex::from_mask(const at::Tensor& kept) {
  require(kept.defined() && kept.scalar_type() == at::kBool && kept.dim() >= 2, "block_index",
          "kept (.., query blocks, key blocks) bool", shown(kept));
  const at::Tensor order = std::get<1>(kept.to(at::kByte).sort(/*stable=*/true, -1, /*descending=*/true));
  const at::Tensor chosen = order.masked_fill(kept.gather(-1, order).logical_not(), -1);
  if (!ops::concrete(kept) || kept.numel() == 0) return chosen;
  return chosen.slice(-1, 0, kept.sum(-1).max().item<int64_t>());
}

AttentionOutput attention_blocks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const BlockIndex& index,
                                 const AttentionSpec& spec, const AttentionArguments& given) {
  check_spec(spec);
  const AttentionArguments arguments = in_order(spec, given);
  const ops::Call dense = check_tensors(q, k, v, spec, arguments);
  const ops::Blocked call = blocked(q, k, index);
  const c10::SymInt width = v.sym_size(3);
  const bool selected = index.queries.defined(), detach = spec.normalizer.detach;
  at::Tensor rest;
  if (selected) {
    rest = index.otherwise.defined() ? index.otherwise.to(q.scalar_type()) : at::zeros({}, q.options());
    rest = rest.expand_symint({call.B, call.H, call.M, width});
  }
  AttentionOutput out;
  if (const auto keys = call.N.maybe_as_int(); keys && *keys == 0) {  // no key has a block: rows without keys
    out = attention(q, k, v, spec, arguments);
    if (!selected) return out;
    const at::Tensor chosen =
        to_queries(call, true, at::ones_symint({call.B, call.H, call.Q, call.query_block, 1}, q.options()),
                   at::zeros_symint({call.B, call.H, call.M, 1}, q.options()))
            .ne(0);
    return {at::where(chosen, out.o, rest), out.lse.masked_fill(chosen.squeeze(3).logical_not(), -kInfinity),
            out.pairs};
  }
  const bool in_place = ops::maps_blocks(dense, index, arguments.path);
  if (!ops::traced(q)) count_path(function, in_place ? Path::fused : Path::composite);
  if (in_place) {
    out = ops::attend_mapped(index, q, k, v, spec, arguments);
    if (!selected) return out;
    const at::Tensor chosen = ops::selected_queries(index, call.H, call.M), others = chosen.logical_not();
    return {at::where(chosen.unsqueeze(3), out.o, rest), out.lse.masked_fill(others, -kInfinity), out.pairs};
  }
  const ops::Tiles tiles = ops::make_tiles(call);
  out = by_query_block(call, tiles, ops::attend_tiles(call, tiles, q, k, v, spec, arguments), detach);
  if (arguments.sinks.defined()) {
    const auto flat = [](const at::Tensor& t) { return t.flatten(2, 3); };
    const auto back = [&](const at::Tensor& t) { return t.unflatten_symint(2, {call.Q, call.query_block}); };
    const AttentionOutput sunk = with_sinks({flat(out.o), flat(out.lse), flat(out.pairs)}, arguments.sinks, detach);
    out = {back(sunk.o), back(sunk.lse), back(sunk.pairs)};
  }
  const auto none = [&](const c10::SymInt& size, double value, const at::Tensor& like) {
    return selected ? at::full_symint({call.B, call.H, call.M, size}, value, like.options()) : at::Tensor();
  };
  return {to_queries(call, selected, out.o, rest),
          to_queries(call, selected, out.lse.unsqueeze(4), none(1, -kInfinity, out.lse)).squeeze(3),
          to_queries(call, selected, out.pairs, none(out.pairs.sym_size(4), 0, out.pairs))};
}

}  // namespace regard
