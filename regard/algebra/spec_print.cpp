#include "regard/algebra/print.h"
#include "regard/algebra/spec.h"

namespace regard {
namespace {

std::string print_normalizer(const Normalizer& normalizer) {
  std::string kind = name_of(normalizer.kind);
  if (normalizer.sinks) kind += ", sinks";
  if (normalizer.divisor != Normalizer::Divisor::one) kind += std::string(", divisor ") + name_of(normalizer.divisor);
  if (normalizer.floor != 0) kind += ", floor " + print_real(normalizer.floor);
  if (normalizer.epsilon != 0) kind += ", epsilon " + print_real(normalizer.epsilon);
  if (normalizer.epsilon_place != Normalizer::EpsilonPlace::inside)
    kind += std::string(" ") + name_of(normalizer.epsilon_place);
  if (normalizer.detach) kind += ", detached denominator";
  return kind;
}

}  // namespace

std::string to_string(const AttentionSpec& spec) {
  std::string text;
  const auto line = [&text](const std::string& name, const std::string& value) {
    text += (text.empty() ? "" : "\n") + name + ": " + value;
  };
  const auto field = [&line](const std::string& name, const Expr& expr) {
    if (expr.defined()) line(name, to_string(expr));
  };
  line("score", spec.score.defined() ? to_string(spec.score) : to_string(scale() * dot()));
  field("keep", spec.keep);
  field("counted", spec.counted);
  line("normalizer", print_normalizer(spec.normalizer));
  field("weight", spec.weight);
  for (size_t i = 0; i < spec.pair_outputs.size(); ++i) {
    const PairOutput& output = spec.pair_outputs[i];
    std::string value = to_string(output.value);
    if (output.bucket.defined()) {
      value += ", into " + std::to_string(output.buckets) + " buckets by " + to_string(output.bucket);
    }
    line("pair_outputs[" + std::to_string(i) + "]", value);
  }
  line("scale", spec.scale ? print_real(*spec.scale) : "1 / sqrt(Dh)");
  if (spec.dropout != 0) line("dropout", print_real(spec.dropout));
  const PositionMap& positions = spec.positions;
  if (!positions.query.identity()) line("query positions", to_string(positions.query.at(row())));
  if (!positions.key.identity()) line("key positions", to_string(positions.key.at(column())));
  return text;
}

}  // namespace regard
