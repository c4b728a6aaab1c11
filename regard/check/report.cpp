#include "regard/check/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "regard/check/check.h"

namespace regard::checking {

using Json = nlohmann::ordered_json;

Json number(double value) { return std::isfinite(value) ? Json(value) : Json("infinite"); }

namespace {

// Larger tensors say nothing to a reader.
constexpr int64_t kShown = 64;

Json values(const at::Tensor& tensor) {
  if (tensor.dim() == 0)
    return tensor.is_floating_point() ? number(tensor.item<double>()) : Json(tensor.item<int64_t>());
  Json list = Json::array();
  for (int64_t i = 0; i < tensor.size(0); ++i) list.push_back(values(tensor[i]));
  return list;
}

// The tensors of the call that are small enough to read.
Json tokens_json(const Counterexample& example) {
  Json json = Json::object();
  if (!example.example) return json;
  const Case& c = *example.example;
  if (c.x.numel() <= kShown) json["x"] = values(c.x.detach());
  for (const auto& [name, tensor] : c.inputs) {
    if (tensor.numel() <= kShown) json[name] = values(tensor.detach());
  }
  return json;
}

}  // namespace

Json counterexample_json(const Counterexample& example) {
  return {{"claim", example.what},
          {"config", Json::parse(example.config.empty() ? "null" : example.config)},
          {"inputs", example.inputs},
          {"path", example.path},
          {"index", example.index},
          {"error", number(example.error)},
          {"expected", number(example.expected)},
          {"found", number(example.found)},
          {"tokens", tokens_json(example)}};
}

Json entry(const Theorem& theorem, const Findings& findings) {
  Json json = {{"theorem", theorem.name()},
               {"statement", theorem.statement()},
               {"outcome", findings.failed() ? "fail" : "pass"},
               {"reason", findings.failed() ? findings.counterexample()->what : ""},
               {"error", number(findings.error())},
               {"tolerance", findings.tolerance()},
               {"exact", findings.exact()},
               {"paths", findings.paths()},
               {"cases", findings.cases()},
               {"claims", findings.claims()},
               {"failures", findings.failures()},
               {"failed_claims", findings.failed_claims()},
               {"notes", findings.notes()},
               {"counterexample", nullptr}};
  if (findings.failed()) json["counterexample"] = counterexample_json(*findings.counterexample());
  return json;
}

namespace {

Json bare_entry(const std::string& theorem, const std::string& statement, const char* outcome,
                const std::string& reason) {
  return {{"theorem", theorem},
          {"statement", statement},
          {"outcome", outcome},
          {"reason", reason},
          {"error", 0.0},
          {"tolerance", 0.0},
          {"exact", true},
          {"paths", Json::array()},
          {"cases", 0},
          {"claims", 0},
          {"failures", 0},
          {"failed_claims", Json::object()},
          {"notes", Json::array()},
          {"counterexample", nullptr}};
}

}  // namespace

Json not_applicable(const std::string& theorem, const std::string& statement, const std::string& reason) {
  return bare_entry(theorem, statement, "not applicable", reason);
}

Json failed_entry(const std::string& theorem, const std::string& statement, const std::string& reason) {
  return bare_entry(theorem, statement, "fail", reason);
}

namespace {

std::string error_text(const Json& error) {
  return error.is_number() ? fmt::format("{:.1e}", error.get<double>()) : "infinite";
}

std::string joined(const Json& list) {
  std::string text;
  for (const auto& item : list) text += (text.empty() ? "" : ", ") + item.get<std::string>();
  return text;
}

std::string row(const Json& entry) {
  const std::string outcome = entry.at("outcome").get<std::string>();
  if (outcome == "not applicable") {
    return fmt::format("{:<13} {:<15} {}\n", entry.at("theorem").get<std::string>(), outcome,
                       entry.at("reason").get<std::string>());
  }
  const std::string error = entry.at("exact").get<bool>() ? "exact" : error_text(entry.at("error"));
  return fmt::format("{:<13} {:<15} {:>9} {:>9} {:>6}  {}\n", entry.at("theorem").get<std::string>(), outcome, error,
                     error_text(entry.at("tolerance")), entry.at("cases").get<int64_t>(), joined(entry.at("paths")));
}

std::string details(const Json& entry) {
  std::string text;
  const std::string name = entry.at("theorem").get<std::string>();
  if (entry.at("outcome") == "fail") {
    text += fmt::format("\n{} fails: {}\n", name, entry.at("reason").get<std::string>());
    const Json& example = entry.at("counterexample");
    if (!example.is_null()) {
      text +=
          fmt::format("  smallest case: {}\n  configuration: {}\n  path: {}\n", example.at("inputs").get<std::string>(),
                      example.at("config").dump(), example.at("path").get<std::string>());
      if (example.contains("tokens")) {
        for (const auto& [name, rows] : example.at("tokens").items())
          text += fmt::format("  {} = {}\n", name, rows.dump());
      }
      if (!example.at("index").empty()) {
        text += fmt::format("  at {}: expected {}, found {}\n", example.at("index").dump(),
                            example.at("expected").dump(), example.at("found").dump());
      }
    }
  }
  for (const auto& note : entry.at("notes")) text += fmt::format("\n{}: {}", name, note.get<std::string>());
  return text;
}

}  // namespace
}  // namespace regard::checking

namespace regard {

std::string check_table(const std::string& report) {
  using checking::Json;
  const Json json = Json::parse(report);
  std::string text = fmt::format("{}: {} ({} calls; paths: {})\n", json.at("id").get<std::string>(),
                                 json.at("passed").get<bool>() ? "passed" : "FAILED", json.at("calls").get<int64_t>(),
                                 checking::joined(json.at("paths")));
  if (json.value("rounding", false)) text += "its operations are torch's: equal means equal to rounding\n";
  text +=
      fmt::format("{:<13} {:<15} {:>9} {:>9} {:>6}  {}\n", "theorem", "outcome", "error", "bound", "cases", "paths");
  for (const auto& entry : json.at("theorems")) text += checking::row(entry);
  std::string below;
  for (const auto& entry : json.at("theorems")) below += checking::details(entry);
  return text + below + (below.empty() || below.back() == '\n' ? "" : "\n");
}

}  // namespace regard
