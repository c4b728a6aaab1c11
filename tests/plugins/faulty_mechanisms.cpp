// Mechanisms that are wrong on purpose, one fault each. The checker must find each fault, and no other.

#include <torch/csrc/autograd/custom_function.h>

#include "regard/nn/mechanism.h"
#include "regard/nn/shapes.h"
#include "regard/ops/attention.h"

namespace regard {
namespace {

Info faulty(const char* id, Role role, const char* fault) {
  Info info;
  info.id = id;
  info.family = "faulty";
  info.role = role;
  info.title = fault;
  info.equation = "wrong";
  info.paper = "none";
  info.examples = {R"({"width": 8})"};
  return info;
}

struct Width {
  int64_t width = 0;
  void fields(Fields& f) { f("width", width, "model width D"); }
  void validate() const {}
};

struct CausalWidth {
  int64_t width = 0;
  bool causal = false;
  void fields(Fields& f) {
    f("width", width, "model width D");
    f("causal", causal, "token i sees tokens j <= i");
  }
  void validate() const {}
};

// (B, N, 1), 1 at real tokens.
at::Tensor real_tokens(const at::Tensor& x, const at::Tensor& lengths) {
  return (~padding(lengths, x.sym_size(1))).to(x.scalar_type()).unsqueeze(2);
}

at::Tensor without_padding(const at::Tensor& x, const at::Tensor& lengths) {
  return x.masked_fill(padding(lengths, x.sym_size(1)).unsqueeze(2), 0);
}

/// Fault: under causal a thousandth of the mean of all tokens, later ones too, is added.
struct LeakingMixer {
  using Config = CausalWidth;
  static Info info() { return faulty("faulty-leak", Role::mixer, "the future leaks"); }
  static void declare(const Config&, Declaration&) {}
  static at::Tensor forward(const Config& config, const Weights&, const at::Tensor& x, Context&) {
    if (!config.causal) return 2 * x;
    const at::Tensor unpoisoned = at::nan_to_num(x, 0, 0, 0);
    return x.cumsum(1) + 1e-3 * unpoisoned.sum(1, /*keepdim=*/true);
  }
};

/// Fault: the mean divides by the padded length.
struct PaddedMeanPool {
  using Config = Width;
  static Info info() {
    Info info = faulty("faulty-padding", Role::pool, "padding counts");
    info.inputs = {{"lengths", "(B) int64"}};
    return info;
  }
  static void declare(const Config&, Declaration&) {}
  static at::Tensor forward(const Config&, const Weights&, const at::Tensor& x, Context& context) {
    const at::Tensor lengths = context.input("lengths");
    const at::Tensor real = lengths.defined() ? without_padding(x, lengths) : x;
    return real.sum(1) / at::ones_like(x.select(2, 0)).sum(1, /*keepdim=*/true).clamp_min(1);
  }
};

/// Fault: the gate is a constant for the derivative.
struct DetachedMixer {
  using Config = Width;
  static Info info() { return faulty("faulty-gradient", Role::mixer, "the gradient lacks a term"); }
  static void declare(const Config& config, Declaration& weights) {
    weights.linear("gate", config.width, config.width);
  }
  static at::Tensor forward(const Config&, const Weights& weights, const at::Tensor& x, Context&) {
    return x * at::sigmoid(weights.linear(x, "gate")).detach() + 0.1 * weights.linear(x, "gate");
  }
};

/// y = x^3 with a first derivative that is right and no second one.
struct Cube : torch::autograd::Function<Cube> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x) {
    context->save_for_backward({x});
    return x.pow(3);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grad) {
    return {grad[0] * 3 * context->get_saved_variables()[0].detach().pow(2)};
  }
};

/// Fault: the second derivative is missing.
struct FirstOrderMixer {
  using Config = Width;
  static Info info() { return faulty("faulty-second-gradient", Role::mixer, "the second derivative is missing"); }
  static void declare(const Config&, Declaration&) {}
  static at::Tensor forward(const Config&, const Weights&, const at::Tensor& x, Context&) { return Cube::apply(x); }
};

/// Fault: the mean of the batch is taken away, and not declared.
struct BatchMixer {
  using Config = Width;
  static Info info() { return faulty("faulty-batch", Role::mixer, "batch-mates matter"); }
  static void declare(const Config&, Declaration&) {}
  static at::Tensor forward(const Config&, const Weights&, const at::Tensor& x, Context&) {
    return x.sym_size(0) == 0 ? x : x - 1e-3 * x.mean(0, /*keepdim=*/true);
  }
};

/// Fault: a row of length 0 divides 0 by 0.
struct EmptyPool {
  using Config = Width;
  static Info info() {
    Info info = faulty("faulty-empty", Role::pool, "a row without tokens is NaN");
    info.inputs = {{"lengths", "(B) int64"}};
    return info;
  }
  static void declare(const Config&, Declaration&) {}
  static at::Tensor forward(const Config&, const Weights&, const at::Tensor& x, Context& context) {
    const at::Tensor lengths = context.input("lengths");
    if (!lengths.defined()) return x.sum(1) / at::ones_like(x.select(2, 0)).sum(1, /*keepdim=*/true).clamp_min(1);
    return without_padding(x, lengths).sum(1) / real_tokens(x, lengths).sum(1);
  }
};

/// Fault: a map is read column by column.
struct ColumnMixer {
  using Config = Width;
  static Info info() {
    Info info = faulty("faulty-map", Role::pool, "maps are read column by column");
    info.takes_maps = true;
    info.takes_prefix = false;
    return info;
  }
  static void declare(const Config&, Declaration&) {}
  static at::Tensor forward(const Config&, const Weights&, const at::Tensor& x, Context&) {
    const at::Tensor tokens = x.dim() == 3 ? x : x.transpose(2, 3).flatten(2).transpose(1, 2);
    return (tokens * (at::ones_like(tokens).cumsum(1) - 1)).sum(1);
  }
};

at::Tensor self_attention(const at::Tensor& x, const std::string& path) {
  AttentionArguments arguments;
  arguments.path = path;
  const at::Tensor heads = x.unflatten(-1, {2, -1}).transpose(1, 2);
  return attention(heads, heads, heads, std::string("{}"), arguments).o.transpose(1, 2).flatten(2);
}

/// Fault: the fused path differs by 1e-8 from the others.
struct PathMixer {
  using Config = Width;
  static Info info() { return faulty("faulty-path", Role::mixer, "the fused path differs"); }
  static void declare(const Config&, Declaration&) {}
  static at::Tensor forward(const Config&, const Weights&, const at::Tensor& x, Context& context) {
    const at::Tensor y = self_attention(x, context.path);
    return context.path == "fused" ? y * (1 + 1e-8) : y;
  }
};

/// Fault: the path asked for is ignored.
struct FallbackMixer {
  using Config = Width;
  static Info info() { return faulty("faulty-fallback", Role::mixer, "another path runs than the one asked for"); }
  static void declare(const Config&, Declaration&) {}
  static at::Tensor forward(const Config&, const Weights&, const at::Tensor& x, Context&) {
    return self_attention(x, "composite");
  }
};

REGARD_MECHANISM(LeakingMixer)
REGARD_MECHANISM(PaddedMeanPool)
REGARD_MECHANISM(DetachedMixer)
REGARD_MECHANISM(FirstOrderMixer)
REGARD_MECHANISM(BatchMixer)
REGARD_MECHANISM(EmptyPool)
REGARD_MECHANISM(ColumnMixer)
REGARD_MECHANISM(PathMixer)
REGARD_MECHANISM(FallbackMixer)

}  // namespace
}  // namespace regard
