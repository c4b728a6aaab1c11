// The registry: mechanisms by id, filled when libraries are loaded, plug-ins among them.

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/nn/mechanism.h"

namespace regard {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, std::unique_ptr<Mechanism>> by_id;
  std::vector<std::string> refusals;  ///< of mechanisms that could not be registered while loading

  void add(std::unique_ptr<Mechanism> added) {
    const std::string id = added->info().id;
    const std::lock_guard lock(mutex);
    if (id.empty()) fail("register_mechanism", "an id", "none");
    if (!by_id.emplace(id, std::move(added)).second)
      fail("register_mechanism", "an id that is free", "'" + id + "', registered before");
  }
  size_t size() {
    const std::lock_guard lock(mutex);
    return by_id.size();
  }
  void throw_refusals() {
    std::string first;
    {
      const std::lock_guard lock(mutex);
      if (refusals.empty()) return;
      first = refusals.front();
      refusals.clear();
    }
    throw Error(first);
  }
};

/// Never destroyed: mechanisms of plug-ins may outlive the order in which libraries are closed.
Registry& registry() {
  static Registry& instance = *new Registry;
  return instance;
}

/// Opens the plug-ins named in REGARD_PLUGINS, once, before the first look into the registry. A plug-in that fails is
/// an error at every look, never a missing name.
void open_plugins() {
  static std::recursive_mutex mutex;
  static bool opening = false, opened = false;
  const std::lock_guard lock(mutex);
  if (opened || opening) return;
  opening = true;
  try {
    const char* variable = std::getenv("REGARD_PLUGINS");
    std::string rest = variable ? variable : "";
    while (!rest.empty()) {
      const size_t colon = rest.find(':');
      const std::string library = rest.substr(0, colon);
      rest = colon == std::string::npos ? "" : rest.substr(colon + 1);
      if (!library.empty()) load_plugin(library);
    }
  } catch (...) {
    opening = false;
    throw;
  }
  opened = true;
}

Registry& opened_registry() {
  open_plugins();
  registry().throw_refusals();
  return registry();
}

const char* name_of(Role role) {
  switch (role) {
    case Role::mixer:
      return "mixer";
    case Role::pool:
      return "pool";
    case Role::reducer:
      return "reducer";
    default:
      return "host";
  }
}

using nlohmann::json;

json to_json(const std::vector<Port>& ports) {
  json list = json::array();
  for (const auto& port : ports) {
    list.push_back({{"name", port.name}, {"doc", port.doc}});
    if (!port.form.empty()) list.back()["form"] = port.form;
  }
  return list;
}

json to_json(const std::vector<std::pair<std::string, std::string>>& names) {
  json object = json::object();
  for (const auto& [from, to] : names) object[from] = to;
  return object;
}

json describe(const Mechanism& mechanism) {
  const Info& info = mechanism.info();
  json fields = json::array(), examples = json::array();
  for (const auto& field : mechanism.config_fields())
    fields.push_back(
        {{"name", field.name}, {"type", field.type}, {"doc", field.doc}, {"default", json::parse(field.default_json)}});
  for (const auto& example : info.examples) examples.push_back(json::parse(example));
  const Golden& golden = info.golden;
  json folders = json::array({info.id});  // where its golden cases lie
  for (const Golden& form : golden.forms)
    if (!form.folder.empty() && std::find(folders.begin(), folders.end(), form.folder) == folders.end())
      folders.push_back(form.folder);
  return {{"id", info.id},
          {"family", info.family},
          {"role", name_of(info.role)},
          {"title", info.title},
          {"equation", info.equation},
          {"paper", info.paper},
          {"inputs", to_json(info.inputs)},
          {"outputs", to_json(info.outputs)},
          {"consumes", to_json(info.consumes)},
          {"publishes", to_json(info.publishes)},
          {"losses", to_json(info.losses)},
          {"config", fields},
          {"needs_grid", info.needs_grid},
          {"takes_maps", info.takes_maps},
          {"takes_prefix", info.takes_prefix},
          {"needs_prefix", info.needs_prefix},
          {"couples_batch", info.couples_batch},
          {"examples", examples},
          {"golden",
           {{"config", to_json(golden.config)},
            {"fixed", golden.fixed.empty() ? json::object() : json::parse(golden.fixed)},
            {"inputs", to_json(golden.inputs)},
            {"outputs", to_json(golden.outputs)},
            {"weights", to_json(golden.weights)},
            {"folders", folders},
            {"excuse", golden.excuse}}}};
}

}  // namespace

void register_mechanism(std::unique_ptr<Mechanism> mechanism) { registry().add(std::move(mechanism)); }

void detail::register_at_load(std::unique_ptr<Mechanism> mechanism) noexcept {
  try {
    registry().add(std::move(mechanism));
  } catch (const std::exception& error) {
    const std::lock_guard lock(registry().mutex);
    registry().refusals.emplace_back(error.what());
  }
}

const Mechanism& mechanism(const std::string& id) {
  Registry& all = opened_registry();
  const std::lock_guard lock(all.mutex);
  const auto it = all.by_id.find(id);
  if (it != all.by_id.end()) return *it->second;
  std::vector<std::string> ids;
  for (const auto& [known, mechanism] : all.by_id)
    if (mechanism->listed()) ids.push_back(known);
  fail("mechanism", "an id among " + quoted_list(ids), "'" + id + "'" + suggestion(id, ids));
}

std::vector<const Mechanism*> mechanisms() {
  Registry& all = opened_registry();
  const std::lock_guard lock(all.mutex);
  std::vector<const Mechanism*> list;
  for (const auto& [id, mechanism] : all.by_id)
    if (mechanism->listed()) list.push_back(mechanism.get());
  std::stable_sort(list.begin(), list.end(),
                   [](const Mechanism* a, const Mechanism* b) { return a->info().family < b->info().family; });
  return list;
}

void load_plugin(const std::string& library) {
  // A library opened before has registered before; its initializers do not run again.
  if (void* known = dlopen(library.c_str(), RTLD_NOW | RTLD_NOLOAD)) {
    dlclose(known);
    return;
  }
  const size_t before = registry().size();
  // Global, so that a plug-in may build on another.
  if (!dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL)) {
    const char* reason = dlerror();
    fail("load_plugin", "a shared library", "'" + library + "' (" + (reason ? reason : "unknown reason") + ")");
  }
  registry().throw_refusals();
  if (registry().size() == before)
    fail("load_plugin", "a library that registers mechanisms", "'" + library + "', which registers none");
}

std::string description_json(const std::string& id) { return describe(mechanism(id)).dump(); }

std::string registry_json() {
  json list = json::array();
  for (const Mechanism* mechanism : mechanisms()) list.push_back(describe(*mechanism));
  return list.dump();
}

}  // namespace regard
