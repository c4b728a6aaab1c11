#include "regard/models/checkpoint_names.h"

#include <torch/library.h>

#include <array>
#include <cmath>
#include <map>
#include <optional>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/models/checkpoint_rules.h"
#include "regard/ops/boundary.h"

namespace regard {
namespace {

using namespace checkpoint_rules;

struct Family {
  const char* name;
  const Rule* begin;
  const Rule* end;
  bool closed;         ///< a name without a rule is an error, not kept
  const char* prefix;  ///< in front of the backbone's names when written
};

const Family families[] = {
    {"timm", nullptr, nullptr, false, ""},
    {"deit", nullptr, nullptr, false, ""},
    {"deit3", std::begin(deit3_rules), std::end(deit3_rules), false, ""},
    {"google", std::begin(google_rules), std::end(google_rules), true, ""},
    {"huggingface", std::begin(huggingface_rules), std::end(huggingface_rules), true, "vit."},
};

const Family& family_of(const std::string& name) {
  for (const Family& family : families)
    if (name == family.name) return family;
  fail("convert_checkpoint", "a family among " + quoted_list(checkpoint_families()),
       "'" + name + "'" + suggestion(name, checkpoint_families()));
}

/// The block's number when `name` has the form of `pattern`; "" when the pattern has no {}.
std::optional<std::string> match(const std::string& pattern, const std::string& name) {
  const size_t hole = pattern.find("{}");
  if (hole == std::string::npos) return pattern == name ? std::make_optional<std::string>() : std::nullopt;
  const std::string front = pattern.substr(0, hole), back = pattern.substr(hole + 2);
  if (name.size() <= front.size() + back.size() || name.compare(0, front.size(), front) != 0 ||
      name.compare(name.size() - back.size(), back.size(), back) != 0)
    return std::nullopt;
  const std::string number = name.substr(front.size(), name.size() - front.size() - back.size());
  return number.find_first_not_of("0123456789") == std::string::npos ? std::make_optional(number) : std::nullopt;
}

std::string fill(const std::string& pattern, const std::string& number) {
  const size_t hole = pattern.find("{}");
  return hole == std::string::npos ? pattern : pattern.substr(0, hole) + number + pattern.substr(hole + 2);
}

void check_rank(const Rule& rule, const std::string& name, const at::Tensor& x) {
  const int64_t wanted = rule.layout == Layout::convolution                                      ? 4
                         : rule.layout == Layout::heads_in || rule.layout == Layout::heads_out   ? 3
                         : rule.layout == Layout::linear || rule.layout == Layout::heads_in_bias ? 2
                                                                                                 : x.dim();
  if (x.dim() != wanted)
    fail("convert_checkpoint", name + " of " + std::to_string(wanted) + " dimensions", std::to_string(x.dim()));
}

at::Tensor inward(Layout layout, const at::Tensor& x) {
  switch (layout) {
    case Layout::same:
      return x;
    case Layout::linear:
      return x.t().contiguous();
    case Layout::convolution:
      return x.permute({3, 2, 0, 1}).contiguous();
    case Layout::heads_in:
      return x.flatten(1).t().contiguous();
    case Layout::heads_in_bias:
      return x.flatten();
    default:
      return x.flatten(0, 1).t().contiguous();
  }
}

at::Tensor outward(Layout layout, const at::Tensor& x, int64_t heads) {
  switch (layout) {
    case Layout::same:
      return x;
    case Layout::linear:
      return x.t().contiguous();
    case Layout::convolution:
      return x.permute({2, 3, 1, 0}).contiguous();
    case Layout::heads_in:
      return x.t().contiguous().unflatten(1, {heads, -1});
    case Layout::heads_in_bias:
      return x.unflatten(0, {heads, -1});
    default:
      return x.t().contiguous().unflatten(0, {heads, -1});
  }
}

bool starts_with(const std::string& text, const std::string& start) { return text.rfind(start, 0) == 0; }

/// Without the wrapper: when some names stand under one, only those are weights of the model.
NamedTensors unwrapped(NamedTensors tensors) {
  for (const char* wrapper : {"state_dict.", "model.", "module.", "opt/target/", "params/", "vit.", "deit."}) {
    NamedTensors inside, head;
    for (const auto& [name, tensor] : tensors) {
      if (starts_with(name, wrapper)) inside.emplace_back(name.substr(std::string(wrapper).size()), tensor);
      // Hugging Face keeps the classifiers beside its backbone.
      else if (name.find("classifier.") != std::string::npos)
        head.emplace_back(name, tensor);
    }
    if (inside.empty()) continue;
    inside.insert(inside.end(), head.begin(), head.end());
    tensors = std::move(inside);
  }
  return tensors;
}

at::Tensor patch_kernel(const at::Tensor& weight) {
  if (weight.dim() != 2) return weight;
  for (const int64_t channels : {3, 1}) {
    const int64_t area = weight.size(1) / channels;
    const auto side = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(area))));
    if (channels * side * side == weight.size(1)) return weight.view({weight.size(0), channels, side, side});
  }
  fail("convert_checkpoint", "patch_embed.proj.weight (D, C p p) with C 3 or 1 and square patches",
       std::to_string(weight.size(1)) + " columns");
}

