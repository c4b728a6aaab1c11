#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "regard/algebra/spec.h"
#include "regard/base/error.h"
#include "regard/base/names.h"

namespace regard {
namespace {

using nlohmann::json;

constexpr const char* kName = "spec_from_json";

std::string shown(const json& value) {
  // Text that is not UTF-8 is shown with replacement characters, never thrown at the user.
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() > 80 ? text.substr(0, 77) + "..." : text;
}

void check_keys(const json& object, const std::string& what, const std::vector<std::string>& known) {
  if (!object.is_object()) fail(kName, what + " as an object", shown(object));
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    fail(kName, what + " with the keys " + quoted_list(known), "'" + key + "'" + suggestion(key, known));
  }
}

int64_t integer(const json& value, const std::string& what) {
  if (!value.is_number_integer()) fail(kName, "an integer as " + what, shown(value));
  if (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) {
    fail(kName, "an integer of 64 bits as " + what, shown(value));
  }
  return value.get<int64_t>();
}

double real(const json& value, const std::string& what) {
  if (value == "inf") return std::numeric_limits<double>::infinity();
  if (value == "-inf") return -std::numeric_limits<double>::infinity();
  if (value == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (!value.is_number()) fail(kName, "a number as " + what, shown(value));
  return value.get<double>();
}

bool boolean(const json& value, const std::string& what) {
  if (!value.is_boolean()) fail(kName, "true or false as " + what, shown(value));
  return value.get<bool>();
}

std::string text(const json& value, const std::string& what) {
  if (!value.is_string()) fail(kName, "a string as " + what, shown(value));
  return value.get<std::string>();
}

/// The table of nodes, read from first to last.
class NodeReader {
 public:
  explicit NodeReader(const json& rows) {
    if (!rows.is_array()) fail(kName, "'nodes' as a list", shown(rows));
    for (const auto& row : rows) {
      what_ = "node " + std::to_string(nodes_.size());
      try {
        nodes_.push_back(read(row));
      } catch (const Error& error) {
        const std::string message = error.what();
        if (message.rfind("[" + std::string(kName), 0) == 0) throw;
        throw Error("[" + std::string(kName) + "] " + what_ + " " + shown(row) + ": " + message);
      }
    }
  }

  /// The node that `value` names, for a field of the spec or an argument.
  Expr at(const json& value, const std::string& what) const {
    const int64_t index = integer(value, what);
    if (index < 0 || index >= static_cast<int64_t>(nodes_.size())) {
      fail(kName, "a node before it, in [0, " + std::to_string(nodes_.size()) + "), as " + what, std::to_string(index));
    }
    return nodes_[static_cast<size_t>(index)];
  }

 private:
  Expr read(const json& row) const {
    if (!row.is_array() || row.empty()) fail(kName, what_ + " as a list [op, ...]", shown(row));
    const Op op = op_from_name(text(row[0], "the op of " + what_));
    switch (op) {
      case Op::constant:
        return read_constant(row);
      case Op::dot:
        return read_dot(row);
      case Op::capture:
        return read_capture(row);
      case Op::cast:
        check_size(row, 3, 3);
        return cast(argument(row, 1), type_from_name(text(row[2], "the type of " + what_)));
      default:
        return make(op, arguments(row, 1));
    }
  }

  Expr read_constant(const json& row) const {
    check_size(row, 3, 3);
    const Type type = type_from_name(text(row[2], "the type of " + what_));
    const std::string what = "the value of " + what_;
    if (type == Type::boolean) return boolean(row[1], what);
    if (type == Type::integer) return integer(row[1], what);
    return real(row[1], what);
  }

  Expr read_dot(const json& row) const {
    check_size(row, 1, 5);
    if (row.size() == 3) fail(kName, what_ + " as [dot, name, begin, end, head]", shown(row));
    const std::string name = row.size() > 1 ? text(row[1], "the operand of " + what_) : "";
    const int64_t begin = row.size() > 2 ? integer(row[2], "the first feature of " + what_) : 0;
    const int64_t end = row.size() > 3 ? integer(row[3], "the end of " + what_) : -1;
    const int64_t head = row.size() > 4 ? integer(row[4], "the head of " + what_) : -1;
    return dot(name, begin, end, head);
  }

  Expr read_capture(const json& row) const {
    check_size(row, 3, std::numeric_limits<size_t>::max());
    const std::string name = text(row[1], "the name of " + what_);
    return capture(name, type_from_name(text(row[2], "the type of " + what_)), arguments(row, 3));
  }

  void check_size(const json& row, size_t least, size_t most) const {
    if (row.size() >= least && row.size() <= most) return;
    fail(kName, what_ + " with " + std::to_string(least) + (most > least ? " or more" : "") + " entries", shown(row));
  }

  Expr argument(const json& row, size_t position) const {
    return at(row[position], "argument " + std::to_string(position) + " of " + what_);
  }

  std::vector<Expr> arguments(const json& row, size_t first) const {
    std::vector<Expr> args;
    for (size_t i = first; i < row.size(); ++i) args.push_back(argument(row, i));
    return args;
  }

  std::vector<Expr> nodes_;
  std::string what_;
};

Normalizer read_normalizer(const json& value) {
  Normalizer normalizer;
  if (value.is_string()) {
    normalizer.kind = normalizer_from_name(value.get<std::string>());
    return normalizer;
  }
  check_keys(value, "'normalizer'", {"kind", "sinks", "divisor", "floor", "epsilon", "epsilon_place", "detach"});
  if (value.contains("kind")) normalizer.kind = normalizer_from_name(text(value["kind"], "normalizer.kind"));
  if (value.contains("divisor")) normalizer.divisor = divisor_from_name(text(value["divisor"], "normalizer.divisor"));
  if (value.contains("sinks")) normalizer.sinks = boolean(value["sinks"], "normalizer.sinks");
  if (value.contains("detach")) normalizer.detach = boolean(value["detach"], "normalizer.detach");
  if (value.contains("floor")) normalizer.floor = real(value["floor"], "normalizer.floor");
  if (value.contains("epsilon")) normalizer.epsilon = real(value["epsilon"], "normalizer.epsilon");
  if (value.contains("epsilon_place"))
    normalizer.epsilon_place = epsilon_place_from_name(text(value["epsilon_place"], "normalizer.epsilon_place"));
  return normalizer;
}

Positions read_positions(const json& value, const std::string& side) {
  const std::string what = "positions." + side;
  check_keys(value, "'" + what + "'", {"offset", "stride", "tensor", "per_batch"});
  Positions positions;
  if (value.contains("offset")) positions.offset = integer(value["offset"], what + ".offset");
  if (value.contains("stride")) positions.stride = integer(value["stride"], what + ".stride");
  if (value.contains("tensor")) positions.tensor = text(value["tensor"], what + ".tensor");
  if (value.contains("per_batch")) positions.per_batch = boolean(value["per_batch"], what + ".per_batch");
  return positions;
}

PairOutput read_pair_output(const json& value, const NodeReader& nodes, const std::string& what) {
  check_keys(value, "'" + what + "'", {"value", "bucket", "buckets"});
  PairOutput output;
  if (value.contains("value")) output.value = nodes.at(value["value"], what + ".value");
  if (value.contains("bucket")) output.bucket = nodes.at(value["bucket"], what + ".bucket");
  if (value.contains("buckets")) output.buckets = integer(value["buckets"], what + ".buckets");
  return output;
}

json parse(const std::string& source) {
  try {
    return json::parse(source);
  } catch (const json::exception& error) {
    fail(kName, "a spec in JSON", error.what());
  }
}

}  // namespace

AttentionSpec spec_from_json(const std::string& source) {
  const json object = parse(source);
  check_keys(
      object, "a spec",
      {"nodes", "score", "keep", "weight", "counted", "normalizer", "pair_outputs", "scale", "dropout", "positions"});
  const NodeReader nodes(object.value("nodes", json::array()));
  AttentionSpec spec;
  if (object.contains("score")) spec.score = nodes.at(object["score"], "score");
  if (object.contains("keep")) spec.keep = nodes.at(object["keep"], "keep");
  if (object.contains("weight")) spec.weight = nodes.at(object["weight"], "weight");
  if (object.contains("counted")) spec.counted = nodes.at(object["counted"], "counted");
  if (object.contains("normalizer")) spec.normalizer = read_normalizer(object["normalizer"]);
  if (object.contains("scale")) spec.scale = real(object["scale"], "scale");
  if (object.contains("dropout")) spec.dropout = real(object["dropout"], "dropout");
  if (object.contains("pair_outputs")) {
    const json& outputs = object["pair_outputs"];
    if (!outputs.is_array()) fail(kName, "'pair_outputs' as a list", shown(outputs));
    for (size_t i = 0; i < outputs.size(); ++i) {
      spec.pair_outputs.push_back(read_pair_output(outputs[i], nodes, "pair_outputs[" + std::to_string(i) + "]"));
    }
  }
  if (object.contains("positions")) {
    const json& positions = object["positions"];
    check_keys(positions, "'positions'", {"query", "key"});
    if (positions.contains("query")) spec.positions.query = read_positions(positions["query"], "query");
    if (positions.contains("key")) spec.positions.key = read_positions(positions["key"], "key");
  }
  spec.validate();
  return spec;
}

}  // namespace regard
