// The checks of a call of linear attention, before anything is computed.

#include <cmath>
#include <sstream>
#include <vector>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/ops/call.h"
#include "regard/ops/linear_attention_parts.h"

namespace regard::ops {
namespace {

using Sizes = std::vector<c10::SymInt>;

std::string text_of(const Sizes& sizes) {
  std::ostringstream text;
  text << '(';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << ')';
  return text.str();
}

std::string text_of(const at::Tensor& t) {
  if (!t.defined()) return "none";
  return text_of(t.sym_sizes().vec()) + " " + std::string(c10::toString(t.scalar_type()));
}

bool has_sizes(const at::Tensor& t, const Sizes& sizes) {
  if (t.dim() != static_cast<int64_t>(sizes.size())) return false;
  for (size_t i = 0; i < sizes.size(); ++i)
    if (t.sym_size(static_cast<int64_t>(i)) != sizes[i]) return false;
  return true;
}

class Checker {
 public:
  Checker(const char* function, const at::Tensor& k, const LinearArguments& a) : function_(function), k_(k), a_(a) {}

  void operands(const at::Tensor& q, const at::Tensor& v) const {
    operand("k", k_);
    operand("v", v);
    if (!has_sizes(v, {k_.sym_size(0), k_.sym_size(1), k_.sym_size(2), v.sym_size(3)}))
      fail(function_, "v (B, Hk, T, Dv) for k " + text_of(k_), text_of(v));
    if (!q.defined()) return;
    operand("q", q);
    if (q.sym_size(0) != k_.sym_size(0) || q.sym_size(3) != k_.sym_size(3))
      fail(function_, "q (B, H, M, Dk) for k " + text_of(k_), text_of(q));
    if (k_.sym_size(1) < 1 || q.sym_size(1) % k_.sym_size(1) != 0)
      fail(function_, "key heads that divide the query heads", "q " + text_of(q) + ", k " + text_of(k_));
    if (a_.causal && q.sym_size(2) != k_.sym_size(2))
      fail(function_, "as many queries as keys with causal", "q " + text_of(q) + ", k " + text_of(k_));
  }

  Decay decay(const at::Tensor& v) const {
    require(a_.decay_side == "key" || a_.decay_side == "value", function_, "decay_side 'key' or 'value'",
            "'" + a_.decay_side + "'" + suggestion(a_.decay_side, {"key", "value"}));
    const at::Tensor& g = a_.log_decay;
    if (!g.defined()) return Decay::none;
    const bool value = a_.decay_side == "value";
    const c10::SymInt B = k_.sym_size(0), H = k_.sym_size(1), T = k_.sym_size(2), D = (value ? v : k_).sym_size(3);
    if (!g.is_floating_point() || !(has_sizes(g, {H}) || has_sizes(g, {B, H, T}) || has_sizes(g, {B, H, T, D})))
      fail(function_,
           "log_decay " + text_of(Sizes{H}) + ", " + text_of(Sizes{B, H, T}) + " or " + text_of(Sizes{B, H, T, D}) +
               ", floating (decay_side " + a_.decay_side + ")",
           text_of(g));
    if (!a_.allow_growth && concrete(g) && g.is_cpu() && g.detach().gt(0).any().item<bool>())
      fail(function_, "log_decay <= 0 (or allow_growth)", "a positive entry");
    return g.dim() < 4 ? Decay::scalar : value ? Decay::value : Decay::key;
  }

  void state(const char* name, const at::Tensor& t, const Sizes& sizes, at::ScalarType type) const {
    if (t.defined() && !(has_sizes(t, sizes) && t.scalar_type() == type))
      fail(function_, std::string(name) + " " + text_of(sizes) + " " + c10::toString(type), text_of(t));
  }

  void numbers() const {
    require(!a_.normalize || (a_.eps > 0 && std::isfinite(a_.eps)), function_, "eps > 0", std::to_string(a_.eps));
    if (a_.scale) require(std::isfinite(*a_.scale), function_, "a finite scale", std::to_string(*a_.scale));
    require(a_.chunk >= 0, function_, "chunk >= 0", std::to_string(a_.chunk));
    require(a_.form == "auto" || a_.form == "chunked" || a_.form == "recurrent", function_,
            "form to be one of 'auto', 'chunked', 'recurrent'",
            "'" + a_.form + "'" + suggestion(a_.form, {"auto", "chunked", "recurrent"}));
  }

  /// What no formula has.
  void combinations() const {
    const bool delta = a_.beta.defined(), decay = a_.log_decay.defined();
    const bool value = decay && a_.log_decay.dim() == 4 && a_.decay_side == "value";
    require(a_.causal || (!delta && !decay), function_, "causal with a decay or the delta rule, which need an order",
            "causal = false");
    require(!a_.normalize || !delta, function_, "no normalizer with the delta rule", "normalize and beta");
    require(!a_.normalize || !value, function_, "no normalizer with a decay of the value channels", "normalize");
    require(!delta || !value, function_, "the delta rule with a decay of the key side", "decay_side value");
    require(a_.normalize || !a_.initial_z.defined(), function_, "initial_z only with normalize", "initial_z alone");
    require(!a_.normalize || a_.initial_z.defined() == a_.initial_state.defined(), function_,
            "initial_state and initial_z together with normalize", "one of them");
    require(a_.causal || a_.form != "recurrent", function_, "causal with the recurrent form", "causal = false");
  }