bool dropped(const std::string& name) { return starts_with(name, "pre_logits") || starts_with(name, "pooler."); }

/// q, k and v as they arrive, each in its place.
struct Stack {
  size_t position;
  std::array<at::Tensor, 3> parts;
};

}  // namespace

std::vector<std::string> checkpoint_families() {
  std::vector<std::string> names;
  for (const Family& family : families) names.emplace_back(family.name);
  return names;
}

NamedTensors to_timm(const std::string& family_name, const NamedTensors& given) {
  const Family& family = family_of(family_name);
  NamedTensors converted;
  std::map<std::string, Stack> stacks;
  for (const auto& [name, tensor] : unwrapped(given)) {
    if (dropped(name)) continue;
    bool found = false;
    for (const Rule* rule = family.begin; rule != family.end && !found; ++rule) {
      const auto number = match(rule->foreign, name);
      if (!number) continue;
      found = true;
      check_rank(*rule, name, tensor);
      const std::string ours = fill(rule->ours, *number);
      const at::Tensor value = inward(rule->layout, tensor);
      if (rule->part < 0) {
        converted.emplace_back(ours, value);
        continue;
      }
      const auto [stack, added] = stacks.try_emplace(ours, Stack{converted.size(), {}});
      if (added) converted.emplace_back(ours, at::Tensor());
      stack->second.parts[rule->part] = value;
    }
    if (!found && family.closed)
      fail("convert_checkpoint", "names of the family '" + family_name + "'", "'" + name + "'");
    if (!found) converted.emplace_back(name, name == "patch_embed.proj.weight" ? patch_kernel(tensor) : tensor);
  }
  for (const auto& [name, stack] : stacks) {
    for (int part = 0; part < 3; ++part)
      if (!stack.parts[part].defined())
        fail("convert_checkpoint", "query, key and value of " + name,
             std::string("no ") + (part == 0   ? "query"
                                   : part == 1 ? "key"
                                               : "value"));
    converted[stack.position].second = at::cat({stack.parts[0], stack.parts[1], stack.parts[2]});
  }
  return converted;
}

NamedTensors from_timm(const std::string& family_name, const NamedTensors& tensors, int64_t heads) {
  const Family& family = family_of(family_name);
  if (family_name == "google" && heads < 1)
    fail("convert_checkpoint", "heads of at least 1 to write the family 'google'", std::to_string(heads));
  NamedTensors converted;
  for (const auto& [name, tensor] : tensors) {
    bool found = false, whole = false;
    for (const Rule* rule = family.begin; rule != family.end && !whole; ++rule) {
      const auto number = match(rule->ours, name);
      if (!number) continue;
      found = true;
      whole = rule->part < 0;  // of two foreign names for one of ours the first is written
      const at::Tensor part = whole ? tensor : tensor.chunk(3)[rule->part];
      const std::string foreign = fill(rule->foreign, *number);
      const bool beside = foreign.find("classifier.") != std::string::npos;
      converted.emplace_back((beside ? "" : family.prefix) + foreign, outward(rule->layout, part, heads));
    }
    if (!found && family.closed)
      fail("convert_checkpoint", "weights that the family '" + family_name + "' has a name for", "'" + name + "'");
    if (!found) converted.emplace_back(name, tensor);
  }
  return converted;
}

namespace {

std::tuple<std::vector<at::Tensor>, std::vector<std::string>> convert_checkpoint(std::string family,
                                                                                 at::TensorList tensors,
                                                                                 std::vector<std::string> names,
                                                                                 bool inverse, int64_t heads) {
  if (tensors.size() != names.size())
    fail("convert_checkpoint", "one name for each of the " + std::to_string(tensors.size()) + " tensors",
         std::to_string(names.size()) + " names");
  NamedTensors given;
  for (size_t i = 0; i < names.size(); ++i) given.emplace_back(names[i], tensors[i]);
  std::tuple<std::vector<at::Tensor>, std::vector<std::string>> out;
  for (auto& [name, tensor] : inverse ? from_timm(family, given, heads) : to_timm(family, given)) {
    std::get<0>(out).push_back(tensor);
    std::get<1>(out).push_back(name);
  }
  return out;
}

}  // namespace
}  // namespace regard

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def(
      "convert_checkpoint(str family, Tensor[] tensors, str[] names, bool inverse=False, int heads=0) "
      "-> (Tensor[], str[])",
      regard::guarded<&regard::convert_checkpoint>);
}
