// ring:GROUP and ring:GROUP:LAYOUT, the executor over a group whose members hold a part of the tokens each.
#include "regard/base/error.h"
#include "regard/ops/executor.h"
#include "regard/scale/collectives.h"
#include "regard/scale/ring_attention.h"
#include "regard/scale/ring_call.h"
#include "regard/scale/ring_linear.h"

namespace regard::sharding {
namespace {

class Ring final : public Executor {
 public:
  Ring(std::string text, std::shared_ptr<Transport> transport, Layout layout)
      : text_(std::move(text)), group_{std::move(transport), layout, &traffic_of(text_)} {}

  std::string text() const override { return text_; }
  bool sharded() const override { return true; }

  AttentionOutput attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSpec& spec,
                         const AttentionArguments& arguments) override {
    return ring_attention(text_, group_.transport, group_.layout, q, k, v, spec, arguments);
  }
  LinearOutput linear(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const LinearArguments& arguments) override {
    return together([&] { return ring_linear(group_, q, k, v, arguments); });
  }
  at::Tensor total(const at::Tensor& part) override {
    return together([&] { return group_.total(part); });
  }
  at::Tensor greatest(const at::Tensor& part) override {
    return together([&] { return group_.greatest(part); });
  }
  at::Tensor gather(const at::Tensor& part, int64_t dim) override {
    return together([&] { return group_.gather(part, dim); });
  }
  at::Tensor positions(const c10::SymInt& tokens, const at::TensorOptions& options) override {
    return token_of_rank(count(tokens), group_.transport->size(), group_.layout, group_.transport->rank())
        .to(options.device());
  }
  c10::SymInt tokens(const c10::SymInt& own) override { return count(own); }

 private:
  /// Of all ranks. Asked anew every time: a rank that remembered the answer would leave the others waiting.
  int64_t count(const c10::SymInt& own) {
    return together([&] {
      int64_t all = 0;
      for (const int64_t n :
           counts_of(*group_.transport, group_.layout, own.guard_int(__FILE__, __LINE__), "tokens", *group_.traffic))
        all += n;
      return all;
    });
  }

  /// What all ranks refuse alike leaves the group as it was; any other failure stops the members that wait.
  template <class Body>
  auto together(const Body& body) -> decltype(body()) {
    try {
      return body();
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      group_.transport->poison("rank " + std::to_string(group_.transport->rank()) + " failed: " + error.what());
      throw;
    }
  }

  const std::string text_;
  const Collectives group_;
};

std::shared_ptr<Executor> make_ring(const std::string& rest) {
  require(!rest.empty(), "executor", "ring:GROUP, with the name of a group", "ring");
  const size_t colon = rest.rfind(':');
  const std::string group = rest.substr(0, colon);
  const Layout layout = colon == std::string::npos ? Layout::contiguous : layout_from_name(rest.substr(colon + 1));
  return std::make_shared<Ring>("ring:" + rest, find_transport(group), layout);
}

const bool registered = [] {
  register_executor("ring", "ring:GROUP[:contiguous|zigzag]: tokens dealt out over a group; keys travel", make_ring);
  return true;
}();

}  // namespace
}  // namespace regard::sharding
