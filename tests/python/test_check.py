"""The theorems: every mechanism satisfies them, and every planted fault is found by the one that should find it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

import regard  # noqa: F401  (loads the library)

IDS = [entry["id"] for entry in json.loads(torch.ops.regard.registry())]
THEOREMS = ["paths-agree", "causality", "cache", "split", "shard", "packed", "gradients", "checkpoint", "empty-rows",
            "padding", "batch", "threads", "dtypes", "maps", "permutation", "compile", "export", "golden"]
PLUGINS = [pathlib.Path(os.environ.get("REGARD_BUILD_DIR", ".")) / "tests" / f"faulty_{name}.so"
           for name in ("mechanisms", "sequences", "shards")]

# The theorem that finds the fault, and the words of the claim that fails.
FAULTS = {
    "faulty-leak": ("causality", "follow"),
    "faulty-padding": ("padding", "equals the sample without padding"),
    "faulty-gradient": ("gradients", "first derivative in x"),
    "faulty-second-gradient": ("gradients", "second derivative"),
    "faulty-batch": ("batch", "alone equals the sample in its batch"),
    "faulty-empty": ("empty-rows", "is finite"),
    "faulty-map": ("maps", "the map's output equals the tokens'"),
    "faulty-path": ("paths-agree", "output equals the composite's"),
    "faulty-fallback": ("paths-agree", "the path asked for is the path that runs"),
    "faulty-convolution": ("causality", "follow"),
    "faulty-mask": ("causality", "follow"),
    "faulty-axis": ("causality", "follow"),
    "faulty-cache": ("cache", "a decode"),
    "faulty-merge": ("shard", "output of 2 shards"),
    "faulty-ranks": ("shard", "gradient of x of 2 shards"),
    "faulty-normalization": ("batch", "alone equals the sample in its batch"),
}
# No fault above needs more tokens than this.
FEW_TOKENS = 4


def check(id, **options):
    return json.loads(torch.ops.regard.check(id, json.dumps(options)))


def outcomes(report):
    return {entry["theorem"]: entry["outcome"] for entry in report["theorems"]}


def failures(report):
    return [f"{entry['theorem']}: {entry['reason']} {entry['counterexample']}"
            for entry in report["theorems"] if entry["outcome"] == "fail"]


@pytest.mark.parametrize("id", IDS)
def test_every_mechanism_satisfies_every_theorem(id):
    report = check(id, golden="")
    assert not failures(report)
    assert report["passed"] and report["calls"] > 0
    assert [entry["theorem"] for entry in report["theorems"]] == THEOREMS
    for entry in report["theorems"]:
        if entry["outcome"] == "not applicable":
            assert entry["reason"], entry
        else:
            assert entry["claims"] > 0 and entry["cases"] > 0 and entry["paths"], entry
    assert outcomes(report)["gradients"] == "pass"
    gradients = next(entry for entry in report["theorems"] if entry["theorem"] == "gradients")
    assert not gradients["notes"], "forward mode and the second order work through every mechanism of the house"
    assert outcomes(report)["checkpoint"] == outcomes(report)["threads"] == outcomes(report)["dtypes"] == "pass"
    assert not report["rounding"]


def test_softmax_attention_runs_on_every_path():
    report = check("softmax-attention", theorems=["paths-agree", "causality", "padding", "empty-rows"])
    assert set(report["paths"]) == {"fused", "stripe", "composite"}
    assert set(outcomes(report).values()) == {"pass"}
    for entry in report["theorems"]:
        assert set(entry["paths"]) == {"fused", "stripe", "composite"}, entry


def test_equal_options_give_equal_reports():
    first, second = (torch.ops.regard.check("poolformer", '{"seed": 5}') for _ in range(2))
    assert first == second
    assert check("mean", seed=5)["seed"] == 5


def test_the_callers_gradient_mode_does_not_matter():
    expected = check("mean", theorems=["gradients"])
    with torch.no_grad():
        assert check("mean", theorems=["gradients"]) == expected
    with torch.inference_mode():
        assert check("mean", theorems=["gradients"]) == expected


def test_chosen_theorems_run_alone_in_the_order_of_the_report():
    report = check("mean", theorems=["batch", "gradients"])
    assert [entry["theorem"] for entry in report["theorems"]] == ["gradients", "batch"]


@pytest.mark.parametrize("id, options, message", [
    ("simpol", "{}", "simpool"),
    ("mean", '{"theorems": ["causalty"]}',
     r"\[check\] expected theorems among .*; found 'causalty'; did you mean 'causality'"),
    ("mean", '{"theorems": "batch"}', r"\[check\] expected theorems to be a list of names; found \"batch\""),
    ("mean", '{"golde": "x"}', r"\[check\] expected options among .*; found 'golde': \"x\"; did you mean 'golden'"),
    ("mean", '{"executors": ["locl"]}', r"\[check\] expected executors among .*; found 'locl'; did you mean 'local'"),
    ("mean", '{"seed": -1}', r"\[check\] expected options among .*; found 'seed': -1"),
    ("mean", "[", r"\[check\] expected the options to be a JSON object; found \["),
    ("mean", '{"golden": "/nowhere"}', r"\[golden\] expected a directory of golden cases; found '/nowhere'"),
])
def test_bad_arguments_are_refused(id, options, message):
    with pytest.raises(ValueError, match=message):
        torch.ops.regard.check(id, options)


def test_table_names_every_theorem():
    table = torch.ops.regard.check_table(torch.ops.regard.check("mean", '{"golden": ""}'))
    assert table.splitlines()[0].startswith("mean: passed")
    for theorem in THEOREMS:
        assert theorem in table


def test_capabilities_are_computed():
    theorems = ["causality", "padding", "batch", "permutation"]
    table = {row["id"]: row for row in json.loads(torch.ops.regard.capabilities(json.dumps({"theorems": theorems})))}
    assert list(table) == IDS
    assert table["mean"]["order"] == "invariant" and table["mean"]["lengths"] and not table["mean"]["causal"]
    assert table["poolformer"]["order"] == "ordered" and table["poolformer"]["causal"]
    assert table["softmax-attention"]["causal"] and table["softmax-attention"]["cross"]
    assert table["class-token"]["prefix"] == "needed" and table["poolformer"]["prefix"] == "refused"
    assert not table["mean"]["gradients"], "a theorem that did not run proves nothing"


def test_capabilities_say_why_not():
    def row(id, *theorems):
        return json.loads(torch.ops.regard.capabilities_of_report(json.dumps(check(id, theorems=list(theorems)))))
    softmax = row("softmax-attention", "cache", "packed", "paths-agree", "threads")
    for capability in ("decode", "packed", "fused"):
        assert softmax[capability] is True, capability
    assert softmax["threads"] in ("bits", "rounding") and not softmax["gradients"]
    mean = row("mean", "cache", "paths-agree", "threads", "gradients")
    assert mean["second_order"] and mean["forward_mode"] and mean["threads"] == "bits" and not mean["decode"]
    assert mean["why"] == {"cache": "no configuration is causal, so nothing decodes",
                           "paths-agree": "it runs no attention op, so it has one path"}


# ---- planted faults --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faulty_reports():
    """Reports of the plug-ins' mechanisms, from a process of their own: this one's registry stays clean."""
    for plugin in PLUGINS:
        if not plugin.exists():
            pytest.fail(f"no plug-in at {plugin}")
    script = """
