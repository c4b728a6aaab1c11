#pragma once

#include <map>
#include <string>
#include <vector>

#include "regard/nn/edit.h"

namespace regard {

/// The edits of a JSON text, the form in which they pass through the dispatcher:
///
///     [{"layer": "blocks.3.attn", "attention": 0, "spec": {"nodes": [...], "score": 4, "keep": 7, "weight": 9},
///       "operands": 12, "after": 12, "tensors": ["gate"]}]
///
/// Every key may be left out. `spec` is a table of nodes as in AttentionSpec's JSON, in which the capture "score"
/// without indices is the score before the edit, and its other captures are named "editN_NAME", N the edit's place in
/// the list. `operands` and `after` are numbers of Python functions (see python/regard/edit.py), which are handed the
/// listed tensors. Tensors come as inputs "edit.N.NAME", which are taken out of `inputs`: captures, those of the
/// functions, "head_scale" (H) or (B, H), and "token", which keeps the functions alive as long as a graph needs them.
///
/// In each edit: operands, then score and keep, then weight, then head_scale; `after` behind the normalizer.
std::vector<Edit> edits_from_json(const std::string& json, std::map<std::string, at::Tensor>& inputs);

/// Whether a pattern names a layer; '*' stands for any text.
bool names_layer(const std::string& pattern, const std::string& layer);

}  // namespace regard
