#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "regard/algebra/spec.h"
#include "regard/arena/run_folder.h"
#include "regard/cli/command.h"
#include "regard/kernels/attention.h"

namespace regard::commands {
namespace {

std::string read_standard_input() {
  std::string text;
  char buffer[4096];
  for (size_t count; (count = std::fread(buffer, 1, sizeof buffer, stdin)) > 0;) text.append(buffer, count);
  return text;
}

void explain(const std::string& file) {
  const AttentionSpec spec = spec_from_json(file == "-" ? read_standard_input() : arena::read_file(file));
  spec.validate();
  fmt::print("{}\n", to_string(spec));
  const std::string refused = kernels::refusal(spec.resolved());
  if (refused.empty())
    fmt::print("blocked CPU kernel: runs\n");
  else
    fmt::print("blocked CPU kernel: refused by {}; the stripe executor runs it\n", refused);
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
  command->callback([file] { explain(*file); });
}

}  // namespace regard::commands
