#include "regard/algebra/spec.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "regard/algebra/print.h"
#include "regard/base/error.h"

namespace regard {
namespace {

constexpr const char* kName = "AttentionSpec";

std::vector<Expr> roots_of(const AttentionSpec& spec) {
  std::vector<Expr> roots{spec.score, spec.keep, spec.weight, spec.counted};
  for (const auto& output : spec.pair_outputs) {
    roots.push_back(output.value);
    roots.push_back(output.bucket);
  }
  return roots;
}

void check_type(const Expr& expr, Type type, const std::string& what) {
  if (!expr.defined() || expr.type() == type) return;
  fail(kName, what + " of type " + name_of(type), std::string(name_of(expr.type())) + ": " + to_string(expr));
}

void check_reads_no_dot(const Expr& expr, const std::string& what) {
  if (!expr.defined() || !dependence(expr).dot) return;
  fail(kName, what + " that reads no dot product", to_string(expr));
}

void check_normalizer(const Normalizer& normalizer) {
  using Kind = Normalizer::Kind;
  const Kind kind = normalizer.kind;
  const std::string found = std::string("normalizer '") + name_of(kind) + "'";
  if (normalizer.sinks && kind != Kind::softmax) fail(kName, "normalizer 'softmax' with sinks", found);
  if (normalizer.divisor != Normalizer::Divisor::one && kind != Kind::relu && kind != Kind::identity) {
    fail(kName, "normalizer 'relu' or 'identity' with a divisor", found);
  }
  if (!(normalizer.floor >= 0 && std::isfinite(normalizer.floor))) {
    fail(kName, "a finite floor of at least 0", print_real(normalizer.floor));
  }
  if (!(normalizer.epsilon >= 0 && std::isfinite(normalizer.epsilon))) {
    fail(kName, "a finite epsilon of at least 0", print_real(normalizer.epsilon));
  }
  if (normalizer.floor != 0 && kind != Kind::sum) fail(kName, "normalizer 'sum' with a floor", found);
  if (normalizer.epsilon != 0 && kind != Kind::z_score && kind != Kind::signed_softmax) {
    fail(kName, "normalizer 'z_score' or 'signed_softmax' with an epsilon", found);
  }
  if (normalizer.epsilon_place != Normalizer::EpsilonPlace::inside && kind != Kind::z_score) {
    fail(kName, "normalizer 'z_score' with an epsilon_place", found);
  }
  const bool divides =
      kind == Kind::softmax || kind == Kind::signed_softmax || kind == Kind::sum || kind == Kind::z_score;
  if (normalizer.detach && !divides) fail(kName, "a normalizer with a denominator to detach", found);
}

void check_pair_output(const PairOutput& output, size_t index) {
  const std::string name = "pair_outputs[" + std::to_string(index) + "]";
  if (!output.value.defined()) fail(kName, "a value of " + name, "none");
  check_type(output.value, Type::real, "a value of " + name);
  check_type(output.bucket, Type::integer, "a bucket of " + name);
  if (output.buckets < 1) fail(kName, "at least 1 bucket of " + name, std::to_string(output.buckets));
  if (output.buckets > 1 && !output.bucket.defined()) {
    fail(kName, "a bucket of " + name + " with its " + std::to_string(output.buckets) + " buckets", "none");
  }
  if (output.buckets == 1 && output.bucket.defined()) {
    fail(kName, "more than 1 bucket of " + name + " with its bucket", "1");
  }
}

void check_positions(const Positions& positions, const std::string& side) {
  if (!positions.tensor.empty() && (positions.offset != 0 || positions.stride != 1)) {
    fail(kName, side + " positions by a tensor or by an offset and a stride",
         "tensor '" + positions.tensor + "', offset " + std::to_string(positions.offset) + ", stride " +
             std::to_string(positions.stride));
  }
  if (positions.tensor.empty() && !positions.per_batch)
    fail(kName, side + " positions by a tensor with per_batch", "none");
  if (positions.stride == 0) fail(kName, "a stride of " + side + " positions other than 0", "0");
  constant(static_cast<double>(positions.offset), Type::integer);  // 32 bits
  constant(static_cast<double>(positions.stride), Type::integer);
}

/// All capture reads, those of positions too.
std::vector<Expr> capture_reads(const AttentionSpec& spec) {
  std::vector<Expr> reads;
  for (const auto& entry : flatten(roots_of(spec)).entries) {
    if (entry.expr.op() == Op::capture) reads.push_back(entry.expr);
  }
  if (!spec.positions.query.tensor.empty()) reads.push_back(spec.positions.query.at(row()));
  if (!spec.positions.key.tensor.empty()) reads.push_back(spec.positions.key.at(column()));
  return reads;
}

void check_captures(const AttentionSpec& spec) {
  const auto describe = [](const Expr& read) {
    return std::to_string(read.node().args.size()) + " indices of type " + name_of(read.type());
  };
  std::map<std::string, Expr> first;
  for (const auto& read : capture_reads(spec)) {
    const auto [found, fresh] = first.try_emplace(read.node().name, read);
    if (fresh || describe(found->second) == describe(read)) continue;
    fail(kName, "every read of capture '" + read.node().name + "' with " + describe(found->second), describe(read));
  }
}

}  // namespace

Expr Positions::at(const Expr& index) const {
  if (tensor.empty()) return Expr(offset) + Expr(stride) * index;
  return capture(tensor, Type::integer, per_batch ? std::vector<Expr>{batch(), index} : std::vector<Expr>{index});
}

void AttentionSpec::validate() const {
  check_type(score, Type::real, "a score");
  check_type(keep, Type::boolean, "a keep");
  check_type(weight, Type::real, "a weight");
  check_type(counted, Type::boolean, "a counted");
  check_reads_no_dot(keep, "a keep");
  check_reads_no_dot(counted, "a counted");
  check_normalizer(normalizer);
  for (size_t i = 0; i < pair_outputs.size(); ++i) check_pair_output(pair_outputs[i], i);
  if (scale && !std::isfinite(*scale)) fail(kName, "a finite scale", print_real(*scale));
  if (!(dropout >= 0 && dropout < 1)) fail(kName, "a dropout in [0, 1)", print_real(dropout));
  check_positions(positions.query, "query");
  check_positions(positions.key, "key");
  check_captures(*this);
}

std::vector<std::string> AttentionSpec::captures() const {
  std::set<std::string> names;
  for (const auto& read : capture_reads(*this)) names.insert(read.node().name);
  return {names.begin(), names.end()};
}

std::vector<std::string> AttentionSpec::operands() const {
  std::set<std::string> names;
  for (const auto& entry : flatten(roots_of(*this)).entries) {
    if (entry.expr.op() == Op::dot && !entry.expr.node().name.empty()) names.insert(entry.expr.node().name);
  }
  return {names.begin(), names.end()};
}

int64_t AttentionSpec::pair_channels() const {
  int64_t channels = 0;
  for (const auto& output : pair_outputs) channels += output.buckets;
  return channels;
}

AttentionSpec AttentionSpec::resolved() const {
  validate();
  std::vector<std::pair<Expr, Expr>> replacements;
  if (!positions.query.identity()) replacements.emplace_back(query(), positions.query.at(row()));
  if (!positions.key.identity()) replacements.emplace_back(key(), positions.key.at(column()));
  const auto resolve = [&replacements](const Expr& expr, const Expr& otherwise) {
    if (!expr.defined()) return otherwise;
    return replacements.empty() ? expr : substitute(expr, replacements);
  };
  AttentionSpec result = *this;
  result.score = resolve(score, regard::scale() * dot());
  result.keep = resolve(keep, true);
  result.weight = resolve(weight, 1.0);
  result.counted = resolve(counted, result.keep);
  for (auto& output : result.pair_outputs) {
    output.value = resolve(output.value, {});
    output.bucket = resolve(output.bucket, {});
  }
  return result;
}

}  // namespace regard
