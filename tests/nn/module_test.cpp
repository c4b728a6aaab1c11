// regard::nn::Module, the C++ owner of a mechanism's weights.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "regard/base/error.h"
#include "regard/nn/module.h"
#include "regard/nn/state_file.h"

namespace regard {
namespace {

const char* const config = R"({"width": 8, "heads": 2, "gamma": 1.25, "use_beta": true})";

std::string temporary(const std::string& name) { return testing::TempDir() + "/regard_" + name; }

template <class Body>
std::string refusal(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Module, HasTheDeclaredNames) {
  const nn::Module module("simpool", config);
  std::vector<std::string> names;
  for (const auto& entry : module.named_parameters()) names.push_back(entry.key());
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (std::vector<std::string>{"beta", "norm_patches.bias", "norm_patches.weight", "wk.weight", "wq.weight"}));
}

TEST(Module, TrainsByAnOptimizer) {
  torch::manual_seed(0);
  nn::Module module("softmax-attention", R"({"width": 8, "heads": 2})");
  torch::optim::SGD optimizer(module.parameters(), 0.1);
  const at::Tensor x = torch::randn({4, 6, 8}), target = torch::randn({4, 6, 8});
  double first = 0, last = 0;
  for (int step = 0; step < 30; ++step) {
    optimizer.zero_grad();
    const at::Tensor loss = (module.forward(x) - target).square().mean();
    loss.backward();
    optimizer.step();
    (step == 0 ? first : last) = loss.item<double>();
  }
  EXPECT_LT(last, 0.95 * first);
}

TEST(Module, ContextBringsInputsAndTakesOutputs) {
  nn::Module module("simpool", config);
  Context context;
  context.inputs["lengths"] = torch::tensor({6, 2}, torch::kLong);
  context.wanted = {"attn"};
  const at::Tensor y = module.forward(torch::randn({2, 6, 8}), context);
  EXPECT_EQ(y.sizes(), (std::vector<int64_t>{2, 8}));
  EXPECT_EQ(context.outputs.at("attn").sizes(), (std::vector<int64_t>{2, 2, 1, 6}));
  EXPECT_EQ(context.outputs.at("attn")[1].slice(-1, 2).abs().max().item<double>(), 0);
}

TEST(Module, TrainsOrNotAsTheModuleSays) {
  nn::Module module("softmax-attention", R"({"width": 8, "heads": 2, "proj_drop": 0.5})");
  const at::Tensor x = torch::randn({2, 6, 8});
  EXPECT_FALSE(torch::equal(module.forward(x), module.forward(x)));
  module.eval();
  EXPECT_TRUE(torch::equal(module.forward(x), module.forward(x)));
}

TEST(Module, CloneHasWeightsOfItsOwn) {
  const auto module = std::make_shared<nn::Module>("simpool", config);
  module->to(torch::kDouble);
  module->eval();
  const auto copy = std::dynamic_pointer_cast<nn::Module>(module->clone());
  const at::Tensor x = torch::randn({2, 6, 8}, torch::kDouble);
  const at::Tensor before = copy->forward(x);
  EXPECT_TRUE(torch::equal(before, module->forward(x)));
  EXPECT_FALSE(copy->is_training());
  {
    const torch::NoGradGuard no_grad;
    for (auto& weight : module->parameters()) weight.add_(1);
  }
  EXPECT_TRUE(torch::equal(before, copy->forward(x)));
  EXPECT_FALSE(torch::equal(before, module->forward(x)));
}

TEST(Module, SavesWithItsConfigurationAndOpens) {
  const std::string path = temporary("simpool.safetensors");
  nn::Module module("simpool", config);
  module.save(path);
  const auto opened = nn::Module::open(path);
  const at::Tensor x = torch::randn({2, 6, 8});
  EXPECT_EQ(opened->instance().config(), module.instance().config());
  EXPECT_TRUE(torch::equal(opened->forward(x), module.forward(x)));

  nn::Module other("simpool", config);
  other.load(path);
  EXPECT_TRUE(torch::equal(other.forward(x), module.forward(x)));
  nn::Module different("simpool", R"({"width": 8})");
  EXPECT_NE(refusal([&] { different.load(path); }).find("[Module::load] expected simpool {"), std::string::npos);
  std::remove(path.c_str());
}

TEST(Module, RefusesFilesThatDoNotFit) {
  const std::string path = temporary("other.safetensors");
  const auto instance = mechanism("simpool").configure(R"({"width": 8})");
  State state;
  state.tensors["wq.weight"] = torch::zeros({8, 8});
  write_state(path, state);
  EXPECT_EQ(refusal([&] { nn::Module::open(path); }),
            "[open_weights] expected a file with 'mechanism' and 'config' in its metadata; found '" + path + "' without");
  const auto from = [&] { weights_from(state, *instance, "a file"); };
  EXPECT_EQ(refusal(from), "[simpool] expected weight norm_patches.weight in 'a file'; found none");
  for (const char* name : {"norm_patches.weight", "norm_patches.bias"}) state.tensors[name] = torch::zeros({8});
  state.tensors["wk.weight"] = torch::zeros({8, 4});
  EXPECT_EQ(refusal(from), "[simpool] expected weight wk.weight (8, 8) in 'a file'; found (8, 4) float32");
  state.tensors["wk.weight"] = torch::zeros({8, 8});
  state.tensors["wv.weight"] = torch::zeros({8, 8});
  EXPECT_EQ(refusal(from), "[simpool] expected only declared weights in 'a file'; found 'wv.weight'; did you mean 'wq.weight'?");
  std::remove(path.c_str());
}

TEST(StateFile, KeepsTypesShapesAndText) {
  const std::string path = temporary("state.safetensors");
  State state;
  for (const auto type : {torch::kDouble, torch::kFloat, torch::kHalf, torch::kBFloat16, torch::kLong, torch::kBool})
    state.tensors[c10::toString(type)] = torch::arange(6).reshape({2, 3}).to(type).t();
  state.tensors["empty"] = torch::zeros({0, 3});
  state.tensors["scalar"] = torch::tensor(2.5);
  state.metadata = {{"config", R"({"width": 8})"}};
  write_state(path, state);
  const State read = read_state(path);
  EXPECT_EQ(read.metadata, state.metadata);
  ASSERT_EQ(read.tensors.size(), state.tensors.size());
  for (const auto& [name, tensor] : state.tensors) {
    EXPECT_EQ(read.tensors.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(torch::equal(read.tensors.at(name), tensor)) << name;
  }
  std::remove(path.c_str());
}

}  // namespace
}  // namespace regard
