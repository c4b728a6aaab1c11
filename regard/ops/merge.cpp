#include <torch/library.h>

#include <limits>
#include <sstream>

#include "regard/base/error.h"
#include "regard/ops/attention.h"
#include "regard/ops/boundary.h"

namespace regard {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void check_state(const char* name, const at::Tensor& o, const at::Tensor& lse) {
  if (o.dim() == lse.dim() + 1 && o.sym_sizes().slice(0, static_cast<size_t>(lse.dim())) == lse.sym_sizes()) return;
  std::ostringstream found;
  found << o.sym_sizes() << " and " << lse.sym_sizes();
  fail("merge", std::string("o") + name + " of the shape of lse" + name + " and one more dimension", found.str());
}

std::tuple<at::Tensor, at::Tensor> merge_states(const at::Tensor& o1, const at::Tensor& lse1, const at::Tensor& o2,
                                                const at::Tensor& lse2) {
  check_state("1", o1, lse1);
  check_state("2", o2, lse2);
  if (o1.sym_sizes() != o2.sym_sizes()) {
    std::ostringstream found;
    found << o1.sym_sizes() << " and " << o2.sym_sizes();
    fail("merge", "o1 and o2 of one shape", found.str());
  }
  // The reference maximum is a constant: it cancels. Where both states are empty it is 0, not -inf - -inf.
  at::Tensor top = at::maximum(lse1, lse2).detach();
  top = at::where(top.eq(-kInfinity), at::zeros({}, top.options()), top);
  const at::Tensor w1 = at::exp(at::sub(lse1, top)), w2 = at::exp(at::sub(lse2, top)), sum = at::add(w1, w2);
  const at::Tensor empty = sum.eq(0);  // a NaN state is not empty
  const at::Tensor safe = sum.masked_fill(empty, 1);
  const at::Tensor lse = at::add(top, at::log(safe)).masked_fill(empty, -kInfinity);
  // What an empty state holds (some libraries leave NaN there) reaches nothing.
  const auto share = [&](const at::Tensor& o, const at::Tensor& weight) {
    const at::Tensor none = weight.eq(0).unsqueeze(-1);
    return at::mul(o.masked_fill(none, 0), at::div(weight, safe).unsqueeze(-1));
  };
  const at::Tensor o = at::add(share(o1, w1), share(o2, w2));
  return {o.to(o1.scalar_type()), lse};
}

}  // namespace

std::pair<at::Tensor, at::Tensor> merge(const at::Tensor& o1, const at::Tensor& lse1, const at::Tensor& o2,
                                        const at::Tensor& lse2) {
  auto [o, lse] = merge_states(o1, lse1, o2, lse2);
  return {o, lse};
}

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def("merge(Tensor o1, Tensor lse1, Tensor o2, Tensor lse2) -> (Tensor o, Tensor lse)", guarded<&merge_states>);
}

}  // namespace regard
