#include "regard/ops/attention.h"

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
  return attention(q, k, v, to_json(spec), arguments);
}

}  // namespace regard
