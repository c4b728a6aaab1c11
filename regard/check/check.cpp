#include "regard/check/check.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/check/call.h"
#include "regard/check/golden.h"
#include "regard/check/report.h"
#include "regard/check/shrink.h"
#include "regard/check/theorem.h"
#include "regard/ops/boundary.h"
#include "regard/ops/executor.h"

namespace regard {
namespace checking {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kGolden = "golden";
constexpr const char* kGoldenStatement = "outputs and gradients equal those of the official code";

// Theorems about torch's tracers, which live in Python: the package registers an op that runs them.
const std::pair<const char*, const char*> kTraced[] = {
    {"compile", "torch.compile (aot_eager, one graph, any length) gives the same output and gradients"},
    {"export", "an exported program gives the same output at other lengths"}};

std::vector<std::string> names() {
  std::vector<std::string> result;
  for (const auto& theorem : theorems()) result.emplace_back(theorem->name());
  for (const auto& [name, statement] : kTraced) result.emplace_back(name);
  result.emplace_back(kGolden);
  return result;
}

struct Options {
  std::vector<std::string> theorems;
  std::vector<std::string> executors = {"split"};
  std::string golden;
  uint64_t seed = 0;
  bool wants(const std::string& name) const {
    return std::find(theorems.begin(), theorems.end(), name) != theorems.end();
  }
};

void read_theorems(const Json& given, Options& options) {
  if (!given.is_array()) fail("check", "theorems to be a list of names", given.dump());
  options.theorems.clear();
  for (const auto& item : given) {
    const std::string name = item.is_string() ? item.get<std::string>() : item.dump();
    const std::vector<std::string> known = names();
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      fail("check", "theorems among " + quoted_list(known), "'" + name + "'" + suggestion(name, known));
    }
    options.theorems.push_back(name);
  }
}

void read_executors(const Json& given, Options& options) {
  options.executors.clear();
  std::vector<std::string> known;
  for (const ExecutorInfo& info : executors()) known.push_back(info.name);
  for (const auto& item : given) {
    const std::string text = item.is_string() ? item.get<std::string>() : item.dump();
    const std::string name = text.substr(0, text.find(':'));
    if (std::find(known.begin(), known.end(), name) == known.end())
      fail("check", "executors among " + quoted_list(known), "'" + name + "'" + suggestion(name, known));
    options.executors.push_back(text);
  }
}

Options read_options(const std::string& text) {
  const Json json = Json::parse(text.empty() ? "{}" : text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) fail("check", "the options to be a JSON object", text);
  Options options;
  options.theorems = names();
  const char* directory = std::getenv("REGARD_GOLDEN");
  options.golden = directory ? directory : "";
  for (const auto& [key, value] : json.items()) {
    if (key == "theorems") {
      read_theorems(value, options);
    } else if (key == "golden" && value.is_string()) {
      options.golden = value.get<std::string>();
    } else if (key == "executors" && value.is_array()) {
      read_executors(value, options);
    } else if (key == "seed" && value.is_number_unsigned()) {
      options.seed = value.get<uint64_t>();
    } else {
      fail("check",
           "options among 'theorems' (list of names), 'executors' (list of names), 'golden' (text), 'seed' (integer >= "
           "0)",
           "'" + key + "': " + value.dump() + suggestion(key, {"theorems", "executors", "golden", "seed"}));
    }
  }
  return options;
}

Json run_theorem(const Theorem& theorem, const Subject& subject) {
  if (!subject.unsupported.empty()) return not_applicable(theorem.name(), theorem.statement(), subject.unsupported);
  if (subject.cases.empty()) {
    const std::string first = subject.refusals.empty() ? "" : "; the first: " + subject.refusals.front();
    return failed_entry(theorem.name(), theorem.statement(), "every call of its examples was refused" + first);
  }
  const std::string excuse = theorem.excuse(subject);
  if (!excuse.empty()) return not_applicable(theorem.name(), theorem.statement(), excuse);
  Findings findings(theorem.tolerance());
  for (const Case& example : subject.cases) {
    if (!theorem.wants(example)) continue;
    findings.begin(example);
    try {
      theorem.run(example, findings);
    } catch (const Refusal& refusal) {
      // Somebody's module may take fewer calls than a theorem makes; a mechanism of the house says so in its Info.
      if (example.foreign()) {
        findings.refuse(refusal.what());
      } else {
        findings.claim("the call runs; raised: " + std::string(refusal.what()), false);
      }
    } catch (const std::exception& exception) {
      findings.claim("the call runs; raised: " + message_of(exception), false);
    }
  }
  if (findings.claims() == 0) {
    const bool refused = !findings.refusals().empty();
    return not_applicable(theorem.name(), theorem.statement(),
                          refused ? findings.refusals().front() : "no call brings it");
  }
  for (const std::string& reason : findings.refusals()) findings.note("some calls are refused", reason);
  Json json = entry(theorem, findings);
  if (findings.failed()) json["counterexample"] = counterexample_json(shrunk(theorem, *findings.counterexample()));
  return json;
}

Json run_golden(const std::string& id, const std::string& directory) {
  if (directory.empty()) return not_applicable(kGolden, kGoldenStatement, "no directory (set REGARD_GOLDEN)");
  const Json report = Json::parse(golden(id, directory));
  if (report.at("files").empty()) {
    const std::string excuse = report.at("reason").get<std::string>();
    return not_applicable(kGolden, kGoldenStatement, excuse.empty() ? "no case of it in " + directory : excuse);
  }
  Json json = not_applicable(kGolden, kGoldenStatement, "");
  json["outcome"] = report.at("passed").get<bool>() ? "pass" : "fail";
  json["reason"] = report.at("reason");
  for (const char* key : {"error", "tolerance", "paths", "claims", "failures", "notes", "counterexample"}) {
    json[key] = report.at(key);
  }
  json["exact"] = false;
  json["cases"] = report.at("files").size();
  return json;
}

Json run_traced(const std::string& name, const std::string& statement, const std::string& id, uint64_t seed) {
  const auto op = c10::Dispatcher::singleton().findSchema({"regard_python::theorem", ""});
  if (!op) return not_applicable(name, statement, "torch's tracers need Python: python -m regard check " + id);
  // The tracers look at the modes of the thread that they find.
  const c10::AutoGradMode gradients(true);
  torch::jit::Stack stack;
  torch::jit::push(stack, name, id, static_cast<int64_t>(seed));
  op->callBoxed(&stack);
  return Json::parse(stack.back().toStringRef());
}

// The inputs beside x that some call of the suite brought.
Json inputs_of(const Subject& subject) {
  std::set<std::string> names;
  for (const Case& example : subject.cases) {
    for (const auto& [name, tensor] : example.inputs) names.insert(name);
  }
  return Json(names);
}

Json paths_of(const Subject& subject) {
  Json paths = Json::array();
  for (const char* path : {"fused", "stripe", "composite", "auto"}) {
    for (const Case& example : subject.cases) {
      if (std::find(example.paths.begin(), example.paths.end(), path) == example.paths.end()) continue;
      paths.push_back(path);
      break;
    }
  }
  return paths;
}

// Tensors of a few hundred entries: a second thread would only wait for the first.
struct OneThread {
  int before = at::get_num_threads();
  OneThread() { at::set_num_threads(1); }
  ~OneThread() { at::set_num_threads(before); }
};

Json run_all(const std::string& id, const Options& options) {
  // A caller may have switched gradients off or be in inference mode; the theorems need both as usual.
  const c10::InferenceMode no_inference(false);
  const c10::AutoGradMode no_gradients(false);
  const OneThread one_thread;
  const Subject subject = make_subject(id, options.seed, options.executors);
  Json report = {{"id", id},
                 {"passed", true},
                 {"seed", options.seed},
                 {"calls", subject.cases.size()},
                 {"rounding", !subject.cases.empty() && subject.cases.front().foreign()},
                 {"paths", paths_of(subject)},
                 {"inputs", inputs_of(subject)},
                 {"refused_calls", subject.refusals},
                 {"theorems", Json::array()}};
  for (const auto& theorem : theorems()) {
    if (options.wants(theorem->name())) report["theorems"].push_back(run_theorem(*theorem, subject));
  }
  for (const auto& [name, statement] : kTraced) {
    if (options.wants(name)) report["theorems"].push_back(run_traced(name, statement, id, options.seed));
  }
  if (options.wants(kGolden)) report["theorems"].push_back(run_golden(id, options.golden));
  for (const auto& theorem : report["theorems"]) {
    if (theorem.at("outcome") == "fail") report["passed"] = false;
  }
  return report;
}

}  // namespace
}  // namespace checking

std::string check(const std::string& id, const std::string& options) {
  return checking::run_all(mechanism(id).info().id, checking::read_options(options)).dump();
}

namespace {

std::string check_op(std::string id, std::string options) { return check(id, options); }
std::string check_table_op(std::string report) { return check_table(report); }
std::string capabilities_op(std::string options) { return capabilities_json(options); }
std::string capabilities_of_report_op(std::string report) { return capabilities_of_report(report); }

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def("check(str id, str options=\"{}\") -> str", guarded<&check_op>);
  m.def("check_table(str report) -> str", guarded<&check_table_op>);
  m.def("capabilities_of_report(str report) -> str", guarded<&capabilities_of_report_op>);
  m.def("capabilities(str options=\"{}\") -> str", guarded<&capabilities_op>);
}

}  // namespace
}  // namespace regard
