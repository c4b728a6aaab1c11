// torch.ops.regard.*: layouts, byte counts, thread groups, and what spans the shards of an executor.
#include <torch/library.h>

#include "regard/base/error.h"
#include "regard/ops/boundary.h"
#include "regard/ops/executor.h"
#include "regard/ops/linear_attention.h"
#include "regard/scale/layout.h"
#include "regard/scale/thread_group.h"
#include "regard/scale/traffic.h"

namespace regard::sharding {
namespace {

at::Tensor token_of_rank_op(int64_t tokens, int64_t ranks, std::string layout, int64_t rank) {
  return token_of_rank(tokens, ranks, layout_from_name(layout), rank);
}

std::tuple<int64_t, int64_t> ring_bytes_op(int64_t keys, int64_t ranks, std::string layout, int64_t rank,
                                           int64_t widths, int64_t element_size) {
  const RingBytes bytes = ring_bytes(keys, ranks, layout, rank, widths, element_size);
  return {bytes.forward, bytes.backward};
}

std::shared_ptr<Executor> executor_of(const std::string& text) {
  const auto executor = make_executor(text);
  require(executor != nullptr, "executor", "an executor other than local", "'" + text + "'");
  return executor;
}

at::Tensor total_op(std::string executor, const at::Tensor& part) { return executor_of(executor)->total(part); }
at::Tensor greatest_op(std::string executor, const at::Tensor& part) { return executor_of(executor)->greatest(part); }
at::Tensor gather_op(std::string executor, const at::Tensor& part, int64_t dim) {
  return executor_of(executor)->gather(part, dim);
}
at::Tensor positions_op(std::string executor, int64_t tokens) {
  return executor_of(executor)->positions(tokens, at::TensorOptions());
}

/// Linear attention on an executor, with the arguments that its tests vary.
std::tuple<at::Tensor, at::Tensor> linear_on_op(std::string executor, const at::Tensor& q, const at::Tensor& k,
                                                const at::Tensor& v, const std::optional<at::Tensor>& log_decay,
                                                const std::optional<at::Tensor>& beta,
                                                const std::optional<at::Tensor>& initial_state, bool causal,
                                                bool normalize) {
  LinearArguments arguments;
  if (log_decay && log_decay->defined()) arguments.log_decay = *log_decay;
  if (beta && beta->defined()) arguments.beta = *beta;
  if (initial_state && initial_state->defined()) arguments.initial_state = *initial_state;
  arguments.causal = causal;
  arguments.normalize = normalize;
  const auto where = make_executor(executor);
  const LinearOutput out = where ? where->linear(q, k, v, arguments) : linear_attention(q, k, v, arguments);
  return {out.o, out.state};
}

std::string traffic_op() { return traffic_json(); }
void open_op(std::string name, int64_t size) { open_thread_group(name, size); }
void close_op(std::string name) { close_thread_group(name); }
void poison_op(std::string name, std::string reason) { poison_thread_group(name, reason); }
void reset_op() { reset_traffic(); }

}  // namespace

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def("token_of_rank(int tokens, int ranks, str layout, int rank) -> Tensor", guarded<&token_of_rank_op>);
  m.def(
      "ring_bytes(int keys, int ranks, str layout, int rank, int widths, int element_size) "
      "-> (int forward, int backward)",
      guarded<&ring_bytes_op>);
  m.def("scale_bytes() -> str", guarded<&traffic_op>);
  m.def("reset_scale_bytes() -> ()", guarded<&reset_op>);
  m.def("open_thread_group(str name, int size) -> ()", guarded<&open_op>);
  m.def("close_thread_group(str name) -> ()", guarded<&close_op>);
  m.def("poison_thread_group(str name, str reason) -> ()", guarded<&poison_op>);
  m.def("total_on(str executor, Tensor part) -> Tensor", guarded<&total_op>);
  m.def("greatest_on(str executor, Tensor part) -> Tensor", guarded<&greatest_op>);
  m.def("gather_on(str executor, Tensor part, int dim) -> Tensor", guarded<&gather_op>);
  m.def("positions_on(str executor, int tokens) -> Tensor", guarded<&positions_op>);
  m.def(
      "linear_on(str executor, Tensor q, Tensor k, Tensor v, Tensor? log_decay=None, Tensor? beta=None, "
      "Tensor? initial_state=None, bool causal=True, bool normalize=False) -> (Tensor o, Tensor state)",
      guarded<&linear_on_op>);
}

}  // namespace regard::sharding
