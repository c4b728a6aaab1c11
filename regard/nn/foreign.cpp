#include "regard/nn/foreign.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <torch/library.h>

#include <functional>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/nn/attention_weights.h"
#include "regard/nn/shapes.h"
#include "regard/ops/boundary.h"

namespace regard {
namespace {

using nlohmann::json;

/// All that is known of one foreign mechanism. Never changed: a new registration makes a new one.
struct Foreign {
  Info info;
  json config;  ///< of the default configuration
  int64_t width = 0;
  std::vector<WeightDeclaration> weights;
  std::vector<CacheStream> caches;
  std::vector<at::Tensor> initial;
  bool rounding = true;  ///< somebody else's operations
  std::function<at::Tensor(const Foreign&, const json& config, at::TensorList, const at::Tensor&, Context&)> forward;
};

class ForeignInstance final : public Instance {
 public:
  ForeignInstance(std::shared_ptr<const Foreign> foreign, json config)
      : foreign_(std::move(foreign)), config_(std::move(config)), text_(config_.dump()) {}
  const Info& info() const override { return foreign_->info; }
  const std::string& config() const override { return text_; }
  const std::vector<WeightDeclaration>& weights() const override { return foreign_->weights; }
  const std::vector<CacheStream>& caches() const override { return caches_of(); }
  at::Tensor forward(at::TensorList weights, const at::Tensor& x, Context& context) const override {
    detail::check_call(foreign_->info, foreign_->width, foreign_->weights, weights, x, context);
    context.open(foreign_->info.id, caches(), x);
    at::Tensor y = foreign_->forward(*foreign_, config_, weights, x, context);
    context.close(foreign_->info.id);
    return y;
  }
  const Foreign& foreign() const { return *foreign_; }

 private:
  // A flag `causal` that is off: nothing can be decoded.
  const std::vector<CacheStream>& caches_of() const {
    static const std::vector<CacheStream> none;
    return config_.value("causal", true) ? foreign_->caches : none;
  }
  std::shared_ptr<const Foreign> foreign_;
  json config_;
  std::string text_;
};

class ForeignMechanism final : public Mechanism {
 public:
  explicit ForeignMechanism(std::shared_ptr<const Foreign> foreign) : foreign_(std::move(foreign)) {}
  void replace(std::shared_ptr<const Foreign> foreign) { foreign_ = std::move(foreign); }
  const Info& info() const override { return foreign_->info; }
  std::shared_ptr<const Instance> configure(const std::string& text) const override {
    json config = foreign_->config;
    const json given = json::parse(text.empty() ? "{}" : text, nullptr, /*allow_exceptions=*/false);
    if (!given.is_object()) fail(foreign_->info.id, "a configuration that is a JSON object", text);
    for (const auto& [key, value] : given.items()) {
      if (!config.contains(key)) fail(foreign_->info.id, "a configuration " + config.dump(), "'" + key + "'");
      config[key] = value;
    }
    return std::make_shared<ForeignInstance>(foreign_, config);
  }
  std::vector<ConfigField> config_fields() const override {
    std::vector<ConfigField> fields;
    for (const auto& [key, value] : foreign_->config.items()) {
      ConfigField field;
      field.name = key;
      field.doc = "as it came";
      field.type = value.is_boolean() ? "bool" : "int";
      field.default_json = value.dump();
      fields.push_back(field);
    }
    return fields;
  }
  std::string default_config() const override { return foreign_->config.dump(); }
  bool listed() const override { return false; }  // somebody's file, checked in this process

