#pragma once

#include <map>
#include <string>
#include <vector>

#include "regard/ops/attention.h"

/// What a spec offers to executors and what an executor asks of it. Offers are derived from the expressions, never
/// typed.
namespace regard {

struct Offer {
  std::string name;     ///< "merge", "commutative", "shards"
  std::string doc;      ///< what it means
  std::string refusal;  ///< why the spec does not offer it; empty when it does
};
std::vector<Offer> offers(const AttentionSpec& spec);

/// "merge, commutative; not shards: capture 'bias' is read by row() and column() together".
std::string to_string(const std::vector<Offer>& offers);

/// Throws "[executor] expected a spec that offers ...; found ..." when one of `wanted` is missing.
void require_offers(const std::string& executor, const AttentionSpec& spec, const std::vector<std::string>& wanted);

namespace ops {

/// A call whose tokens are dealt out over shards: every capture lies beside the queries (or everywhere), or beside the
/// keys, whose dimensions then are named. A capture that was read on both sides has become two.
struct Sides {
  AttentionSpec spec;
  AttentionArguments arguments;                          ///< by name
  std::map<std::string, std::vector<int64_t>> key_dims;  ///< of each capture beside the keys: its key dimensions
  std::string refusal;                                   ///< why tokens cannot be dealt out
};
Sides sides_of(const AttentionSpec& spec, const AttentionArguments& by_name);

}  // namespace ops
}  // namespace regard
