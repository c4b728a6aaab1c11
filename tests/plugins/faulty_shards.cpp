// Mechanisms that are wrong on shards, one fault each.

#include "regard/nn/mechanism.h"

namespace regard {
namespace {

Info faulty(const char* id, Role role, const char* fault, const char* example) {
  Info info;
  info.id = id;
  info.family = "faulty";
  info.role = role;
  info.title = fault;
  info.equation = "wrong";
  info.paper = "none";
  info.takes_prefix = false;
  info.examples = {example};
  return info;
}

struct Width {
  int64_t width = 0;
  void fields(Fields& f) { f("width", width, "model width D"); }
  void validate() const {}
};

/// exp(s - m) of the shard's own greatest score m, (B, N, 1), and sum exp(s - m) x.
/// Fault: parts of different m are added as they are.
struct Merge {
  using Config = Width;
  static Info info() {
    return faulty("faulty-merge", Role::pool, "a merge that forgets to rescale", R"({"width": 8})");
  }
  static void declare(const Config&, Declaration&) {}
  static at::Tensor forward(const Config&, const Weights&, const at::Tensor& x, Context& context) {
    const at::Tensor scores = x.sum(-1, /*keepdim=*/true) / 3;
    const at::Tensor zero = at::zeros_like(x.sum(1, /*keepdim=*/true).slice(2, 0, 1));  // for a row without tokens
    const at::Tensor own = at::cat({scores, zero}, 1).amax(1, /*keepdim=*/true);
    const at::Tensor weights = (scores - own).exp();
    return context.total((weights * x).sum(1)) / context.total(weights.sum(1)).clamp_min(1e-30);
  }
};

/// Fault: the mean over all shards is differentiated as if every rank's loss were averaged.
struct Ranks {
  using Config = Width;
  static Info info() {
    return faulty("faulty-ranks", Role::mixer, "gradients divided by the number of ranks", R"({"width": 8})");
  }
  static void declare(const Config& config, Declaration& weights) { weights.linear("w", config.width, config.width); }
  static at::Tensor forward(const Config&, const Weights& weights, const at::Tensor& x, Context& context) {
    const at::Tensor ranks = context.total(at::ones({}, x.options()));
    const at::Tensor y = weights.linear(x, "w");
    const at::Tensor sum = context.total(y.sum(1, /*keepdim=*/true));
    // The value is the sum; its derivative is that of the sum over the number of ranks.
    return y + (sum.detach() + (sum - sum.detach()) / ranks) / 8;
  }
};

REGARD_MECHANISM(Merge)
REGARD_MECHANISM(Ranks)

}  // namespace
}  // namespace regard
