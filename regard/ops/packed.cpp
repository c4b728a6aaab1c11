#include "regard/ops/packed.h"

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "regard/base/error.h"
#include "regard/ops/boundary.h"
#include "regard/ops/call.h"
#include "regard/ops/positions.h"

namespace regard {
namespace {

std::string text_of(const at::Tensor& t) {
  if (!t.defined()) return "none";
  std::string text = std::string(toString(t.scalar_type())) + " of shape (";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + ")";
}

/// Read where they lie, without an op, so that nothing is traced; a device is not waited for.
void check_entries(const char* function, const std::string& name, const at::Tensor& bounds, int64_t tokens) {
  AT_DISPATCH_INTEGRAL_TYPES(bounds.scalar_type(), "cu_seqlens", [&] {
    const auto* entries = bounds.const_data_ptr<scalar_t>();
    const auto at = [&](int64_t i) { return static_cast<int64_t>(entries[i * bounds.stride(0)]); };
    const int64_t last = bounds.size(0) - 1;
    if (at(0) != 0) fail(function, name + " that begins with 0", std::to_string(at(0)));
    for (int64_t i = 0; i < last; ++i)
      if (at(i + 1) < at(i))
        fail(function, name + " that never falls", std::to_string(at(i)) + " before " + std::to_string(at(i + 1)));
    if (at(last) != tokens)
      fail(function, name + " that ends with the " + std::to_string(tokens) + " tokens", std::to_string(at(last)));
  });
}

void require_one_row(const char* function, const char* name, const at::Tensor& t) {
  if (t.dim() != 4 || t.sym_size(0) != 1)
    fail(function, std::string(name) + " (1, heads, tokens, width) with cu_seqlens", text_of(t));
}

}  // namespace

void check_cu_seqlens(const char* function, const std::string& name, const at::Tensor& bounds,
                      const c10::SymInt& tokens) {
  if (!bounds.defined() || bounds.dim() != 1 || !c10::isIntegralType(bounds.scalar_type(), false) ||
      bounds.sym_size(0) < 1)
    fail(function, name + " (S + 1), integer", text_of(bounds));
  const auto known = tokens.maybe_as_int();
  if (known && ops::concrete(bounds) && bounds.is_cpu() && !bounds.is_sparse())
    check_entries(function, name, bounds, *known);
}

at::Tensor packed_segments(const at::Tensor& bounds, const c10::SymInt& tokens) {
  const at::Tensor token = at::arange(at::Scalar(tokens), bounds.options().dtype(at::kLong));
  // The segment of token t is the number of ends that are <= t.
  return at::bucketize(token, bounds.to(at::kLong).slice(0, 1).contiguous(), /*out_int32=*/false, /*right=*/true)
      .unsqueeze(0);
}

at::Tensor packed_positions(const at::Tensor& bounds, const at::Tensor& segments) {
  const at::Tensor token = at::arange(at::Scalar(segments.sym_size(1)), segments.options());
  return (token - bounds.to(at::kLong).index_select(0, segments.squeeze(0))).unsqueeze(0);
}

void keep_sequences_apart(const char* function, const at::Tensor& bounds_q, const at::Tensor& bounds_k,
                          const at::Tensor& q, const at::Tensor& k, AttentionSpec& spec,
                          AttentionArguments& arguments) {
  require_one_row(function, "q", q);
  require_one_row(function, "k", k);
  if (!spec.positions.query.identity() || !spec.positions.key.identity())
    fail(function, "cu_seqlens or positions of the spec", "both");
  const at::Tensor of_q = packed_segments(bounds_q, q.sym_size(2)), of_k = packed_segments(bounds_k, k.sym_size(2));
  auto& captures = arguments.named_captures;
  captures[ops::packed_query_segments] = of_q;
  captures[ops::packed_key_segments] = of_k;
  captures["packed_query_positions"] = packed_positions(bounds_q, of_q);
  captures["packed_key_positions"] = packed_positions(bounds_k, of_k);
  const Expr same = masks::documents(ops::packed_query_segments, ops::packed_key_segments);
  spec.keep = spec.keep.defined() ? spec.keep & same : same;
  if (spec.counted.defined()) spec.counted = spec.counted & same;
  spec.positions.query.tensor = "packed_query_positions";
  spec.positions.key.tensor = "packed_key_positions";
}

AttentionArguments by_name(const AttentionSpec& spec, AttentionArguments arguments) {
  if (!arguments.named_captures.empty() || !arguments.named_operands.empty()) return arguments;
  const auto captures = spec.captures(), operands = spec.operands();
  ops::check_counts("attention", captures.size(), operands.size(), arguments.captures, arguments.operands);
  for (size_t i = 0; i < captures.size(); ++i) arguments.named_captures[captures[i]] = arguments.captures[i];
  for (size_t i = 0; i < operands.size(); ++i)
    arguments.named_operands[operands[i]] = {arguments.operands[2 * i], arguments.operands[2 * i + 1]};
  arguments.captures.clear();
  arguments.operands.clear();
  return arguments;
}

AttentionOutput attention_packed(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const at::Tensor& bounds_q, const at::Tensor& bounds_k, const AttentionSpec& spec,
                                 const AttentionArguments& given) {
  constexpr const char* function = "attention_packed";
  require_one_row(function, "q", q);
  require_one_row(function, "k", k);
  check_cu_seqlens(function, "cu_seqlens_q", bounds_q, q.sym_size(2));
  check_cu_seqlens(function, "cu_seqlens_k", bounds_k, k.sym_size(2));
  if (bounds_q.sym_size(0) != bounds_k.sym_size(0))
    fail(function, "as many key sequences as query sequences", text_of(bounds_q) + " and " + text_of(bounds_k));
  const auto offset = given.query_offset.maybe_as_int();
  if (!offset || *offset != 0) fail(function, "query_offset 0 with cu_seqlens", "another");
  AttentionSpec own = spec;
  AttentionArguments arguments = by_name(spec, given);
  keep_sequences_apart(function, bounds_q, bounds_k, q, k, own, arguments);
  return attention(q, k, v, own, arguments);
}

namespace {

using Optional = std::optional<at::Tensor>;
at::Tensor tensor_of(const Optional& t) { return t && t->defined() ? *t : at::Tensor(); }

std::tuple<at::Tensor, at::Tensor, at::Tensor> packed_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                         const at::Tensor& bounds_q, const at::Tensor& bounds_k,
                                                         std::string spec, at::TensorList captures,
                                                         at::TensorList operands, const Optional& sinks,
                                                         const Optional& seed, c10::SymInt query_offset,
                                                         std::string path) {
  AttentionArguments arguments;
  arguments.captures = captures.vec();
  arguments.operands = operands.vec();
  arguments.sinks = tensor_of(sinks);
  arguments.seed = tensor_of(seed);
  arguments.query_offset = query_offset;
  arguments.path = path;
  const AttentionOutput out = attention_packed(q, k, v, bounds_q, bounds_k, spec_from_json(spec), arguments);
  return {out.o, out.lse, out.pairs};
}

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def(
      "attention_packed(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, str spec, "
      "Tensor[] captures, Tensor[] operands, Tensor? sinks=None, Tensor? seed=None, SymInt query_offset=0, "
      "str path='auto') -> (Tensor o, Tensor lse, Tensor pairs)",
      guarded<&packed_op>);
}

// vmap asks for a rule even of a composite op: run it, and let the ops inside be batched.
TORCH_LIBRARY_IMPL(regard, FuncTorchBatchedDecomposition, m) { m.impl("attention_packed", guarded<&packed_op>); }

}  // namespace
}  // namespace regard
