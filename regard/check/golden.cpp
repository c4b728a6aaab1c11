#include "regard/check/golden.h"

#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/check/call.h"
#include "regard/check/golden_run.h"
#include "regard/check/report.h"
#include "regard/ops/boundary.h"

namespace regard {
namespace checking {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr double kTolerance = 1e-9;       // float64, composite
constexpr double kFusedTolerance = 1e-5;  // float32, fused, at least: see float32_bounds

std::vector<std::string> files_of(const std::string& directory, const std::string& id) {
  if (!fs::is_directory(directory)) fail("golden", "a directory of golden cases", "'" + directory + "'");
  std::vector<std::string> files;
  const fs::path folder = fs::path(directory) / id;
  if (!fs::is_directory(folder)) return files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

Json run_json(const GoldenRun& run) {
  Json tensors = Json::array();
  for (const Comparison& c : run.tensors) {
    Json json = {{"name", c.name}, {"error", number(c.error)}, {"tolerance", c.tolerance}, {"passed", c.passed}};
    if (!c.passed) {
      json["reason"] = c.reason;
      json["index"] = c.index;
      json["expected"] = number(c.expected);
      json["found"] = number(c.found);
    }
    tensors.push_back(std::move(json));
  }
  return {{"path", run.path},     {"dtype", run.type == at::kDouble ? "float64" : "float32"},
          {"ran", run.ran},       {"passed", run.passed},
          {"reason", run.reason}, {"tensors", std::move(tensors)}};
}

// The fused path in float32, where attention runs at all and the path takes this case.
void add_fused(const GoldenFile& file, const GoldenCase& mapped, std::vector<GoldenRun>& runs) {
  GoldenRun run;
  try {
    const Bounds bounds = float32_bounds(file, mapped, tolerance_of(file, kFusedTolerance));
    run = run_golden_case(file, mapped, "fused", at::kFloat, bounds);
  } catch (const Refusal& refusal) {  // not run, and said so
    run.path = "fused";
    run.type = at::kFloat;
    run.passed = true;
    run.reason = refusal.what();
  }
  runs.push_back(std::move(run));
}

// Configurations of the steps; of one step itself.
Json configs_of(const GoldenCase& mapped) {
  Json list = Json::array();
  for (const GoldenStep& step : mapped.steps) list.push_back(Json::parse(step.instance->config()));
  return list.size() == 1 ? list[0] : list;
}

/// A case in the folder of the mechanism's id, or of another form.
struct Found {
  std::string path, folder;
  bool own = true;
  std::string name() const {
    const std::string file = fs::path(path).filename().string();
    return own ? file : folder + "/" + file;
  }
};

std::vector<Found> cases_of(const Info& info, const std::string& directory) {
  std::vector<std::string> folders = {info.id};
  for (const Golden& form : info.golden.forms) {
    const bool known = std::find(folders.begin(), folders.end(), form.folder) != folders.end();
    if (!form.folder.empty() && !known) folders.push_back(form.folder);
  }
  std::vector<Found> found;
  for (const std::string& folder : folders) {
    for (const std::string& path : files_of(directory, folder)) found.push_back({path, folder, folder == info.id});
  }
  return found;
}

// Runs the file; `excuse` is filled instead when its form cannot run.
Json run_file(const Mechanism& mechanism, const Found& found, std::string& excuse) {
  Json json = {{"file", found.name()},     {"source", ""},         {"config", nullptr},
               {"passed", false},          {"reason", ""},         {"unmatched", Json::array()},
               {"missing", Json::array()}, {"runs", Json::array()}};
  try {
    refusing([&] {
      const GoldenFile file = read_golden_file(found.path);
      json["source"] = file.text("source");
      const Golden* form = form_of(mechanism.info().golden, file, found.folder, found.own);
      if (!form) fail("golden", "a form of " + found.folder + " that the file fits", found.path);
      excuse = form->excuse;
      if (!excuse.empty()) return;
      const GoldenCase mapped = map_golden(mechanism, *form, file);
      json["config"] = configs_of(mapped);
      json["unmatched"] = mapped.unmatched;
      json["missing"] = mapped.missing;
      const PathCounts before = counts_now();
      std::vector<GoldenRun> runs = {
          run_golden_case(file, mapped, "composite", at::kDouble, tolerance_of(file, kTolerance))};
      if (since(before).count("attention")) add_fused(file, mapped, runs);
      bool passed = mapped.unmatched.empty() && mapped.missing.empty();
      if (!mapped.unmatched.empty()) json["reason"] = "no place for " + mapped.unmatched.front();
      if (!mapped.missing.empty()) json["reason"] = "the file lacks weight " + mapped.missing.front();
      for (const GoldenRun& run : runs) {
        passed = passed && run.passed;
        if (!run.passed)
          json["reason"] = run.reason.empty() ? "a tensor differs on the " + run.path + " path" : run.reason;
        json["runs"].push_back(run_json(run));
      }
      json["passed"] = passed;
    });
  } catch (const std::exception& exception) {
    json["reason"] = message_of(exception);
  }
  return json;
}

double as_number(const Json& error) { return error.is_number() ? error.get<double>() : INFINITY; }

// Sums over the files: counts, the worst error in units of its tolerance, the first failure.
void summarize(Json& report) {
  double worst = -1;
  for (const Json& file : report["files"]) {
    const std::string where = file["file"].get<std::string>();
    if (!file["passed"].get<bool>()) {
      report["passed"] = false;
      if (report["reason"] == "") report["reason"] = where + ": " + file["reason"].get<std::string>();
    }
    for (const Json& run : file["runs"]) {
      const std::string path = run["path"].get<std::string>();
      if (!run["ran"].get<bool>()) {
        report["notes"].push_back(where + ": " + path + " refused: " + run["reason"].get<std::string>());
        continue;
      }
      Json& paths = report["paths"];
      if (std::find(paths.begin(), paths.end(), path) == paths.end()) paths.push_back(path);
      for (const Json& tensor : run["tensors"]) {
        const double tolerance = tensor["tolerance"].get<double>(), error = as_number(tensor["error"]);
        report["claims"] = report["claims"].get<int64_t>() + 1;
        if (error / tolerance > worst) {
          worst = error / tolerance;
          report["error"] = tensor["error"];
          report["tolerance"] = tolerance;
        }
        if (tensor["passed"].get<bool>()) continue;
        report["failures"] = report["failures"].get<int64_t>() + 1;
        if (!report["counterexample"].is_null()) continue;
        report["counterexample"] = {{"claim", tensor["name"]},
                                    {"config", file["config"]},
                                    {"inputs", where},
                                    {"path", path},
                                    {"index", tensor["index"]},
                                    {"error", tensor["error"]},
                                    {"expected", tensor["expected"]},
                                    {"found", tensor["found"]}};
      }
    }
  }
}

}  // namespace
}  // namespace checking

std::string golden(const std::string& id, const std::string& directory) {
  using checking::Json;
  const Mechanism& subject = mechanism(id);
  const char* set = std::getenv("REGARD_GOLDEN");
  const std::string folder = !directory.empty() ? directory : set ? set : "";
  Json report = {{"id", id},
                 {"directory", folder},
                 {"passed", true},
                 {"reason", ""},
                 {"error", 0.0},
                 {"tolerance", checking::kTolerance},
                 {"paths", Json::array()},
                 {"claims", 0},
                 {"failures", 0},
                 {"notes", Json::array()},
                 {"counterexample", nullptr},
                 {"files", Json::array()}};
  // Cases that cannot run on the mechanism alone are named with the reason, not counted as run.
  for (const checking::Found& found : checking::cases_of(subject.info(), folder)) {
    std::string excuse = subject.info().golden.excuse;
    checking::Json file;
    if (excuse.empty()) file = checking::run_file(subject, found, excuse);
    if (excuse.empty()) {
      report["files"].push_back(std::move(file));
    } else {
      report["notes"].push_back(found.name() + ": not run, " + excuse);
      if (report["files"].empty()) report["reason"] = excuse;
    }
  }
  if (!report["files"].empty()) report["reason"] = "";
  checking::summarize(report);
  return report.dump();
}

namespace {

std::string golden_op(std::string id, std::string directory) { return golden(id, directory); }

TORCH_LIBRARY_FRAGMENT(regard, m) { m.def("golden(str id, str directory) -> str", guarded<&golden_op>); }

}  // namespace
}  // namespace regard
