// What each mechanism can do, read off the outcomes of the theorems.

#include <algorithm>
#include <nlohmann/json.hpp>

#include "regard/check/case.h"
#include "regard/check/check.h"

namespace regard {
namespace checking {
namespace {

using Json = nlohmann::ordered_json;

const Json* find_theorem(const Json& report, const std::string& name) {
  for (const Json& entry : report.at("theorems")) {
    if (entry.at("theorem") == name) return &entry;
  }
  return nullptr;
}

std::string outcome(const Json& report, const std::string& name) {
  const Json* entry = find_theorem(report, name);
  return entry ? entry->at("outcome").get<std::string>() : "not run";
}

bool any_note(const Json& report, const std::string& name, const std::string& beginning) {
  const Json* entry = find_theorem(report, name);
  if (!entry) return false;
  return std::any_of(entry->at("notes").begin(), entry->at("notes").end(),
                     [&](const Json& note) { return note.get<std::string>().rfind(beginning, 0) == 0; });
}

// "invariant", "equivariant", "ordered" (the order of the tokens matters), or "" when nothing was found out.
std::string order_of(const Json& report) {
  if (any_note(report, "permutation", "not ")) return "ordered";
  if (any_note(report, "permutation", "invariant")) return "invariant";
  return any_note(report, "permutation", "equivariant") ? "equivariant" : "";
}

Json capabilities_of(const Mechanism& mechanism, const std::string& options) {
  const Info& info = mechanism.info();
  const Json report = Json::parse(check(info.id, options));
  const bool gradients = outcome(report, "gradients") == "pass";
  return {{"id", info.id},
          {"family", info.family},
          {"role", info.role == Role::mixer  ? "mixer"
                   : info.role == Role::pool ? "pool"
                                             : "host"},
          {"passed", report.at("passed")},
          {"paths", report.at("paths")},
          {"causal", outcome(report, "causality") == "pass"},
          {"cross", make_subject(info.id, report.at("seed").get<uint64_t>()).has_input("memory")},
          {"lengths", outcome(report, "padding") == "pass"},
          {"grid", info.needs_grid},
          {"maps", info.takes_maps},
          {"prefix", info.needs_prefix   ? "needed"
                     : info.takes_prefix ? "taken"
                                         : "refused"},
          {"batch_independent", outcome(report, "batch") == "pass"},
          {"gradients", gradients},
          {"forward_mode", gradients && !any_note(report, "gradients", "forward mode is not available")},
          {"order", order_of(report)},
          {"golden", outcome(report, "golden")}};
}

}  // namespace
}  // namespace checking

std::string capabilities_json(const std::string& options) {
  checking::Json table = checking::Json::array();
  for (const Mechanism* mechanism : mechanisms()) table.push_back(checking::capabilities_of(*mechanism, options));
  return table.dump();
}

}  // namespace regard
