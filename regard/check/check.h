#pragma once

#include <string>

/// Theorems: what every mechanism must satisfy, run over its example configurations in float64.
namespace regard {

/// Runs the theorems on the registered mechanism `id` and returns a report as JSON.
///
/// options (JSON object): "theorems", a list of names (default all: paths-agree, causality, cache, split, shard,
/// packed, gradients, checkpoint, empty-rows, padding, batch, threads, dtypes, maps, permutation, compile, export,
/// golden; compile and export run where Python has loaded the package); "executors", those that the theorem split runs
/// on (default ["split"], with a random number of parts); "golden", the directory of golden cases (default the
/// environment variable REGARD_GOLDEN); "seed", an integer (default 0). Equal options give equal reports.
///
/// report: {"id", "passed", "seed", "calls", "rounding", "paths", "inputs", "refused_calls", "theorems": [{"theorem",
/// "statement", "outcome": "pass" | "fail" | "not applicable", "reason", "error", "tolerance", "exact", "paths",
/// "cases", "claims", "failures", "failed_claims": {claim: times}, "notes", "counterexample": {"claim", "config",
/// "inputs", "path", "index", "error", "expected", "found", "tokens": {"x": ..., input: ...}}}]}. A counterexample is
/// shrunk: a sample or two, a few tokens, small integers as far as the same claim keeps failing. "rounding": its
/// operations are somebody else's, so equal means equal to rounding. An error is relative to the largest magnitude of
/// the tensor compared; one that is not finite is the text "infinite".
///
/// Throws regard::Error for an unknown id (with the nearest name), theorem or option.
std::string check(const std::string& id, const std::string& options = "{}");

/// A report of `check` as an aligned table, the counterexamples below it.
std::string check_table(const std::string& report);

/// What each registered mechanism can do, computed by running the theorems: a JSON list sorted as the registry, of
/// {"id", "family", "role", "passed", "paths": [...], "causal", "decode", "packed", "split", "sharded", "fused",
/// "cross", "lengths", "grid", "maps": booleans, "prefix": "needed" | "taken" | "refused", "batch_independent",
/// "gradients", "second_order", "forward_mode", "checkpoint", "half_types", "compile", "export": booleans, "threads":
/// "bits" | "rounding" | "", "order": "invariant" | "equivariant" | "ordered" | "", "golden": an outcome, "why":
/// {theorem: why it does not apply}}. The options are those of `check`; a theorem left out counts as false.
std::string capabilities_json(const std::string& options = "{}");

/// The same of one mechanism, read off a report of `check`: for reports that were kept.
std::string capabilities_of_report(const std::string& report);

}  // namespace regard
