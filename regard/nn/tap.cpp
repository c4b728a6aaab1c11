#include "regard/nn/tap.h"

#include <charconv>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/ops/executor.h"
#include "regard/ops/taps.h"

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
  Named tap{text.substr(0, at), -1};
  const char *begin = text.data() + at + 1, *end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(begin, end, tap.attention);
  if (error != std::errc() || stop != end || tap.attention < 0)
    fail("tap", "the number of an attention behind '@' in '" + wanted + "'", "'" + text.substr(at + 1) + "'");
  return tap;
}

/// What an attention has in hand, or an undefined tensor for a reduction of its map.
at::Tensor operand(const std::string& name, const Attending& call, const AttentionOutput& out) {
  if (name == "q") return call.q;
  if (name == "k") return call.k;
  if (name == "v") return call.v;
  if (name == "o") return out.o;
  if (name == "lse") return out.lse;
  return {};
}

bool is_operand(const std::string& name) {
  return name == "q" || name == "k" || name == "v" || name == "o" || name == "lse";
}

}  // namespace

void check_tap_output(const std::string& wanted) {
  const Named tap = parse(wanted);
  if (is_operand(tap.name)) return;
  const std::vector<std::string> operands = {"q", "k", "v", "o", "lse"};
  if (tap.name.find(':') == std::string::npos && tap.name.size() <= 3 && tap.name != "max")
    fail("tap", "one of " + quoted_list(operands) + ", " + quoted_list(tap_names()), "'" + tap.name + "'");
  check_tap(tap.name);
}

void read_taps(Context& context, int64_t attention, const Attending& call, const AttentionOutput& out) {
  std::vector<std::string> outputs, taps;
  for (const auto& wanted : context.wanted) {
    if (!wanted.starts_with(prefix_of_taps)) continue;
    const Named tap = parse(wanted);
    if (tap.attention != attention) continue;
    if (is_operand(tap.name)) {
      context.output(wanted, operand(tap.name, call, out));
      continue;
    }
    outputs.push_back(wanted);
    taps.push_back(tap.name);
  }
  if (taps.empty()) return;
  if (context.executor && context.executor->sharded())
    fail("tap", "tokens that lie here with '" + taps[0] + "'", "executor " + context.executor->text());
  const auto measured =
      attention_taps(call.q, call.k, call.spec, call.arguments, taps, {context.input("tap.marked"), call.after});
  for (size_t i = 0; i < taps.size(); ++i) context.output(outputs[i], measured[i]);
}

}  // namespace regard
