// Names by pattern, the official code's options as ours, and the bounds that a case states.

#include <algorithm>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "regard/base/error.h"
#include "regard/check/golden_case.h"

namespace regard::checking {
namespace {

using Json = nlohmann::json;

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

std::string text_of(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

struct ConfigMap {
  const Golden& golden;
  const Json defaults;
  std::vector<int64_t>& grid;
  int64_t& prefix;
  Json config = Json::object();

  void add(const std::string& key, const Json& value) {
    for (const auto& [official, merged] : golden.config) {
      if (official.find('=') == std::string::npos || !matches(official, key + "=" + text_of(value))) continue;
      if (!merged.empty()) config.update(Json::parse(merged));
      return;
    }
    const std::string* found = entry_of(golden.config, key);
    // Options of a part of the official module: "ra": {"n_relations": 3} is "ra.n_relations".
    // A wildcard that would take the whole object does not hide them.
    const bool parted = std::any_of(golden.config.begin(), golden.config.end(),
                                    [&](const auto& pair) { return pair.first.rfind(key + ".", 0) == 0; });
    if (value.is_object() && (!found || parted) && !defaults.contains(key)) {
      for (const auto& [inner, item] : value.items()) add(key + "." + inner, item);
      return;
    }
    const std::string ours = found ? *found : key;
    if (ours == "@grid") {
      // Rows and columns together, or each under its own name, in the order of the names.
      if (value.is_array())
        grid = value.get<std::vector<int64_t>>();
      else
        grid.push_back(value.get<int64_t>());
    } else if (ours == "@prefix") {
      prefix = value.get<int64_t>();
    } else if (!ours.empty()) {
      config[ours] = defaults.contains(ours) ? adapted(value, defaults[ours]) : value;
    }
  }
};

// Whether a word of the text is, or matches, the name of a tensor of the file, with or without "out.".
std::vector<std::string> tensors_named(const std::string& word, const GoldenFile& file) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : file.tensors) {
    if (matches(word, name) || matches("out." + word, name)) names.push_back(name);
  }
  return names;
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

const std::string* entry_of(const std::vector<std::pair<std::string, std::string>>& pairs, const std::string& name) {
  for (const auto& [official, ours] : pairs) {
    if (official == name) return &ours;
  }
  for (const auto& [official, ours] : pairs) {
    if (official.find_first_of("*#") != std::string::npos && matches(official, name)) return &ours;
  }
  return nullptr;
}

std::string map_config(const Mechanism& mechanism, const Golden& golden, const std::string& official,
                       std::vector<int64_t>& grid, int64_t& prefix, int64_t width) {
  const Json given = Json::parse(official.empty() ? "{}" : official, nullptr, /*allow_exceptions=*/false);
  if (!given.is_object()) fail("golden", "the metadata `config` to be a JSON object", official);
  ConfigMap map{golden, Json::parse(mechanism.default_config()), grid, prefix};
  if (!golden.defaults.empty()) map.config = Json::parse(golden.defaults);
  for (const auto& [key, value] : given.items()) map.add(key, value);
  if (width > 0 && map.defaults.contains("width") && !map.config.contains("width")) map.config["width"] = width;
  if (!golden.fixed.empty()) map.config.update(Json::parse(golden.fixed));
  return map.config.dump();
}

double Bounds::of(const std::string& name) const {
  const auto found = own.find(name);
  return found == own.end() ? least : std::max(least, found->second);
}

Bounds tolerance_of(const GoldenFile& file, double least) {
  Bounds result{least, {}};
  std::string text = file.text("tolerance");
  // What stands in parentheses is a reason.
  for (size_t open = text.find('('); open != std::string::npos; open = text.find('(')) {
    const size_t close = std::min(text.find(')', open), text.size() - 1);
    text.erase(open, close - open + 1);
  }
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c == ',' || c == '\n'; }, ' ');
  std::istringstream pieces(text);
  for (std::string piece; std::getline(pieces, piece, ';');) {
    std::istringstream words(piece);
    double bound = 0;
    if (!(words >> bound)) continue;
    std::vector<std::string> named;
    for (std::string word; words >> word;) {
      for (const std::string& name : tensors_named(word, file)) named.push_back(name);
    }
    for (const std::string& name : named) result.own[name] = bound;
    if (named.empty()) result.least = std::max(result.least, bound);
  }
  return result;
}

}  // namespace regard::checking
