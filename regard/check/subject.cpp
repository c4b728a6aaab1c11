// Makes the calls on which the theorems are checked.

#include <algorithm>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/check/call.h"
#include "regard/check/case.h"

namespace regard::checking {
namespace {

using Json = nlohmann::json;

// The examples and, where a configuration has the field `causal`, their causal form.
std::vector<std::string> configurations(const Mechanism& mechanism) {
  const bool has_causal = Json::parse(mechanism.default_config()).contains("causal");
  std::vector<std::string> result;
  for (const std::string& example : mechanism.info().examples) {
    result.push_back(example);
    Json json = Json::parse(example);
    if (!has_causal || json.value("causal", false)) continue;
    json["causal"] = true;
    result.push_back(json.dump());
  }
  return result;
}

// One family of calls: sizes, and the inputs brought beside x.
struct Shape {
  int64_t batch = 2;
  std::vector<int64_t> grid;  // one entry: a plain length
  int64_t prefix = 0;
  std::vector<std::string> inputs;
};

// One token, odd and prime lengths, one at the width of a vector register, as grids of several ranks where there are
// any.
std::vector<std::vector<int64_t>> sizes(const Info& info) {
  if (info.needs_grid) return {{1, 1}, {5}, {2, 3}, {4, 4}, {2, 3, 2}};
  return {{1}, {5}, {7}, {16}};
}

bool takes(const Info& info, const std::string& name) {
  return std::any_of(info.inputs.begin(), info.inputs.end(), [&](const Port& port) { return port.name == name; });
}

// What it is given beside x, by the caller and by earlier layers.
std::vector<Port> ports(const Info& info) {
  std::vector<Port> all = info.inputs;
  all.insert(all.end(), info.consumes.begin(), info.consumes.end());
  return all;
}

std::string doc_of(const Info& info, const std::string& name) {
  for (const Port& port : ports(info)) {
    if (port.name != name) continue;
    if (port.form.empty()) return port.doc;
    return port.form.starts_with("float ") ? port.form.substr(6) : "";
  }
  return "";
}

std::vector<Shape> token_shapes(const Info& info) {
  const int64_t least = info.needs_prefix ? 1 : 0;
  const auto all = sizes(info);
  std::vector<Shape> shapes;
  for (size_t i = 0; i < all.size(); ++i) shapes.push_back({i == 1 ? 3 : 2, all[i], least, {}});
  if (info.takes_prefix) shapes.push_back({2, all[1], least + 1, {}});
  for (const Port& port : ports(info)) {
    if (port.name.rfind("memory_", 0) == 0) continue;
    shapes.push_back({3, all[1], least, {port.name}});
    // What belongs to the memory comes with it; masks and lengths combine with it.
    if (takes(info, "memory") && port.name != "memory") shapes.push_back({3, all[1], least, {"memory", port.name}});
  }
  if (takes(info, "lengths") && info.takes_prefix) shapes.push_back({3, all[1], least + 1, {"lengths"}});
  if (takes(info, "memory_lengths")) {
    shapes.push_back({3, all[1], least, {"memory", "memory_lengths"}});
    shapes.push_back({3, all[1], least, {"memory", "memory_lengths", "lengths"}});
  }
  if (takes(info, "memory_segments")) shapes.push_back({3, all[1], least, {"memory", "memory_segments", "segments"}});
  return shapes;
}

int64_t product(const std::vector<int64_t>& sizes) {
  int64_t result = 1;
  for (const int64_t size : sizes) result *= size;
  return result;
}

int64_t integer(const Json& config, const char* key, int64_t otherwise) {
  return config.contains(key) && config[key].is_number_integer() && config[key] > 0 ? config[key].get<int64_t>()
                                                                                    : otherwise;
}

struct Sizes {
  int64_t batch, queries, memory;  // tokens of x and of the memory
  bool cross;
  int64_t keys() const { return cross ? memory : queries; }
};

// The first sample whole, the others ever shorter, at least one token.
at::Tensor falling_lengths(int64_t batch, int64_t tokens) {
  at::Tensor lengths = at::empty({batch}, at::kLong);
  for (int64_t b = 0; b < batch; ++b) lengths[b] = std::max<int64_t>(1, tokens - 2 * b);
  return lengths;
}

// Documents of three tokens.
at::Tensor segments(int64_t batch, int64_t tokens) {
  return at::arange(tokens).floor_divide(3).unsqueeze(0).repeat({batch, 1});
}

// A tensor of the shape that a port's doc begins with, "(B, N, D): ...", its letters those of the house; nonnegative,
// as what layers publish about their keys is. Undefined for integers, booleans and other letters.
at::Tensor make_by_doc(const std::string& doc, const Json& config, const Sizes& sizes, at::Generator generator) {
  const size_t end = doc.find(')');
  if (doc.empty() || doc[0] != '(' || end == std::string::npos) return {};
  for (const char* type : {"bool", "int"}) {
    if (doc.substr(end, 12).find(type) != std::string::npos) return {};
  }
  std::vector<int64_t> shape;
  for (size_t i = 1; i < end; i += 3) {  // "B, N"
    const char letter = doc[i];
    if (i + 1 != end && doc[i + 1] != ',') return {};
    if (letter == 'B')
      shape.push_back(sizes.batch);
    else if (letter == 'N')
      shape.push_back(sizes.keys());
    else if (letter == 'M')
      shape.push_back(sizes.queries);
    else if (letter == 'D')
      shape.push_back(config.at("width").get<int64_t>());
    else if (letter == 'H')
      shape.push_back(integer(config, "heads", 1));
    else
      return {};
  }
  return normal(shape, generator).abs();
}

// An input by its conventional name; undefined for a name that has no convention.
at::Tensor make_input(const std::string& name, const Json& config, const Sizes& sizes, at::Generator generator) {
  const int64_t width = config.at("width").get<int64_t>();
  if (name == "memory") return normal({sizes.batch, sizes.memory, integer(config, "memory_width", width)}, generator);
  if (name == "bias") return normal({sizes.queries, sizes.keys()}, generator);
  if (name == "slopes") return normal({integer(config, "heads", 1)}, generator).abs();
  if (name == "lengths") return falling_lengths(sizes.batch, sizes.queries);
  if (name == "memory_lengths") return falling_lengths(sizes.batch, sizes.memory);
  if (name == "segments") return segments(sizes.batch, sizes.queries);
  if (name == "memory_segments") return segments(sizes.batch, sizes.memory);
  if (name == "positions") return at::arange(sizes.queries) + 3;
  if (name == "memory_positions") return at::arange(sizes.memory) + 3;
  if (name == "hidden" || name == "key_hidden") {
    at::Tensor hidden = normal({name == "hidden" ? sizes.queries : sizes.batch, sizes.keys()}, generator) > 0.5;
    hidden.select(1, 0).fill_(false);  // every query keeps the first key
    return hidden;
  }
  return {};
}

Case make_token_case(std::shared_ptr<const Instance> instance, const Shape& shape, uint64_t seed) {
  const Info& info = instance->info();
  const Json config = Json::parse(instance->config());
  at::Generator generator = generator_of(seed);
  Case result;
  result.instance = instance;
  result.causal = config.value("causal", false);
  result.weights = generic_weights(*instance, generator);
  result.prefix = shape.prefix;
  if (info.needs_grid) result.grid = shape.grid;
  const int64_t tokens = shape.prefix + product(shape.grid);
  result.x = normal({shape.batch, tokens, config.at("width").get<int64_t>()}, generator);
  const bool cross = std::find(shape.inputs.begin(), shape.inputs.end(), "memory") != shape.inputs.end();
  const Sizes sizes{shape.batch, tokens, tokens + 2, cross};
  for (const std::string& name : shape.inputs) {
    at::Tensor value = make_input(name, config, sizes, generator);
    if (!value.defined()) value = make_by_doc(doc_of(info, name), config, sizes, generator);
    if (value.defined()) result.inputs[name] = value;
  }
  return result;
}

// Hosts take images: x (B, in_chans, height, width) of the configured size.
Case make_image_case(std::shared_ptr<const Instance> instance, int64_t batch, uint64_t seed) {
  const Json config = Json::parse(instance->config());
  std::vector<int64_t> size = config["img_size"].is_array() ? config["img_size"].get<std::vector<int64_t>>()
                                                            : std::vector<int64_t>{config["img_size"].get<int64_t>()};
  if (size.size() == 1) size.push_back(size[0]);
  at::Generator generator = generator_of(seed);
  Case result;
  result.instance = instance;
  result.weights = generic_weights(*instance, generator);
  result.x = normal({batch, config["in_chans"].get<int64_t>(), size[0], size[1]}, generator);
  return result;
}

// Keeps the call if the mechanism accepts it. A crash is kept too, so that a theorem reports it.
void admit(Subject& subject, Case example) {
  try {
    attach_paths(example);
  } catch (const Refusal& refusal) {
    const std::string line = example.text() + ": " + refusal.what();
    if (std::find(subject.refusals.begin(), subject.refusals.end(), line) == subject.refusals.end()) {
      subject.refusals.push_back(line);
    }
    return;
  } catch (const std::exception&) {
    example.paths = {"auto"};
  }
  subject.cases.push_back(std::move(example));
}

// Of every configuration the longest call without inputs beside x.
void mark_largest(Subject& subject) {
  std::map<const Instance*, Case*> best;
  for (Case& example : subject.cases) {
    Case*& known = best[example.instance.get()];
    if (example.inputs.empty() && (!known || example.x.numel() > known->x.numel())) known = &example;
  }
  for (const auto& [instance, example] : best) {
    if (example) example->largest = true;
  }
}

void add_cases(Subject& subject, const std::shared_ptr<const Instance>& instance, uint64_t seed) {
  if (subject.info->role == Role::host) {
    for (const int64_t batch : {1, 3}) admit(subject, make_image_case(instance, batch, ++seed));
    return;
  }
  for (const Shape& shape : token_shapes(*subject.info)) {
    Case example = make_token_case(instance, shape, ++seed);
    if (example.inputs.size() == shape.inputs.size()) admit(subject, std::move(example));
  }
}

}  // namespace

Subject make_subject(const std::string& id, uint64_t seed, const std::vector<std::string>& executors) {
  const Mechanism& subject_mechanism = mechanism(id);
  Subject subject;
  subject.info = &subject_mechanism.info();
  if (subject.info->examples.empty()) {
    subject.unsupported = "it declares no example configuration";
  } else if (const Json fields = Json::parse(subject_mechanism.default_config());
             subject.info->role == Role::host && !(fields.contains("img_size") && fields.contains("in_chans"))) {
    subject.unsupported = "it is a host without the fields img_size and in_chans, so no input can be made for it";
  }
  if (!subject.unsupported.empty()) return subject;
  for (const std::string& text : configurations(subject_mechanism)) {
    seed += 1000;
    std::shared_ptr<const Instance> instance;
    try {
      refusing([&] { instance = subject_mechanism.configure(text); });
    } catch (const Refusal& refusal) {
      subject.refusals.push_back(text + ": " + refusal.what());
      continue;
    }
    add_cases(subject, instance, seed);
  }
  mark_largest(subject);
  for (Case& example : subject.cases) example.executors = executors;
  std::stable_sort(subject.cases.begin(), subject.cases.end(),
                   [](const Case& a, const Case& b) { return a.x.numel() < b.x.numel(); });
  return subject;
}

}  // namespace regard::checking
