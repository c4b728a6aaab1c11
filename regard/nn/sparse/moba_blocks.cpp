#include "regard/nn/sparse/moba_blocks.h"

#include <ATen/OpMathType.h>
#include <torch/library.h>

#include <limits>

#include "regard/base/error.h"
#include "regard/nn/shapes.h"
#include "regard/ops/boundary.h"
#include "regard/ops/stripe.h"

namespace regard {
namespace {

/// (M) or (B, M) against (B, H, M, blocks).
at::Tensor beside_blocks(const at::Tensor& t) {
  return t.dim() == 1 ? t.view({1, 1, -1, 1}) : t.unsqueeze(1).unsqueeze(3);
}

/// Means of the blocks of keys, (B, Hk, blocks, Dh) in float32 at least. That of a block not yet full counts the tokens
/// to come as zeros: it is some query's own, and is not ranked.
/// `more` blocks follow the last one.
at::Tensor block_means(const MobaLayout& layout, int64_t more) {
  const at::Tensor k = layout.k.detach().to(at::toOpMathType(layout.k.scalar_type()));
  const c10::SymInt batch = k.sym_size(0), heads = k.sym_size(1);
  if (TORCH_GUARD_OR_FALSE(k.sym_size(2).sym_eq(0))) return k;
  // A pooling over windows: its own count of blocks needs no guard where sizes are traced.
  const at::Tensor padded =
      at::constant_pad_nd(k.flatten(0, 1).transpose(1, 2), {0, layout.size - 1 + more * layout.size});
  return at::avg_pool1d(padded, layout.size, layout.size).transpose(1, 2).unflatten_symint(0, {batch, heads});
}

/// Rows of queries so that their gates have about four million entries.
int64_t rows_of_gates(const at::Tensor& q, const at::Tensor& means) {
  constexpr int64_t entries = int64_t{1} << 22;  // 16 MiB of float32
  const auto batch = q.sym_size(0).maybe_as_int(), heads = q.sym_size(1).maybe_as_int(),
             blocks = means.sym_size(2).maybe_as_int();
  if (!batch || !heads || !blocks) return 0;
  return std::max<int64_t>(1, entries / std::max<int64_t>(1, *batch * *heads * *blocks));
}

void check_packed(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& cu_seqlens) {
  const auto packed = [&](const at::Tensor& t) { return t.dim() == 3 && t.sym_size(0) == q.sym_size(0); };
  if (q.dim() != 3 || !at::isFloatingType(q.scalar_type()))
    fail("moba", "q (T, H, Dh) of a floating type", describe(q));
  if (!packed(k) || k.sym_size(2) != q.sym_size(2))
    fail("moba", "k (T, Hk, Dh) with the tokens and width of q " + describe(q), describe(k));
  if (!packed(v) || v.sym_size(1) != k.sym_size(1))
    fail("moba", "v (T, Hk, Dv) with the tokens and heads of k " + describe(k), describe(v));
  if (cu_seqlens.dim() != 1 || !c10::isIntegralType(cu_seqlens.scalar_type(), false) || cu_seqlens.sym_size(0) < 1)
    fail("moba", "cu_seqlens (S + 1), integer", describe(cu_seqlens));
  if (!ops::concrete(cu_seqlens) || !cu_seqlens.is_cpu()) return;
  const at::Tensor ends = cu_seqlens.to(at::kLong);
  const bool ordered =
      ends[0].item<int64_t>() == 0 && q.sym_size(0) == ends[-1].item<int64_t>() && ends.diff().ge(0).all().item<bool>();
  require(ordered, "moba", "cu_seqlens from 0 to the number of tokens, never falling", describe(cu_seqlens));
}

}  // namespace

at::Tensor MobaLayout::own() const { return at::div(places, size, "floor"); }

MobaLayout moba_layout(const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, int64_t size) {
  return {size, positions, {}, k, v};
}

MobaLayout moba_layout(const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions,
                       const at::Tensor& segments, const at::Tensor& cu_seqlens, int64_t size) {
  const at::Tensor lengths = cu_seqlens.diff();
  const at::Tensor blocks = at::div(lengths + (size - 1), size, "floor");
  const at::Tensor before = at::cumsum(blocks, 0) - blocks;  // blocks of earlier sequences
  const at::Tensor first = before.index_select(0, segments);
  const at::Tensor places = first * size + positions;
  // Every sequence ends in at most one block that is not full.
  const c10::SymInt columns = (k.sym_size(2) / size + lengths.sym_size(0)) * size;
  const auto laid = [&](const at::Tensor& t) {
    return at::zeros_symint({t.sym_size(0), t.sym_size(1), columns, t.sym_size(3)}, t.options())
        .index_copy(2, places, t);
  };
  return {size, places, first, laid(k), laid(v)};
}

at::Tensor moba_choice(const at::Tensor& q, const MobaLayout& layout, int64_t topk) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  // Blocks behind the last one are never chosen. Traced sizes have enough of them that their number needs no guard.
  const bool traced = !layout.k.sym_size(2).maybe_as_int();
  at::Tensor means = block_means(layout, traced ? topk : 0);
  if (const c10::SymInt heads = q.sym_size(1), group = heads / means.sym_size(1); heads != means.sym_size(1))
    means = means.index_select(
        1, at::div(at::arange(at::Scalar(heads), layout.places.options()), at::Scalar(group), "floor"));
  const c10::SymInt blocks = means.sym_size(2), kept = traced ? c10::SymInt(topk) : blocks.min(c10::SymInt(topk));
  const at::Tensor own = beside_blocks(layout.own());
  const at::Tensor first = layout.first.defined() ? beside_blocks(layout.first) : at::zeros_like(own);
  const ops::StripeFunction choose = [blocks, kept](const ops::Rows& rows, const std::vector<at::Tensor>& in) {
    const at::Tensor queries = rows.of(in[0], 2).to(in[1].scalar_type());
    const at::Tensor mine = rows.of(in[2], 2), start = rows.of(in[3], 2);
    const at::Tensor gate = at::matmul(queries, in[1].transpose(-2, -1));
    const at::Tensor block = at::arange(at::Scalar(blocks), mine.options());
    const at::Tensor elsewhere = at::logical_or(block.gt(mine), block.lt(start));
    const auto [best, index] =
        at::topk_symint(gate.masked_fill(block.eq(mine), infinity).masked_fill(elsewhere, -infinity), kept, -1);
    return std::vector<at::Tensor>{index.masked_fill(best.eq(-infinity), -1)};
  };
  const at::NoGradGuard off;
  return ops::run_stripes(q.sym_size(2), rows_of_gates(q, means), {q.detach(), means, own, first}, choose,
                          {ops::Combine::concatenate(2)})[0];
}

