#include "regard/arena/run_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/base/file.h"

namespace regard::arena {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* runs_folder = "runs";
constexpr const char* settings_name = "settings.json";

/// Calls visit(name, member) for every setting but the lists of what is compared.
template <class S, class Visit>
void training_settings(S& s, Visit&& visit) {
  visit("epochs", s.epochs);
  visit("batch", s.batch);
  visit("learning_rate", s.learning_rate);
  visit("weight_decay", s.weight_decay);
  visit("width", s.width);
  visit("depth", s.depth);
  visit("heads", s.heads);
  visit("mlp_ratio", s.mlp_ratio);
  visit("patch", s.patch);
  visit("shift", s.shift);
  visit("train_limit", s.train_limit);
  visit("validate", s.validate);
  visit("configs", s.configs);
}

template <class S, class Visit>
void all_settings(S& s, Visit&& visit) {
  visit("mixers", s.mixers);
  visit("pools", s.pools);
  visit("seeds", s.seeds);
  training_settings(s, visit);
}

json training_json(const Settings& settings) {
  json object = json::object();
  training_settings(settings, [&](const char* name, const auto& value) { object[name] = value; });
  return object;
}

std::string file_of(const std::string& folder, const Job& job) {
  return (fs::path(folder) / fmt::format("{}+{}+seed{}.json", job.mixer, job.pool, job.seed)).string();
}

}  // namespace

std::string to_json(const Settings& settings) {
  json object = json::object();
  all_settings(settings, [&](const char* name, const auto& value) { object[name] = value; });
  return object.dump(2);
}

Settings settings_from_json(const std::string& text) {
  json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) fail("arena", "settings as a JSON object", text.substr(0, 60));
  Settings settings;
  try {
    all_settings(settings, [&](const char* name, auto& value) {
      if (object.contains(name)) value = object[name].get<std::decay_t<decltype(value)>>();
      object.erase(name);
    });
  } catch (const json::exception& error) {
    fail("arena", "settings of the right types", error.what());
  }
  if (!object.empty()) fail("arena", "known settings", "'" + object.begin().key() + "'");
  return settings;
}

RunFolder RunFolder::create(const std::string& path, const Settings& settings) {
  if (fs::exists(fs::path(path) / settings_name))
    fail("arena", "a new folder for the run (or --resume to go on with it)", "a run in " + path);
  std::error_code error;
  fs::create_directories(path, error);
  if (error) fail("arena", "to create the folder " + path, error.message());
  write_file_atomically((fs::path(path) / settings_name).string(), to_json(settings) + "\n", "arena");
  return RunFolder(path);
}

RunFolder RunFolder::open(const std::string& path) {
  if (!fs::exists(fs::path(path) / settings_name)) fail("arena", "the folder of a run to resume", path);
  return RunFolder(path);
}

std::string RunFolder::fresh_path() {
  const std::time_t now = std::time(nullptr);
  std::tm local = {};
  localtime_r(&now, &local);
  char stamp[32];
  std::strftime(stamp, sizeof stamp, "digits-%Y%m%d-%H%M%S", &local);
  std::string path = (fs::path(runs_folder) / stamp).string();
  for (int number = 2; fs::exists(path); ++number)
    path = (fs::path(runs_folder) / fmt::format("{}-{}", stamp, number)).string();
  return path;
}

std::string RunFolder::latest_path() {
  std::vector<std::string> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(runs_folder, error))
    if (entry.path().filename().string().rfind("digits-", 0) == 0 && fs::exists(entry.path() / settings_name))
      found.push_back(entry.path().string());
  if (found.empty()) fail("arena", "a run to resume under runs/ (or its folder by --run)", "none");
  return *std::max_element(found.begin(), found.end());
}

Settings RunFolder::settings() const {
  return settings_from_json(read_file((fs::path(path_) / settings_name).string(), "arena"));
}

void RunFolder::write(const Settings& settings, const Finished& finished) const {
  const Outcome& o = finished.outcome;
  const json object = {{"mixer", finished.job.mixer},      {"pool", finished.job.pool},
                       {"seed", finished.job.seed},        {"training", training_json(settings)},
                       {"accuracy", o.accuracy},           {"parameters", o.parameters},
                       {"train_seconds", o.train_seconds}, {"inference_seconds", o.inference_seconds},
                       {"final_loss", o.final_loss}};
  write_file_atomically(file_of(path_, finished.job), object.dump(2) + "\n", "arena");
}

std::optional<Outcome> RunFolder::read(const Settings& settings, const Job& job) const {
  const std::string path = file_of(path_, job);
  if (!fs::exists(path)) return std::nullopt;
  const json object = json::parse(read_file(path, "arena"), nullptr, /*allow_exceptions=*/false);
  if (!object.is_object() || !object.contains("training")) fail("arena", "the outcome of a training", path);
  if (object["training"] != training_json(settings))
    fail("arena", "the training settings that " + path + " was made with, " + object["training"].dump(),
         training_json(settings).dump());
  Outcome outcome;
  try {
    outcome.accuracy = object.at("accuracy");
    outcome.parameters = object.at("parameters");
    outcome.train_seconds = object.at("train_seconds");
    outcome.inference_seconds = object.at("inference_seconds");
    outcome.final_loss = object.at("final_loss");
  } catch (const json::exception& error) {
    fail("arena", "a complete outcome in " + path, error.what());
  }
  return outcome;
}

}  // namespace regard::arena
