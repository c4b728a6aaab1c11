#include "regard/ops/stripe.h"

#include <algorithm>
#include <cmath>

#include "regard/ops/evaluate.h"
#include "regard/ops/node.h"

namespace regard::ops {
namespace {

using torch::autograd::Node;
using torch::autograd::variable_list;

/// Recomputes one stripe and differentiates it. With create_graph the recomputation stays connected to the saved
/// inputs, so gradients of any order follow.
struct StripeBackward final : Node {
  StripeFunction function;
  Rows rows;
  Saved saved;
  std::string name() const override { return "StripeBackward"; }

  variable_list apply(variable_list&& grads) override {
    const bool again = at::GradMode::is_enabled();
    std::vector<at::Tensor> inputs = saved.unpack(nullptr), wanted, outputs, cotangents;
    std::vector<size_t> places;
    const at::AutoGradMode enable(true);
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!task_should_compute_output(i) || !inputs[i].defined()) continue;
      inputs[i] = again ? inputs[i].view_as(inputs[i]) : inputs[i].detach().requires_grad_();
      wanted.push_back(inputs[i]);
      places.push_back(i);
    }
    const auto results = function(rows, inputs);
    for (size_t i = 0; i < results.size(); ++i) {
      if (!grads[i].defined() || !results[i].requires_grad()) continue;
      outputs.push_back(results[i]);
      cotangents.push_back(grads[i]);
    }
    variable_list out(inputs.size());
    if (outputs.empty() || wanted.empty()) return out;
    const auto g = torch::autograd::grad(outputs, wanted, cotangents, /*retain_graph=*/again, /*create_graph=*/again,
                                         /*allow_unused=*/true);
    for (size_t i = 0; i < places.size(); ++i) out[places[i]] = g[i];
    return out;
  }
  void release_variables() override { saved.release(); }
};

/// Known to end with the last of M rows, or not known at all.
bool is_last(const Rows& rows, const c10::SymInt& M) {
  const auto end = rows.end.maybe_as_int(), all = M.maybe_as_int();
  return !end || !all || *end == *all;
}

bool can_recompute(const std::vector<at::Tensor>& inputs) {
  return std::all_of(inputs.begin(), inputs.end(), [](const at::Tensor& t) { return !t.defined() || concrete(t); });
}

bool recorded(const std::vector<at::Tensor>& inputs) {
  return any_requires_grad(inputs) || any_forward_grad(inputs) || !can_recompute(inputs);
}

std::vector<at::Tensor> run_stripe(const Rows& rows, const std::vector<at::Tensor>& inputs, const StripeFunction& f) {
  // Transforms and tracing differentiate what runs: they cannot see through a nested engine call.
  if (!any_requires_grad(inputs) || any_forward_grad(inputs) || !can_recompute(inputs)) return f(rows, inputs);
  auto node = make_node<StripeBackward>();
  node->set_next_edges(edges_of(inputs));
  node->function = f;
  node->rows = rows;
  node->saved.save(inputs);
  std::vector<at::Tensor> outputs;
  {
    const at::NoGradGuard off;
    outputs = f(rows, inputs);
  }
  for (auto& t : outputs) torch::autograd::set_history(t, node);
  return outputs;
}

/// One output over all stripes. Numbers that nobody differentiates are written into place: small pieces kept between
/// the large temporaries of the stripes would break up the heap. Sums add in the order of the rows: equal on every
/// machine.
class Collected {
 public:
  Collected(Combine combine, int64_t rows, bool in_place) : combine_(combine), rows_(rows), in_place_(in_place) {}

  void add(const at::Tensor& piece, int64_t begin, int64_t count) {
    if (!piece.defined()) return;
    if (combine_.dim < 0) {
      if (!whole_.defined())
        whole_ = in_place_ ? piece.clone() : piece;
      else if (in_place_)
        whole_.add_(piece);
      else
        whole_ = at::add(whole_, piece);
    } else if (!in_place_) {
      pieces_.push_back(piece);
    } else {
      if (!whole_.defined()) {
        std::vector<int64_t> sizes = piece.sizes().vec();
        sizes[static_cast<size_t>(combine_.dim)] = rows_;
        whole_ = at::empty(sizes, piece.options());
      }
      whole_.narrow(combine_.dim, begin, count).copy_(piece);
    }
  }

