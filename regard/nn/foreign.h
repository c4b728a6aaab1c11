#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "regard/nn/mechanism.h"

namespace regard {

/// A module that was not written for Regard, as a mechanism: its forward calls a torch op by name. So that one suite of
/// theorems serves both.
///
/// description (JSON): {"id", "op": "namespace::name", "role": "mixer" | "pool", "title", "width", "causal": "always" |
/// "never" | "flag", "config": {further fields}, "inputs": [{"name", "doc"}], "weights": [{"name", "shape"}],
/// "caches": [{"name", "kind": "append" | "ring" | "state", "entry", "length"}]}. The op is
///
///     op(Tensor x, Tensor[] weights, Tensor[] inputs, str[] input_names, bool causal, bool training, str[] outputs)
///         -> Tensor[]
///
/// and returns the main output, then the outputs named (caches). Its configuration is {"width": D, "causal": C, ...}.
/// `initial` are the weights to check it with, in the order of "weights". An id registered before is replaced.
void register_foreign(const std::string& description, std::vector<at::Tensor> initial);

/// An attention specification (JSON, as `regard explain` reads it) between projections wq, wk, wv, wo of width 8 and
/// two heads. Throws when it needs captures or operands, which nobody could give. Returns its id, "spec".
std::string register_spec(const std::string& spec);

/// Whether an instance is of a mechanism registered here.
bool is_foreign(const Instance& instance);
/// Float64 copies of the weights that it came with; none for any other mechanism.
std::vector<at::Tensor> foreign_weights(const Instance& instance);

}  // namespace regard
