#include "regard/nn/edit_json.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <algorithm>

#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/nn/shapes.h"
#include "regard/ops/packed.h"

namespace regard {
namespace {

using nlohmann::json;
using Tensors = std::map<std::string, at::Tensor>;
constexpr const char* score_leaf = "score";

/// One edit as it was read.
struct Read {
  int64_t number = 0;
  Tensors tensors;                    ///< by their own names
  AttentionSpec spec;                 ///< its score, keep and weight are the changes
  std::vector<at::Tensor> given;      ///< to the functions
  int64_t operands = -1, after = -1;  ///< Python functions

  std::string capture_name(const std::string& name) const { return "edit" + std::to_string(number) + "_" + name; }
};

/// An op that Python registers when the first edit with a function is made.
c10::OperatorHandle python_op(const char* name) {
  const auto op = c10::Dispatcher::singleton().findSchema({name, ""});
  if (!op) fail("edit", "functions that regard.Edit has registered", "none");
  return *op;
}

std::vector<at::Tensor> call_operands(int64_t function, const Attending& call, const std::vector<at::Tensor>& given) {
  torch::jit::Stack stack{function, call.q, call.k, call.v, given};
  python_op("regard_python::edit_operands").callBoxed(stack);
  return stack.back().toTensorVector();
}

at::Tensor call_weights(int64_t function, const at::Tensor& weights, const ops::Rows& rows,
                        const std::vector<at::Tensor>& given) {
  torch::jit::Stack stack{function, weights, rows.index(weights.options().requires_grad(std::nullopt)), given};
  python_op("regard_python::edit_weights").callBoxed(stack);
  return stack.back().toTensor();
}

void change_operands(const Read& edit, Attending& call) {
  const auto changed = call_operands(edit.operands, call, edit.given);
  at::Tensor* const places[] = {&call.q, &call.k, &call.v};
  const char* const names[] = {"q", "k", "v"};
  if (changed.size() != 3) fail("edit", "operands to return (q, k, v)", std::to_string(changed.size()) + " tensors");
  for (size_t i = 0; i < 3; ++i) {
    if (changed[i].scalar_type() != places[i]->scalar_type() || changed[i].dim() != 4)
      fail("edit", std::string(names[i]) + " like " + describe(*places[i]), describe(changed[i]));
    *places[i] = changed[i];
  }
}

Expr multiplied(const Expr& weight, const Expr& factor) { return weight.defined() ? weight * factor : factor; }

void scale_heads(const Read& edit, const at::Tensor& factor, Attending& call) {
  const c10::SymInt heads = call.q.sym_size(1);
  const bool per_batch = factor.dim() == 2;
  if ((factor.dim() != 1 && !per_batch) || factor.sym_size(-1) != heads ||
      (per_batch && factor.sym_size(0) != call.q.sym_size(0)) || !at::isFloatingType(factor.scalar_type()))
    fail("edit", "head_scale (H) or (B, H) of a floating type for q " + describe(call.q), describe(factor));
  const std::string name = edit.capture_name("head_scale");
  call.arguments.named_captures[name] = factor;
  call.spec.weight =
      multiplied(call.spec.weight,
                 capture(name, Type::real, per_batch ? std::vector<Expr>{batch(), head()} : std::vector<Expr>{head()}));
}

void change_spec(const Read& edit, Attending& call) {
  AttentionSpec& spec = call.spec;
  call.arguments = by_name(spec, std::move(call.arguments));
  for (const auto& [name, tensor] : edit.tensors) call.arguments.named_captures[edit.capture_name(name)] = tensor;
  const Expr before = capture(score_leaf, Type::real, {});
  Expr score = spec.score.defined() ? spec.score : scale() * dot();
  if (edit.spec.score.defined()) spec.score = score = substitute(edit.spec.score, {{before, score}});
  if (edit.spec.keep.defined()) {
    spec.keep = spec.keep.defined() ? spec.keep & edit.spec.keep : edit.spec.keep;
    if (spec.counted.defined()) spec.counted = spec.counted & edit.spec.keep;
  }
  if (edit.spec.weight.defined())
    spec.weight = multiplied(spec.weight, substitute(edit.spec.weight, {{before, score}}));
  const auto factor = edit.tensors.find("head_scale");
  if (factor != edit.tensors.end()) scale_heads(edit, factor->second, call);
}

Read read(const json& entry, int64_t number, Tensors& inputs) {
  Read edit;
  edit.number = number;
  const std::string prefix = "edit." + std::to_string(number) + ".";
  for (auto it = inputs.begin(); it != inputs.end();) {
    if (!it->first.starts_with(prefix)) {
      ++it;
      continue;
    }
    edit.tensors[it->first.substr(prefix.size())] = it->second;
    it = inputs.erase(it);
  }
  if (entry.contains("spec")) edit.spec = spec_from_json(entry["spec"].dump());
  edit.operands = entry.value("operands", int64_t{-1});
  edit.after = entry.value("after", int64_t{-1});
  for (const auto& name : entry.value("tensors", std::vector<std::string>{})) {
    const auto it = edit.tensors.find(name);
    if (it == edit.tensors.end()) fail("edit", "an input '" + prefix + name + "'", "none");
    edit.given.push_back(it->second);
  }
  return edit;
}

Edit made(const json& entry, Read read) {
  static const std::vector<std::string> known = {"layer", "attention", "spec", "operands", "after", "tensors"};
  for (const auto& [key, unused] : entry.items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      fail("edit", "keys that an edit has", "'" + key + "'");
  Edit edit;
  edit.attention = entry.value("attention", int64_t{-1});
  edit.layer = entry.value("layer", std::string());
  const at::Tensor token = read.tensors["token"];
  read.tensors.erase("token");
  if (read.after >= 0) {
    edit.after.tensors = read.given;
    edit.after.change = [function = read.after, token](const at::Tensor& weights, const ops::Rows& rows,
                                                       const std::vector<at::Tensor>& given) {
      return call_weights(function, weights, rows, given);
    };
  }
  const bool states = read.spec.score.defined() || read.spec.keep.defined() || read.spec.weight.defined() ||
                      read.tensors.count("head_scale") != 0;
  if (states || read.operands >= 0)
    edit.before = [read = std::move(read), token](Attending& call) {
      if (read.operands >= 0) change_operands(read, call);
      change_spec(read, call);
    };
  return edit;
}

}  // namespace

std::vector<Edit> edits_from_json(const std::string& text, Tensors& inputs) {
  std::vector<Edit> edits;
  try {
    const json list = json::parse(text);
    if (!list.is_array()) fail("edit", "a list of edits", text);
    for (const auto& entry : list)
      edits.push_back(made(entry, read(entry, static_cast<int64_t>(edits.size()), inputs)));
  } catch (const json::exception& error) {
    fail("edit", "a JSON list of edits", error.what());
  }
  return edits;
}

bool names_layer(const std::string& pattern, const std::string& layer) {
  // The star that was met last, and how much of `layer` it holds: on a mismatch it takes one letter more.
  size_t p = 0, l = 0, star = std::string::npos, held = 0;
  while (l < layer.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      held = l;
    } else if (p < pattern.size() && pattern[p] == layer[l]) {
      ++p;
      ++l;
    } else if (star != std::string::npos) {
      p = star + 1;
      l = ++held;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace regard
