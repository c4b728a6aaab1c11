// Configurations in and out of JSON, and the checks that every mechanism shares.

#include <ATen/Dispatch.h>
#include <ATen/autocast_mode.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/nn/mechanism.h"
#include "regard/nn/shapes.h"
#include "regard/ops/call.h"

namespace regard::detail {
namespace {

using nlohmann::json;

/// Fills the members from a JSON object; `seen` lists the names that exist.
class Reader final : public Fields {
 public:
  Reader(const std::string& function, const json& object) : function_(function), object_(object) {}

  void operator()(const char* name, bool& value, const char*) override {
    read(name, "true or false", &json::is_boolean, value);
  }
  void operator()(const char* name, int64_t& value, const char*) override {
    read(name, "an integer", &json::is_number_integer, value);
  }
  void operator()(const char* name, double& value, const char*) override {
    read(name, "a number", &json::is_number, value);
  }
  void operator()(const char* name, std::string& value, const char*) override {
    read(name, "a string", &json::is_string, value);
  }
  void operator()(const char* name, std::optional<bool>& value, const char*) override {
    read_optional(name, "true, false or null", &json::is_boolean, value);
  }
  void operator()(const char* name, std::optional<double>& value, const char*) override {
    read_optional(name, "a number or null", &json::is_number, value);
  }
  void operator()(const char* name, std::optional<int64_t>& value, const char*) override {
    read_optional(name, "an integer or null", &json::is_number_integer, value);
  }
  void operator()(const char* name, std::vector<int64_t>& value, const char*) override {
    const auto it = object_.find(name);
    if (it != object_.end() && it->is_number_integer()) {
      seen_.emplace_back(name);
      value = {it->get<int64_t>()};
      return;
    }
    read_list(name, "an integer or a list of integers", &json::is_number_integer, value);
  }
  void operator()(const char* name, std::vector<std::string>& value, const char*) override {
    read_list(name, "a list of strings", &json::is_string, value);
  }
  void nested(const char* name, std::string& text, const char*) override {
    const json* given = find(name);
    if (!given) return;
    if (!given->is_object()) refuse(name, "a JSON object", *given);
    text = given->dump();
  }

  void refuse_unknown() const {
    for (const auto& [key, unused] : object_.items()) {
      if (std::find(seen_.begin(), seen_.end(), key) == seen_.end())
        fail(function_, "configuration keys among " + quoted_list(seen_), "'" + key + "'" + suggestion(key, seen_));
    }
  }

 private:
  using Test = bool (json::*)() const noexcept;

  const json* find(const char* name) {
    seen_.emplace_back(name);
    const auto it = object_.find(name);
    return it == object_.end() ? nullptr : &*it;
  }
  [[noreturn]] void refuse(const char* name, const char* wanted, const json& given) const {
    fail(function_, std::string(name) + " to be " + wanted, given.dump());
  }
  template <class T>
  void read(const char* name, const char* wanted, Test test, T& value) {
    const json* given = find(name);
    if (!given) return;
    if (!(given->*test)()) refuse(name, wanted, *given);
    value = given->get<T>();
  }
  template <class T>
  void read_optional(const char* name, const char* wanted, Test test, std::optional<T>& value) {
    const json* given = find(name);
    if (!given) return;
    if (given->is_null()) {
      value.reset();
      return;
    }
    if (!(given->*test)()) refuse(name, wanted, *given);
    value = given->get<T>();
  }
  template <class T>
  void read_list(const char* name, const char* wanted, Test test, std::vector<T>& value) {
    const json* given = find(name);
    if (!given) return;
    if (!given->is_array()) refuse(name, wanted, *given);
    for (const auto& element : *given)
      if (!(element.*test)()) refuse(name, wanted, *given);
    value = given->get<std::vector<T>>();
  }

  const std::string& function_;
  const json& object_;
  std::vector<std::string> seen_;
};

/// Collects the members as JSON, with their type names and documentation.
class Writer final : public Fields {
 public:
  void operator()(const char* name, bool& value, const char* doc) override { add(name, "bool", value, doc); }
  void operator()(const char* name, int64_t& value, const char* doc) override { add(name, "int", value, doc); }
  void operator()(const char* name, double& value, const char* doc) override { add(name, "float", value, doc); }
  void operator()(const char* name, std::string& value, const char* doc) override { add(name, "str", value, doc); }
  void operator()(const char* name, std::optional<bool>& value, const char* doc) override {
    add(name, "bool | null", value ? json(*value) : json(), doc);
  }
  void operator()(const char* name, std::optional<double>& value, const char* doc) override {
    add(name, "float | null", value ? json(*value) : json(), doc);
  }
  void operator()(const char* name, std::optional<int64_t>& value, const char* doc) override {
    add(name, "int | null", value ? json(*value) : json(), doc);
  }
  void operator()(const char* name, std::vector<int64_t>& value, const char* doc) override {
    add(name, "list of int", value, doc);
  }
  void operator()(const char* name, std::vector<std::string>& value, const char* doc) override {
    add(name, "list of str", value, doc);
  }
  void nested(const char* name, std::string& text, const char* doc) override {
    add(name, "object", text.empty() ? json::object() : json::parse(text), doc);
  }

