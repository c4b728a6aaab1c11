#include "regard/kernels/cpu/program_cache.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "regard/algebra/derivative.h"

namespace regard::kernels {
namespace {

constexpr size_t kCached = 512;  // programs kept; a process that makes specs without end starts anew beyond

/// Nodes are immutable and kept alive by the cached programs, so an address stands for an expression.
struct Key {
  const Node *score, *keep, *counted, *weight;
  Side lanes;
  bool backward;
  std::vector<std::string> wanted;
  auto operator<=>(const Key&) const = default;
};

std::vector<Expr> leaves_of(const Programs& programs, const std::vector<std::string>& wanted) {
  std::vector<Expr> leaves = programs.dots;
  std::vector<Expr> roots{programs.pairs.score};
  if (programs.pairs.weight.defined()) roots.push_back(programs.pairs.weight);
  for (const Expr& read : real_captures_of(roots)) {
    if (std::find(wanted.begin(), wanted.end(), read.node().name) != wanted.end()) leaves.push_back(read);
  }
  return leaves;
}

std::shared_ptr<const Programs> compile_both(const PairExpressions& pairs, Side lanes, bool backward,
                                             const std::vector<std::string>& wanted) {
  auto programs = std::make_shared<Programs>();
  programs->pairs = pairs;
  std::vector<Expr> roots{pairs.score};
  if (pairs.weight.defined()) roots.push_back(pairs.weight);
  programs->dots = dots_of(roots);
  ProgramRequest request;
  request.score = pairs.score;
  request.weight = pairs.weight;
  request.dots = programs->dots;
  request.lanes = lanes;
  if (backward) request.leaves = leaves_of(*programs, wanted);
  programs->open = compile(request);
  if (pairs.masked()) {
    request.keep = pairs.keep;
    if (pairs.counted.pointer() != pairs.keep.pointer()) request.counted = pairs.counted;
    programs->masked = compile(request);
  }
  return programs;
}

}  // namespace

PairExpressions expressions_of(const AttentionSpec& spec) {
  PairExpressions pairs{spec.score, spec.keep, spec.counted, spec.weight};
  // One node a default, so that the cache finds it again.
  static const Expr default_score = scale() * dot(), every_pair = Expr(true);
  if (!pairs.score.defined()) pairs.score = default_score;
  if (!pairs.keep.defined()) pairs.keep = every_pair;
  if (!pairs.counted.defined() || same(pairs.counted, pairs.keep)) pairs.counted = pairs.keep;
  if (pairs.weight.defined() && pairs.weight.is_constant(1)) pairs.weight = Expr();
  return pairs;
}

std::shared_ptr<const Programs> cached_programs(const PairExpressions& pairs, Side lanes, bool backward,
                                                const std::vector<std::string>& wanted) {
  static std::mutex mutex;
  static std::map<Key, std::shared_ptr<const Programs>> cache;
  const Key key{pairs.score.pointer(),
                pairs.keep.pointer(),
                pairs.counted.pointer(),
                pairs.weight.defined() ? pairs.weight.pointer() : nullptr,
                lanes,
                backward,
                wanted};
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = cache.find(key);
  if (known != cache.end()) return known->second;
  if (cache.size() >= kCached) cache.clear();
  return cache[key] = compile_both(pairs, lanes, backward, wanted);
}

}  // namespace regard::kernels
