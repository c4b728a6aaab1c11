#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "regard/arena/digits.h"
#include "regard/arena/run_folder.h"
#include "regard/base/error.h"
#include "regard/cli/command.h"

namespace regard::commands {
namespace {

using arena::RunOptions;
using arena::Settings;

struct Options {
  Settings settings;
  RunOptions run;
  std::vector<std::string> configs;
  std::string json;
};

/// "poolformer={\"pool_size\": 5}" into settings.configs.
void read_configs(const std::vector<std::string>& texts, Settings& settings) {
  for (const auto& text : texts) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || text[equals + 1] != '{')
      fail("arena", "--config ID={...} with a JSON object", "'" + text + "'");
    settings.configs[text.substr(0, equals)] = text.substr(equals + 1);
  }
}

/// The settings of the run to resume, under what the command line gives anew.
Settings resumed(const CLI::App& command, Options& options) {
  if (options.run.folder.empty()) options.run.folder = arena::RunFolder::latest_path();
  Settings settings = arena::RunFolder::open(options.run.folder).settings();
  const Settings& given = options.settings;
  const auto take = [&](const char* option, auto Settings::*member) {
    if (command.get_option(option)->count() > 0) settings.*member = given.*member;
  };
  take("--mixers", &Settings::mixers);
  take("--pools", &Settings::pools);
  take("--seeds", &Settings::seeds);
  take("--epochs", &Settings::epochs);
  take("--batch", &Settings::batch);
  take("--learning-rate", &Settings::learning_rate);
  take("--weight-decay", &Settings::weight_decay);
  take("--width", &Settings::width);
  take("--depth", &Settings::depth);
  take("--heads", &Settings::heads);
  take("--mlp-ratio", &Settings::mlp_ratio);
  take("--patch", &Settings::patch);
  take("--shift", &Settings::shift);
  take("--train-limit", &Settings::train_limit);
  take("--validate", &Settings::validate);
  if (!given.configs.empty()) settings.configs = given.configs;
  return settings;
}

int run_command(const CLI::App& command, Options& options) {
  require_writable("arena", options.json);
  read_configs(options.configs, options.settings);
  const Settings settings = options.run.resume ? resumed(command, options) : options.settings;
  const arena::Report report = arena::run_digits(settings, options.run);
  // With JSON on standard output the table goes to people's eyes on stderr.
  fmt::print(options.json == "-" ? stderr : stdout, "{}", arena::to_table(report));
  if (!options.json.empty()) write_output("arena", options.json, arena::to_json(report));
  if (report.interrupted) return 130;
  return report.failures.empty() ? 0 : 1;
}

void add_comparison(CLI::App& command, Options& o) {
  Settings& s = o.settings;
  command.add_option("--mixers", s.mixers, "Token mixers to compare, comma between (default: all registered)")
      ->type_name("IDS")
      ->delimiter(',')
      ->group("What is compared");
  command.add_option("--pools", s.pools, "Pools to compare, comma between (default: all registered)")
      ->type_name("IDS")
      ->delimiter(',')
      ->group("What is compared");
  command.add_option("--seeds", s.seeds, "Trainings of each pair")
      ->type_name("N")
      ->capture_default_str()
      ->group("What is compared");
  command.add_option("--config", o.configs, "Configuration of one of them, ID={JSON} (repeatable)")
      ->type_name("ID=JSON")
      ->allow_extra_args(false)
      ->take_all()
      ->group("What is compared");
}

void add_training(CLI::App& command, Settings& s) {
  const auto number = [&](const char* name, auto& member, const char* text) {
    command.add_option(name, member, text)->type_name("N")->capture_default_str()->group("Model and training");
  };
  number("--epochs", s.epochs, "Passes over the training images");
  number("--batch", s.batch, "Images a step");
  number("--learning-rate", s.learning_rate, "Largest, after the warm-up");
  number("--weight-decay", s.weight_decay, "AdamW's");
  number("--width", s.width, "Model width D");
  number("--depth", s.depth, "Blocks");
  number("--heads", s.heads, "Heads of attention");
  number("--mlp-ratio", s.mlp_ratio, "Hidden width of the feed-forward over D");
  number("--patch", s.patch, "Patch size: 1, 2, 4 or 8");
  number("--shift", s.shift, "Largest random shift of a training image, in pixels");
  number("--train-limit", s.train_limit, "Only so many training images; 0: all");
  command.add_flag("--validate", s.validate, "Train without the validation part and report it instead of the test")
      ->group("Model and training");
}

void add_run(CLI::App& command, Options& o) {
  command.add_option("--json", o.json, "Write the results as JSON ('-': standard output, the table to stderr)")
      ->type_name("FILE")
      ->group("The run");
  command.add_option("--run", o.run.folder, "Folder of the run (default: a new one under runs/)")
      ->type_name("DIR")
      ->group("The run");
  command.add_flag("--resume", o.run.resume, "Go on with the run in --run (default: the newest under runs/)")
      ->group("The run");
  command.add_option("--workers", o.run.workers, "Trainings at a time, one thread each (default: one a core)")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber)
      ->group("The run");
  command.add_option("--data", o.run.data, "Folder of digits.csv (default: REGARD_DATA, or as installed)")
      ->type_name("DIR")
      ->group("The run");
}

}  // namespace

void add_arena(CLI::App& program, int& status) {
  CLI::App* group = program.add_subcommand("arena", "Train mechanisms side by side on real data and compare them");
  group->require_subcommand(1);
  group->footer("Example:\n  regard arena digits --mixers softmax-attention,poolformer --pools mean,simpool");
  auto options = std::make_shared<Options>();
  CLI::App* digits = group->add_subcommand("digits", "Small vision transformers on 8 x 8 handwritten digits");
  add_comparison(*digits, *options);
  add_training(*digits, options->settings);
  add_run(*digits, *options);
  digits->footer(
      "Every valid pair of a mixer and a pool is trained with every seed; pairs that do not go together are listed "
      "with\n"
      "the reason. Ctrl-C keeps the trainings that have finished.\n\n"
      "Examples:\n"
      "  regard arena digits --mixers softmax-attention,poolformer --pools class-token,mean,simpool --seeds 2\n"
      "  regard arena digits --resume\n"
      "  regard arena digits --mixers poolformer --config 'poolformer={\"pool_size\": 5}' --json results.json");
  digits->callback([digits, options, &status] { status = run_command(*digits, *options); });
}

}  // namespace regard::commands
