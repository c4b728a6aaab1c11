#include "regard/ops/explain.h"

#include <torch/library.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "regard/algebra/derivative.h"
#include "regard/algebra/pair_count.h"
#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/kernels/cpu/captures.h"
#include "regard/kernels/cpu/routes.h"
#include "regard/ops/attention_op.h"
#include "regard/ops/attention_paths.h"
#include "regard/ops/boundary.h"
#include "regard/ops/executor_offers.h"
#include "regard/ops/machine.h"

namespace regard {

using nlohmann::json;

std::string explain(const std::string& spec) {
  const auto resolved = intern(spec);
  const std::string refusal = kernels::refusal(*resolved);
  std::string text = to_string(*resolved) +
                     "\nfused on CPU: " + (refusal.empty() ? "yes, " + kernels::isa() : "no: " + refusal) +
                     "\noffers executors: " + to_string(offers(*resolved)) + "\ncascade:\n";
  for (const auto& [result, definition] : ops::cascade_of(*resolved)) text += "  " + result + " = " + definition + "\n";
  return text;
}

namespace ops {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// The median time of a few runs in milliseconds, and how many; the first run only warms up unless it is long.
template <class Body>
std::pair<double, int> time_of(Body body) {
  constexpr double kTotal = 0.4, kLong = 2;  // seconds
  double start = now();
  body();
  const double first = now() - start;
  if (first > kLong) return {first * 1e3, 1};
  const int runs = std::clamp(static_cast<int>(kTotal / std::max(first, 1e-6)), 3, 25);
  std::vector<double> times;
  for (int run = 0; run < runs; ++run) {
    start = now();
    body();
    times.push_back(now() - start);
  }
  std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
  return {times[static_cast<size_t>(runs / 2)] * 1e3, runs};
}

/// Which kernel ran between two counts; "" for none.
std::string route_between(const std::array<int64_t, kernels::kRoutes>& before) {
  const auto after = kernels::route_counts();
  for (size_t r = 0; r < after.size(); ++r)
    if (after[r] > before[r]) return kernels::kRouteNames[r];
  return "";
}

PairCount pairs_of(const Call& call) {
  Tile whole;
  whole.batches = call.q.size(0);
  whole.heads = call.q.size(1);
  whole.queries = call.q.size(2);
  whole.keys = call.k.size(2);
  whole.query_offset = call.query_offset.guard_int(__FILE__, __LINE__);
  whole.scale = call.scale();
  std::vector<at::Tensor> kept;
  const auto captures = kernel_captures(call, kept);
  return count_pairs(call.spec->keep, whole, kernels::capture_range(captures));
}

/// The widths of all distinct dots together.
double dot_width(const Call& call) {
  std::vector<Expr> parts = {call.spec->score, call.spec->weight};
  for (const auto& pair : call.spec->pair_outputs) parts.push_back(pair.value);
  double width = 0;
  for (const Expr& dot : dots_of(parts)) {
    const Node& node = dot.node();
    const auto& names = call.facts->operands;
    const size_t at = static_cast<size_t>(std::find(names.begin(), names.end(), node.name) - names.begin());
    const int64_t whole = node.name.empty() ? call.q.size(3) : call.operands[2 * at].size(3);
    width += static_cast<double>((node.end < 0 ? whole : node.end) - node.begin);
  }
  return width;
}

double bytes_of(const std::vector<at::Tensor>& tensors) {
  double bytes = 0;
  for (const auto& t : tensors)
    if (t.defined()) bytes += static_cast<double>(t.nbytes());
  return bytes;
}

json work_of(double flops, double bytes, double peak, const kernels::Machine& machine, std::pair<double, int> time) {
  const double compute_ms = peak > 0 ? flops / peak * 1e-6 : 0;
  const double read_ms = machine.read_gbps > 0 ? bytes / machine.read_gbps * 1e-6 : 0;
  return {{"flops", flops},
          {"bytes", bytes},
          {"intensity", bytes > 0 ? flops / bytes : 0},
          {"bound", compute_ms >= read_ms ? "compute" : "memory"},
          {"roofline_ms", std::max(compute_ms, read_ms)},
          {"measured_ms", time.first},
          {"gflops", time.first > 0 ? flops / time.first * 1e-6 : 0},
          {"runs", time.second}};
}

/// GFLOP/s that the kernel `route` could reach.
double peak_of(const std::string& route, at::ScalarType dtype, const kernels::Machine& machine) {
  if (route == "amx") return machine.amx_gflops;
  return dtype == at::kDouble ? machine.fma_gflops / 2 : machine.fma_gflops;
}

json kernels_of(const Call& call, Path path, const std::string& forward, const std::string& backward) {
  json list = json::array();
  const std::string asked = std::string("the path is ") + name_of(path);
  const auto answer = [&](const std::string& name, const std::string& refusal, const std::string& ran) -> std::string {
    if (name == ran) return "runs";
    if (!refusal.empty()) return refusal;
    return ran.empty() ? asked : ran + " was chosen before it";
  };
  for (const auto& [name, refuses, refuses_backward] : kernel_answers(call))
    list.push_back({{"name", name},
                    {"forward", answer(name, refuses, forward)},
                    {"backward", answer(name, refuses_backward, backward)}});
  for (const Path other : {Path::stripe, Path::composite}) {
    const std::string text = other == path ? "runs" : "only when asked for";
    list.push_back({{"name", name_of(other)}, {"forward", text}, {"backward", text}});
  }
  if (path == Path::composite) list[3]["forward"] = list[3]["backward"] = asked;
  if (path == Path::fused) list[3]["forward"] = list[3]["backward"] = "the fused path runs the call";
  return list;
}

const char* dtype_name(at::ScalarType type) {
  return type == at::kDouble     ? "float64"
         : type == at::kBFloat16 ? "bfloat16"
         : type == at::kHalf     ? "float16"
                                 : "float32";
}

Call detached(const Call& call) {
  std::vector<at::Tensor> tensors = tensors_of(call);
  for (auto& t : tensors)
    if (t.defined()) t = t.detach();
  return with_tensors(call, tensors);
}

}  // namespace

at::ScalarType dtype_from_name(const std::string& function, const std::string& name) {
  static const std::vector<std::string> names = {"float32", "float64", "bfloat16", "float16"};
  constexpr at::ScalarType types[] = {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};
  for (size_t i = 0; i < names.size(); ++i)
    if (name == names[i]) return types[i];
  fail(function, "--dtype among " + quoted_list(names), "'" + name + "'" + suggestion(name, names));
}

}  // namespace ops

