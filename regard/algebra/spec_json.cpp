#include <cmath>
#include <mutex>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "regard/algebra/print.h"
#include "regard/algebra/spec.h"

namespace regard {
namespace {

using nlohmann::json;

/// JSON has no infinities and no NaN: they are written by name.
json real_json(double value) {
  if (std::isfinite(value)) return value;
  return print_real(value);
}

json constant_json(const Node& node) {
  json value;
  if (node.type == Type::boolean)
    value = node.number != 0;
  else if (node.type == Type::integer)
    value = static_cast<int64_t>(node.number);
  else
    value = real_json(node.number);
  return {"constant", value, name_of(node.type)};
}

json dot_json(const Node& node) {
  json row = {"dot"};
  const bool range = node.begin != 0 || node.end != -1, one_head = node.only_head != -1;
  if (!node.name.empty() || range || one_head) row.push_back(node.name);
  if (range || one_head) {
    row.push_back(node.begin);
    row.push_back(node.end);
  }
  if (one_head) row.push_back(node.only_head);
  return row;
}

json node_json(const Graph::Entry& entry) {
  const Node& node = entry.expr.node();
  if (node.op == Op::constant) return constant_json(node);
  if (node.op == Op::dot) return dot_json(node);
  json row = json::array({name_of(node.op)});
  if (node.op == Op::capture) {
    row.push_back(node.name);
    row.push_back(name_of(node.type));
  }
  for (const int arg : entry.args) row.push_back(arg);
  if (node.op == Op::cast) row.push_back(name_of(node.type));
  return row;
}

json normalizer_json(const Normalizer& normalizer) {
  json object = json::object();
  if (normalizer.kind != Normalizer::Kind::softmax) object["kind"] = name_of(normalizer.kind);
  if (normalizer.sinks) object["sinks"] = true;
  if (normalizer.divisor != Normalizer::Divisor::one) object["divisor"] = name_of(normalizer.divisor);
  if (normalizer.floor != 0) object["floor"] = normalizer.floor;
  if (normalizer.epsilon != 0) object["epsilon"] = normalizer.epsilon;
  if (normalizer.epsilon_place != Normalizer::EpsilonPlace::inside)
    object["epsilon_place"] = name_of(normalizer.epsilon_place);
  if (normalizer.detach) object["detach"] = true;
  return object;
}

json positions_json(const Positions& positions) {
  json object = json::object();
  if (positions.offset != 0) object["offset"] = positions.offset;
  if (positions.stride != 1) object["stride"] = positions.stride;
  if (!positions.tensor.empty()) object["tensor"] = positions.tensor;
  if (!positions.per_batch) object["per_batch"] = false;
  return object;
}

void put(json& object, const char* key, json value) {
  if (!value.empty()) object[key] = std::move(value);
}

}  // namespace

std::string to_json(const AttentionSpec& spec) {
  std::vector<Expr> roots{spec.score, spec.keep, spec.weight, spec.counted};
  for (const auto& output : spec.pair_outputs) {
    roots.push_back(output.value);
    roots.push_back(output.bucket);
  }
  const Graph graph = flatten(roots);
  json object = json::object();
  for (const auto& entry : graph.entries) object["nodes"].push_back(node_json(entry));
  const char* names[] = {"score", "keep", "weight", "counted"};
  for (size_t i = 0; i < 4; ++i) {
    if (graph.roots[i] >= 0) object[names[i]] = graph.roots[i];
  }
  for (size_t i = 0; i < spec.pair_outputs.size(); ++i) {
    json output = {{"value", graph.roots[4 + 2 * i]}};
    if (graph.roots[5 + 2 * i] >= 0) output["bucket"] = graph.roots[5 + 2 * i];
    if (spec.pair_outputs[i].buckets != 1) output["buckets"] = spec.pair_outputs[i].buckets;
    object["pair_outputs"].push_back(output);
  }
  put(object, "normalizer", normalizer_json(spec.normalizer));
  if (spec.scale) object["scale"] = *spec.scale;
  if (spec.dropout != 0) object["dropout"] = spec.dropout;
  json positions = json::object();
  put(positions, "query", positions_json(spec.positions.query));
  put(positions, "key", positions_json(spec.positions.key));
  put(object, "positions", positions);
  return object.dump();
}

uint64_t hash(const AttentionSpec& spec) {
  // FNV-1a, 64 bits.
  uint64_t value = 14695981039346656037ull;
  for (const unsigned char byte : to_json(spec)) value = (value ^ byte) * 1099511628211ull;
  return value;
}

std::shared_ptr<const AttentionSpec> intern(const std::string& text) {
  constexpr size_t kKept = 4096;  // a process that makes texts without end (a constant per step) starts anew beyond
  static std::mutex mutex;
  static std::unordered_map<std::string, std::shared_ptr<const AttentionSpec>> table;
  {
    const std::lock_guard lock(mutex);
    if (const auto found = table.find(text); found != table.end()) return found->second;
  }
  // Parsed outside the lock; of two threads that parse the same text the first to finish is kept.
  auto spec = std::make_shared<const AttentionSpec>(spec_from_json(text).resolved());
  const std::lock_guard lock(mutex);
  if (table.size() >= kKept) table.clear();
  return table.try_emplace(text, std::move(spec)).first->second;
}

}  // namespace regard
