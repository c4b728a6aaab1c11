#include "regard/ops/call.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "regard/base/error.h"

namespace regard::ops {
namespace {

std::string shape_of(const at::Tensor& t) {
  std::ostringstream text;
  text << t.sym_sizes();
  return text.str();
}

bool floating(const at::Tensor& t) {
  const auto type = t.scalar_type();
  return type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf;
}

Type class_of(at::ScalarType type) {
  if (type == at::kBool) return Type::boolean;
  return at::isIntegralType(type, false) ? Type::integer : Type::real;
}

void check_operand(const char* function, const std::string& name, const at::Tensor& t, const at::Tensor& q) {
  require(t.defined() && t.dim() == 4, function, (name + " of 4 dimensions (batch, heads, length, width)").c_str(),
          t.defined() ? "shape " + shape_of(t) : "an undefined tensor");
  require(t.scalar_type() == q.scalar_type(), function, (name + " of q's dtype " + toString(q.scalar_type())).c_str(),
          toString(t.scalar_type()));
  if (t.device() != q.device()) fail(function, name + " on q's device " + q.device().str(), t.device().str());
}

void check_size(const char* function, const std::string& what, const at::Tensor& t, int64_t dim,
                const c10::SymInt& expected) {
  if (t.sym_size(dim) != expected) {
    std::ostringstream text;
    text << what << " of size " << expected << " in dimension " << dim;
    fail(function, text.str(), "shape " + shape_of(t));
  }
}

void check_divides(const char* function, const std::string& what, const c10::SymInt& heads, const c10::SymInt& parts) {
  if (parts < 1 || heads % parts != 0) {
    std::ostringstream expected, found;
    expected << what << " to divide the " << heads << " query heads";
    found << parts;
    fail(function, expected.str(), found.str());
  }
}

/// The leaves of kind `op` that the spec's expressions read.
std::vector<const Node*> leaves_of(const AttentionSpec& spec, Op op) {
  std::vector<const Node*> leaves;
  std::vector<Expr> roots = {spec.score, spec.keep, spec.weight, spec.counted};
  for (const auto& pair : spec.pair_outputs) {
    roots.push_back(pair.value);
    roots.push_back(pair.bucket);
  }
  for (const auto& entry : flatten(roots).entries)
    if (entry.expr.op() == op) leaves.push_back(&entry.expr.node());
  return leaves;
}

// Every dot lies inside the widths and heads of its operands, on every path alike.
void check_dots(const char* function, const Call& call) {
  const auto names = call.spec->operands();
  for (const Node* dot : leaves_of(*call.spec, Op::dot)) {
    const size_t at = static_cast<size_t>(std::find(names.begin(), names.end(), dot->name) - names.begin());
    const at::Tensor& q = dot->name.empty() ? call.q : call.operands[2 * at];
    const std::string label = dot->name.empty() ? "q" : "operand q of '" + dot->name + "'";
    if (dot->end >= 0 && (dot->begin < 0 || dot->begin > dot->end || q.sym_size(3) < dot->end))
      fail(function,
           "features " + std::to_string(dot->begin) + " to " + std::to_string(dot->end) +
               " of a dot inside the width of " + label,
           "shape " + shape_of(q));
    if (dot->only_head >= 0 && q.sym_size(1) <= dot->only_head)
      fail(function, "head " + std::to_string(dot->only_head) + " of a dot among the heads of " + label,
           "shape " + shape_of(q));
  }
}

void check_captures(const char* function, const Call& call, at::TensorList captures) {
  const auto names = call.spec->captures();
  for (const Node* read : leaves_of(*call.spec, Op::capture)) {
    const size_t at = std::find(names.begin(), names.end(), read->name) - names.begin();
    const at::Tensor& t = captures[at];
    const std::string label = "capture '" + read->name + "'";
    if (!t.defined() || t.dim() != static_cast<int64_t>(read->args.size()))
      fail(function, label + " of " + std::to_string(read->args.size()) + " dimensions",
           t.defined() ? "shape " + shape_of(t) : "an undefined tensor");
    if (class_of(t.scalar_type()) != read->type)
      fail(function, label + " of a " + std::string(name_of(read->type)) + " dtype", toString(t.scalar_type()));
    if (t.device() != call.q.device())
      fail(function, label + " on q's device " + call.q.device().str(), t.device().str());
  }
}

void check_operands(const char* function, const Call& call, at::TensorList operands) {
  const auto names = call.spec->operands();
  for (size_t i = 0; i < names.size(); ++i) {
    const at::Tensor &qx = operands[2 * i], &kx = operands[2 * i + 1];
    const std::string q_name = "operand q of '" + names[i] + "'", k_name = "operand k of '" + names[i] + "'";
    check_operand(function, q_name, qx, call.q);
    check_operand(function, k_name, kx, call.q);
    check_size(function, q_name, qx, 0, call.B());
    check_size(function, q_name, qx, 2, call.M());
    check_size(function, k_name, kx, 0, call.B());
    check_size(function, k_name, kx, 1, qx.sym_size(1));
    check_size(function, k_name, kx, 2, call.N());
    check_size(function, k_name, kx, 3, qx.sym_size(3));
    check_divides(function, "the heads of operand '" + names[i] + "'", call.H(), qx.sym_size(1));
  }
}

at::Tensor check_sinks(const char* function, const Call& call, const std::optional<at::Tensor>& sinks) {
  const bool given = sinks && sinks->defined();
  if (given != call.spec->normalizer.sinks)
    fail(function,
         call.spec->normalizer.sinks ? "sinks, because the normalizer has sink logits"
                                     : "no sinks, because the normalizer has no sink logits",
         given ? "shape " + shape_of(*sinks) : "none");
  if (!given) return {};
  require((sinks->dim() == 1 || sinks->dim() == 2) && floating(*sinks), function,
          "sinks of a floating dtype and shape (heads) or (heads, S)",
          std::string(toString(sinks->scalar_type())) + " of shape " + shape_of(*sinks));
  check_size(function, "sinks", *sinks, 0, call.H());
  if (sinks->device() != call.q.device())
    fail(function, "sinks on q's device " + call.q.device().str(), sinks->device().str());
  return sinks->dim() == 1 ? sinks->unsqueeze(1) : *sinks;
}

}  // namespace

double Call::scale() const {
  if (spec->scale) return *spec->scale;
  const int64_t width = q.sym_size(3).guard_int(__FILE__, __LINE__);
  return width > 0 ? 1.0 / std::sqrt(static_cast<double>(width)) : 1.0;
}

at::ScalarType Call::compute() const { return q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

void check_counts(const char* function, const AttentionSpec& spec, at::TensorList captures, at::TensorList operands) {
  const size_t reads = spec.captures().size(), pairs = spec.operands().size();
  if (captures.size() != reads)
    fail(function, std::to_string(reads) + " captured tensors, sorted by name", std::to_string(captures.size()));
  if (operands.size() != 2 * pairs)
    fail(function, std::to_string(2 * pairs) + " operand tensors (q and k of each name, sorted by name)",
         std::to_string(operands.size()));
}

Call make_call(const char* function, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
               const std::string& spec, at::TensorList captures, at::TensorList operands,
               const std::optional<at::Tensor>& sinks, const std::optional<at::Tensor>& seed,
               const c10::SymInt& query_offset) {
  Call call;
  call.q = q;
  call.k = k;
  call.v = v;
  require(floating(q), function, "q of dtype float64, float32, bfloat16 or float16", toString(q.scalar_type()));
  check_operand(function, "q", q, q);
  check_operand(function, "k", k, q);
  check_operand(function, "v", v, q);
  check_size(function, "k", k, 0, q.sym_size(0));
  check_size(function, "v", v, 0, q.sym_size(0));
  check_size(function, "k", k, 3, q.sym_size(3));
  check_size(function, "v", v, 1, k.sym_size(1));
  check_size(function, "v", v, 2, k.sym_size(2));
  check_divides(function, "the key heads", q.sym_size(1), k.sym_size(1));
  call.spec = intern(spec);
  call.query_offset = query_offset;
  check_counts(function, *call.spec, captures, operands);
  check_captures(function, call, captures);
  check_operands(function, call, operands);
  call.captures = captures.vec();
  call.operands = operands.vec();
  check_dots(function, call);
  call.sinks = check_sinks(function, call, sinks);
  const bool seeded = seed && seed->defined();
  if (call.spec->dropout > 0 && !(seeded && seed->scalar_type() == at::kLong && seed->dim() == 0))
    fail(function, "seed, an int64 scalar, because the spec drops weights", seeded ? shape_of(*seed) : "none");
  if (seeded) call.seed = *seed;
  return call;
}

at::Tensor Rows::of(const at::Tensor& t, int64_t dim) const {
  return chosen.defined() ? t.index_select(dim, chosen) : t.slice_symint(dim, begin, end);
}

at::Tensor Rows::index(const at::TensorOptions& options) const {
  if (chosen.defined()) return chosen;
  return at::arange(c10::Scalar(begin), c10::Scalar(end), options.dtype(at::kLong));
}

Rows all_rows(const Call& call) { return {0, call.M(), {}}; }

bool traced(const at::Tensor& t) {
  return t.is_meta() ||
         t.key_set().has_any(c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::Functionalize}));
}

bool concrete(const at::Tensor& t) {
  return !traced(t) &&
         !t.key_set().has_any(c10::DispatchKeySet(
             {c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchGradWrapper}));
}

at::Tensor repeat_heads(const at::Tensor& t, const c10::SymInt& heads) {
  if (t.sym_size(1) == heads) return t;
  const c10::SymInt group = heads / t.sym_size(1);
  return t.unsqueeze(2)
      .expand_symint({t.sym_size(0), t.sym_size(1), group, t.sym_size(2), t.sym_size(3)})
      .flatten(1, 2);
}

at::Tensor sum_heads(const at::Tensor& t, const c10::SymInt& heads) {
  if (t.sym_size(1) == heads) return t;
  return t.unflatten_symint(1, {heads, t.sym_size(1) / heads}).sum(2);
}

}  // namespace regard::ops