std::string explain_call_json(const ops::Call& given, std::string_view requested) {
  using namespace ops;
  if (!concrete(given.q)) fail("explain", "tensors that hold numbers", "traced ones");
  const at::NoGradGuard plain;
  const Call call = detached(given);
  const Path path = choose_path("explain", call, requested);
  std::vector<at::Tensor> tensors = {call.q, call.k, call.v};
  tensors.insert(tensors.end(), call.captures.begin(), call.captures.end());
  tensors.insert(tensors.end(), call.operands.begin(), call.operands.end());
  const auto some = [](const at::Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };
  const OptionalTensor sinks = some(call.sinks), seed = some(call.seed);

  AttentionResult out;
  auto before = kernels::route_counts();
  const auto forward_time =
      time_of([&] { out = call_attend(tensors, call.facts->text, sinks, seed, call.query_offset, requested); });
  const std::string forward = route_between(before);
  const auto& [o, lse, pairs] = out;
  const at::Tensor grad_o = at::randn_like(o);
  AttentionGradients gradients;
  before = kernels::route_counts();
  const auto backward_time = time_of([&] {
    gradients = call_attention_backward(grad_o, std::nullopt, std::nullopt, o, lse, call.q, call.k, call.v,
                                        call.facts->text, call.captures, call.operands, sinks, seed, call.query_offset,
                                        requested, {true, true, true, true, true, true});
  });
  const std::string backward = route_between(before);

  const auto machine = ops::machine();
  const PairCount count = pairs_of(call);
  const double width = dot_width(call), values = static_cast<double>(call.v.size(3));
  const auto inputs = tensors_of(call);
  const double read = bytes_of(inputs), result = bytes_of({o, lse, pairs});
  const auto& [dq, dk, dv, dsinks, dcaptures, doperands] = gradients;
  const double written = bytes_of({dq, dk, dv, dsinks}) + bytes_of(dcaptures) + bytes_of(doperands);
  // Products of a kept pair: scores and P V; backward the scores again, dP, dV, and dQ and dK of every dot.
  const double forward_flops = 2 * count.pairs * (width + values);
  const double backward_flops = 2 * count.pairs * (3 * width + 2 * values);
  const auto type = call.q.scalar_type();

  json cascade = json::array();
  for (const auto& [name, definition] : cascade_of(*call.spec)) cascade.push_back({name, definition});
  json report = {
      {"spec", to_string(*call.spec)},
      {"cascade", cascade},
      {"shape",
       {{"B", call.q.size(0)},
        {"H", call.q.size(1)},
        {"Hk", call.k.size(1)},
        {"M", call.q.size(2)},
        {"N", call.k.size(2)},
        {"Dh", call.q.size(3)},
        {"Dv", call.v.size(3)}}},
      {"dtype", dtype_name(type)},
      {"path", name_of(path)},
      {"kernel", {{"forward", forward}, {"backward", backward}}},
      {"kernels", kernels_of(call, path, forward, backward)},
      {"pairs",
       {{"kept", count.pairs},
        {"exact", count.exact},
        {"all", static_cast<double>(call.q.size(0) * call.q.size(1)) * static_cast<double>(call.q.size(2)) *
                    static_cast<double>(call.k.size(2))}}},
      {"work",
       {{"forward", work_of(forward_flops, read + result, peak_of(forward, type, machine), machine, forward_time)},
        {"backward", work_of(backward_flops, read + 2 * bytes_of({o}) + bytes_of({lse}) + written,
                             peak_of(backward, type, machine), machine, backward_time)}}},
      {"machine", json::parse(to_json(machine))}};
  return report.dump();
}

