// Mechanisms that are wrong about order and memory, one fault each, and an executor that merges wrongly.

#include "regard/nn/mechanism.h"
#include "regard/nn/shapes.h"
#include "regard/ops/attention.h"
#include "regard/ops/executor.h"
#include "regard/ops/linear_attention.h"

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

struct CausalWidth {
  int64_t width = 0;
  bool causal = true;
  void fields(Fields& f) {
    f("width", width, "model width D");
    f("causal", causal, "token i sees tokens j <= i");
  }
  void validate() const {}
};

/// Fault: the kernel of three taps is centered, so that the last tap reads the next token.
struct Convolution {
  using Config = CausalWidth;
  static Info info() { return faulty("faulty-convolution", Role::mixer, "a leaking convolution", R"({"width": 8})"); }
  static void declare(const Config&, Declaration& weights) { weights.weight("taps", {3}, Init::normal(0.5)); }
  static at::Tensor forward(const Config&, const Weights& weights, const at::Tensor& x, Context&) {
    const at::Tensor nothing = at::zeros_like(x.slice(1, 0, 1));
    const at::Tensor before = at::cat({nothing, x.slice(1, 0, -1)}, 1), after = at::cat({x.slice(1, 1), nothing}, 1);
    return weights["taps"][0] * before + weights["taps"][1] * x + weights["taps"][2] * after;
  }
};

at::Tensor heads_of(const at::Tensor& x) { return split_heads(x, 2); }

/// Fault: key j = i + 1 is seen too.
struct Mask {
  using Config = CausalWidth;
  static Info info() { return faulty("faulty-mask", Role::mixer, "a mask one off", R"({"width": 8})"); }
  static void declare(const Config&, Declaration&) {}
  static at::Tensor forward(const Config&, const Weights&, const at::Tensor& x, Context& context) {
    AttentionSpec spec;
    spec.keep = key() <= query() + Expr(1);
    return merge_heads(context.attend(heads_of(x), heads_of(x), heads_of(x), spec).o);
  }
};

/// Fault: softmax over the queries, so that the future of a row is in its denominators.
struct Axis {
  using Config = CausalWidth;
  static Info info() { return faulty("faulty-axis", Role::mixer, "a softmax over the wrong axis", R"({"width": 8})"); }
  static void declare(const Config&, Declaration&) {}
  static at::Tensor forward(const Config&, const Weights&, const at::Tensor& x, Context&) {
    const at::Tensor scores = at::matmul(x, x.transpose(1, 2)) / 3;
    const at::Tensor hidden = at::ones_like(scores, at::kBool).triu(1);
    const at::Tensor weights = at::softmax(at::nan_to_num(scores, 0, 0, 0).masked_fill(hidden, -1e30), 1);
    return at::matmul(weights.masked_fill(hidden, 0), at::nan_to_num(x, 0, 0, 0));
  }
};

/// Fault: the statistics run over the batch.
struct Normalization {
  using Config = Width;
  static Info info() {
    return faulty("faulty-normalization", Role::mixer, "a batch-wide normalization", R"({"width": 8})");
  }
  static void declare(const Config&, Declaration&) {}
  static at::Tensor forward(const Config&, const Weights&, const at::Tensor& x, Context&) {
    if (x.sym_size(0) == 0) return x;
    const at::Tensor centered = x - x.mean(0, /*keepdim=*/true);
    return centered / (centered.square().mean(0, /*keepdim=*/true) + 1).sqrt();
  }
};

/// Fault: a step counts one token of the past too few. y_t = (x_0 + ... + x_t) / (t + 1).
struct CachedMean {
  using Config = CausalWidth;
  static Info info() { return faulty("faulty-cache", Role::mixer, "a cache off by one", R"({"width": 8})"); }
  static void declare(const Config&, Declaration&) {}
  static std::vector<CacheStream> caches(const Config& config) {
    return {CacheStream::state("sum", {config.width}), CacheStream::state("count", {1})};
  }
  static at::Tensor forward(const Config&, const Weights&, const at::Tensor& x, Context& context) {
    at::Tensor sums = x.cumsum(1);
    at::Tensor counts = at::ones_like(x.slice(2, 0, 1)).cumsum(1);
    if (context.state("sum").defined()) {
      sums = sums + context.state("sum").unsqueeze(1);
      counts = counts + context.state("count").unsqueeze(1) - 1;
    }
    context.store("sum", sums.slice(1, -1).sum(1));
    context.store("count", counts.slice(1, -1).sum(1));
    return sums / counts;
  }
};

/// Fault: each half is normalized by itself and the two are averaged.
class ForgetfulSplit final : public Executor {
 public:
  std::string text() const override { return "faulty-split:2"; }
  AttentionOutput attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSpec& spec,
                         const AttentionArguments& arguments) override {
    const Expr first_half = Expr(2) * column() < keys();
    const auto part = [&](const Expr& mine) {
      AttentionSpec own = spec;
      own.keep = spec.keep.defined() ? spec.keep & mine : mine;
      return attention(q, k, v, own, arguments);
    };
    AttentionOutput first = part(first_half);
    const AttentionOutput second = part(~first_half);
    first.o = (first.o + second.o) / 2;
    return first;
  }
  LinearOutput linear(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const LinearArguments& arguments) override {
    return linear_attention(q, k, v, arguments);
  }
};

const bool registered_executor = [] {
  register_executor("faulty-split", "merges without rescaling",
                    [](const std::string&) { return std::make_shared<ForgetfulSplit>(); });
  return true;
}();

REGARD_MECHANISM(Convolution)
REGARD_MECHANISM(Mask)
REGARD_MECHANISM(Axis)
REGARD_MECHANISM(Normalization)
REGARD_MECHANISM(CachedMean)

}  // namespace
}  // namespace regard