import json, sys, torch
import regard
for plugin in sys.argv[1:]:
    torch.ops.regard.load_plugin(plugin)
ids = [e["id"] for e in json.loads(torch.ops.regard.registry()) if e["family"] == "faulty"]
reports = [json.loads(torch.ops.regard.check(id, '{"golden": ""}')) for id in ids]
options = {"golden": "", "theorems": ["split"], "executors": ["faulty-split"]}
ids.append("an executor that forgets to rescale")
reports.append(json.loads(torch.ops.regard.check("softmax-attention", json.dumps(options))))
tables = [torch.ops.regard.check_table(json.dumps(report)) for report in reports]
print(json.dumps({id: [report, table] for id, report, table in zip(ids, reports, tables)}))
"""
    done = subprocess.run([sys.executable, "-c", script, *map(str, PLUGINS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_planted_fault_is_listed_here(faulty_reports):
    assert set(faulty_reports) == {*FAULTS, "an executor that forgets to rescale"}


@pytest.mark.parametrize("id", FAULTS)
def test_the_right_theorem_finds_the_fault(faulty_reports, id):
    report, table = faulty_reports[id]
    theorem, words = FAULTS[id]
    named = next(entry for entry in report["theorems"] if entry["theorem"] == theorem)
    if named["reason"].startswith("no executor"):
        pytest.skip(named["reason"])
    failed = [entry for entry in report["theorems"] if entry["outcome"] == "fail"]
    assert [entry["theorem"] for entry in failed] == [theorem], failures(report)
    assert not report["passed"]
    counterexample = failed[0]["counterexample"]
    assert words in counterexample["claim"] or any(words in claim for claim in failed[0]["failed_claims"])
    assert counterexample["config"]["width"] == 8
    assert counterexample["inputs"].startswith("x (") and counterexample["path"]
    assert failed[0]["failures"] > 0
    x = torch.tensor(counterexample["tokens"]["x"])
    assert x.shape[0] <= 3 and x.shape[1] <= FEW_TOKENS and "x = [[[" in table
    assert f"{id}: FAILED" in table and counterexample["inputs"] in table


def test_a_merge_that_forgets_to_rescale_is_found_by_the_theorem_of_parts(faulty_reports):
    report, table = faulty_reports["an executor that forgets to rescale"]
    assert outcomes(report) == {"split": "fail"} and "softmax-attention: FAILED" in table
    counterexample = report["theorems"][0]["counterexample"]
    assert counterexample["claim"].startswith("output of faulty-split:2 equals the whole's")
    assert "executor faulty-split:2" in counterexample["inputs"]
    assert len(counterexample["tokens"]["x"]) == 1 and len(counterexample["tokens"]["x"][0]) <= FEW_TOKENS


def test_counterexamples_are_the_smallest_and_say_where(faulty_reports):
    leak = next(e for e in faulty_reports["faulty-leak"][0]["theorems"] if e["outcome"] == "fail")["counterexample"]
    assert leak["config"]["causal"] and leak["inputs"] == "x (1, 2, 8)"   # one token has no future
    assert len(leak["index"]) == 3 and leak["expected"] != leak["found"]
    assert torch.tensor(leak["tokens"]["x"]).count_nonzero() == 0, "the tokens themselves do not matter"
    batch = next(e for e in faulty_reports["faulty-batch"][0]["theorems"] if e["outcome"] == "fail")["counterexample"]
    assert batch["inputs"] == "x (2, 1, 8)"
    assert torch.tensor(batch["tokens"]["x"]).count_nonzero() <= 2


def test_the_fault_that_crashes_nothing_else(faulty_reports):
    """A row of length 0 that gives NaN disturbs neither the other rows nor the other theorems."""
    report, _ = faulty_reports["faulty-empty"]
    assert outcomes(report)["padding"] == "pass" and outcomes(report)["gradients"] == "pass"
