#include "regard/kernels/cpu/checks.h"

#include <limits>

#include "regard/base/error.h"
#include "regard/base/names.h"

namespace regard::kernels {
namespace {

void check_length(const char* what, int64_t length, int64_t least) {
  if (length < least) {
    fail("attention", std::string(what) + " of at least " + std::to_string(least), std::to_string(length));
  }
}

/// Indices of pairs are 32-bit integers in the kernels.
void check_indices(int64_t length, int64_t offset) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  if (length > most || offset < -most || offset > most - length) {
    fail("attention", "lengths and positions below 2^31", std::to_string(offset) + " + " + std::to_string(length));
  }
}

}  // namespace

std::string refusal(const AttentionSpec& spec) {
  // The largest magnitude then carries a gradient of its own: to the first such key, which no sum finds again.
  if (spec.normalizer.kind == Normalizer::Kind::signed_softmax && spec.normalizer.epsilon > 0)
    return "normalizer signed_softmax with an epsilon";
  if (!spec.pair_outputs.empty()) return "pair outputs";
  if (spec.dropout > 0) return "dropout";
  return "";
}

std::string softmax_refusal(const AttentionSpec& spec) {
  const std::string reason = refusal(spec);
  if (!reason.empty()) return reason;
  if (spec.normalizer.kind != Normalizer::Kind::softmax)
    return std::string("normalizer ") + name_of(spec.normalizer.kind);
  return spec.normalizer.detach ? "a detached denominator" : "";
}

template <class T>
void check_call(const Attention<T>& call) {
  if (call.spec == nullptr) fail("attention", "a spec", "none");
  const std::string reason = refusal(*call.spec);
  if (!reason.empty()) fail("attention", "a spec that the kernels run", reason);
  check_length("B", call.B, 0);
  check_length("H", call.H, 0);
  check_length("Hk", call.Hk, call.H > 0 ? 1 : 0);
  check_length("M", call.M, 0);
  check_length("N", call.N, 0);
  check_length("Dh", call.Dh, 0);
  check_length("Dv", call.Dv, 0);
  check_indices(call.M, call.query_offset);
  check_indices(call.N, 0);
  if (call.Hk > 0 && call.H % call.Hk != 0) {
    fail("attention", "H divisible by Hk", "H = " + std::to_string(call.H) + ", Hk = " + std::to_string(call.Hk));
  }
  if (call.spec->normalizer.sinks != (call.sinks != nullptr || call.sink_count > 0)) {
    fail("attention", call.spec->normalizer.sinks ? "sinks (H, S)" : "no sinks",
         call.spec->normalizer.sinks ? "none" : std::to_string(call.sink_count));
  }
}

void check_dot(const Node& dot, int64_t columns, int64_t heads, int64_t query_heads) {
  const int64_t end = dot.end < 0 ? columns : dot.end;
  if (dot.begin < 0 || dot.begin > end || end > columns) {
    fail("attention", "dot features in [0, " + std::to_string(columns) + "]",
         std::to_string(dot.begin) + " to " + std::to_string(end));
  }
  if (dot.only_head >= heads) {
    fail("attention", "a head of '" + dot.name + "' below " + std::to_string(heads), std::to_string(dot.only_head));
  }
  if (dot.only_head < 0 && query_heads > 0 && (heads < 1 || query_heads % heads != 0)) {
    fail("attention", "heads of '" + dot.name + "' that divide H = " + std::to_string(query_heads),
         std::to_string(heads));
  }
}

template <class T>
const Operand<T>& find_operand(const std::vector<Operand<T>>& operands, const std::string& name) {
  std::vector<std::string> names;
  for (const Operand<T>& operand : operands) {
    if (operand.name == name) return operand;
    names.push_back(operand.name);
  }
  fail("attention", "an operand '" + name + "'", names.empty() ? "none" : quoted_list(names));
}

template void check_call(const Attention<float>&);
template void check_call(const Attention<double>&);
template const Operand<float>& find_operand(const std::vector<Operand<float>>&, const std::string&);
template const Operand<double>& find_operand(const std::vector<Operand<double>>&, const std::string&);

}  // namespace regard::kernels
