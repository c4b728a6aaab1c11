#pragma once

#include <ATen/ATen.h>

#include <string>
#include <utility>
#include <vector>

namespace regard {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// The checkpoint families of Vision Transformers whose names are known:
///   timm, deit      the names of the mechanism "vit"
///   deit3           blocks.{i}.gamma_1, gamma_2 for LayerScale
///   google          the arrays of the .npz files: kernels transposed, query, key and value apart
///   huggingface     vit.encoder.layer.{i}...: query, key and value apart
std::vector<std::string> checkpoint_families();

/// timm's names and shapes from those of a family. Wrappers ("model.", "state_dict.", "module.", "opt/target/",
/// "params/") are taken off, pre_logits and Hugging Face's pooler are dropped, a patch weight stored as (D, C p p) with
/// C = 3 (or 1) is reshaped. Throws for a family or, in google and huggingface, a name that is not known, and when one
/// of query, key and value is missing.
NamedTensors to_timm(const std::string& family, const NamedTensors& tensors);

/// The inverse. `heads` is needed by google, whose attention kernels are (D, heads, Dh).
NamedTensors from_timm(const std::string& family, const NamedTensors& tensors, int64_t heads);

}  // namespace regard
