#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "regard/nn/linear/linear_attention.h"

namespace regard {

/// The feature maps of linear attention by name.
const std::vector<std::string>& feature_maps();
/// Whether <phi(q), phi(k)> >= 0 for all q and k.
bool one_signed(const std::string& feature_map);
/// Width of phi of a head of width Dk.
int64_t feature_width(const LinearAttention::Config& config, int64_t Dk);
/// Their weights, under "feature_map_q." and "feature_map_k.".
void declare_features(const LinearAttention::Config& config, Declaration& weights);
/// phi(x) of x (..., Dk), in the dtype of x; `which` is 'q' or 'k'.
at::Tensor features_of(const LinearAttention::Config& config, const Weights& weights, const at::Tensor& x, char which);

}  // namespace regard
