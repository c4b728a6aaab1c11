#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "regard/kernels/attention.h"
#include "regard/ops/call.h"

namespace regard {

/// A spec for people: its fields in order, the cascade of sums that computes it, and for every faster path that refuses
/// it the field that stands in the way.
std::string explain(const std::string& spec_json);

/// The sizes of a call: B, H, M, N, Dh and, where they differ, Dv (Dh) and Hk (H).
struct ExplainShape {
  int64_t B = 1, H = 1, M = 1, N = 1, Dh = 1, Dv = 1, Hk = 1;
};
/// "1,8,2048,2048,64[,Dv[,Hk]]"; throws regard::Error in the name of `function`.
ExplainShape explain_shape(const std::string& function, const std::string& text);

/// What one call of attention does and costs, as JSON: {spec, cascade: [[result, definition]], passes, shape, dtype,
/// path, kernels: [{name, forward, backward}], work: {forward, backward}: {pairs, exact, flops, bytes, intensity,
/// roofline_ms, bound, measured_ms, runs}, machine}. A kernel's entry is "runs" or why it does not. Runs the call
/// forward and backward a few times; the runs count in path_counts() and route_counts().
std::string explain_call_json(const ops::Call& call, std::string_view path = "auto");

/// The same on random inputs of these sizes. Captures get random values of their class (integers: in [0, N)) unless
/// `given` holds them by name.
std::string explain_shape_json(const std::string& spec_json, const ExplainShape& shape, at::ScalarType dtype,
                               const std::map<std::string, at::Tensor>& given = {}, std::string_view path = "auto");

/// explain_call_json's or explain_shape_json's JSON as text with aligned tables.
std::string explain_text(const std::string& json);

namespace ops {

/// The cascade of sums of a resolved spec, a line {result, definition} each, in the order of computation.
std::vector<std::pair<std::string, std::string>> cascade_of(const AttentionSpec& resolved);

/// Inputs of a call, random where nothing is given.
Call random_call(const std::string& spec_json, const ExplainShape& shape, at::ScalarType dtype,
                 const std::map<std::string, at::Tensor>& given);

/// A kernel of the fused path, and why it cannot run the call ("" when it can).
struct KernelAnswer {
  std::string name, forward, backward;
};
std::vector<KernelAnswer> kernel_answers(const Call& call);

/// The call's captures as kernels read them; the tensors must outlive what is returned.
std::vector<kernels::Capture> kernel_captures(const Call& call, std::vector<at::Tensor>& kept);

/// float64, float32, bfloat16 or float16 by name; throws in the name of `function`.
at::ScalarType dtype_from_name(const std::string& function, const std::string& name);

}  // namespace ops
}  // namespace regard