  at::Tensor result() const { return pieces_.empty() ? whole_ : at::cat(pieces_, combine_.dim); }

 private:
  Combine combine_;
  int64_t rows_;
  bool in_place_;
  at::Tensor whole_;
  std::vector<at::Tensor> pieces_;
};

}  // namespace

namespace {

constexpr int64_t kEntries = int64_t{1} << 22;  // 16 MiB of float32: several such tensors stay near the last cache

std::vector<at::Tensor> run_at(const std::vector<int64_t>& ends, const std::vector<at::Tensor>& inputs,
                               const StripeFunction& f, const std::vector<Combine>& combine) {
  std::vector<Collected> collected;
  for (const Combine& how : combine) collected.emplace_back(how, ends.back(), !recorded(inputs));
  int64_t begin = 0;
  for (const int64_t end : ends) {
    const auto out = run_stripe({begin, end, {}}, inputs, f);
    for (size_t i = 0; i < combine.size(); ++i) collected[i].add(out[i], begin, end - begin);
    begin = end;
  }
  std::vector<at::Tensor> whole;
  for (const Collected& c : collected) whole.push_back(c.result());
  return whole;
}

/// Where stripes of causal scores end so that each has about kEntries of them, halo included: the first have few keys
/// and many rows. Equal sizes also let each stripe's temporaries fit where the last one's lay.
std::vector<int64_t> causal_ends(int64_t M, int64_t maps, int64_t halo, int64_t offset) {
  std::vector<int64_t> ends;
  const double entries = static_cast<double>(kEntries) / static_cast<double>(std::max<int64_t>(1, maps));
  for (int64_t begin = 0; begin < M;) {
    // (m + halo) (keys + m) = entries, m the stripe's rows
    const double keys = static_cast<double>(begin + offset), h = static_cast<double>(halo);
    const double rows = (std::sqrt((keys - h) * (keys - h) + 4 * entries) - keys - h) / 2;
    begin = std::min(M, begin + std::max<int64_t>(1, static_cast<int64_t>(rows)));
    ends.push_back(begin);
  }
  return ends;
}

}  // namespace

std::vector<at::Tensor> run_stripes(const c10::SymInt& M, int64_t block, const std::vector<at::Tensor>& inputs,
                                    const StripeFunction& f, const std::vector<Combine>& combine) {
  const auto known = M.maybe_as_int();
  if (block < 1 || !known || *known <= block) return run_stripe({0, M, {}}, inputs, f);
  std::vector<int64_t> ends;
  for (int64_t end = block; end < *known; end += block) ends.push_back(end);
  ends.push_back(*known);
  return run_at(ends, inputs, f, combine);
}

int64_t stripe_rows(const Call& call) {
  const auto batch = call.B().maybe_as_int(), heads = call.H().maybe_as_int(), keys = call.N().maybe_as_int();
  if (!batch || !heads || !keys) return 0;
  return std::max<int64_t>(1, kEntries / std::max<int64_t>(1, *batch * *heads * *keys));
}

namespace {

/// What f makes of the scores of one stripe of o's rows.
std::vector<at::Tensor> of_scores(const Rows& asked, const at::Tensor& q, const at::Tensor& k, double scale,
                                  const WeightFunction& f, const std::vector<at::Tensor>& extra,
                                  const StripeOptions& options, at::ScalarType compute) {
  const c10::SymInt M = q.sym_size(2), N = k.sym_size(2);
  const Rows rows{asked.begin + options.skipped, asked.end + options.skipped, {}};
  const c10::SymInt first = rows.begin.max(options.before) - options.before, last = M.min(rows.end + options.after);
  at::Tensor keys = k;
  // The last stripe, and the only one of symbolic sizes, sees all keys that any row sees.
  if (options.causal && !is_last(rows, M)) keys = k.slice_symint(2, 0, N.min(rows.end + *options.causal));
  // Scores keep the compute dtype under autocast: their masks and exponents need its range.
  const c10::impl::ExcludeDispatchKeyGuard exact(c10::autocast_dispatch_keyset);
  const at::Tensor scores = at::matmul(q.slice_symint(2, first, last).to(compute).mul(scale),
                                       repeat_heads(keys.to(compute), q.sym_size(1)).transpose(-2, -1));
  return f({scores, rows, rows.begin - first, N}, extra);
}

/// Runs a stripe function over the rows that are asked, in stripes of the options' size.
std::vector<at::Tensor> run_with(const StripeOptions& options, const Call& call, const std::vector<at::Tensor>& inputs,
                                 const StripeFunction& f, const std::vector<Combine>& combine) {
  const c10::SymInt M = call.M() - options.skipped;
  if (options.block > 0) return run_stripes(M, options.block, inputs, f, combine);
  const int64_t block = stripe_rows(call);  // 0: symbolic sizes
  const auto rows = M.maybe_as_int(), skipped = options.skipped.maybe_as_int();
  const auto offset = options.causal ? options.causal->maybe_as_int() : std::nullopt;
  if (block < 1 || !rows || !skipped || !offset || *rows <= block) return run_stripes(M, block, inputs, f, combine);
  const int64_t maps = call.q.size(0) * call.q.size(1);
  return run_at(causal_ends(*rows, maps, options.before + options.after, *skipped + *offset), inputs, f, combine);
}

Call call_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  Call call;
  call.q = q;
  call.k = k;
  call.v = v;
  return call;
}

}  // namespace

