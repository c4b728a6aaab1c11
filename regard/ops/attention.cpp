#include "regard/ops/attention.h"

#include "regard/base/error.h"
#include "regard/ops/attention_op.h"
#include "regard/ops/boundary.h"

namespace regard {

AttentionOutput attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const std::string& spec,
                          const AttentionArguments& arguments) {
  const auto some = [](const at::Tensor& t) { return t.defined() ? ops::OptionalTensor(t) : std::nullopt; };
  return rethrow_as_error([&] {
    auto [o, lse, pairs] =
        ops::call_attention(q, k, v, spec, arguments.captures, arguments.operands, some(arguments.sinks),
                            some(arguments.seed), arguments.query_offset, arguments.path);
    return AttentionOutput{o, lse, pairs};
  });
}

AttentionOutput attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSpec& spec,
                          const AttentionArguments& arguments) {
  return attention(q, k, v, to_json(spec), in_order(spec, arguments));
}

AttentionArguments in_order(const AttentionSpec& spec, AttentionArguments arguments) {
  if (arguments.named_captures.empty() && arguments.named_operands.empty()) return arguments;
  require(arguments.captures.empty() && arguments.operands.empty(), "attention",
          "captures and operands by name or as lists", "both");
  const auto missing = [](const char* what, const std::string& name) {
    fail("attention", std::string("a ") + what + " named '" + name + "'", "none");
  };
  for (const auto& name : spec.captures()) {
    const auto it = arguments.named_captures.find(name);
    if (it == arguments.named_captures.end()) missing("capture", name);
    arguments.captures.push_back(it->second);
  }
  for (const auto& name : spec.operands()) {
    const auto it = arguments.named_operands.find(name);
    if (it == arguments.named_operands.end()) missing("pair of operands", name);
    arguments.operands.push_back(it->second.first);
    arguments.operands.push_back(it->second.second);
  }
  arguments.named_captures.clear();
  arguments.named_operands.clear();
  return arguments;
}

}  // namespace regard
