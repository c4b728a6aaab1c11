#include "regard/ops/paged.h"

#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <algorithm>

#include "regard/base/error.h"
#include "regard/ops/blocked.h"
#include "regard/ops/boundary.h"
#include "regard/ops/call.h"
#include "regard/ops/node.h"
#include "regard/ops/packed.h"
#include "regard/ops/paths.h"

namespace regard {
namespace {

constexpr const char* function = "attention_paged";

std::string text_of(const at::Tensor& t) {
  if (!t.defined()) return "none";
  std::string text = std::string(toString(t.scalar_type())) + " of shape (";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + ")";
}

bool readable(const at::Tensor& t) { return ops::concrete(t) && t.is_cpu(); }

void check_pages(const Pages& p, const at::Tensor& q) {
  const auto refuse = [](const char* expected, const at::Tensor& t) { fail(function, expected, text_of(t)); };
  if (!p.k.defined() || p.k.dim() != 4) refuse("key pages (P, Hk, page, Dh)", p.k);
  if (!p.v.defined() || p.v.dim() != 4) refuse("value pages (P, Hk, page, Dv)", p.v);
  for (int64_t d = 0; d < 3; ++d)
    if (p.k.sym_size(d) != p.v.sym_size(d))
      fail(function, "value pages (P, Hk, page, Dv) like the key pages, " + text_of(p.k), text_of(p.v));
  if (p.k.sym_size(2) < 1) refuse("pages of at least one token", p.k);
  if (!p.table.defined() || p.table.dim() != 2 || !c10::isIntegralType(p.table.scalar_type(), false))
    refuse("table (B, n), integer", p.table);
  if (!p.lengths.defined() || p.lengths.dim() != 1 || !c10::isIntegralType(p.lengths.scalar_type(), false))
    refuse("lengths (B), integer", p.lengths);
  if (q.dim() != 4) refuse("q (B, H, M, Dh)", q);
  if (p.table.sym_size(0) != q.sym_size(0)) refuse("a row of table for each of q's", p.table);
  if (p.lengths.sym_size(0) != q.sym_size(0)) refuse("a length for each of q's rows", p.lengths);
}

/// (B, n) boolean: whether a token of the sequence lies on the page.
at::Tensor used_pages(const at::Tensor& table, const at::Tensor& lengths, const c10::SymInt& page) {
  const at::Tensor first =
      at::arange(at::Scalar(table.sym_size(1)), lengths.options().dtype(at::kLong)) * at::Scalar(page);
  return first.unsqueeze(0) < lengths.to(at::kLong).unsqueeze(1);
}

/// A sequence longer than its row of the table, or a page that is not there. Tensors of a device are not waited for.
void check_entries(const at::Tensor& table, const at::Tensor& lengths, const at::Tensor& used,
                   const at::Tensor& pages) {
  if (!readable(table) || !readable(lengths)) return;
  const int64_t room = table.size(1) * pages.size(2), count = pages.size(0);
  if (lengths.numel() == 0) return;
  const int64_t least = lengths.min().item<int64_t>(), most = lengths.max().item<int64_t>();
  if (least < 0 || most > room)
    fail(function, "lengths in [0, " + std::to_string(room) + "], what the pages of a row hold",
         std::to_string(least < 0 ? least : most));
  const at::Tensor read = table.masked_select(used);
  if (read.numel() == 0) return;
  const int64_t low = read.min().item<int64_t>(), high = read.max().item<int64_t>();
  if (low < 0 || high >= count)
    fail(function, "pages in [0, " + std::to_string(count) + ") where a sequence has tokens",
         std::to_string(low < 0 ? low : high));
}

at::Tensor gathered(const at::Tensor& pages, const at::Tensor& index) {
  const at::Tensor chosen = pages.index_select(0, index.reshape(-1))
                                .unflatten_symint(0, {index.sym_size(0), index.sym_size(1)});  // (B, n, Hk, page, D)
  return chosen.transpose(1, 2).flatten(2, 3);
}

/// Table entries as indices; a page without tokens is never looked at, and stands as page 0.
at::Tensor page_index(const at::Tensor& table, const at::Tensor& used) {
  return at::where(used, table.to(at::kLong), at::zeros({}, table.options().dtype(at::kLong)));
}

/// A tensor of this shape without memory of its own.
at::Tensor shape_only(const at::Tensor& like, at::IntArrayRef sizes) {
  return at::zeros({1}, like.options()).expand(sizes);
}

/// Nothing is differentiated, traced or cast: the kernel may be called as it is.
bool is_bare(const std::vector<at::Tensor>& tensors) {
  const bool concrete = std::all_of(tensors.begin(), tensors.end(), [](const at::Tensor& t) {
    return !t.defined() || (ops::concrete(t) && t.is_cpu());
  });
  return concrete && !(at::GradMode::is_enabled() && ops::any_requires_grad(tensors)) &&
         !ops::any_forward_grad(tensors) && !at::autocast::is_autocast_enabled(at::kCPU);
}

/// The pages read where they lie; none where that has to be a gathered call.
std::optional<AttentionOutput> attend_in_place(const at::Tensor& q, const Pages& pages, const at::Tensor& index,
                                               const AttentionSpec& spec, const AttentionArguments& given) {
  const AttentionArguments arguments = in_order(spec, given);
  std::vector<at::Tensor> all = {q, pages.k, pages.v, index, arguments.sinks, arguments.seed};
  all.insert(all.end(), arguments.captures.begin(), arguments.captures.end());
  all.insert(all.end(), arguments.operands.begin(), arguments.operands.end());
  const Path path = path_from_name(function, arguments.path);
  if ((path != Path::automatic && path != Path::fused) || !is_bare(all)) return std::nullopt;
  const int64_t B = q.size(0), keys = index.size(1) * pages.k.size(2);
  const auto stand_in = [&](const at::Tensor& t) { return shape_only(t, {B, t.size(1), keys, t.size(3)}); };
  const auto some = [](const at::Tensor& t) { return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt; };
  const ops::Call call =
      ops::make_call(function, q, stand_in(pages.k), stand_in(pages.v), to_json(spec), arguments.captures,
                     arguments.operands, some(arguments.sinks), some(arguments.seed), arguments.query_offset);
  if (!ops::fused_refusal(call).empty()) return std::nullopt;
  const at::NoGradGuard off;
  const auto out = ops::paged_forward(call, pages.k, pages.v, index.contiguous());
  if (!out) return std::nullopt;
  return AttentionOutput{out->o.to(q.scalar_type()), out->lse, out->pairs};
}

}  // namespace

at::Tensor gather_pages(const at::Tensor& pages, const at::Tensor& table, const at::Tensor& lengths) {
  const at::Tensor used = used_pages(table, lengths, pages.sym_size(2));
  check_entries(table, lengths, used, pages);
  return gathered(pages, page_index(table, used));
}

AttentionOutput attention_paged(const at::Tensor& q, const Pages& pages, const AttentionSpec& spec,
                                const AttentionArguments& given, const at::Tensor& query_positions) {
  check_pages(pages, q);
  if (!spec.positions.query.identity() || !spec.positions.key.identity())
    fail(function, "a spec without positions (the table says them)", "positions");
  const at::Tensor used = used_pages(pages.table, pages.lengths, pages.k.sym_size(2));
  check_entries(pages.table, pages.lengths, used, pages.k);
  const at::Tensor index = page_index(pages.table, used);
  AttentionSpec own = spec;
  AttentionArguments arguments = by_name(spec, given);
  arguments.named_captures["page_lengths"] = pages.lengths;
  const Expr exists = key() < capture("page_lengths", Type::integer, {batch()});
  own.keep = own.keep.defined() ? own.keep & exists : exists;
  if (own.counted.defined()) own.counted = own.counted & exists;
  if (query_positions.defined()) {
    const bool row = query_positions.dim() == 1;
    if ((!row && query_positions.dim() != 2) || !c10::isIntegralType(query_positions.scalar_type(), false) ||
        query_positions.sym_size(-1) != q.sym_size(2) || (!row && query_positions.sym_size(0) != q.sym_size(0)))
      fail(function, "query_positions (M) or (B, M), integer, for q " + text_of(q), text_of(query_positions));
    const auto offset = given.query_offset.maybe_as_int();
    if (!offset || *offset != 0) fail(function, "query_positions or query_offset", "both");
    own.positions.query.tensor = "page_query_positions";
    own.positions.query.per_batch = !row;
    arguments.named_captures["page_query_positions"] = query_positions;
  }
  const auto in_place = attend_in_place(q, pages, index, own, arguments);
  if (!ops::traced(q)) count_path(function, in_place ? Path::fused : Path::composite);
  if (in_place) return *in_place;
  return attention(q, gathered(pages.k, index), gathered(pages.v, index), own, arguments);
}

namespace {

using OptionalTensor = std::optional<at::Tensor>;
at::Tensor tensor_of(const OptionalTensor& t) { return t && t->defined() ? *t : at::Tensor(); }

std::tuple<at::Tensor, at::Tensor, at::Tensor> paged_op(const at::Tensor& q, const at::Tensor& k_pages,
                                                        const at::Tensor& v_pages, const at::Tensor& table,
                                                        const at::Tensor& lengths, std::string spec,
                                                        at::TensorList captures, at::TensorList operands,
                                                        const OptionalTensor& sinks, const OptionalTensor& seed,
                                                        c10::SymInt query_offset, std::string path,
                                                        const OptionalTensor& query_positions) {
  AttentionArguments arguments;
  arguments.captures = captures.vec();
  arguments.operands = operands.vec();
  arguments.sinks = tensor_of(sinks);
  arguments.seed = tensor_of(seed);
  arguments.query_offset = query_offset;
  arguments.path = path;
  const AttentionOutput out = attention_paged(q, {k_pages, v_pages, table, lengths}, spec_from_json(spec), arguments,
                                              tensor_of(query_positions));
  return {out.o, out.lse, out.pairs};
}

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def(
      "attention_paged(Tensor q, Tensor k_pages, Tensor v_pages, Tensor table, Tensor lengths, str spec, "
      "Tensor[] captures, Tensor[] operands, Tensor? sinks=None, Tensor? seed=None, SymInt query_offset=0, "
      "str path='auto', Tensor? query_positions=None) -> (Tensor o, Tensor lse, Tensor pairs)",
      guarded<&paged_op>);
}

// vmap asks for a rule even of a composite op: run it, and let the ops inside be batched.
TORCH_LIBRARY_IMPL(regard, FuncTorchBatchedDecomposition, m) { m.impl("attention_paged", guarded<&paged_op>); }

}  // namespace
}  // namespace regard
