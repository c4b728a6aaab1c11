#include "regard/nn/dense/robust_token_attention_loss.h"

#include <torch/library.h>

#include "regard/base/error.h"
#include "regard/nn/shapes.h"
#include "regard/ops/attention_map.h"
#include "regard/ops/boundary.h"
#include "regard/ops/stripe.h"

namespace regard {
namespace {

constexpr double least_norm = 1e-8;  // of the cosine, as torch.nn.functional.cosine_similarity
constexpr double layers_epsilon = 1e-6;

/// t where it is above threshold / N, else 0; the comparison is a constant for derivatives.
at::Tensor above(const at::Tensor& t, double threshold) {
  const at::Tensor level =
      at::scalar_tensor(at::Scalar(t.sym_size(-1).max(c10::SymInt(1))), t.options()).reciprocal() * threshold;
  return t.masked_fill(t.detach().le(level), 0);
}

/// max(|t|, 1e-8) over the last dimension; its gradient at t = 0 is 0.
at::Tensor length_of(const at::Tensor& t) { return t.square().sum(-1).clamp_min(least_norm * least_norm).sqrt(); }

/// cos(a'_i, s') for a (B, m, N) and s' (B, 1, N): (B, m).
at::Tensor cosines(const at::Tensor& a, const at::Tensor& s, double threshold) {
  const at::Tensor kept = above(a, threshold);
  return (kept * s).sum(-1) / (length_of(kept) * length_of(s));
}

void check_threshold(double threshold) {
  require(threshold >= 0, "attention_similarity", "threshold >= 0", std::to_string(threshold));
}

}  // namespace

at::Tensor attention_similarity(const Attending& call, double threshold) {
  check_threshold(threshold);
  const AttentionArguments arguments = in_order(call.spec, call.arguments);
  std::vector<at::Tensor> inputs = {call.q, call.k};
  inputs.insert(inputs.end(), arguments.captures.begin(), arguments.captures.end());
  inputs.insert(inputs.end(), arguments.operands.begin(), arguments.operands.end());
  const auto captures = static_cast<std::ptrdiff_t>(arguments.captures.size()),
             all = static_cast<std::ptrdiff_t>(inputs.size());
  // Mean over heads of the weights of some rows, (B, m, N).
  const auto rows_of = [spec = to_json(call.spec), arguments, captures, all](const ops::Rows& rows,
                                                                             const std::vector<at::Tensor>& in) {
    AttentionArguments own = arguments;
    own.captures.assign(in.begin() + 2, in.begin() + 2 + captures);
    own.operands.assign(in.begin() + 2 + captures, in.begin() + all);
    return attention_rows(in[0], in[1], rows.index(in[0].options().requires_grad(std::nullopt)), spec, own).mean(1);
  };
  const c10::SymInt M = call.q.sym_size(2);
  ops::Call sizes;
  sizes.q = call.q, sizes.k = call.k;
  const int64_t block = ops::stripe_rows(sizes);
  const auto column_sums = [rows_of](const ops::Rows& rows, const std::vector<at::Tensor>& in) {
    return std::vector<at::Tensor>{rows_of(rows, in).sum(1, /*keepdim=*/true)};
  };
  const at::Scalar queries(M.max(c10::SymInt(1)));
  const at::Tensor mean = ops::run_stripes(M, block, inputs, column_sums, {ops::Combine::sum()})[0] / queries;
  inputs.push_back(above(mean, threshold));
  const auto similarities = [rows_of, threshold](const ops::Rows& rows, const std::vector<at::Tensor>& in) {
    return std::vector<at::Tensor>{cosines(rows_of(rows, in), in.back(), threshold).sum(1)};
  };
  return (ops::run_stripes(M, block, inputs, similarities, {ops::Combine::sum()})[0] / queries).mean();
}

at::Tensor attention_similarity(const at::Tensor& q, const at::Tensor& k, double threshold,
                                std::optional<double> scale) {
  Attending call;
  call.q = q, call.k = k;
  call.spec.scale = scale;
  return attention_similarity(call, threshold);
}

at::Tensor map_similarity(const at::Tensor& attn, double threshold) {
  check_threshold(threshold);
  if (attn.dim() != 4 || !attn.is_floating_point())
    fail("map_similarity", "attn (B, H, M, N) of a floating type", describe(attn));
  const at::Tensor a = attn.mean(1);
  return cosines(a, above(a.mean(1, /*keepdim=*/true), threshold), threshold).mean();
}

at::Tensor diversification_loss(at::TensorList similarities) {
  require(!similarities.empty(), "diversification_loss", "the similarity of one layer at least", "none");
  for (const auto& t : similarities)
    if (t.dim() != 0) fail("diversification_loss", "similarities that are scalars, one a layer", describe(t));
  return at::stack(similarities).sum() / (static_cast<double>(similarities.size()) + layers_epsilon);
}

namespace {

at::Tensor similarity_op(const at::Tensor& q, const at::Tensor& k, double threshold, std::optional<double> scale) {
  return attention_similarity(q, k, threshold, scale);
}

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def("attention_similarity(Tensor q, Tensor k, float threshold, float? scale=None) -> Tensor",
        guarded<&similarity_op>);
  m.def("map_similarity(Tensor attn, float threshold) -> Tensor", guarded<&map_similarity>);
  m.def("diversification_loss(Tensor[] similarities) -> Tensor", guarded<&diversification_loss>);
}

}  // namespace
}  // namespace regard
