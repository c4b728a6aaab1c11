#include "regard/nn/tap.h"

#include "regard/base/error.h"
#include "regard/base/names.h"

namespace regard {
namespace {

constexpr std::string_view prefix_of_taps = "tap.";

struct Named {
  std::string name;
  int64_t attention = 0;
};

Named parse(const std::string& wanted) {
  const std::string text = wanted.substr(prefix_of_taps.size());
  const size_t at = text.find('@');
  if (at == std::string::npos) return {text, 0};
  return {text.substr(0, at), std::stoll(text.substr(at + 1))};
}

at::Tensor measure(const std::string& name, const Attending& call, const AttentionOutput& out) {
  if (name == "q") return call.q;
  if (name == "k") return call.k;
  if (name == "v") return call.v;
  if (name == "o") return out.o;
  if (name == "lse") return out.lse;
  const std::vector<std::string> names = {"q", "k", "v", "o", "lse"};
  fail("tap", "one of " + quoted_list(names), "'" + name + "'" + suggestion(name, names));
}

}  // namespace

void read_taps(Context& context, int64_t attention, const Attending& call, const AttentionOutput& out) {
  for (const auto& wanted : context.wanted) {
    if (!wanted.starts_with(prefix_of_taps)) continue;
    const Named tap = parse(wanted);
    if (tap.attention == attention) context.output(wanted, measure(tap.name, call, out));
  }
}

}  // namespace regard
