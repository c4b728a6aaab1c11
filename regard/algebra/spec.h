#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "regard/algebra/expr.h"

namespace regard {

/// How the scores of one row become weights. With s the score and sums over the counted keys of the row:
///
///     softmax          exp(s) / (sum exp(s) + sum_t exp(sink_t))
///     signed_softmax   sign(s) exp(|s|) / sum exp(|s|)          (the sign is a constant for derivatives)
///         with epsilon: sign(s) exp(|s|) / (sum exp(|s|) + epsilon exp(max |s|)), scores of exactly 0 left out
///     sum              max(s, 0) / max(sum max(s, 0), floor)    (scores are weights; they must not be negative)
///     sigmoid          1 / (1 + exp(-s))
///     relu             max(s, 0) / divisor
///     identity         s / divisor
///     z_score          (s - mean) / sqrt(variance + epsilon)    (biased variance over the n counted keys)
///         epsilon outside: (s - mean) / (sqrt(variance) + epsilon);
///         inside_count: (s - mean) / sqrt((n variance + epsilon) / (n + epsilon))
struct Normalizer {
  enum class Kind : uint8_t { softmax, signed_softmax, sum, sigmoid, relu, identity, z_score };
  /// What relu and identity divide by: 1, the number of keys N, or the number of kept keys of the row.
  enum class Divisor : uint8_t { one, keys, kept };
  /// Where z_score adds its epsilon.
  enum class EpsilonPlace : uint8_t { inside, outside, inside_count };

  Kind kind = Kind::softmax;
  bool sinks = false;  ///< softmax only: the call brings sink logits (H) or (H, S)
  Divisor divisor = Divisor::one;
  double floor = 0;                                   ///< sum: least denominator
  double epsilon = 0;                                 ///< z_score, signed_softmax
  EpsilonPlace epsilon_place = EpsilonPlace::inside;  ///< z_score
  bool detach = false;                                ///< the denominator is a constant for derivatives
};

/// sum_j weight_ij * value(i, j) over the kept keys of a row, weight_ij the normalized weight times `weight`.
/// With `buckets` > 1 the sum is spread: channel bucket(i, j) in [0, buckets) receives the term.
struct PairOutput {
  Expr value;
  Expr bucket;
  int64_t buckets = 1;
};

/// Local indices to global positions of one side: offset + stride * index, or the integer tensor captured as `tensor`,
/// (B, L) or, with per_batch false, (L).
struct Positions {
  int64_t offset = 0;
  int64_t stride = 1;
  std::string tensor;
  bool per_batch = true;

  bool identity() const { return offset == 0 && stride == 1 && tensor.empty(); }
  Expr at(const Expr& index) const;  ///< the position of a local index, as an expression
};

struct PositionMap {
  Positions query, key;
};

/// A mechanism's attention as data. For one (batch, head), over pairs (i, j):
///
///     s_ij = score,  w_ij = normalizer(s_i.)_j * weight_ij * [keep_ij],  o_i = sum_j w_ij v_j
///
/// An empty Expr means the default: score scale() * dot(), keep true, weight 1, counted = keep.
struct AttentionSpec {
  Expr score;
  Expr keep;  ///< never reads a dot
  Normalizer normalizer;
  Expr weight;
  std::vector<PairOutput> pair_outputs;
  Expr counted;                 ///< pairs that enter the normalizer; default keep
  std::optional<double> scale;  ///< default 1/sqrt(Dh)
  double dropout = 0;           ///< probability that a weight is dropped; the kept are divided by 1 - dropout
  PositionMap positions;

  /// Throws regard::Error when a field is ill-typed or contradicts another.
  void validate() const;

  /// The tensors a call must bring, sorted by name: captures (position tensors too), and operand pairs (q_x, k_x).
  std::vector<std::string> captures() const;
  std::vector<std::string> operands() const;
  int64_t pair_channels() const;  ///< sum of buckets

  /// The same spec with defaults filled in and query(), key() replaced by functions of row() and column()
  /// where positions say so (query() remains where the map is the identity: the run-time offset enters there).
  /// `positions` stays as it is; resolving twice changes nothing.
  AttentionSpec resolved() const;
};

/// Canonical JSON: defaults left out, one shared node table, keys sorted. Round trip: parse(print(x)) prints the same.
///
///     {"nodes": [["scale"], ["dot"], ["mul", 0, 1], ["query"], ["key"], ["ge", 3, 4]], "score": 2, "keep": 5}
///
/// A node is [op, literals..., nodes...]: op by name_of(Op), argument nodes by their index, smaller than the node's.
/// Literals: ["constant", 0.5, "float"] (or "inf", "-inf", "nan"), ["dot", name, begin, end, head] (a tail may be
/// left out), ["capture", name, type, indices...], ["cast", node, type]. Further keys: weight, counted, scale,
/// dropout, normalizer {kind, sinks, divisor, floor, epsilon, epsilon_place, detach} (or its kind alone),
/// pair_outputs [{value, bucket, buckets}], positions {query, key: {offset, stride, tensor, per_batch}}.
/// The reader takes any table, promotes and checks types, and refuses what it does not know.
std::string to_json(const AttentionSpec& spec);
AttentionSpec spec_from_json(const std::string& text);
std::string to_string(const AttentionSpec& spec);  ///< for people, a line a field
uint64_t hash(const AttentionSpec& spec);          ///< of the canonical JSON, equal on every machine

const char* name_of(Normalizer::Kind kind);           ///< "signed_softmax"
const char* name_of(Normalizer::Divisor divisor);     ///< "keys"
const char* name_of(Normalizer::EpsilonPlace place);  ///< "outside"
Normalizer::Kind normalizer_from_name(const std::string& name);
Normalizer::Divisor divisor_from_name(const std::string& name);
Normalizer::EpsilonPlace epsilon_place_from_name(const std::string& name);

/// The resolved spec of a JSON text, parsed once and kept (some thousand texts are).
std::shared_ptr<const AttentionSpec> intern(const std::string& json);

/// Ready-made masks (true = the pair exists), with query and key positions as defined by the call.
namespace masks {
Expr causal();                             ///< query >= key
Expr window(int64_t left, int64_t right);  ///< query - left <= key <= query + right; -1: unbounded
Expr lengths(const std::string& name);     ///< column < name[b]
Expr documents(const std::string& query_ids, const std::string& key_ids);  ///< equal ids, tensors (B, M), (B, N)
}  // namespace masks

}  // namespace regard