AttentionOutput moba_attend(const at::Tensor& q, const MobaLayout& layout, const at::Tensor& choice,
                            std::optional<double> scale, const std::string& path) {
  BlockIndex index;
  index.query_block = 1;
  index.key_block = layout.size;
  index.blocks = choice;
  index.full = choice.lt(beside_blocks(layout.own()));  // earlier blocks of a sequence are complete
  index.trusted = true;
  AttentionSpec spec;
  spec.keep = masks::causal();
  spec.scale = scale;
  spec.positions.query.tensor = "places";
  spec.positions.query.per_batch = layout.places.dim() == 2;
  AttentionArguments arguments;
  arguments.named_captures = {{"places", layout.places}};
  arguments.path = path;
  return attention_blocks(q, layout.k, layout.v, index, spec, arguments);
}

at::Tensor moba_chosen(const MobaLayout& layout, const at::Tensor& choice) {
  // Entries that are none go to a column behind the last block.
  const c10::SymInt blocks = (layout.k.sym_size(2) + (layout.size - 1)) / layout.size;
  const at::Tensor column = at::where(choice.lt(0), at::scalar_tensor(at::Scalar(blocks), choice.options()), choice);
  return at::zeros_symint({choice.sym_size(0), choice.sym_size(1), choice.sym_size(2), blocks + 1},
                          choice.options().dtype(at::kBool))
      .scatter(3, column, true);
}

at::Tensor moba(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& cu_seqlens,
                int64_t chunk_size, int64_t topk, std::optional<double> scale, const std::string& form,
                const std::string& path) {
  require(chunk_size > 0 && topk > 0, "moba", "chunk_size > 0 and topk > 0",
          std::to_string(chunk_size) + " and " + std::to_string(topk));
  require(form == "blocks" || form == "naive", "moba", "form 'blocks' or 'naive'", "'" + form + "'");
  check_packed(q, k, v, cu_seqlens);
  const at::Tensor bounds = cu_seqlens.to(q.device(), at::kLong);
  const at::Tensor token = at::arange(at::Scalar(q.sym_size(0)), bounds.options());
  const at::Tensor segments =
      at::bucketize(token, bounds.slice(0, 1).contiguous(), /*out_int32=*/false, /*right=*/true);
  const auto rows = [](const at::Tensor& t) { return t.transpose(0, 1).unsqueeze(0); };  // (1, H, T, D)
  const MobaLayout layout =
      moba_layout(rows(k), rows(v), token - bounds.index_select(0, segments), segments, bounds, chunk_size);
  const at::Tensor choice = moba_choice(rows(q), layout, topk);
  at::Tensor o;
  if (form == "blocks") {
    o = moba_attend(rows(q), layout, choice, scale, path).o;
  } else {
    AttentionSpec spec;
    spec.scale = scale;
    spec.positions.query.tensor = spec.positions.key.tensor = "places";
    spec.positions.query.per_batch = spec.positions.key.per_batch = false;
    spec.keep = masks::causal() &
                capture("chosen", Type::boolean, {batch(), head(), row(), floor_div(key(), Expr(chunk_size))});
    AttentionArguments arguments;
    arguments.named_captures = {{"places", layout.places}, {"chosen", moba_chosen(layout, choice)}};
    arguments.path = path;
    o = attention(rows(q), rows(k), rows(v), spec, arguments).o;
  }
  return o.squeeze(0).transpose(0, 1);
}

namespace {

at::Tensor moba_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& cu_seqlens,
                   int64_t chunk_size, int64_t topk, std::optional<double> scale, std::string form, std::string path) {
  return moba(q, k, v, cu_seqlens, chunk_size, topk, scale, form, path);
}

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def(
      "moba(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, int chunk_size, int topk, float? scale=None, "
      "str form='blocks', str path='auto') -> Tensor",
      guarded<&moba_op>);
}

}  // namespace
}  // namespace regard
