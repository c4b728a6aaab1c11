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

// "bits" where the whole call and the fused kernel inside have the same bits on any number of threads.
std::string threads_of(const Json& report) {
  if (outcome(report, "threads") != "pass") return "";
  return any_note(report, "threads", "whole: to rounding") ? "rounding" : "bits";
}

// {theorem: why it does not apply}.
Json reasons(const Json& report) {
  Json json = Json::object();
  for (const Json& entry : report.at("theorems")) {
    if (entry.at("outcome") == "not applicable") json[entry.at("theorem").get<std::string>()] = entry.at("reason");
  }
  return json;
}

bool contains(const Json& list, const char* value) { return std::find(list.begin(), list.end(), value) != list.end(); }

Json capabilities_of(const Json& report) {
  const Info& info = mechanism(report.at("id").get<std::string>()).info();
  const auto passes = [&](const char* theorem) { return outcome(report, theorem) == "pass"; };
  const bool gradients = passes("gradients");
  return {{"id", info.id},
          {"family", info.family},
          {"role", info.role == Role::mixer  ? "mixer"
                   : info.role == Role::pool ? "pool"
                   : info.role == Role::host ? "host"
                                             : "reducer"},
          {"passed", report.at("passed")},
          {"paths", report.at("paths")},
          {"causal", passes("causality")},
          {"decode", passes("cache")},
          {"packed", passes("packed")},
          {"split", passes("split")},
          {"sharded", passes("shard")},
          {"fused", contains(report.at("paths"), "fused") && passes("paths-agree")},
          {"cross", contains(report.at("inputs"), "memory")},
          {"lengths", passes("padding")},
          {"grid", info.needs_grid},
          {"maps", info.takes_maps},
          {"prefix", info.needs_prefix   ? "needed"
                     : info.takes_prefix ? "taken"
                                         : "refused"},
          {"batch_independent", passes("batch")},
          {"gradients", gradients},
          {"second_order", gradients && !any_note(report, "gradients", "second order is not available")},
          {"forward_mode", gradients && !any_note(report, "gradients", "forward mode is not available")},
          {"checkpoint", passes("checkpoint")},
          {"half_types", passes("dtypes") && !any_note(report, "dtypes", "bfloat16 is")},
          {"compile", passes("compile")},
          {"export", passes("export")},
          {"threads", threads_of(report)},
          {"order", order_of(report)},
          {"golden", outcome(report, "golden")},
          {"why", reasons(report)}};
}

}  // namespace
}  // namespace checking

std::string capabilities_json(const std::string& options) {
  checking::Json table = checking::Json::array();
  for (const Mechanism* mechanism : mechanisms()) {
    table.push_back(checking::capabilities_of(checking::Json::parse(check(mechanism->info().id, options))));
  }
  return table.dump();
}

std::string capabilities_of_report(const std::string& report) {
  return checking::capabilities_of(checking::Json::parse(report)).dump();
}

}  // namespace regard
