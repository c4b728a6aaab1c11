#include "regard/check/check.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/base/file.h"
#include "regard/cli/command.h"
#include "regard/nn/foreign.h"
#include "regard/nn/mechanism.h"

namespace regard::commands {
namespace {

using nlohmann::json;

struct Options {
  std::vector<std::string> ids, theorems, executors;
  std::string golden, json;
  int64_t seed = 0;
  bool all = false;
};

/// Kept for `regard list`; a cache that cannot be written is no reason to hide a verdict.
void keep(const std::string& id, const std::string& report) {
  std::error_code error;
  std::filesystem::create_directories(reports_folder(), error);
  if (error) return;
  try {
    write_file_atomically((std::filesystem::path(reports_folder()) / (id + ".json")).string(), report + "\n", "check");
  } catch (const Error&) {
  }
}

std::vector<std::string> names_of(const Options& options) {
  std::vector<std::string> ids = options.ids;
  if (options.all && !ids.empty()) fail("check", "either mechanisms or --all", "both");
  if (options.all)
    for (const Mechanism* one : mechanisms()) ids.push_back(one->info().id);
  if (ids.empty()) fail("check", "the id of a mechanism (or --all)", "none");
  for (auto& id : ids) {
    if (id.ends_with(".json")) {
      id = register_spec(read_file(id, "check"));
      continue;
    }
    if (id.ends_with(".py"))
      fail("check",
           "a mechanism's id (a Python file is checked by the Python entry: python -m regard check " + id + ")",
           "'" + id + "'");
    mechanism(id);
  }
  return ids;
}

int run_check(const Options& options) {
  require_writable("check", options.json);
  if (options.seed < 0) fail("check", "--seed of at least 0", std::to_string(options.seed));
  json request = json::object();
  if (!options.theorems.empty()) request["theorems"] = options.theorems;
  if (!options.executors.empty()) request["executors"] = options.executors;
  if (!options.golden.empty()) request["golden"] = options.golden;
  if (options.seed != 0) request["seed"] = options.seed;
  json reports = json::array();
  bool passed = true;
  for (const auto& id : names_of(options)) {
    const std::string report = check(id, request.dump());
    const json parsed = json::parse(report);
    passed = passed && parsed.value("passed", false);
    // A partial check would overwrite a full one.
    if (options.theorems.empty() && mechanism(id).listed()) keep(id, report);
    reports.push_back(parsed);
    if (options.json != "-") {
      fmt::print("{}\n", check_table(report));
      std::fflush(stdout);
    }
  }
  if (!options.json.empty()) write_output("check", options.json, (reports.size() == 1 ? reports[0] : reports).dump(2));
  return passed ? 0 : 1;
}

}  // namespace

void add_check(CLI::App& program, int& status) {
  auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand("check", "Hold mechanisms against the theorems");
  command->add_option("ID", options->ids,
                      "Mechanisms, as `regard list` names them; a specification (.json); with python -m regard also "
                      "a Python file (.py)");
  command->add_flag("--all", options->all, "Every registered mechanism");
  command->add_option("--theorems", options->theorems, "Only these (comma between)")
      ->type_name("NAMES")
      ->delimiter(',');
  command->add_option("--executors", options->executors, "What the theorem split runs on (default: split)")
      ->type_name("NAMES")
      ->delimiter(',');
  command->add_option("--golden", options->golden, "Folder of golden cases (default: REGARD_GOLDEN)")->type_name("DIR");
  command->add_option("--seed", options->seed, "Of the random cases")->type_name("N");
  command->add_option("--json", options->json, "Write the report as JSON ('-': standard output, without the table)")
      ->type_name("FILE");
  command->footer(
      "Ends with 1 when a theorem fails, and prints the smallest counterexample found.\n\n"
      "Examples:\n"
      "  regard check softmax-attention\n"
      "  regard check --all --theorems gradients,empty-rows\n"
      "  regard check simpool --json report.json\n"
      "  regard check my_spec.json\n"
      "  python -m regard check my_attention.py");
  command->callback([options, &status] { status = run_check(*options); });
}

}  // namespace regard::commands
