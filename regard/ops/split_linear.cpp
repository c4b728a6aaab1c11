// Linear attention in parts: one device reads a sequence part by part, as a ring of devices does at once.
#include "regard/base/error.h"
#include "regard/ops/linear_attention.h"
#include "regard/ops/split.h"

namespace regard {

LinearArguments linear_part(const LinearArguments& arguments, const c10::SymInt& begin, const c10::SymInt& end) {
  LinearArguments part = arguments;
  const auto cut = [&](at::Tensor& t, int64_t dim) {
    if (t.defined()) t = t.slice_symint(dim, begin, end);
  };
  if (part.log_decay.defined() && part.log_decay.dim() > 1) cut(part.log_decay, 2);
  cut(part.beta, 2);
  cut(part.padding, 1);
  part.initial_state = at::Tensor();
  part.initial_z = at::Tensor();
  return part;
}

LinearOutput linear_attention_in_parts(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const LinearArguments& arguments, int64_t parts) {
  require(!arguments.cu_seqlens.defined(), "split", "sequences that are not packed in linear attention", "cu_seqlens");
  const c10::SymInt keys = k.sym_size(2);
  at::Tensor state = arguments.initial_state, z = arguments.initial_z;
  std::vector<at::Tensor> outputs;
  LinearOutput last;
  for (int64_t index = 0; index < parts; ++index) {
    const c10::SymInt begin = keys * index / parts, end = keys * (index + 1) / parts;
    if (index > 0 && begin.maybe_as_int() && begin == end) continue;
    LinearArguments part = linear_part(arguments, begin, end);
    const at::Tensor own_k = k.slice_symint(2, begin, end), own_v = v.slice_symint(2, begin, end);
    if (!arguments.causal && index + 1 < parts && end != keys) {  // no query is answered before all keys are read
      const LinearSpan span = after_span(state, z, span_summary(own_k, own_v, part));
      state = span.state;
      z = span.z;
      continue;
    }
    part.initial_state = state;
    part.initial_z = z;
    last = linear_attention(arguments.causal ? q.slice_symint(2, begin, end) : q, own_k, own_v, part);
    state = last.state;
    z = last.z;
    outputs.push_back(last.o);
  }
  last.o = outputs.size() == 1 ? outputs[0] : at::cat(outputs, 2);
  return last;
}

}  // namespace regard
