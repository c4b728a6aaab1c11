#include "regard/nn/routing/mixture_of_head_router.h"

#include <limits>

#include "regard/nn/shapes.h"

namespace regard::mixture_of_head {
namespace {

using Config = MixtureOfHead::Config;

at::Tensor marked(const at::Tensor& like, const at::Tensor& chosen) {
  return at::zeros_like(like.detach()).scatter(-1, chosen, 1);
}

double smallest_step(at::ScalarType type) {  // eps of the type
  if (type == at::kDouble) return std::numeric_limits<double>::epsilon();
  if (type == at::kHalf) return 0x1p-10;
  if (type == at::kBFloat16) return 0x1p-7;
  return std::numeric_limits<float>::epsilon();
}

/// R^2 mean_e(mean_t p mean_t m) over the tokens that exist, on all shards.
at::Tensor balance(const at::Tensor& p, const at::Tensor& mask, const at::Tensor& padded, Context& context) {
  at::Tensor real = at::ones_like(p.detach().select(-1, 0));  // (B, N)
  if (padded.defined()) real = real.masked_fill(padded, 0);
  const at::Tensor count = context.total(real.sum()).clamp_min(1);
  const auto mean = [&](const at::Tensor& t) {
    return context.total((t * real.unsqueeze(2)).flatten(0, 1).sum(0)) / count;
  };
  const double choices = static_cast<double>(p.sym_size(-1).guard_int(__FILE__, __LINE__));
  return (mean(p) * mean(mask)).mean() * (choices * choices);
}

/// One product for wg, wg_0 and wg_1, cut into their logits.
std::vector<at::Tensor> logits_of(const Weights& weights, const at::Tensor& x) {
  std::vector<at::Tensor> rows;
  std::vector<int64_t> sizes;
  for (const char* name : {"wg.weight", "wg_0.weight", "wg_1.weight"}) {
    if (weights.has(name)) rows.push_back(weights[name]);
    sizes.push_back(weights.has(name) ? weights[name].size(0) : 0);
  }
  if (rows.empty()) return {{}, {}, {}};
  return at::linear(x, rows.size() == 1 ? rows[0] : at::cat(rows)).split_with_sizes(sizes, -1);
}

Routing by_weights(const Config& config, const Weights& weights, const at::Tensor& x, Context& context) {
  const auto logits = logits_of(weights, x);
  const double shared = static_cast<double>(config.shared_heads), active = static_cast<double>(config.routed_heads);
  at::Tensor common;  // (B, N, S)
  if (config.shared_heads > 1) common = at::softmax(logits[2], -1) * shared;
  if (config.shared_heads == 1) common = at::ones_like(x.detach().slice(-1, 0, 1));
  if (config.routed_heads == 0) return {common, {}};

  const at::Tensor p = at::softmax(logits[0], -1);
  const at::Tensor chosen = std::get<1>(p.topk(config.routed_heads, -1));
  const at::Tensor mask = marked(p, chosen);
  context.loss("balance", [&] { return balance(p, mask, context.padding(x), context); });
  at::Tensor routed = p * mask;
  routed = routed / routed.sum(-1, true).clamp_min(smallest_step(p.scalar_type())) * active;
  if (config.shared_heads == 0) return {routed, chosen};
  const at::Tensor between = at::softmax(logits[1], -1) * 2;
  return {at::cat({between.slice(-1, 0, 1) * common, between.slice(-1, 1) * routed}, -1), chosen};
}

/// The longest queries. Dividing a token's lengths by their deviation, as the official code does, changes no order.
Routing by_length(const Config& config, const at::Tensor& q) {
  const at::Tensor length = q.detach().slice(1, config.shared_heads).norm(2, -1).transpose(1, 2);  // (B, N, R)
  const at::Tensor chosen = std::get<1>(length.topk(config.routed_heads, -1));
  const at::Tensor mask = marked(length, chosen);
  const at::Tensor shared = at::ones_like(length.slice(-1, 0, 1))
                                .expand_symint({length.sym_size(0), length.sym_size(1), config.shared_heads});
  return {at::cat({shared, mask}, -1), chosen};
}

}  // namespace

Routing route(const Config& config, const Weights& weights, const at::Tensor& x, const at::Tensor& q,
              Context& context) {
  return config.learned() ? by_weights(config, weights, x, context) : by_length(config, q);
}

}  // namespace regard::mixture_of_head
