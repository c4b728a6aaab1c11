#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <fmt/format.h>
#include <torch/version.h>

#include <CLI/CLI.hpp>

#include "regard/base/version.h"
#include "regard/cli/command.h"

namespace regard::commands {

void add_version(CLI::App& program, int&) {
  CLI::App* command =
      program.add_subcommand("version", "Print the versions of Regard and of the torch it was built for");
  command->callback([] {
    fmt::print("regard {}\ntorch {}\nCPU {}, {} threads\n", version(), TORCH_VERSION, at::get_cpu_capability(),
               at::get_num_threads());
  });
}

}  // namespace regard::commands
