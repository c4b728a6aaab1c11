#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "regard/base/file.h"
#include "regard/base/table.h"
#include "regard/check/check.h"
#include "regard/cli/command.h"
#include "regard/nn/mechanism.h"

namespace regard::commands {
namespace {

using nlohmann::json;

/// The report that `regard check` left for this mechanism; null when there is none.
json report_of(const std::string& id) {
  const auto path = std::filesystem::path(reports_folder()) / (id + ".json");
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return nullptr;
  const json report = json::parse(read_file(path.string(), "list"), nullptr, /*allow_exceptions=*/false);
  return report.is_object() ? report : json(nullptr);
}

/// "6 pass", "5 pass, 1 fail", "" when not checked.
std::string verdict(const json& report) {
  if (!report.is_object() || !report.contains("theorems")) return "";
  int pass = 0, failed = 0;
  for (const auto& theorem : report["theorems"]) {
    const std::string outcome = theorem.value("outcome", "");
    pass += outcome == "pass";
    failed += outcome == "fail";
  }
  return failed ? fmt::format("{} pass, {} fail", pass, failed) : fmt::format("{} pass", pass);
}

/// Capabilities as words, computed by the theorems: "causal decode packed ...".
constexpr std::pair<const char*, const char*> kCapabilities[] = {
    {"causal", "causal"},          {"decode", "decode"},   {"packed", "packed"},   {"split", "split"},
    {"sharded", "sharded"},        {"lengths", "lengths"}, {"cross", "cross"},     {"fused", "fused"},
    {"second_order", "2nd order"}, {"half_types", "bf16"}, {"compile", "compile"}, {"export", "export"}};

/// The capabilities in a kept report; null for none, or one that another version wrote.
json capabilities(const json& report) {
  if (!report.is_object()) return nullptr;
  try {
    return json::parse(capabilities_of_report(report.dump()));
  } catch (const std::exception&) {
    return nullptr;
  }
}

std::string words(const json& capabilities) {
  std::string text;
  if (!capabilities.is_object()) return text;
  for (const auto& [key, word] : kCapabilities)
    if (capabilities.value(key, false)) text += (text.empty() ? "" : ", ") + std::string(word);
  return text;
}

/// Why theorems do not apply, mechanisms of one reason together. A refusal begins with the mechanism's own name.
std::string reasons(const json& shown) {
  std::map<std::pair<std::string, std::string>, std::string> ids;
  std::vector<std::pair<std::string, std::string>> order;
  for (const auto& mechanism : shown) {
    if (!mechanism["capabilities"].is_object()) continue;
    const std::string id = mechanism["id"];
    for (const auto& [theorem, reason] : mechanism["capabilities"]["why"].items()) {
      std::string text = reason;
      if (const std::string own = "[" + id + "] "; text.starts_with(own)) text = text.substr(own.size());
      std::string& list = ids[{theorem, text}];
      if (list.empty()) order.emplace_back(theorem, text);
      list += (list.empty() ? "" : ", ") + id;
    }
  }
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::string text;
  for (const auto& key : order) text += fmt::format("  {}: {}\n    {}\n", key.first, key.second, ids[key]);
  return text.empty() ? text : "\nTheorems that do not apply, and why:\n" + text;
}

std::string traits(const json& mechanism) {
  std::string text;
  const auto add = [&](bool has, const char* word) {
    if (has) text += (text.empty() ? "" : ", ") + std::string(word);
  };
  add(mechanism.value("needs_grid", false), "needs a grid");
  add(!mechanism.value("takes_prefix", true), "no prefix tokens");
  add(mechanism.value("needs_prefix", false), "needs a class token");
  add(mechanism.value("couples_batch", false), "couples the batch");
  return text;
}

void list(const std::string& role, const std::string& file) {
  require_writable("list", file);
  json all = json::parse(registry_json()), shown = json::array();
  for (auto& mechanism : all) {
    if (!role.empty() && mechanism["role"] != role) continue;
    mechanism["check"] = report_of(mechanism["id"]);
    mechanism["capabilities"] = capabilities(mechanism["check"]);
    shown.push_back(mechanism);
  }
  if (!file.empty()) return write_output("list", file, shown.dump(2));
  std::vector<std::vector<std::string>> rows = {{"id", "role", "family", "checked", "title", "can", "notes"}};
  for (const auto& mechanism : shown)
    rows.push_back({mechanism["id"], mechanism["role"], mechanism["family"], verdict(mechanism["check"]),
                    mechanism["title"], words(mechanism["capabilities"]), traits(mechanism)});
  fmt::print("{}", table(rows, rows.front().size()));
  fmt::print("{}", reasons(shown));
  fmt::print("\n{} mechanisms. 'checked' and 'can' are what the last `regard check ID` on this machine found.\n",
             rows.size() - 1);
}

struct Options {
  std::string role, json;
};

}  // namespace

void add_list(CLI::App& program, int&) {
  auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand("list", "List the registered mechanisms");
  command->add_option("--role", options->role, "Only mixers, pools, reducers or hosts")
      ->type_name("ROLE")
      ->check(CLI::IsMember({"mixer", "pool", "reducer", "host"}));
  command->add_option("--json", options->json, "Write everything known about them as JSON ('-': standard output)")
      ->type_name("FILE");
  command->footer("Examples:\n  regard list --role pool\n  regard list --json - | python3 -m json.tool");
  command->callback([options] { list(options->role, options->json); });
}

}  // namespace regard::commands
