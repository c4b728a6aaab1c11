#include "regard/cli/cli.h"

#include <fmt/format.h>
#include <torch/library.h>

#include <CLI/CLI.hpp>
#include <algorithm>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/cli/command.h"
#include "regard/nn/mechanism.h"

namespace regard {
namespace {

constexpr const char* description =
    "Regard: attention, pooling and token-mixing mechanisms, declared once, trained, checked and compared.";

constexpr const char* examples =
    "Start here:\n"
    "  regard list                          what there is\n"
    "  regard arena digits                  train small vision transformers on handwritten digits and compare them\n"
    "  regard check softmax-attention       hold a mechanism against the theorems\n"
    "  regard list --plugin ./libmine.so    with the mechanisms of your own library\n"
    "\n"
    "`regard COMMAND --help` explains a command.";

/// One line: what is after "Error: " of CLI11, or our own.
int refuse(const std::string& message) {
  std::string line = message;
  for (char& letter : line)
    if (letter == '\n') letter = ' ';
  fmt::print(stderr, "regard: {}\n", line);
  std::fflush(stderr);
  return 2;
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  return names;
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options())
    for (const auto& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

/// The command that the arguments reach: regard, regard arena, regard arena digits.
const CLI::App& chosen(const CLI::App& program) {
  const CLI::App* app = &program;
  while (!app->get_subcommands().empty()) app = app->get_subcommands().front();
  return *app;
}

/// An argument that nothing takes: an unknown command or option, with the nearest that exists.
std::string unexpected(const CLI::App& program) {
  const CLI::App& app = chosen(program);
  const auto rest = app.remaining(true).empty() ? program.remaining(true) : app.remaining(true);
  const std::string found = rest.empty() ? "" : rest.front();
  const std::string place = &app == &program ? "" : app.get_display_name() + ": ";
  if (!found.empty() && found[0] == '-')
    return fmt::format("{}unknown option '{}'{}", place, found, suggestion(found, option_names(app)));
  const auto names = command_names(app);
  if (!names.empty()) return fmt::format("{}unknown command '{}'{}", place, found, suggestion(found, names));
  return fmt::format("{}unexpected argument '{}'", place, found);
}

int run_program(std::vector<std::string> arguments) {
  int status = 0;
  CLI::App program(description, "regard");
  program.footer(examples);
  program.require_subcommand(0, 1);
  program.fallthrough();
  std::vector<std::string> plugins;
  // The commands' callbacks run after this one, so that plug-ins are there when they look.
  program.add_option("--plugin", plugins, "A shared library that registers more mechanisms (repeatable)")
      ->type_name("LIB")
      ->take_all()
      ->allow_extra_args(false)
      ->each([](const std::string& library) { load_plugin(library); });
  commands::add_list(program, status);
  commands::add_check(program, status);
  commands::add_arena(program, status);
  commands::add_explain(program, status);
  commands::add_version(program, status);
  try {
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants a vector
    program.parse(arguments);
    if (program.get_subcommands().empty()) fmt::print("{}", program.help());
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", chosen(program).help());
  } catch (const CLI::CallForAllHelp&) {
    fmt::print("{}", program.help("", CLI::AppFormatMode::All));
  } catch (const CLI::ExtrasError&) {
    return refuse(unexpected(program));
  } catch (const CLI::RequiredError& error) {
    // A misspelled command leaves the place of the right one empty.
    const bool nothing = program.remaining(true).empty() && chosen(program).remaining(true).empty();
    return refuse(nothing ? error.what() : unexpected(program));
  } catch (const CLI::Error& error) {
    return refuse(error.what());
  }
  return status;
}

}  // namespace

int cli(const std::vector<std::string>& arguments) {
  int status = 2;
  try {
    status = run_program(arguments);
  } catch (const Error& error) {
    status = refuse(error.what());
  } catch (const c10::Error& error) {
    status = refuse(error.what_without_backtrace());
  } catch (const std::exception& error) {
    status = refuse(error.what());
  }
  // Python's streams and ours share the descriptors.
  std::fflush(stdout);
  std::fflush(stderr);
  return status;
}

}  // namespace regard

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def("cli(str[] arguments) -> int",
        [](const std::vector<std::string>& arguments) { return static_cast<int64_t>(regard::cli(arguments)); });
}
