// The executors of one device: split:n and stripe.
#include "regard/ops/split.h"

#include "regard/base/error.h"
#include "regard/ops/executor_offers.h"
#include "regard/ops/executor_place.h"
#include "regard/ops/linear_attention.h"
#include "regard/ops/state.h"

namespace regard {
namespace {

/// The keys [begin, end) of a call.
State absorb_part(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSpec& spec,
                  AttentionArguments arguments, const c10::SymInt& begin, const c10::SymInt& end) {
  const ops::Place place{0, 0, begin, begin, q.sym_size(2), k.sym_size(2)};
  const AttentionSpec part = ops::placed(spec, place, arguments);
  for (auto& [name, pair] : arguments.named_operands) pair.second = pair.second.slice_symint(2, begin, end);
  return absorb(q, k.slice_symint(2, begin, end), v.slice_symint(2, begin, end), part, arguments);
}

class Split final : public Executor {
 public:
  explicit Split(int64_t parts) : parts_(parts) {}
  std::string text() const override { return "split:" + std::to_string(parts_); }

  AttentionOutput attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSpec& spec,
                         const AttentionArguments& arguments) override {
    require_offers("split", spec, {"merge"});
    return attention_in_parts(q, k, v, spec, arguments, parts_);
  }

  LinearOutput linear(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const LinearArguments& arguments) override {
    return linear_attention_in_parts(q, k, v, arguments, parts_);
  }

 private:
  int64_t parts_;
};

class InStripes final : public Executor {
 public:
  std::string text() const override { return "stripe"; }

  AttentionOutput attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSpec& spec,
                         const AttentionArguments& arguments) override {
    AttentionArguments stripe = arguments;
    stripe.path = "stripe";
    return attention(q, k, v, spec, stripe);
  }

  LinearOutput linear(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const LinearArguments& arguments) override {
    LinearArguments stripe = arguments;
    stripe.path = "stripe";
    return linear_attention(q, k, v, stripe);
  }
};

int64_t parts_of(const std::string& rest) {
  constexpr size_t kDigits = 9;
  const bool number =
      !rest.empty() && rest.size() <= kDigits && rest.find_first_not_of("0123456789") == std::string::npos;
  const int64_t parts = number ? std::stoll(rest) : 0;
  if (parts < 1) fail("executor", "split:N with a number of parts N >= 1", "split" + (rest.empty() ? "" : ":" + rest));
  return parts;
}

const bool registered = [] {
  register_executor("split", "split:N: the keys in N parts, merged in their order",
                    [](const std::string& rest) { return std::make_shared<Split>(parts_of(rest)); });
  register_executor("stripe", "the stripe path, whatever the call's path says", [](const std::string& rest) {
    require(rest.empty(), "executor", "stripe alone", "stripe:" + rest);
    return std::make_shared<InStripes>();
  });
  return true;
}();

}  // namespace

AttentionOutput attention_in_parts(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   const AttentionSpec& spec, const AttentionArguments& given, int64_t parts) {
  spec.validate();
  const AttentionArguments arguments = ops::by_name(spec, given);
  const c10::SymInt keys = k.sym_size(2);
  State state;
  for (int64_t part = 0; part < parts; ++part) {
    const c10::SymInt begin = keys * part / parts, end = keys * (part + 1) / parts;
    if (part > 0 && begin.maybe_as_int() && begin == end) continue;  // the neutral state
    state = merge(spec, state, absorb_part(q, k, v, spec, arguments, begin, end));
  }
  return finish(spec, state, arguments.sinks, q.scalar_type());
}

}  // namespace regard
