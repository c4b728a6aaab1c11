#pragma once

#include <ATen/ATen.h>

#include <string>

namespace regard {

/// Shapes as errors print them: "(2, 9, 24)", and for a tensor with its type: "(2, 9, 24) float32".
std::string describe(const c10::SymInt& size);
std::string describe(c10::IntArrayRef shape);
std::string describe(c10::SymIntArrayRef shape);
std::string describe(const at::Tensor& tensor);
std::string describe(at::ScalarType type);  ///< "float32", as Python spells it

/// (B, L, H * D) -> (B, H, L, D): heads are contiguous blocks of channels.
at::Tensor split_heads(const at::Tensor& x, int64_t heads);
/// (B, H, L, D) -> (B, L, H * D).
at::Tensor merge_heads(const at::Tensor& x);

/// (B, L) boolean, true where token i of row b is padding: i >= lengths[b].
at::Tensor padding(const at::Tensor& lengths, const c10::SymInt& tokens);

}  // namespace regard
