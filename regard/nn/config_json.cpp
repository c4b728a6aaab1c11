// Configurations in and out of JSON.

#include <algorithm>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/nn/mechanism.h"

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

}  // namespace regard::detail