std::vector<at::Tensor> stripe_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                                         const WeightFunction& f, const std::vector<at::Tensor>& extra,
                                         const StripeOptions& options) {
  const Call call = call_of(q, k, v);
  std::vector<at::Tensor> inputs = {q, k, v};
  inputs.insert(inputs.end(), extra.begin(), extra.end());
  const at::ScalarType compute = call.compute();
  // Looked at once: a stripe then knows that its product needs no guard.
  const bool finite = concrete(v) && at::isfinite(v.detach()).all().item<bool>();
  const StripeFunction stripe = [=](const Rows& rows, const std::vector<at::Tensor>& in) {
    const c10::impl::ExcludeDispatchKeyGuard exact(c10::autocast_dispatch_keyset);
    auto out = of_scores(rows, in[0], in[1], scale, f, {in.begin() + 3, in.end()}, options, compute);
    const at::Tensor values = repeat_heads(in[2].slice_symint(2, 0, out[0].sym_size(3)).to(compute), in[0].sym_size(1));
    out[0] = guarded_matmul(out[0].to(compute), {}, values, finite).to(in[0].scalar_type());
    return out;
  };
  std::vector<Combine> combine = {Combine::concatenate(2)};
  combine.resize(static_cast<size_t>(1 + options.losses), Combine::sum());
  return run_with(options, call, inputs, stripe, combine);
}

at::Tensor stripe_output(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                         const OutputFunction& f, const StripeOptions& options) {
  const Call call = call_of(q, k, v);
  const StripeFunction stripe = [=, compute = call.compute()](const Rows& rows, const std::vector<at::Tensor>& in) {
    const WeightFunction output = [&](const StripeScores& scores, const std::vector<at::Tensor>&) {
      const at::Tensor own = in[2].slice_symint(2, 0, scores.scores.sym_size(3)).to(compute);
      return std::vector<at::Tensor>{f(scores, repeat_heads(own, in[0].sym_size(1))).to(in[0].scalar_type())};
    };
    return of_scores(rows, in[0], in[1], scale, output, {}, options, compute);
  };
  return run_with(options, call, {q, k, v}, stripe, {Combine::concatenate(2)})[0];
}

at::Tensor stripe_weights(const at::Tensor& q, const at::Tensor& k, double scale, const WeightFunction& f,
                          const std::vector<at::Tensor>& extra, const StripeOptions& options) {
  const Call call = call_of(q, k, k);
  std::vector<at::Tensor> inputs = {q, k};
  inputs.insert(inputs.end(), extra.begin(), extra.end());
  const StripeFunction stripe = [=, compute = call.compute()](const Rows& rows, const std::vector<at::Tensor>& in) {
    const at::Tensor w = of_scores(rows, in[0], in[1], scale, f, {in.begin() + 2, in.end()}, options, compute)[0];
    return std::vector<at::Tensor>{
        at::constant_pad_nd_symint(w, std::vector<c10::SymInt>{0, in[1].sym_size(2) - w.sym_size(3)})
            .to(in[0].scalar_type())};
  };
  return run_with(options, call, inputs, stripe, {Combine::concatenate(2)})[0];
}

}  // namespace regard::ops
