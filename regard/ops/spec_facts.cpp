#include "regard/ops/spec_facts.h"

#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <unordered_map>

namespace regard::ops {
namespace {

constexpr size_t kShared = 4096;  // specs kept; a process that makes texts without end starts anew beyond
constexpr size_t kOwn = 256;      // a thread's own table, likewise

std::atomic<int64_t> analyzed{0};

/// Looks a view up without making a string of it.
struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
using Table = std::unordered_map<std::string, std::shared_ptr<const SpecFacts>, TextHash, std::equal_to<>>;

size_t position(const std::vector<std::string>& sorted, const std::string& name) {
  return static_cast<size_t>(std::lower_bound(sorted.begin(), sorted.end(), name) - sorted.begin());
}

std::shared_ptr<const SpecFacts> analyze(std::string_view json) {
  auto facts = std::make_shared<SpecFacts>();
  facts->text = json;
  facts->spec = intern(facts->text);
  const AttentionSpec& spec = *facts->spec;
  facts->captures = spec.captures();
  facts->operands = spec.operands();
  facts->pair_channels = spec.pair_channels();
  std::vector<Expr> roots = {spec.score, spec.keep, spec.weight, spec.counted};
  for (const auto& pair : spec.pair_outputs) {
    roots.push_back(pair.value);
    roots.push_back(pair.bucket);
  }
  for (const auto& entry : flatten(roots).entries) {
    const Node& node = entry.expr.node();
    if (node.op == Op::dot)
      facts->dots.push_back({node.name, position(facts->operands, node.name), node.begin, node.end, node.only_head});
    if (node.op == Op::capture)
      facts->reads.push_back({position(facts->captures, node.name), node.args.size(), node.type});
  }
  ++analyzed;
  return facts;
}

/// The table of all threads.
std::shared_ptr<const SpecFacts> shared_facts(std::string_view json) {
  static std::mutex mutex;
  static Table table;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (const auto found = table.find(json); found != table.end()) return found->second;
  }
  auto facts = analyze(json);  // outside the lock; of two threads the first to finish is kept
  const std::lock_guard<std::mutex> lock(mutex);
  if (table.size() >= kShared) table.clear();
  return table.try_emplace(std::string(json), std::move(facts)).first->second;
}

}  // namespace

std::shared_ptr<const SpecFacts> facts_of(std::string_view json) {
  thread_local Table own;
  if (const auto found = own.find(json); found != own.end()) return found->second;
  auto facts = shared_facts(json);
  if (own.size() >= kOwn) own.clear();
  own.emplace(std::string(json), facts);
  return facts;
}

int64_t specs_analyzed() { return analyzed; }

TORCH_LIBRARY_FRAGMENT(regard, m) { m.def("specs_analyzed() -> int", &specs_analyzed); }

}  // namespace regard::ops