std::string explain_shape_json(const std::string& spec_json, const ExplainShape& shape, at::ScalarType dtype,
                               const std::map<std::string, at::Tensor>& given, std::string_view path) {
  return explain_call_json(ops::random_call(spec_json, shape, dtype, given), path);
}

namespace {

std::string explain_op(std::string spec) { return explain(spec); }

std::string explain_shape_op(std::string spec, std::string shape, std::string dtype, std::string path) {
  return explain_shape_json(spec, explain_shape("explain", shape), ops::dtype_from_name("explain", dtype), {}, path);
}

std::string explain_call_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::string spec,
                            at::TensorList captures, at::TensorList operands, const ops::OptionalTensor& sinks,
                            const ops::OptionalTensor& seed, int64_t query_offset, std::string path) {
  return explain_call_json(ops::make_call("explain", q, k, v, spec, captures, operands, sinks, seed, query_offset),
                           path);
}

std::string explain_text_op(std::string report) { return explain_text(report); }

}  // namespace

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def("explain(str spec) -> str", guarded<&explain_op>);
  m.def("explain_shape(str spec, str shape, str dtype='float32', str path='auto') -> str", guarded<&explain_shape_op>);
  m.def(
      "explain_call(Tensor q, Tensor k, Tensor v, str spec, Tensor[] captures, Tensor[] operands, Tensor? sinks=None, "
      "Tensor? seed=None, int query_offset=0, str path='auto') -> str",
      guarded<&explain_call_op>);
  m.def("explain_text(str report) -> str", guarded<&explain_text_op>);
}

}  // namespace regard