  /// Read where they lie: a device would make every call wait.
  void packed(const at::Tensor& q) const {
    const at::Tensor& bounds = a_.cu_seqlens;
    if (!bounds.defined()) return;
    if (bounds.dim() != 1 || bounds.sym_size(0) < 1 || !c10::isIntegralType(bounds.scalar_type(), false))
      fail(function_, "cu_seqlens (S + 1), integer", text_of(bounds));
    if (k_.sym_size(0) != 1) fail(function_, "B = 1 with cu_seqlens", "k " + text_of(k_));
    if (q.defined() && q.sym_size(2) != k_.sym_size(2))
      fail(function_, "as many queries as keys with cu_seqlens", "q " + text_of(q) + ", k " + text_of(k_));
    if (!concrete(bounds) || !bounds.is_cpu()) return;
    const at::Tensor whole = bounds.to(at::kLong).contiguous();
    const int64_t* b = whole.const_data_ptr<int64_t>();
    const int64_t last = whole.size(0) - 1;
    bool ordered = b[0] == 0;
    for (int64_t i = 0; i < last; ++i) ordered = ordered && b[i] <= b[i + 1];
    if (!ordered || k_.sym_size(2) != b[last]) {
      std::ostringstream expected, found;
      expected << "cu_seqlens that begin at 0, never fall and end at T = " << k_.sym_size(2);
      for (int64_t i = 0; i <= last; ++i) found << (i ? ", " : "") << b[i];
      fail(function_, expected.str(), found.str());
    }
  }

 private:
  void operand(const char* name, const at::Tensor& t) const {
    if (!t.defined() || t.dim() != 4 || !t.is_floating_point())
      fail(function_, std::string(name) + " (batch, heads, length, width), floating", text_of(t));
    if (t.scalar_type() != k_.scalar_type())
      fail(function_, std::string(name) + " of k's dtype, " + text_of(k_), text_of(t));
    if (t.device() != k_.device())
      fail(function_, std::string(name) + " on k's device " + k_.device().str(), t.device().str());
  }

  const char* function_;
  const at::Tensor& k_;
  const LinearArguments& a_;
};

at::ScalarType compute_type(const at::Tensor& k) { return k.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

}  // namespace

LinearForm check_linear(const char* function, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const LinearArguments& a) {
  const Checker check(function, k, a);
  check.operands(q, v);
  check.numbers();
  check.combinations();
  LinearForm form;
  form.decay = check.decay(v);
  form.causal = a.causal;
  form.normalize = a.normalize;
  form.eps = a.eps;
  form.compute = compute_type(k);
  const auto width = k.sym_size(3).maybe_as_int();
  if (a.scale) {
    form.scale = *a.scale;
  } else if (!a.normalize) {
    form.scale = 1 / std::sqrt(static_cast<double>(width ? *width : k.sym_size(3).guard_int(__FILE__, __LINE__)));
  } else {
    form.scale = 1;
  }
  const c10::SymInt B = k.sym_size(0), H = k.sym_size(1), T = k.sym_size(2);
  if (a.beta.defined() && !(a.beta.is_floating_point() && has_sizes(a.beta, {B, H, T})))
    fail(function, "beta " + text_of(Sizes{B, H, T}) + ", floating", text_of(a.beta));
  if (a.padding.defined() && !(a.padding.scalar_type() == at::kBool && has_sizes(a.padding, {B, T})))
    fail(function, "padding " + text_of(Sizes{B, T}) + " Bool (true where a key does not exist)", text_of(a.padding));
  check.packed(q);
  const c10::SymInt rows = a.cu_seqlens.defined() ? a.cu_seqlens.sym_size(0) - 1 : B;
  check.state("initial_state", a.initial_state, {rows, H, k.sym_size(3), v.sym_size(3)}, form.compute);
  check.state("initial_z", a.initial_z, {rows, H, k.sym_size(3)}, form.compute);
  return form;
}

LinearTokens without(const LinearTokens& t, const at::Tensor& gone) {
  const auto zeroed = [&](const at::Tensor& x) { return x.defined() ? x.masked_fill(gone, 0) : x; };
  return {t.q, zeroed(t.k), zeroed(t.v), zeroed(t.decay), zeroed(t.beta)};
}

LinearTokens tokens_of(const LinearForm& form, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const LinearArguments& a) {
  LinearTokens t;
  if (q.defined()) t.q = q.unflatten_symint(1, {k.sym_size(1), q.sym_size(1) / k.sym_size(1)});
  t.k = k;
  t.v = v;
  if (a.log_decay.defined()) {
    const at::Tensor& g = a.log_decay;
    t.decay = g.dim() == 4   ? g
              : g.dim() == 3 ? g.unsqueeze(3)
                             : g.view({1, -1, 1, 1}).expand_symint({k.sym_size(0), k.sym_size(1), k.sym_size(2), 1});
  }
  if (a.beta.defined()) t.beta = a.beta.unsqueeze(3);
  if (a.padding.defined()) t = without(t, a.padding.unsqueeze(1).unsqueeze(3));
  if (form.normalize) {
    const auto real = v.options().requires_grad(std::nullopt);
    const at::Tensor ones = at::ones_symint({k.sym_size(0), k.sym_size(1), k.sym_size(2), 1}, real);
    t.v = at::cat({t.v, ones}, 3);
  }
  return t;
}

}  // namespace regard::ops
