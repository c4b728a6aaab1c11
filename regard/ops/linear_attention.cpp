#include "regard/ops/linear_attention.h"

#include <ATen/autocast_mode.h>

#include <vector>

#include "regard/base/error.h"
#include "regard/ops/call.h"
#include "regard/ops/linear_attention_parts.h"
#include "regard/ops/paths.h"
#include "regard/ops/stripe.h"

namespace regard {
namespace ops {
namespace {

constexpr int64_t kChunk = 64;        // the quadratic part costs as much as the states' at C = Dk = Dv = 64
constexpr int64_t kPlainChunk = 128;  // without exponentials a larger product is cheaper than more states
constexpr int64_t kFewTokens = 4;     // up to here the loop does less than one chunk

/// Sums are float32 whatever the dtype of the call: autocast must not narrow them, also when a chunk is recomputed.
using NoAutocast = c10::impl::ExcludeDispatchKeyGuard;

LinearStep without_autocast(const LinearForm& form, const LinearTokens& tokens, const at::Tensor& state) {
  const NoAutocast guard(c10::autocast_dispatch_keyset);
  return linear_chunk(form, tokens, state);
}

/// One chunk whose intermediates are not kept: the stripe executor with a single stripe computes it again in the
/// backward.
LinearStep recomputed(const LinearForm& form, const LinearTokens& t, const at::Tensor& state) {
  const StripeFunction chunk = [form](const Rows&, const std::vector<at::Tensor>& in) {
    const LinearStep step = without_autocast(form, {in[0], in[1], in[2], in[3], in[4]}, in[5]);
    return step.o.defined() ? std::vector<at::Tensor>{step.state, step.o} : std::vector<at::Tensor>{step.state};
  };
  const auto out =
      run_stripes(t.k.sym_size(2), 0, {t.q, t.k, t.v, t.decay, t.beta, state}, chunk, {Combine::sum(), Combine::sum()});
  return {out.size() > 1 ? out[1] : at::Tensor(), out[0]};
}

/// Parts of `lengths` tokens of each tensor. One split has one gradient; slices would each make one of the whole size.
std::vector<LinearTokens> cut(const LinearTokens& t, const std::vector<int64_t>& lengths) {
  const auto parts = [&](const at::Tensor& x, int64_t dim) {
    return x.defined() ? x.split_with_sizes(lengths, dim) : std::vector<at::Tensor>(lengths.size());
  };
  const auto q = parts(t.q, 3), k = parts(t.k, 2), v = parts(t.v, 2), decay = parts(t.decay, 2),
             beta = parts(t.beta, 2);
  std::vector<LinearTokens> out;
  for (size_t i = 0; i < lengths.size(); ++i) out.push_back({q[i], k[i], v[i], decay[i], beta[i]});
  return out;
}

at::Tensor joined(const std::vector<at::Tensor>& parts, int64_t dim) {
  return parts.empty() || !parts[0].defined() ? at::Tensor() : parts.size() == 1 ? parts[0] : at::cat(parts, dim);
}

}  // namespace

LinearStep linear_walk(const LinearForm& form, const LinearTokens& tokens, const at::Tensor& state, int64_t chunk,
                       bool recompute) {
  const auto known = tokens.k.sym_size(2).maybe_as_int();
  if (!known || *known <= chunk)
    return recompute ? recomputed(form, tokens, state) : without_autocast(form, tokens, state);
  std::vector<int64_t> lengths(static_cast<size_t>((*known + chunk - 1) / chunk), chunk);
  lengths.back() = *known - chunk * static_cast<int64_t>(lengths.size() - 1);
  LinearStep step{{}, state};
  std::vector<at::Tensor> outputs;
  for (const LinearTokens& part : cut(tokens, lengths)) {
    step = recompute ? recomputed(form, part, step.state) : without_autocast(form, part, step.state);
    outputs.push_back(step.o);
  }
  step.o = joined(outputs, 3);
  return step;
}

namespace {

struct Plan {
  bool recurrent = false;
  Path path = Path::composite;
  int64_t chunk = kChunk;
};

Plan plan_of(const LinearForm& form, const at::Tensor& k, const LinearArguments& a) {
  Plan plan;
  plan.chunk = a.chunk > 0 ? a.chunk : form.decay == Decay::none && !a.beta.defined() ? kPlainChunk : kChunk;
  plan.path = path_from_name("linear_attention", a.path);
  require(plan.path != Path::fused, "linear_attention", "a path that it has: auto, stripe, composite", "'fused'");
  require(plan.path != Path::automatic || !strict(), "linear_attention",
          "a path asked by name, because strict is on and no fused path exists", "path 'auto'");
  const auto tokens = k.sym_size(2).maybe_as_int();
  const bool few = tokens && *tokens <= kFewTokens;
  plan.recurrent = form.causal && (a.form == "recurrent" || (a.form == "auto" && few));
  require(tokens || !plan.recurrent, "linear_attention", "a known number of tokens with form recurrent",
          "a traced one");
  if (plan.path == Path::automatic)
    plan.path = form.causal && !plan.recurrent && tokens && *tokens > plan.chunk ? Path::stripe : Path::composite;
  return plan;
}

/// One sequence.
LinearStep run_linear(const LinearForm& form, const Plan& plan, const LinearTokens& tokens, const at::Tensor& state) {
  const auto count = tokens.k.sym_size(2).maybe_as_int();
  if (!form.causal) return linear_everywhere(form, tokens, state);
  if (count && *count == 0) {  // nothing to read, nothing written
    const at::Tensor o = at::matmul(tokens.q.to(form.compute), state.unsqueeze(2));
    return {form.normalize ? o.slice(4, 0, -1) : o, state};
  }
  if (plan.recurrent) {
    const NoAutocast guard(c10::autocast_dispatch_keyset);
    return linear_loop(form, tokens, state);
  }
  return linear_walk(form, tokens, state, plan.chunk, plan.path == Path::stripe);
}

at::Tensor initial_of(const LinearForm& form, const LinearArguments& a, const at::Tensor& k, const at::Tensor& v) {
  const c10::SymInt rows = a.cu_seqlens.defined() ? a.cu_seqlens.sym_size(0) - 1 : k.sym_size(0);
  if (!a.initial_state.defined())
    return at::zeros_symint({rows, k.sym_size(1), k.sym_size(3), v.sym_size(3) + int64_t{form.normalize}},
                            k.options().dtype(form.compute).requires_grad(std::nullopt));
  return form.normalize ? at::cat({a.initial_state, a.initial_z.unsqueeze(3)}, 3) : a.initial_state;
}

std::vector<int64_t> lengths_of(const at::Tensor& bounds) {
  const at::Tensor whole = bounds.to(at::kLong).cpu().contiguous();
  const int64_t* b = whole.const_data_ptr<int64_t>();
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i + 1 < whole.size(0); ++i) lengths.push_back(b[i + 1] - b[i]);
  return lengths;
}

/// One sequence after the other: no chunk straddles two.
LinearStep run_packed(const LinearForm& form, const Plan& plan, const LinearTokens& tokens, const at::Tensor& states,
                      const at::Tensor& bounds) {
  if (!concrete(bounds)) return linear_packed_traced(form, tokens, states, bounds);
  if (bounds.size(0) == 1) return {run_linear(form, plan, tokens, at::zeros_like(states.sum(0, true))).o, states};
  std::vector<at::Tensor> outputs, ends;
  const auto parts = cut(tokens, lengths_of(bounds));
  for (size_t i = 0; i < parts.size(); ++i) {
    const LinearStep step = run_linear(form, plan, parts[i], states.narrow(0, static_cast<int64_t>(i), 1));
    outputs.push_back(step.o);
    ends.push_back(step.state);
  }
  return {joined(outputs, 3), joined(ends, 0)};
}

}  // namespace
}  // namespace ops

LinearOutput linear_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const LinearArguments& arguments) {
  using namespace ops;
  const LinearForm form = check_linear("linear_attention", q, k, v, arguments);
  const Plan plan = plan_of(form, k, arguments);
  count_path("linear_attention", plan.path);
  const LinearTokens tokens = tokens_of(form, q, k, v, arguments);
  const at::Tensor initial = initial_of(form, arguments, k, v);
  const LinearStep step = arguments.cu_seqlens.defined() ? run_packed(form, plan, tokens, initial, arguments.cu_seqlens)
                                                         : run_linear(form, plan, tokens, initial);
  LinearOutput out;
  out.o = step.o.flatten(1, 2).to(q.scalar_type());
  out.state = form.normalize ? step.state.slice(3, 0, -1) : step.state;
  if (form.normalize) out.z = step.state.select(3, -1);
  return out;
}

}  // namespace regard
