// Linear attention inside a mechanism, run where the call's tokens lie.

#include "regard/base/error.h"
#include "regard/nn/context.h"
#include "regard/ops/executor.h"
#include "regard/ops/linear_attention.h"

namespace regard {

LinearOutput Context::linear(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const LinearArguments& given) {
  LinearArguments arguments = given;
  arguments.path = path;
  const bool cross = input("memory").defined();
  if (!arguments.padding.defined()) {
    const at::Tensor tokens = k.transpose(1, 2);
    arguments.padding = cross ? padding(tokens, input("memory_lengths")) : padding(tokens);
  }
  if (!arguments.cu_seqlens.defined()) arguments.cu_seqlens = cu_seqlens();
  if (!executor) return linear_attention(q, k, v, arguments);
  ++executor->asked;
  return executor->linear(q, k, v, arguments);
}

}  // namespace regard