 private:
  std::shared_ptr<const Foreign> foreign_;
};

/// Mechanisms live as long as the process; one of an id that came before takes its place.
void register_or_replace(std::shared_ptr<const Foreign> foreign) {
  static std::mutex mutex;
  static std::map<std::string, ForeignMechanism*> known;
  const std::lock_guard lock(mutex);
  const std::string id = foreign->info.id;
  if (const auto it = known.find(id); it != known.end()) return it->second->replace(std::move(foreign));
  auto made = std::make_unique<ForeignMechanism>(std::move(foreign));
  ForeignMechanism* const address = made.get();
  register_mechanism(std::move(made));
  known[id] = address;
}

/// The op's outputs: the main one, and what the call wants beside it.
at::Tensor call_op(const std::string& op, const json& config, at::TensorList weights, const at::Tensor& x,
                   Context& context) {
  std::vector<at::Tensor> inputs;
  std::vector<std::string> names;
  for (const auto& [name, tensor] : context.inputs) {
    if (!tensor.defined()) continue;
    // Nobody packs for a foreign module; Context::close refuses what is not read.
    if (name == "cu_seqlens") return x;
    inputs.push_back(tensor);
    names.push_back(name);
  }
  const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(op.c_str(), "");
  torch::jit::Stack stack;
  torch::jit::push(stack, x, weights.vec(), inputs, names, config.value("causal", false), context.training,
                   context.wanted);
  try {
    handle.callBoxed(&stack);
  } catch (const c10::Error& error) {
    fail(op, "a call that runs", error.what_without_backtrace());
  } catch (const std::exception& error) {  // Python's: its text, without the frames of the interpreter
    const std::string text = error.what();
    fail(op, "a call that runs", text.substr(0, text.find("\n\nAt:")));
  }
  const std::vector<at::Tensor> results = stack.back().toTensorVector();
  if (results.size() != context.wanted.size() + 1)
    fail(op, std::to_string(context.wanted.size() + 1) + " outputs", std::to_string(results.size()));
  for (size_t i = 0; i < context.wanted.size(); ++i) context.output(context.wanted[i], results[i + 1]);
  return results.front();
}

CacheStream stream_of(const json& given) {
  CacheStream stream;
  stream.name = given.at("name").get<std::string>();
  const std::string kind = given.value("kind", "append");
  if (kind != "state" && kind != "ring" && kind != "append")
    fail("register_foreign", "kind 'append', 'ring' or 'state' of stream '" + stream.name + "'", "'" + kind + "'");
  stream.kind = kind == "state"  ? CacheStream::Kind::state
                : kind == "ring" ? CacheStream::Kind::ring
                                 : CacheStream::Kind::append;
  stream.entry = given.at("entry").get<std::vector<int64_t>>();
  stream.length = given.value("length", int64_t{0});
  return stream;
}

}  // namespace

void register_foreign(const std::string& description, std::vector<at::Tensor> initial) {
  const json given = json::parse(description, nullptr, /*allow_exceptions=*/false);
  if (!given.is_object()) fail("register_foreign", "a description that is a JSON object", description);
  auto foreign = std::make_shared<Foreign>();
  Info& info = foreign->info;
  info.id = given.at("id").get<std::string>();
  info.family = "foreign";
  info.role = given.value("role", "mixer") == "pool" ? Role::pool : Role::mixer;
  info.title = given.value("title", info.id);
  info.equation = "as its file says";
  info.paper = "none";
  info.takes_prefix = false;
  for (const auto& input : given.value("inputs", json::array()))
    info.inputs.push_back({input.at("name").get<std::string>(), input.value("doc", "")});
  foreign->width = given.at("width").get<int64_t>();
  foreign->config = {{"width", foreign->width}};
  const std::string causal = given.value("causal", "never");
  if (causal != "never") foreign->config["causal"] = causal == "always";
  for (const auto& [key, value] : given.value("config", json::object()).items()) foreign->config[key] = value;
  info.examples = {foreign->config.dump()};
  for (const auto& weight : given.value("weights", json::array()))
    foreign->weights.push_back({weight.at("name").get<std::string>(), weight.at("shape").get<std::vector<int64_t>>(),
                                Init::zeros(), false, ""});
  for (const auto& stream : given.value("caches", json::array())) foreign->caches.push_back(stream_of(stream));
  if (initial.size() != foreign->weights.size())
    fail("register_foreign", "one tensor for each of the " + std::to_string(foreign->weights.size()) + " weights",
         std::to_string(initial.size()));
  foreign->initial = std::move(initial);
  foreign->forward = [op = given.at("op").get<std::string>()](
                         const Foreign&, const json& config, at::TensorList weights, const at::Tensor& x,
                         Context& context) { return call_op(op, config, weights, x, context); };
  register_or_replace(std::move(foreign));
}

namespace {

constexpr int64_t kWidth = 8, kHeads = 2;

/// No weight above the diagonal, on random operands: what a causal spec says of itself in other words.
bool is_causal(const AttentionSpec& spec) {
  const auto operand = [] {
    return at::randn({1, kHeads, 7, kWidth / kHeads}, at::TensorOptions().dtype(at::kDouble));
  };
  const at::Tensor weights = attention_weights(operand(), operand(), spec, {});
  return weights.triu(1).count_nonzero().item<int64_t>() == 0;
}

at::Tensor attend_by(const AttentionSpec& spec, const Foreign& foreign, at::TensorList tensors, const at::Tensor& x,
                     Context& context) {
  const Weights weights(foreign.weights, tensors);
  const at::Tensor q = split_heads(weights.linear(x, "wq"), kHeads);
  const at::Tensor k = context.append("k", split_heads(weights.linear(x, "wk"), kHeads));
  const at::Tensor v = context.append("v", split_heads(weights.linear(x, "wv"), kHeads));
  return weights.linear(merge_heads(context.attend(q, k, v, spec).o), "wo");
}

}  // namespace

std::string register_spec(const std::string& text) {
  const AttentionSpec spec = spec_from_json(text);
  spec.validate();
  const auto captures = spec.captures(), operands = spec.operands();
  for (const auto& [kind, names] : {std::pair{"captures", captures}, {"operands", operands}})
    if (!names.empty())
      fail("check", std::string("a specification without ") + kind + ", which nobody gives it here",
           "'" + names[0] + "'");
  require(spec.dropout == 0, "check", "a specification without dropout", std::to_string(spec.dropout));
  require(!spec.normalizer.sinks, "check", "a specification without sinks, which nobody gives it here", "sinks");
  auto foreign = std::make_shared<Foreign>();
  Info& info = foreign->info;
  info.id = "spec";
  info.family = "foreign";
  info.title = "Attention by a specification, between projections";
  info.equation = "y = Wo attention(Wq x, Wk x, Wv x)";
  info.paper = "none";
  info.takes_prefix = false;
  foreign->width = kWidth;
  foreign->rounding = false;
  foreign->config = {{"width", kWidth}, {"heads", kHeads}};
  if (is_causal(spec)) {
    foreign->config["causal"] = true;
    foreign->caches = {CacheStream::append("k", {kHeads, kWidth / kHeads}),
                       CacheStream::append("v", {kHeads, kWidth / kHeads})};
  }
  info.examples = {foreign->config.dump()};
  Declaration weights;
  for (const char* name : {"wq", "wk", "wv", "wo"}) weights.linear(name, kWidth, kWidth);
  foreign->weights = weights.all();
  foreign->forward = [spec](const Foreign& self, const json&, at::TensorList tensors, const at::Tensor& x,
                            Context& context) { return attend_by(spec, self, tensors, x, context); };
  register_or_replace(foreign);
  return foreign->info.id;
}

bool is_foreign(const Instance& instance) {
  const auto* found = dynamic_cast<const ForeignInstance*>(&instance);
  return found && found->foreign().rounding;
}

std::vector<at::Tensor> foreign_weights(const Instance& instance) {
  const auto* found = dynamic_cast<const ForeignInstance*>(&instance);
  std::vector<at::Tensor> copies;
  if (!found) return copies;
  for (const at::Tensor& tensor : found->foreign().initial) copies.push_back(tensor.detach().to(at::kDouble).clone());
  return copies;
}

namespace {

void register_foreign_op(std::string description, std::vector<at::Tensor> initial) {
  register_foreign(description, std::move(initial));
}

TORCH_LIBRARY_FRAGMENT(regard, library) {
  library.def("register_foreign(str description, Tensor[] weights) -> ()", guarded<&register_foreign_op>);
}

}  // namespace
}  // namespace regard
