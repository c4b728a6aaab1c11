// The checks that every call of a mechanism goes through before anything is computed.

#include <ATen/Dispatch.h>
#include <ATen/autocast_mode.h>

#include <algorithm>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/nn/blackboard.h"
#include "regard/nn/mechanism.h"
#include "regard/nn/shapes.h"
#include "regard/nn/tap.h"
#include "regard/ops/call.h"
#include "regard/ops/executor.h"

namespace regard::detail {
namespace {

void add_names(std::vector<std::string>& names, const std::vector<Port>& ports, const std::string& prefix = "") {
  for (const auto& port : ports) names.push_back(prefix + port.name);
}

/// Names that every mechanism may be given or asked for; the context itself checks them.
bool common_input(const std::string& name) {
  return name == "cu_seqlens" || name == "tap.marked" || name.starts_with("cache.");
}
bool common_output(const std::string& name) { return name.starts_with("tap.") || name.starts_with("cache."); }

void check_ports(const Info& info, const Context& context) {
  std::vector<std::string> inputs, outputs;
  add_names(inputs, info.inputs);
  add_names(inputs, info.consumes);
  add_names(outputs, info.outputs);
  add_names(outputs, info.publishes);
  add_names(outputs, info.losses, "loss.");
  const auto known = [](const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  for (const auto& [name, tensor] : context.inputs)
    if (!common_input(name) && !known(inputs, name))
      fail(info.id, inputs.empty() ? "no inputs beside x" : "inputs among " + quoted_list(inputs),
           "'" + name + "'" + suggestion(name, inputs));
  for (const auto& port : info.consumes)
    if (const at::Tensor given = context.input(port.name); given.defined()) check_form(info.id, port, given);
  for (const auto& name : context.wanted)
    if (name.starts_with("tap.")) check_tap_output(name);
  if (info.role == Role::host) return;  // the others are of its layers, which it looks for itself
  for (const auto& name : context.wanted)
    if (!common_output(name) && !known(outputs, name))
      fail(info.id, outputs.empty() ? "no outputs beside the main one" : "outputs among " + quoted_list(outputs),
           "'" + name + "'" + suggestion(name, outputs));
}

/// Shards hold fewer tokens than lengths and grids count.
bool sharded(const Context& context) { return context.executor && context.executor->sharded(); }

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
    if (counted.defined() && counted.dim() >= 3)
      check_range(info.id, name, lengths, sharded(context) ? context.tokens(counted) : tokens_of(counted));
  }
}

/// Torch's products refuse two types at once, from inside and without a name; autocast chooses one itself.
void check_types(const Info& info, const std::vector<WeightDeclaration>& declared, at::TensorList weights,
                 const at::Tensor& x, const Context& context) {
  if (!x.is_floating_point() || at::autocast::is_autocast_enabled(x.device().type())) return;
  const at::Tensor memory = context.input("memory");
  if (memory.defined() && memory.scalar_type() != x.scalar_type())
    fail(info.id, "memory of the dtype of x, " + describe(x.scalar_type()) + " (or autocast)", describe(memory));
  for (size_t i = 0; i < declared.size(); ++i) {
    if (declared[i].buffer || weights[i].dim() < 2 || weights[i].scalar_type() == x.scalar_type()) continue;
    fail(info.id,
         "x of the dtype of weight " + declared[i].name + ", " + describe(weights[i].scalar_type()) + " (or autocast)",
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
  require(!info.needs_prefix || context.prefix > 0, info.id.c_str(), "a class token in front (prefix >= 1)",
          "prefix 0");
  require(!info.needs_grid || !context.grid.empty(), info.id.c_str(), "a grid (rows, columns) of the tokens", "none");
  if (x.dim() != 3) {
    require(context.prefix == 0, info.id.c_str(), "no prefix with x as a map",
            "prefix " + std::to_string(context.prefix));
    return;
  }
  if (context.grid.empty()) return;
  require(!sharded(context), info.id.c_str(), "all tokens on one device, or no grid", "shards of a grid");
  c10::SymInt tokens = 1;
  for (const auto& length : context.grid) tokens *= length;
  if (tokens + context.prefix != x.sym_size(1))
    fail(info.id, "prefix + product(grid) = the " + describe(x.sym_size(1)) + " tokens of x",
         "prefix " + std::to_string(context.prefix) + ", grid " + describe(context.grid));
}

}  // namespace

void check_call(const Info& info, int64_t width, const std::vector<WeightDeclaration>& declared, at::TensorList weights,
                const at::Tensor& x, const Context& context) {
  check_ports(info, context);
  check_weights(info, declared, weights);
  check_types(info, declared, weights, x, context);
  if (info.role == Role::host) return;
  check_tokens(info, width, x);
  check_lengths(info, x, context);
  check_layout(info, x, context);
}

}  // namespace regard::detail
