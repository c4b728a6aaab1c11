#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "regard/ops/formula.h"

/// The two dispatched ops behind every attention, as C++ calls through the dispatcher.
///
/// Users call regard::attention, which is composite: it puts all tensors into one list and calls regard::attend. Lists
/// of captures and operands would often be empty, which AOTInductor hands over as none.
namespace regard::ops {

using OptionalTensor = std::optional<at::Tensor>;
using AttentionResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // o, lse, pairs
/// dq, dk, dv, dsinks, dcaptures, doperands; an empty tensor (0) where a gradient was not wanted or does not exist.
using AttentionGradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>>;

/// regard::attend; tensors: q, k, v, then the captures, then the operands.
AttentionResult call_attend(at::TensorList tensors, c10::string_view spec, const OptionalTensor& sinks,
                            const OptionalTensor& seed, const c10::SymInt& query_offset, c10::string_view path);

/// What regard::attention does.
AttentionResult call_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, c10::string_view spec,
                               at::TensorList captures, at::TensorList operands, const OptionalTensor& sinks,
                               const OptionalTensor& seed, const c10::SymInt& query_offset, c10::string_view path);

/// `wanted`: q, k, v, sinks, captures, operands.
AttentionGradients call_attention_backward(const at::Tensor& grad_o, const OptionalTensor& grad_lse,
                                           const OptionalTensor& grad_pairs, const at::Tensor& o, const at::Tensor& lse,
                                           const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                           c10::string_view spec, at::TensorList captures, at::TensorList operands,
                                           const OptionalTensor& sinks, const OptionalTensor& seed,
                                           const c10::SymInt& query_offset, c10::string_view path,
                                           const std::array<bool, 6>& wanted);

/// Gradients as the op returns them: in the inputs' dtypes, zeros where nothing was read.
/// dsinks has the shape (H, S) of `call.sinks`.
AttentionGradients packed(const StripeGradient& gradient, const Call& call, const Wanted& wanted);

/// An absent and an undefined tensor are the same.
at::Tensor defined(const OptionalTensor& t);

}  // namespace regard::ops
