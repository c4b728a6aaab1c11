#include <ATen/ATen.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/base/file.h"
#include "regard/cli/command.h"
#include "regard/ops/explain.h"
#include "regard/ops/machine.h"

namespace regard::commands {
namespace {

struct Options {
  std::string file, shape, dtype = "float32", json;
  bool probe = false;
};

std::string read_standard_input() {
  std::string text;
  char buffer[4096];
  for (size_t count; (count = std::fread(buffer, 1, sizeof buffer, stdin)) > 0;) text.append(buffer, count);
  return text;
}

void run_explain(const Options& options) {
  const std::string spec = options.file == "-" ? read_standard_input() : read_file(options.file, "explain");
  require_writable("explain", options.json);
  if (options.probe) ops::machine(/*fresh=*/true);
  if (options.shape.empty()) {
    if (!options.json.empty()) fail("explain", "--json together with --shape", "--json alone");
    return fmt::print("{}", explain(spec));
  }
  const ExplainShape shape = explain_shape("explain", options.shape);
  const std::string report = explain_shape_json(spec, shape, ops::dtype_from_name("explain", options.dtype));
  if (options.json.empty()) return fmt::print("{}", explain_text(report));
  write_output("explain", options.json, nlohmann::json::parse(report).dump(2));
}

}  // namespace

void add_explain(CLI::App& program, int&) {
  auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand(
      "explain", "Print an attention specification, the path that a call of it takes, and what the call costs");
  command->add_option("SPEC", options->file, "A specification as JSON ('-': standard input)")->required();
  command
      ->add_option("--shape", options->shape,
                   "Run a call of these sizes on random inputs: kernels and why others refuse, FLOPs, bytes, roofline "
                   "and measured time")
      ->type_name("B,H,M,N,D[,Dv[,Hk]]");
  command->add_option("--dtype", options->dtype, "float32 (default), float64, bfloat16 or float16")->type_name("DTYPE");
  command->add_option("--json", options->json, "Write the report of --shape as JSON ('-': standard output)")
      ->type_name("FILE");
  command->add_flag("--probe", options->probe, "Measure this machine's peaks again; the higher figures are kept");
  command->footer(
      "Examples:\n"
      "  echo '{\"scale\": 0.125}' | regard explain - --shape 1,8,2048,2048,64\n"
      "  python3 -c 'import regard; print(regard.Spec(mask=lambda b, h, i, j: i >= j).json)' | regard explain -");
  command->callback([options] { run_explain(*options); });
}

}  // namespace regard::commands
