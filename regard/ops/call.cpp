#include "regard/ops/call.h"

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

// Checks come before any computation of every call, so that they must cost next to nothing when they hold: what a
// message says is put together only for a refusal.
struct Label {
  const char* text;
  const std::string* operand = nullptr;  ///< "operand q of 'name'"
  std::string str() const { return operand == nullptr ? text : text + (" '" + *operand + "'"); }
};

void check_operand(const char* function, const Label& label, const at::Tensor& t, const at::Tensor& q) {
  if (!t.defined() || t.dim() != 4)
    fail(function, label.str() + " of 4 dimensions (batch, heads, length, width)",
         t.defined() ? "shape " + shape_of(t) : "an undefined tensor");
  if (t.scalar_type() != q.scalar_type())
    fail(function, label.str() + " of q's dtype " + toString(q.scalar_type()), toString(t.scalar_type()));
  if (t.device() != q.device()) fail(function, label.str() + " on q's device " + q.device().str(), t.device().str());
}

void check_size(const char* function, const Label& label, const at::Tensor& t, int64_t dim,
                const c10::SymInt& expected) {
  if (t.sym_size(dim) == expected) return;
  std::ostringstream text;
  text << label.str() << " of size " << expected << " in dimension " << dim;
  fail(function, text.str(), "shape " + shape_of(t));
}

void check_divides(const char* function, const Label& label, const c10::SymInt& heads, const c10::SymInt& parts) {
  if (parts >= 1 && heads % parts == 0) return;
  std::ostringstream expected, found;
  expected << label.str() << " to divide the " << heads << " query heads";
  found << parts;
  fail(function, expected.str(), found.str());
}

// Every dot lies inside the widths and heads of its operands, on every path alike.
void check_dots(const char* function, const Call& call) {
  for (const SpecFacts::Dot& dot : call.facts->dots) {
    const at::Tensor& q = dot.name.empty() ? call.q : call.operands[2 * dot.operand];
    const auto label = [&] { return dot.name.empty() ? std::string("q") : "operand q of '" + dot.name + "'"; };
    if (dot.end >= 0 && (dot.begin < 0 || dot.begin > dot.end || q.sym_size(3) < dot.end))
      fail(function,
           "features " + std::to_string(dot.begin) + " to " + std::to_string(dot.end) +
               " of a dot inside the width of " + label(),
           "shape " + shape_of(q));
    if (dot.only_head >= 0 && q.sym_size(1) <= dot.only_head)
      fail(function, "head " + std::to_string(dot.only_head) + " of a dot among the heads of " + label(),
           "shape " + shape_of(q));
  }
}

void check_captures(const char* function, const Call& call, at::TensorList captures) {
  for (const SpecFacts::Read& read : call.facts->reads) {
    const at::Tensor& t = captures[read.capture];
    const auto label = [&] { return "capture '" + call.facts->captures[read.capture] + "'"; };
    if (!t.defined() || t.dim() != static_cast<int64_t>(read.indices))
      fail(function, label() + " of " + std::to_string(read.indices) + " dimensions",
           t.defined() ? "shape " + shape_of(t) : "an undefined tensor");
    if (class_of(t.scalar_type()) != read.type)
      fail(function, label() + " of a " + std::string(name_of(read.type)) + " dtype", toString(t.scalar_type()));
    if (t.device() != call.q.device())
      fail(function, label() + " on q's device " + call.q.device().str(), t.device().str());
  }
}

void check_operands(const char* function, const Call& call, at::TensorList operands) {
  const auto& names = call.facts->operands;
  for (size_t i = 0; i < names.size(); ++i) {
    const at::Tensor &qx = operands[2 * i], &kx = operands[2 * i + 1];
    const Label q{"operand q of", &names[i]}, k{"operand k of", &names[i]};
    check_operand(function, q, qx, call.q);
    check_operand(function, k, kx, call.q);
    check_size(function, q, qx, 0, call.B());
    check_size(function, q, qx, 2, call.M());
    check_size(function, k, kx, 0, call.B());
    check_size(function, k, kx, 1, qx.sym_size(1));
    check_size(function, k, kx, 2, call.N());
    check_size(function, k, kx, 3, qx.sym_size(3));
    check_divides(function, {"the heads of operand", &names[i]}, call.H(), qx.sym_size(1));
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
  if ((sinks->dim() != 1 && sinks->dim() != 2) || !floating(*sinks))
    fail(function, "sinks of a floating dtype and shape (heads) or (heads, S)",
         std::string(toString(sinks->scalar_type())) + " of shape " + shape_of(*sinks));
  check_size(function, {"sinks"}, *sinks, 0, call.H());
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

void check_counts(const char* function, size_t reads, size_t pairs, at::TensorList captures, at::TensorList operands) {
  if (captures.size() != reads)
    fail(function, std::to_string(reads) + " captured tensors, sorted by name", std::to_string(captures.size()));
  if (operands.size() != 2 * pairs)
    fail(function, std::to_string(2 * pairs) + " operand tensors (q and k of each name, sorted by name)",
         std::to_string(operands.size()));
}

Call make_call(const char* function, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
               std::string_view spec, at::TensorList captures, at::TensorList operands,
               const std::optional<at::Tensor>& sinks, const std::optional<at::Tensor>& seed,
               const c10::SymInt& query_offset) {
  Call call;
  call.q = q;
  call.k = k;
  call.v = v;
  if (!floating(q)) fail(function, "q of dtype float64, float32, bfloat16 or float16", toString(q.scalar_type()));
  check_operand(function, {"q"}, q, q);
  check_operand(function, {"k"}, k, q);
  check_operand(function, {"v"}, v, q);
  check_size(function, {"k"}, k, 0, q.sym_size(0));
  check_size(function, {"v"}, v, 0, q.sym_size(0));
  check_size(function, {"k"}, k, 3, q.sym_size(3));
  check_size(function, {"v"}, v, 1, k.sym_size(1));
  check_size(function, {"v"}, v, 2, k.sym_size(2));
  check_divides(function, {"the key heads"}, q.sym_size(1), k.sym_size(1));
  call.facts = facts_of(spec);
  call.spec = call.facts->spec;
  call.query_offset = query_offset;
  check_counts(function, call.facts->captures.size(), call.facts->operands.size(), captures, operands);
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
