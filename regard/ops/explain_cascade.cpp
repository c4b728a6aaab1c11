// The printed form of a spec: a cascade of einsums and pointwise steps, in the order of computation.
#include "regard/algebra/derivative.h"
#include "regard/algebra/print.h"
#include "regard/ops/explain.h"

namespace regard::ops {
namespace {

using Lines = std::vector<std::pair<std::string, std::string>>;

std::string dot_name(const Node& dot) { return to_string(Expr(std::make_shared<const Node>(dot))); }

std::string dot_sum(const Node& dot) {
  const std::string of = dot.name.empty() ? "" : "_" + dot.name;
  const std::string head = dot.only_head >= 0 ? std::to_string(dot.only_head) : dot.name.empty() ? "h" : "h/g";
  const std::string key = dot.only_head >= 0 ? head : "h/g";
  std::string text = "sum_d q" + of + "[b," + head + ",i,d] k" + of + "[b," + key + ",j,d]";
  if (dot.end >= 0) text += ", d in [" + std::to_string(dot.begin) + ", " + std::to_string(dot.end) + ")";
  return text;
}

std::string divisor(const Normalizer& n) {
  return n.divisor == Normalizer::Divisor::one ? "" : n.divisor == Normalizer::Divisor::keys ? " / N" : " / n[i]";
}

void normalize(const Normalizer& n, Lines& lines) {
  using Kind = Normalizer::Kind;
  const std::string epsilon = print_real(n.epsilon);
  switch (n.kind) {
    case Kind::softmax:
      lines.emplace_back("m[b,h,i]", n.sinks ? "max(max_j s, max_t sink[h,t])" : "max_j s");
      lines.emplace_back("l[b,h,i]", n.sinks ? "sum_j exp(s - m) + sum_t exp(sink[h,t] - m)" : "sum_j exp(s - m)");
      lines.emplace_back("w[b,h,i,j]", "exp(s - m) / l");
      return;
    case Kind::signed_softmax:
      lines.emplace_back("m[b,h,i]", "max_j abs(s)");
      lines.emplace_back("l[b,h,i]", "sum_j exp(abs(s) - m)" + (n.epsilon > 0 ? " + " + epsilon : std::string()));
      lines.emplace_back("w[b,h,i,j]", "sign(s) exp(abs(s) - m) / l");
      return;
    case Kind::sum:
      lines.emplace_back("l[b,h,i]",
                         n.floor > 0 ? "max(sum_j max(s, 0), " + print_real(n.floor) + ")" : "sum_j max(s, 0)");
      lines.emplace_back("w[b,h,i,j]", "max(s, 0) / l");
      return;
    case Kind::sigmoid:
      lines.emplace_back("w[b,h,i,j]", "1 / (1 + exp(-s))");
      return;
    case Kind::relu:
    case Kind::identity:
      if (n.divisor == Normalizer::Divisor::kept) lines.emplace_back("n[b,h,i]", "sum_j 1");
      lines.emplace_back("w[b,h,i,j]", (n.kind == Kind::relu ? "max(s, 0)" : "s") + divisor(n));
      return;
    case Kind::z_score:
      lines.emplace_back("mu[b,h,i]", "mean_j s");
      lines.emplace_back("var[b,h,i]", "mean_j (s - mu)^2");
      const bool outside = n.epsilon_place == Normalizer::EpsilonPlace::outside;
      const bool count = n.epsilon_place == Normalizer::EpsilonPlace::inside_count;
      lines.emplace_back("w[b,h,i,j]", outside ? "(s - mu) / (sqrt(var) + " + epsilon + ")"
                                       : count ? "(s - mu) / sqrt((n var + " + epsilon + ") / (n + " + epsilon + "))"
                                               : "(s - mu) / sqrt(var + " + epsilon + ")");
      return;
  }
}

}  // namespace

Lines cascade_of(const AttentionSpec& spec) {
  Lines lines;
  std::vector<Expr> parts = {spec.score, spec.weight};
  for (const auto& pair : spec.pair_outputs) parts.push_back(pair.value);
  for (const Expr& dot : dots_of(parts)) lines.emplace_back(dot_name(dot.node()) + "[b,h,i,j]", dot_sum(dot.node()));
  const std::string where = spec.keep.is_constant(1) ? "" : "  where " + to_string(spec.keep);
  lines.emplace_back("s[b,h,i,j]", to_string(spec.score) + where);
  if (!same(spec.counted, spec.keep)) lines.emplace_back("counted", to_string(spec.counted));
  normalize(spec.normalizer, lines);
  const bool weighted = !spec.weight.is_constant(1);
  if (weighted) lines.emplace_back("w'[b,h,i,j]", "w * (" + to_string(spec.weight) + ")");
  const std::string w = weighted ? "w'" : "w";
  if (spec.dropout > 0) lines.emplace_back(w, w + " * dropped(" + print_real(spec.dropout) + ")");
  lines.emplace_back("o[b,h,i,e]", "sum_j " + w + " v[b,h/g,j,e]");
  for (size_t p = 0; p < spec.pair_outputs.size(); ++p) {
    const PairOutput& pair = spec.pair_outputs[p];
    std::string sum = "sum_j " + w + " * (" + to_string(pair.value) + ")";
    if (pair.bucket.defined()) sum += " into " + std::to_string(pair.buckets) + " by " + to_string(pair.bucket);
    lines.emplace_back("pairs[" + std::to_string(p) + "][b,h,i]", sum);
  }
  return lines;
}

}  // namespace regard::ops
