#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "regard/base/file.h"
#include "regard/cli/command.h"
#include "regard/ops/explain.h"

namespace regard::commands {
namespace {

std::string read_standard_input() {
  std::string text;
  char buffer[4096];
  for (size_t count; (count = std::fread(buffer, 1, sizeof buffer, stdin)) > 0;) text.append(buffer, count);
  return text;
}

void run_explain(const std::string& file) {
  fmt::print("{}", explain(file == "-" ? read_standard_input() : read_file(file, "explain")));
}

}  // namespace

void add_explain(CLI::App& program, int&) {
  auto file = std::make_shared<std::string>();
  CLI::App* command = program.add_subcommand("explain", "Print an attention specification and the path it takes");
  command->add_option("SPEC", *file, "A specification as JSON ('-': standard input)")->required();
  command->footer(
      "Examples:\n"
      "  echo '{\"scale\": 0.125}' | regard explain -\n"
      "  python3 -c 'import regard; print(regard.Spec(mask=lambda b, h, i, j: i >= j).json)' | regard explain -");
  command->callback([file] { run_explain(*file); });
}

}  // namespace regard::commands
