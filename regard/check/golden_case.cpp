// From the official code's names and options to ours.

#include "regard/check/golden_case.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"

namespace regard::checking {
namespace {

using Json = nlohmann::json;
using Pairs = std::vector<std::pair<std::string, std::string>>;

// The exact entry, else the first pattern that matches.
const std::string* find(const Pairs& pairs, const std::string& name) {
  for (const auto& [official, ours] : pairs) {
    if (official == name) return &ours;
  }
  for (const auto& [official, ours] : pairs) {
    if (official.find_first_of("*#") != std::string::npos && matches(official, name)) return &ours;
  }
  return nullptr;
}

bool has_port(const std::vector<Port>& ports, const std::string& name) {
  return std::any_of(ports.begin(), ports.end(), [&](const Port& port) { return port.name == name; });
}

// Official code writes 2.0 for an integer and 224 for a square: take the type that our field has.
Json adapted(const Json& value, const Json& ours) {
  if (ours.is_number_integer() && value.is_number_float() && std::floor(value.get<double>()) == value.get<double>()) {
    return Json(static_cast<int64_t>(value.get<double>()));
  }
  if (ours.is_array() && (value.is_number() || value.is_string())) {
    Json list = Json::array();
    for (size_t i = 0; i < std::max<size_t>(1, ours.size()); ++i) list.push_back(value);
    return list;
  }
  return value;
}

Target map_input(const Info& info, const std::string& name) {
  const std::string* found = find(info.golden.inputs, name);
  const std::string ours = found ? *found : name;
  if (ours.empty()) return {Target::Kind::ignored, ""};
  if (ours == "x") return {Target::Kind::x, "x"};
  if (has_port(info.inputs, ours)) return {Target::Kind::input, ours};
  return {Target::Kind::unmatched, ours};
}

Target map_output(const Info& info, const std::string& name, bool alone) {
  const std::string* found = find(info.golden.outputs, name);
  if (found && *found == "-") return {Target::Kind::ignored, ""};
  if (found && found->empty()) return {Target::Kind::main, ""};
  const std::string ours = found ? *found : name;
  if (has_port(info.outputs, ours)) return {Target::Kind::output, ours};
  if (!found && (name == "out" || name == "y" || alone)) return {Target::Kind::main, ""};
  return {Target::Kind::unmatched, ours};
}

// The longest official prefix is replaced by ours.
std::string renamed(const Pairs& prefixes, const std::string& name, bool& by_empty) {
  const std::pair<std::string, std::string>* best = nullptr;
  for (const auto& pair : prefixes) {
    if (name.rfind(pair.first, 0) == 0 && (!best || pair.first.size() > best->first.size())) best = &pair;
  }
  by_empty = best && best->second.empty();
  return best ? best->second + name.substr(best->first.size()) : name;
}

Target map_weight(const Info& info, const std::vector<WeightDeclaration>& declared, const std::string& name) {
  bool by_empty = false;
  const std::string ours = renamed(info.golden.weights, name, by_empty);
  for (const WeightDeclaration& weight : declared) {
    if (weight.name == ours) return {Target::Kind::weight, ours};
  }
  return {by_empty ? Target::Kind::ignored : Target::Kind::unmatched, ours};
}

void note_unmatched(GoldenCase& result, const std::string& prefix, const std::map<std::string, Target>& targets) {
  for (const auto& [name, target] : targets) {
    if (target.kind == Target::Kind::unmatched) result.unmatched.push_back(prefix + name);
  }
}

// Names outside the form, and gradients of tensors that are not there.
void note_strangers(GoldenCase& result, const GoldenFile& file) {
  for (const auto& [name, tensor] : file.tensors) {
    const auto starts = [&n = name](const char* prefix) { return n.rfind(prefix, 0) == 0; };
    if (starts("in.") || starts("param.") || starts("out.") || name == "w" || starts("w.")) continue;
    if (starts("grad.") && file.tensors.count(name.substr(5))) continue;
    result.unmatched.push_back(name);
  }
}

void note_missing(GoldenCase& result) {
  for (const WeightDeclaration& weight : result.instance->weights()) {
    if (weight.buffer || !weight.alias.empty()) continue;
    const bool given = std::any_of(result.weights.begin(), result.weights.end(), [&](const auto& entry) {
      return entry.second.kind == Target::Kind::weight && entry.second.name == weight.name;
    });
    if (!given) result.missing.push_back(weight.name);
  }
}

}  // namespace

bool matches(const std::string& pattern, const std::string& name) {
  const size_t wild = pattern.find_first_of("*#");
  if (wild == std::string::npos) return pattern == name;
  if (name.compare(0, wild, pattern, 0, wild) != 0) return false;
  const std::string rest = pattern.substr(wild + 1);
  const bool digits = pattern[wild] == '#';
  for (size_t end = wild; end <= name.size(); ++end) {
    if (!(digits && end == wild) && matches(rest, name.substr(end))) return true;
    if (digits && (end == name.size() || !std::isdigit(static_cast<unsigned char>(name[end])))) return false;
  }
  return false;
}

std::string map_config(const Mechanism& mechanism, const std::string& official, std::vector<int64_t>& grid,
                       int64_t& prefix) {
  const Golden& golden = mechanism.info().golden;
  const Json given = Json::parse(official.empty() ? "{}" : official, nullptr, /*allow_exceptions=*/false);
  if (!given.is_object()) fail("golden", "the metadata `config` to be a JSON object", official);
  const Json defaults = Json::parse(mechanism.default_config());
  Json config = Json::object();
  for (const auto& [key, value] : given.items()) {
    const std::string* found = find(golden.config, key);
    const std::string ours = found ? *found : key;
    if (ours == "@grid") {
      grid = value.get<std::vector<int64_t>>();
    } else if (ours == "@prefix") {
      prefix = value.get<int64_t>();
    } else if (!ours.empty()) {
      config[ours] = defaults.contains(ours) ? adapted(value, defaults[ours]) : value;
    }
  }
  if (!golden.fixed.empty()) config.update(Json::parse(golden.fixed));
  return config.dump();
}

std::string GoldenFile::text(const std::string& key) const {
  const auto found = metadata.find(key);
  return found == metadata.end() ? "" : found->second;
}

std::map<std::string, at::Tensor> GoldenFile::under(const std::string& prefix) const {
  std::map<std::string, at::Tensor> result;
  for (const auto& [name, tensor] : tensors) {
    if (name.rfind(prefix, 0) == 0) result[name.substr(prefix.size())] = tensor;
  }
  return result;
}

GoldenCase map_golden(const Mechanism& mechanism, const GoldenFile& file) {
  GoldenCase result;
  result.instance = mechanism.configure(map_config(mechanism, file.text("config"), result.grid, result.prefix));
  const Info& info = mechanism.info();
  for (const auto& [name, tensor] : file.under("in.")) result.inputs[name] = map_input(info, name);
  for (const auto& [name, tensor] : file.under("param.")) {
    result.weights[name] = map_weight(info, result.instance->weights(), name);
  }
  const auto outputs = file.under("out.");
  for (const auto& [name, tensor] : outputs) result.outputs[name] = map_output(info, name, outputs.size() == 1);
  note_unmatched(result, "in.", result.inputs);
  note_unmatched(result, "param.", result.weights);
  note_unmatched(result, "out.", result.outputs);
  note_strangers(result, file);
  note_missing(result);
  return result;
}

}  // namespace regard::checking
