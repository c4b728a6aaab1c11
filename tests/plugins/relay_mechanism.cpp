// A mechanism that leaves what it saw for the next layer: for tests of the blackboard and of losses.

#include "regard/nn/mechanism.h"

namespace regard {
namespace {

/// y = w x + mean of what the layer before saw; publishes the tokens' means.
struct Relay {
  struct Config {
    int64_t width = 0;
    bool quiet = false;
    void fields(Fields& f) {
      f("width", width, "model width D");
      f("quiet", quiet, "publishes nothing");
    }
    void validate() const {}
  };

  static Info info() {
    Info info;
    info.id = "relay";
    info.family = "test";
    info.title = "Relay of the tokens' means";
    info.equation = "y = w x + m, m what the layer before published";
    info.paper = "none";
    info.consumes = {{"means", "(B, N) means of the tokens of an earlier layer", "float (B, N)"}};
    info.publishes = {{"means", "(B, N) means of its tokens", "float (B, N)"}};
    info.losses = {{"size", "mean square of its output"}, {"shift", "square of the mean of its output"}};
    info.examples = {R"({"width": 8})"};
    return info;
  }
  static void declare(const Config& config, Declaration& weights) {
    weights.weight("w", {config.width}, Init::constant(0.5));
  }
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context) {
    at::Tensor y = x * weights["w"];
    const at::Tensor before = context.consume("means");
    if (before.defined()) y = y + before.unsqueeze(-1);
    if (!config.quiet) context.publish("means", [&] { return y.mean(-1); });
    context.loss("size", [&] { return y.square().mean(); });
    context.loss("shift", [&] { return y.mean().square(); });
    return y;
  }
};

REGARD_MECHANISM(Relay)

}  // namespace
}  // namespace regard
