#pragma once

#include <string>

namespace regard {

/// Compares the mechanism `id` with every case <directory>/<id>/*.safetensors that other people's code computed.
///
/// A file holds inputs in.NAME, parameters param.NAME, outputs out.NAME, the weights w of the loss sum(out * w) and its
/// gradients grad.in.NAME, grad.param.NAME; its metadata `config` the official code's hyperparameters (JSON),
/// `tolerance` a bound other than 1e-9. Info.golden maps the names, and says which folders hold cases of other forms
/// and which cases are several calls. An error is measured over the tensor's largest magnitude; a gradient that is
/// truly zero passes below 1e-12 of the case's largest gradient. Every file runs in float64 on the composite path and,
/// where attention can run fused, in float32 on the fused path (bound 1e-5, path asserted).
///
/// An empty directory means the environment variable REGARD_GOLDEN. Returns JSON: {"id", "directory", "passed",
/// "reason", "error", "tolerance", "paths", "claims", "failures", "notes", "counterexample", "files": [{"file",
/// "source", "config", "passed", "reason", "unmatched": [...], "missing": [...], "runs": [{"path", "dtype", "ran",
/// "passed", "reason", "tensors": [{"name", "error", "tolerance", "passed"}]}]}]}. An id without files, or one whose
/// Info.golden.excuse says why its cases cannot run here (the reason), passes with an empty list.
/// Throws regard::Error for an unknown id or a directory that does not exist.
std::string golden(const std::string& id, const std::string& directory = "");

}  // namespace regard