  json object = json::object();
  std::vector<ConfigField> fields;

 private:
  void add(const char* name, const char* type, json value, const char* doc) {
    ConfigField field;
    field.name = name;
    field.doc = doc;
    field.type = type;
    field.default_json = value.dump();
    fields.push_back(std::move(field));
    object[name] = std::move(value);
  }
};

std::vector<std::string> names_of(const std::vector<Port>& ports) {
  std::vector<std::string> names;
  for (const auto& port : ports) names.push_back(port.name);
  return names;
}

void check_ports(const Info& info, const Context& context) {
  const auto inputs = names_of(info.inputs), outputs = names_of(info.outputs);
  const auto known = [](const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  for (const auto& [name, tensor] : context.inputs)
    if (!known(inputs, name))
      fail(info.id, inputs.empty() ? "no inputs beside x" : "inputs among " + quoted_list(inputs),
           "'" + name + "'" + suggestion(name, inputs));
  for (const auto& name : context.wanted)
    if (!known(outputs, name))
      fail(info.id, outputs.empty() ? "no outputs beside the main one" : "outputs among " + quoted_list(outputs),
           "'" + name + "'" + suggestion(name, outputs));
}

/// The tokens of x (B, N, D) or of a map (B, D, H, W).
c10::SymInt tokens_of(const at::Tensor& x) {
  if (x.dim() == 3) return x.sym_size(1);
  c10::SymInt count = 1;
  for (int64_t d = 2; d < x.dim(); ++d) count *= x.sym_size(d);
  return count;
}

/// Reads the entries where they lie, without an op, so that nothing is traced. Tensors of a device are not read: that
/// would make every call wait for it.
void check_range(const std::string& id, const std::string& name, const at::Tensor& lengths, const c10::SymInt& tokens) {
  const auto most = tokens.maybe_as_int();
  if (!most || !ops::concrete(lengths) || !lengths.is_cpu() || lengths.is_sparse()) return;
  AT_DISPATCH_INTEGRAL_TYPES(lengths.scalar_type(), "lengths", [&] {
    const auto* entries = lengths.const_data_ptr<scalar_t>();
    for (int64_t row = 0; row < lengths.size(0); ++row) {
      const auto length = static_cast<int64_t>(entries[row * lengths.stride(0)]);
      if (length < 0 || length > *most)
        fail(id, name + " in [0, " + std::to_string(*most) + "]",
             std::to_string(length) + " in row " + std::to_string(row));
    }
  });
}

/// `lengths` counts the tokens of each row of x, `NAME_lengths` those of the input NAME. A host reads them as it likes.
void check_lengths(const Info& info, const at::Tensor& x, const Context& context) {
  constexpr std::string_view ending = "_lengths";
  for (const auto& [name, lengths] : context.inputs) {
    const bool own = name == "lengths";
    if (!lengths.defined() || !(own || name.ends_with(ending))) continue;
    const std::string of = own ? "x" : name.substr(0, name.size() - ending.size());
    const at::Tensor counted = own ? x : context.input(of);
    if (!c10::isIntegralType(lengths.scalar_type(), false) || lengths.dim() != 1)
      fail(info.id, name + " (B), integer", describe(lengths));
    if (lengths.sym_size(0) != x.sym_size(0))
      fail(info.id, name + " of the " + describe(x.sym_size(0)) + " rows of x", describe(lengths));
    if (counted.defined() && counted.dim() >= 3) check_range(info.id, name, lengths, tokens_of(counted));
  }
}

/// Torch's products refuse two types at once, from inside and without a name; autocast chooses one itself.
void check_types(const Info& info, const std::vector<WeightDeclaration>& declared, at::TensorList weights,
                 const at::Tensor& x) {
  if (!x.is_floating_point() || at::autocast::is_autocast_enabled(x.device().type())) return;
  for (size_t i = 0; i < declared.size(); ++i) {
    if (declared[i].buffer || weights[i].dim() < 2 || weights[i].scalar_type() == x.scalar_type()) continue;
    fail(info.id, "x of the dtype of weight " + declared[i].name + ", " + describe(weights[i].scalar_type()) +
                      " (or autocast)",
         describe(x));
  }
}

void check_weights(const Info& info, const std::vector<WeightDeclaration>& declared, at::TensorList weights) {
  if (weights.size() != declared.size())
    fail(info.id, std::to_string(declared.size()) + " weights", std::to_string(weights.size()));
  for (size_t i = 0; i < declared.size(); ++i) {
    const auto& shape = declared[i].shape;
    bool equal = weights[i].dim() == static_cast<int64_t>(shape.size());
    for (size_t d = 0; equal && d < shape.size(); ++d) equal = weights[i].sym_size(static_cast<int64_t>(d)) == shape[d];
    if (!equal) fail(info.id, "weight " + declared[i].name + " " + describe(shape), describe(weights[i]));
  }
}

/// x is (B, N, D); where maps are taken too, (B, D, H, W) or (B, D, T, H, W).
void check_tokens(const Info& info, int64_t width, const at::Tensor& x) {
  const bool map = info.takes_maps && (x.dim() == 4 || x.dim() == 5);
  const bool right = (x.dim() == 3 || map) && at::isFloatingType(x.scalar_type()) && x.sym_size(map ? 1 : 2) == width;
  if (right) return;
  const std::string d = std::to_string(width);
  fail(info.id, "x (B, N, " + d + ")" + (info.takes_maps ? " or (B, " + d + ", H, W)" : "") + " of a floating type",
       describe(x));
}

void check_layout(const Info& info, const at::Tensor& x, const Context& context) {
  require(context.prefix >= 0, info.id.c_str(), "prefix >= 0", std::to_string(context.prefix));
  require(info.takes_prefix || context.prefix == 0, info.id.c_str(),
          "no prefix tokens (it has no place for tokens outside the grid)", "prefix " + std::to_string(context.prefix));
  require(!info.needs_prefix || context.prefix > 0, info.id.c_str(), "a class token in front (prefix >= 1)", "prefix 0");
  require(!info.needs_grid || !context.grid.empty(), info.id.c_str(), "a grid (rows, columns) of the tokens", "none");
  if (x.dim() != 3) {
    require(context.prefix == 0, info.id.c_str(), "no prefix with x as a map", "prefix " + std::to_string(context.prefix));
    return;
  }
  if (context.grid.empty()) return;
  c10::SymInt tokens = 1;
  for (const auto& length : context.grid) tokens *= length;
  if (tokens + context.prefix != x.sym_size(1))
    fail(info.id, "prefix + product(grid) = the " + describe(x.sym_size(1)) + " tokens of x",
         "prefix " + std::to_string(context.prefix) + ", grid " + describe(context.grid));
}

}  // namespace

void read_config(const std::string& function, const std::string& text, const std::function<void(Fields&)>& visit) {
  const json object = json::parse(text.empty() ? "{}" : text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) fail(function, "the configuration to be a JSON object", text);
  Reader reader(function, object);
  visit(reader);
  reader.refuse_unknown();
}

std::string print_config(const std::function<void(Fields&)>& visit) {
  Writer writer;
  visit(writer);
  return writer.object.dump();
}

std::vector<ConfigField> describe_config(const std::function<void(Fields&)>& visit) {
  Writer writer;
  visit(writer);
  return writer.fields;
}

int64_t width_of(const std::string& function, const std::function<void(Fields&)>& visit) {
  Writer writer;
  visit(writer);
  const auto width = writer.object.find("width");
  if (width == writer.object.end()) return 0;
  if (*width <= 0) fail(function, "width > 0", width->dump());
  return width->get<int64_t>();
}

void check_call(const Info& info, int64_t width, const std::vector<WeightDeclaration>& declared,
                at::TensorList weights, const at::Tensor& x, const Context& context) {
  check_ports(info, context);
  check_weights(info, declared, weights);
  check_types(info, declared, weights, x);
  if (info.role == Role::host) return;
  check_tokens(info, width, x);
  check_lengths(info, x, context);
  check_layout(info, x, context);
}

struct Cache::State {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<const Instance>> instances;
};

Cache::Cache() : state_(std::make_unique<State>()) {}
Cache::~Cache() = default;

std::shared_ptr<const Instance> Cache::get(const std::string& key,
                                           const std::function<std::shared_ptr<const Instance>()>& make) {
  {
    const std::lock_guard lock(state_->mutex);
    const auto it = state_->instances.find(key);
    if (it != state_->instances.end()) return it->second;
  }
  // Made outside the lock: a host's instance configures its mixers.
  auto instance = make();
  const std::lock_guard lock(state_->mutex);
  return state_->instances.emplace(key, std::move(instance)).first->second;
}

}  // namespace regard::detail
