// Reported facts: does the order of the tokens matter?

#include <algorithm>
#include <numeric>

#include "regard/check/call.h"
#include "regard/check/theorem.h"

namespace regard::checking {
namespace {

class Permutation final : public Theorem {
 public:
  const char* name() const override { return "permutation"; }
  const char* statement() const override { return "reported: whether the order of the tokens matters (no failure)"; }
  double tolerance() const override { return 1e-11; }
  std::string excuse(const Subject& subject) const override {
    if (subject.info->role == Role::host) return "its input is an image, not tokens";
    if (subject.info->role == Role::reducer) return "it returns other tokens, in an order of its own";
    for (const Case& example : subject.cases) {
      if (wants(example)) return "";
    }
    return "no call without order-dependent inputs";
  }
  bool wants(const Case& example) const override {
    return example.inputs.empty() && !example.causal && example.tokens() - example.prefix > 3;
  }

  void run(const Case& example, Findings& findings) const override {
    const std::string& path = example.paths.front();
    findings.at(example, path);
    // Prefix tokens stay in front; the others turn by one and swap two, which no symmetry of a grid does.
    std::vector<int64_t> order(example.tokens());
    std::iota(order.begin(), order.end(), 0);
    std::rotate(order.begin() + example.prefix, order.begin() + example.prefix + 1, order.end());
    std::swap(order[example.prefix], order[example.prefix + 1]);
    const at::Tensor index = at::tensor(order);
    const at::Tensor straight = call(example, path);
    const at::Tensor permuted = call(example.with_x(example.x.index_select(1, index)), path);
    const bool pool = !example.per_token;
    const at::Tensor expected = pool ? straight : straight.index_select(1, index);
    const bool holds = difference(expected, permuted).error <= tolerance();
    const std::string fact =
        pool ? (holds ? "invariant" : "not invariant") : (holds ? "equivariant" : "not equivariant");
    findings.note(fact, "as with " + example.instance->config());
    findings.claim("reported", true);
  }
};

}  // namespace

std::unique_ptr<Theorem> permutation() { return std::make_unique<Permutation>(); }

}  // namespace regard::checking
