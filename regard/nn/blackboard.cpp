#include "regard/nn/blackboard.h"

#include <algorithm>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/nn/shapes.h"
#include "regard/nn/tap.h"

namespace regard {
namespace {

const Port* find(const std::vector<Port>& ports, const std::string& name) {
  for (const auto& port : ports)
    if (port.name == name) return &port;
  return nullptr;
}

void add_names(std::vector<std::string>& names, const std::vector<Port>& ports, const std::string& prefix = "") {
  for (const auto& port : ports) names.push_back(prefix + port.name);
}

std::vector<std::string> outputs_of(const Info& info) {
  std::vector<std::string> names;
  add_names(names, info.outputs);
  add_names(names, info.publishes);
  add_names(names, info.losses, "loss.");
  return names;
}

}  // namespace

Context inner_context(const Info& info, const std::string& name, Context& host) {
  Context inner;
  inner.training = host.training;
  inner.path = host.path;
  inner.executor = host.executor;
  inner.edits = host.edits;
  inner.host = &host;
  inner.name = name;
  for (const auto& port : info.inputs)
    if (const at::Tensor given = host.input(port.name); given.defined()) inner.inputs[port.name] = given;
  for (const auto& port : info.consumes)
    if (const at::Tensor given = host.input(port.name); given.defined()) inner.inputs[port.name] = given;
  if (const at::Tensor marked = host.input("tap.marked"); marked.defined()) inner.inputs["tap.marked"] = marked;
  return inner;
}

void check_form(const std::string& id, const Port& port, const at::Tensor& t) {
  if (port.form.empty()) return;
  const size_t open = port.form.find('(');
  const std::string type = port.form.substr(0, port.form.find(' '));
  const std::string found = !t.defined() ? "none" : describe(t);
  const auto refuse = [&] { fail(id, port.name + ", " + port.form, found); };
  if (!t.defined()) refuse();
  const bool boolean = t.scalar_type() == at::kBool, integer = !boolean && c10::isIntegralType(t.scalar_type(), false);
  if (type == "bool" ? !boolean : type == "int" ? !integer : !t.is_floating_point()) refuse();
  std::vector<std::string> letters;
  std::string letter;
  for (const char c : port.form.substr(open == std::string::npos ? port.form.size() : open)) {
    if (std::isalnum(static_cast<unsigned char>(c)))
      letter += c;
    else if (!letter.empty())
      letters.push_back(std::exchange(letter, ""));
  }
  if (static_cast<int64_t>(letters.size()) != t.dim()) refuse();
  for (size_t i = 0; i < letters.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (letters[i] == letters[j] && t.sym_size(static_cast<int64_t>(i)) != t.sym_size(static_cast<int64_t>(j)))
        refuse();
}

void Blackboard::add(const std::string& layer, const Info& info) {
  for (const auto& known : layers_)
    if (known.name == layer) fail(id_, "layers of different names", "'" + layer + "' twice");
  layers_.push_back({layer, &info, {}, {}, {}});
}

Blackboard::Layer& Blackboard::of(const std::string& name) {
  for (auto& layer : layers_)
    if (layer.name == name) return layer;
  fail(id_, "a layer that was added", "'" + name + "'");
}

/// Every consumer reads the last layer before it that publishes the name.
void Blackboard::connect() {
  for (size_t i = 0; i < layers_.size(); ++i) {
    for (const auto& port : layers_[i].info->consumes) {
      for (size_t j = i; j-- > 0;) {
        const Port* source = find(layers_[j].info->publishes, port.name);
        if (!source) continue;
        if (!source->form.empty() && !port.form.empty() && source->form != port.form)
          fail(id_, "'" + port.name + "' of one form, " + port.form + " as " + layers_[i].name + " consumes it",
               source->form + " from " + layers_[j].name);
        layers_[j].for_others.insert(port.name);
        layers_[i].sources[port.name] = layers_[j].name;
        break;
      }
    }
  }
}

void Blackboard::want_losses(const std::string& wanted) {
  bool any = false;
  for (auto& layer : layers_) {
    for (const auto& port : layer.info->losses) {
      if (wanted != "loss" && wanted != "loss." + port.name) continue;
      layer.for_others.insert("loss." + port.name);
      any = true;
    }
  }
  if (!any) fail(id_, "a layer with the auxiliary loss that is asked for", "'" + wanted + "' of layers without one");
}

/// "LAYER.NAME" to the layer; the longest name of a layer wins. False when no layer is meant.
bool Blackboard::route(const std::string& wanted) {
  Layer* best = nullptr;
  for (auto& layer : layers_)
    if (wanted.starts_with(layer.name + ".") && (!best || layer.name.size() > best->name.size())) best = &layer;
  if (!best) return false;
  const std::string name = wanted.substr(best->name.size() + 1);
  if (name.starts_with("tap.")) {
    check_tap_output(name);
  } else if (best->info->role != Role::host) {
    const auto names = outputs_of(*best->info);
    if (std::find(names.begin(), names.end(), name) == names.end())
      fail(id_, "outputs of " + best->name + " among " + quoted_list(names) + ", tap.NAME",
           "'" + name + "'" + suggestion(name, names));
  }
  best->wanted.push_back(name);
  return true;
}

void Blackboard::check(const std::vector<Port>& own_outputs) {
  connect();
  std::vector<std::string> names;
  add_names(names, own_outputs);
  for (const auto& wanted : host_.wanted) {
    if (find(own_outputs, wanted)) continue;
    if (wanted == "loss" || wanted.starts_with("loss.")) {
      want_losses(wanted);
    } else if (!route(wanted)) {
      fail(id_,
           "outputs among " + quoted_list(names) + ", loss, loss.NAME, LAYER.NAME" +
               (layers_.empty() ? std::string() : " (a layer is '" + layers_[0].name + "')"),
           "'" + wanted + "'" + suggestion(wanted, names));
    }
  }
}

Context Blackboard::open(const std::string& name) {
  Layer& layer = of(name);
  Context inner = inner_context(*layer.info, name, host_);
  inner.wanted = layer.wanted;
  for (const auto& extra : layer.for_others) {
    if (inner.wants(extra)) continue;
    inner.wanted.push_back(extra);
    inner.optional.insert(extra);
  }
  for (const auto& [port, source] : layer.sources) {
    const auto it = published_.find(source + "/" + port);
    if (it == published_.end()) continue;
    check_form(layer.info->id, *find(layer.info->consumes, port), it->second);
    inner.inputs[port] = it->second;
  }
  return inner;
}

void Blackboard::close(Context& inner) {
  Layer& layer = of(inner.name);
  for (const auto& name : layer.wanted) host_.output(layer.name + "." + name, inner.outputs.at(name));
  for (const auto& name : layer.for_others) {
    const auto it = inner.outputs.find(name);
    if (it == inner.outputs.end()) continue;
    if (name.starts_with("loss.")) {
      losses_[name].push_back(it->second);
    } else {
      check_form(layer.info->id, *find(layer.info->publishes, name), it->second);
      published_[layer.name + "/" + name] = it->second;
    }
  }
}

void Blackboard::finish() {
  const auto sum = [&](const std::string& wanted) {
    at::Tensor total;
    for (const auto& [name, parts] : losses_)
      for (const auto& part : parts)
        if (wanted == "loss" || wanted == name) total = total.defined() ? total + part : part;
    if (!total.defined()) fail(id_, "layers whose configuration has the auxiliary loss", "'" + wanted + "' of none");
    host_.output(wanted, total);
  };
  for (const auto& wanted : host_.wanted)
    if (wanted == "loss" || wanted.starts_with("loss.")) sum(wanted);
}

}  // namespace regard
