// What a C++ call of a mechanism brings: taps, edits, a cache.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "regard/base/error.h"
#include "regard/nn/module.h"

namespace regard {
namespace {

const char* const config = R"({"width": 8, "heads": 2, "causal": true})";

TEST(Context, EditsAndTapsOfACall) {
  torch::manual_seed(0);
  nn::Module module("softmax-attention", config);
  const at::Tensor x = at::randn({2, 5, 8});
  Context context;
  context.wanted = {"tap.effective_keys", "attn"};
  Edit uniform;
  uniform.before = [](Attending& call) { call.spec.score = Expr(0.0) * dot(); };
  context.edits = {uniform};
  const at::Tensor y = module.forward(x, context);
  EXPECT_TRUE(at::allclose(context.outputs["tap.effective_keys"][0][0], at::arange(1, 6).to(at::kFloat)));
  EXPECT_TRUE(at::allclose(context.outputs["attn"].select(2, 4), at::full({2, 2, 5}, 0.2)));
  EXPECT_FALSE(at::allclose(y, module.forward(x)));

  Context first_only;
  Edit squared;
  squared.attention = 1;
  squared.after.change = [](const at::Tensor& w, const ops::Rows&, const std::vector<at::Tensor>&) { return w * w; };
  first_only.edits = {squared};
  std::string message;
  try {
    module.forward(x, first_only);
  } catch (const Error& error) {
    message = error.what();
  }
  EXPECT_NE(message.find("expected edits of attentions that it runs; found one of every layer, attention 1"),
            std::string::npos)
      << message;
}

TEST(Context, DecodesInChunks) {
  torch::manual_seed(0);
  nn::Module module("softmax-attention", config);
  const at::Tensor x = at::randn({2, 5, 8});
  Context first, second;
  first.wanted = second.wanted = {"cache.k", "cache.v"};
  const at::Tensor a = module.forward(x.slice(1, 0, 3), first);
  for (const char* name : {"cache.k", "cache.v"}) second.inputs[name] = first.outputs[name];
  const at::Tensor b = module.forward(x.slice(1, 3), second);
  EXPECT_TRUE(at::allclose(at::cat({a, b}, 1), module.forward(x), 1e-4, 1e-5));
  EXPECT_EQ(second.outputs["cache.k"].size(2), 5);
}

}  // namespace
}  // namespace regard
