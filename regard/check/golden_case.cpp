// From the official code's names to ours.

#include "regard/check/golden_case.h"

#include <algorithm>

#include "regard/base/error.h"

namespace regard::checking {
namespace {

using Pairs = std::vector<std::pair<std::string, std::string>>;

bool has_port(const std::vector<Port>& ports, const std::string& name) {
  return std::any_of(ports.begin(), ports.end(), [&](const Port& port) { return port.name == name; });
}

bool starts_with(const std::string& name, const std::string& prefix) { return name.rfind(prefix, 0) == 0; }

Target map_input(const Info& info, const std::string& ours) {
  if (ours.empty()) return {Target::Kind::ignored, ""};
  if (ours == "x") return {Target::Kind::x, "x"};
  const bool inverted = ours[0] == '!';
  const std::string port = inverted ? ours.substr(1) : ours;
  if (has_port(info.inputs, port) || has_port(info.consumes, port)) return {Target::Kind::input, port, inverted};
  return {Target::Kind::unmatched, ours};
}

bool is_output(const Info& info, const std::string& name) {
  if (starts_with(name, "loss.")) return has_port(info.losses, name.substr(5));
  return has_port(info.outputs, name) || has_port(info.publishes, name);
}

Target map_output(const Info& info, const Golden& golden, const std::string& name, bool alone) {
  const std::string* found = entry_of(golden.outputs, name);
  if (found && *found == "-") return {Target::Kind::ignored, ""};
  if (found && found->empty()) return {Target::Kind::main, ""};
  const bool added = found && (*found)[0] == '+';
  const std::string ours = !found ? name : added ? found->substr(1) : *found;
  if (is_output(info, ours)) return {Target::Kind::output, ours, false, added};
  if (!found && (name == "out" || name == "y" || alone)) return {Target::Kind::main, ""};
  return {Target::Kind::unmatched, ours};
}

Target map_weight(const Golden& golden, const std::vector<WeightDeclaration>& declared, const std::string& name) {
  const auto exists = [&](const std::string& ours) {
    return std::any_of(declared.begin(), declared.end(), [&](const auto& weight) { return weight.name == ours; });
  };
  Pairs fitting;
  for (const auto& pair : golden.weights) {
    if (starts_with(name, pair.first)) fitting.push_back(pair);
  }
  std::stable_sort(fitting.begin(), fitting.end(),
                   [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
  bool ignored = false;
  for (const auto& [official, ours] : fitting) {
    if (ours == "-") return {Target::Kind::ignored, name};
    const std::string renamed = ours + name.substr(official.size());
    if (exists(renamed)) return {Target::Kind::weight, renamed};
    ignored = ignored || ours.empty();
  }
  if (fitting.empty() && exists(name)) return {Target::Kind::weight, name};
  return {ignored ? Target::Kind::ignored : Target::Kind::unmatched, name};
}

// A name that some step has a place for, or else ignores, is matched.
void note_unmatched(GoldenCase& result, const std::string& prefix, const std::string& name,
                    std::map<std::string, Target> GoldenStep::*targets) {
  const std::string key = targets == &GoldenStep::inputs ? prefix + name : name;
  for (const GoldenStep& step : result.steps) {
    if ((step.*targets).at(key).kind != Target::Kind::unmatched) return;
  }
  result.unmatched.push_back(prefix + name);
}

// Names outside the form, and gradients of tensors that are not there.
void note_strangers(GoldenCase& result, const Golden& form, const GoldenFile& file) {
  for (const auto& [name, tensor] : file.tensors) {
    const auto starts = [&n = name](const char* prefix) { return starts_with(n, prefix); };
    if (starts("in.") || starts("param.") || starts("out.") || name == "w" || starts("w.")) continue;
    if (starts("grad.") && file.tensors.count(name.substr(5))) continue;
    const std::string* listed = entry_of(form.inputs, name);
    if (!listed || !listed->empty()) result.unmatched.push_back(name);
  }
}

void note_missing(GoldenCase& result, const GoldenStep& step) {
  for (const WeightDeclaration& weight : step.instance->weights()) {
    if (weight.buffer || !weight.alias.empty()) continue;
    const bool given = std::any_of(step.weights.begin(), step.weights.end(), [&](const auto& entry) {
      return entry.second.kind == Target::Kind::weight && entry.second.name == weight.name;
    });
    if (!given) result.missing.push_back(weight.name);
  }
}

// Code without weights is not told the width of the tokens.
int64_t width_of_x(const Golden& golden, const GoldenFile& file) {
  for (const auto& [name, tensor] : file.under("in.")) {
    const std::string* found = entry_of(golden.inputs, name);
    if ((found ? *found : name) == "x" && tensor.dim() == 3) return tensor.size(2);
  }
  return 0;
}

GoldenStep map_step(const Mechanism& subject, const Golden& golden, const GoldenFile& file) {
  const Mechanism& own = golden.mechanism.empty() ? subject : mechanism(golden.mechanism);
  GoldenStep step;
  step.instance =
      own.configure(map_config(own, golden, file.text("config"), step.grid, step.prefix, width_of_x(golden, file)));
  const Info& info = own.info();
  for (const auto& [name, tensor] : file.under("in.")) {
    const std::string* found = entry_of(golden.inputs, name);
    step.inputs["in." + name] = map_input(info, found ? *found : name);
  }
  for (const auto& [official, ours] : golden.inputs) {
    if (starts_with(official, "out.")) step.inputs[official] = map_input(info, ours);
  }
  for (const auto& [name, tensor] : file.under("param.")) {
    step.weights[name] = map_weight(golden, step.instance->weights(), name);
  }
  const auto outputs = file.under("out.");
  for (const auto& [name, tensor] : outputs) {
    step.outputs[name] = map_output(info, golden, name, outputs.size() == 1);
  }
  return step;
}

}  // namespace

const Golden* form_of(const Golden& golden, const GoldenFile& file, const std::string& folder, bool own_folder) {
  const auto holds = [&](const std::string& pattern) {
    return pattern.empty() || std::any_of(file.tensors.begin(), file.tensors.end(),
                                          [&](const auto& entry) { return matches(pattern, entry.first); });
  };
  for (const Golden& form : golden.forms) {
    if ((form.folder.empty() ? own_folder : form.folder == folder) && holds(form.when)) return &form;
  }
  return own_folder ? &golden : nullptr;
}

std::string GoldenFile::text(const std::string& key) const {
  const auto found = metadata.find(key);
  return found == metadata.end() ? "" : found->second;
}

std::map<std::string, at::Tensor> GoldenFile::under(const std::string& prefix) const {
  std::map<std::string, at::Tensor> result;
  for (const auto& [name, tensor] : tensors) {
    if (name.rfind(prefix, 0) == 0) result[name.substr(prefix.size())] = tensor;
  }
  return result;
}

GoldenCase map_golden(const Mechanism& mechanism, const Golden& form, const GoldenFile& file) {
  GoldenCase result;
  if (form.steps.empty()) result.steps.push_back(map_step(mechanism, form, file));
  for (const Golden& step : form.steps) result.steps.push_back(map_step(mechanism, step, file));
  for (const auto& [name, tensor] : file.under("in.")) note_unmatched(result, "in.", name, &GoldenStep::inputs);
  for (const auto& [name, tensor] : file.under("param.")) note_unmatched(result, "param.", name, &GoldenStep::weights);
  for (const auto& [name, tensor] : file.under("out.")) note_unmatched(result, "out.", name, &GoldenStep::outputs);
  note_strangers(result, form, file);
  for (const GoldenStep& step : result.steps) note_missing(result, step);
  return result;
}

}  // namespace regard::checking
