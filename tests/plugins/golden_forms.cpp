// A mechanism whose golden mapping uses every form: nested options, options by value, weights by alternatives, inverted
// inputs, added losses, another folder, a chain of calls.

#include "regard/base/error.h"
#include "regard/nn/mechanism.h"

namespace regard {
namespace {

Golden chained() {
  const auto link = [](const char* own, const char* other, const char* from) {
    Golden step;
    step.config = {{"dim", "width"}, {"*", ""}};
    step.inputs = {{"*", ""}, {from, "x"}};
    step.outputs = {{own, ""}, {other, "-"}};
    step.weights = {{std::string(own) + ".", "scale."}, {std::string(other) + ".", "-"}};
    return step;
  };
  Golden form;
  form.when = "param.second.*";
  form.inputs = {{"aux.*", ""}};
  form.steps = {link("first", "second", "in.x"), link("second", "first", "out.first")};
  form.steps[0].inputs = {{"x", "x"}};
  return form;
}

Golden elsewhere() {
  Golden form;
  form.folder = "golden-forms-elsewhere";
  form.config = {{"hidden_size", "width"}};
  form.fixed = R"({"factor": 2})";
  return form;
}

Golden unusable() {
  Golden form;
  form.when = "in.image";
  form.excuse = "an image is no sequence";
  return form;
}

/// y = factor * scale * x, zero at hidden tokens; loss.square = mean(y^2).
struct GoldenForms {
  struct Config {
    int64_t width = 0;
    double factor = 1;
    void fields(Fields& f) {
      f("width", width, "model width D");
      f("factor", factor, "of y");
    }
    void validate() const {}
  };
  static Info info() {
    Info info;
    info.id = "golden-forms";
    info.family = "test";
    info.title = info.equation = info.paper = "y = factor * scale * x";
    info.inputs = {{"hidden", "(B, N) bool: true gives 0"}};
    info.losses = {{"square", "mean of y^2"}};
    info.examples = {R"({"width": 8})"};
    Golden& golden = info.golden;
    golden.config = {{"net.dim", "width"}, {"mode=twice", R"({"factor": 2})"}, {"mode", ""}};
    golden.inputs = {{"mask", "!hidden"}};
    golden.outputs = {{"square", "+loss.square"}};
    golden.weights = {{"net.", "other."}, {"net.", "scale."}};
    golden.forms = {chained(), elsewhere(), unusable()};
    return info;
  }
  static void declare(const Config& config, Declaration& weights) {
    weights.weight("scale.weight", {config.width}, Init::ones());
  }
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context) {
    at::Tensor y = x * weights["scale.weight"] * config.factor;
    if (const at::Tensor hidden = context.input("hidden"); hidden.defined()) y = y.masked_fill(hidden.unsqueeze(2), 0);
    context.loss("square", [&] { return y.square().mean(); });
    return y;
  }
};
REGARD_MECHANISM(GoldenForms)

}  // namespace
}  // namespace regard
