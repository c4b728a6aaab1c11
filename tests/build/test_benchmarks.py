"""The benchmark: every way through it once, and its judgment on figures made up so that it must fail and must pass."""

import importlib.util
import json
import os
import subprocess
import sys
import xml.dom.minidom

import pytest
from cmake_helpers import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks import expressions, measure, report, svg, verdict  # noqa: E402
from benchmarks.cases import Bar, Case, all_cases, grid  # noqa: E402
from benchmarks.measure import Candidate, Result, Sample  # noqa: E402


def record(name, bar, value, **kwargs):
    return {"name": name, "group": "made up", "bars": [verdict.judge(bar, value, **kwargs)]}


# ---- verdicts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bar, met, short", [
    (Bar("speedup", 1.25), 1.25, 1.249), (Bar("fma share", 0.78), 0.79, 0.77), (Bar("read share", 0.7), 0.7, 0.5),
    (Bar("cost", 1.15), 1.15, 1.16), (Bar("error", 1.5), 0.9, 1.6), (Bar("growth", 2.5), 2.0, 4.0)])
def test_a_bar_is_met_on_its_side_only(bar, met, short):
    assert verdict.exit_status([record("a", bar, met)]) == 0
    assert verdict.exit_status([record("a", bar, met), record("b", bar, short)]) == 1
    assert verdict.judge(bar, met)["margin"] >= 0 > verdict.judge(bar, short)["margin"]


def test_what_was_not_measured_is_a_shortfall():
    absent = record("flexed", Bar("speedup", 2.5, peers=("flex",)), None, reason="flex: no compiler")
    assert verdict.exit_status([absent]) == 1
    assert report.conclusion([absent]).splitlines()[-1] == (
        "worst shortfall: flexed, speedup against flex: not measured (flex: no compiler)")


def test_nothing_measured_is_no_success():
    assert verdict.exit_status([]) == 2
    assert verdict.exit_status([{"name": "a", "group": "made up", "bars": []}]) == 2


def test_the_worst_shortfall_comes_last():
    cases = [record("slow", Bar("speedup", 2.0), 1.5, peer="sdpa"),
             record("slower", Bar("speedup", 1.0), 0.5, peer="sdpa"),
             record("dear", Bar("cost", 1.2), 1.5, peer="plain"),
             record("fine", Bar("speedup", 1.0), 3.0, peer="sdpa")]
    text = report.bars(cases).splitlines()
    assert text[-1] == "worst shortfall: slower, speedup against sdpa: 0.500, bar 1.00 (-50.0%)"
    assert text[-2] == "1 of 4 bars met, 0 of 0 aims"
    assert sum("SHORT" in line for line in text) == 3


def test_without_a_shortfall_the_closest_is_named():
    cases = [record("a", Bar("speedup", 1.0, aim=2.0), 1.5, peer="sdpa"),
             record("b", Bar("cost", 1.3), 1.29, peer="plain")]
    assert report.conclusion(cases) == (
        "2 of 2 bars met, 0 of 1 aims\nno shortfall; the closest: b, cost against plain: 1.290, bar 1.30 (+0.8%)")


def test_bars_belong_to_hosts():
    assert verdict.applies(Bar("speedup", 1.0), "small")
    assert verdict.applies(Bar("speedup", 1.0, host="server"), "server")
    assert not verdict.applies(Bar("speedup", 1.0, host="server"), "small")


# ---- rounds ------------------------------------------------------------------------------------------------------


def result(**values):
    rounds = {name: [Sample(value, 2.0) for value in row] for name, row in values.items()}
    return Result(rounds, list(range(len(next(iter(values.values()))))), False)


def test_ratios_are_taken_round_by_round():
    # The clock halves in the middle; the ratio does not move.
    found = result(ours=[1.0, 1.0, 2.0, 2.0, 2.0], sdpa=[1.5, 1.5, 3.0, 3.0, 3.0])
    assert found.ratio("sdpa", "ours") == 1.5 and found.ratio_spread("sdpa", "ours") == 0.0
    assert found.median("ours") == 2.0


def test_the_spread_is_that_of_two_runs():
    assert result(ours=[1.0, 1.1, 1.0, 1.1]).spread("ours") == pytest.approx(1 - 1 / 1.1)


@pytest.mark.parametrize("ratio, spread, shown", [
    (1.02, 0.03, 1.0), (0.98, 0.03, 1.0), (1.04, 0.03, 1.04), (0.9, 0.05, 0.9), (0.8, 0.9, 0.8)])
def test_a_ratio_within_the_spread_is_one(ratio, spread, shown):
    assert measure.snapped(ratio, spread) == shown


def test_disturbed_rounds_are_left_out():
    samples = {"ours": [Sample(1, 2.0), Sample(2, 1.2), Sample(1, 1.99), Sample(1, 2.0)],
               "one thread by design": [Sample(1, 1.0), Sample(1, 1.0), Sample(1, 0.7), Sample(1, 0.99)],
               "probe": [Sample(300, 0.0)] * 4}
    assert measure._clean(samples, [0.0] * 4, threads=2) == [0, 3]
    assert measure._clean(samples, [0.5, 0.0, 0.0, 0.0], threads=2) == [3]


def test_candidates_alternate():
    called = []
    pair = [Candidate(name, lambda name=name: called.append(name)) for name in "ab"]
    found = measure.alternate(pair, threads=1, rounds=(3, 3), budget=0.0, inner=1e-9)
    assert len(found.rounds["a"]) == len(found.rounds["b"]) >= 3
    # Two calls to estimate, then untimed and timed in turn, the first of a round in turn too.
    assert called[:4] == list("aabb") and called[4:12] == list("aabbbbaa")


# ---- cases -------------------------------------------------------------------------------------------------------


def test_names_are_unique_and_every_case_has_a_bar_somewhere():
    cases = all_cases() + grid()
    assert len({case.name for case in cases}) == len(cases)
    assert all(case.bars for case in cases)


def test_pairs_and_blocks_are_counted():
    plain, window = expressions.make("", 1, 1), expressions.make("window", 1, 1024)
    assert expressions.count(plain, False, 3, 5) == (15, 1.0)
    assert expressions.count(plain, True, 4, 3)[0] == 1 + 2 + 3 + 3
    pairs, blocks = expressions.count(window, False, 1024, 1024)
    assert pairs == sum(min(i + 1, 256) for i in range(1024))
    assert blocks == (1 + 2 + 3 * 6) / 64


def test_the_chart_is_svg_and_holds_every_peer():
    cases = [{"name": "a < b", "group": "made up", "candidates": {"ours": {"gflops": 300.0}, "sdpa": {"gflops": 150.0},
                                                                  "fma_peak": {"rate": 350.0}}}]
    text = svg.chart(cases, {"peaks": {"fma_gflops": 350.0}})
    names = [node.firstChild.data for node in xml.dom.minidom.parseString(text).getElementsByTagName("title")]
    assert names == ["a < b: ours 300.0 GFLOP/s", "a < b: sdpa 150.0 GFLOP/s"]


# ---- the program -------------------------------------------------------------------------------------------------


def run(*words):
    return subprocess.run([sys.executable, str(ROOT / "benchmarks" / "attention_cpu"), *words], text=True,
                          capture_output=True, env=os.environ)


@pytest.fixture(scope="module")
def tiny(build_tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    done = run("--tiny", "--json", folder / "out.json", "--svg", folder / "out.svg")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((folder / "out.json").read_text()), (folder / "out.svg").read_text()


def test_it_names_the_machine(tiny):
    text, written, _ = tiny
    peaks = written["machine"]["peaks"]
    assert peaks["fma_gflops"] > 1 and peaks["fma_gflops_one"] > 1 and peaks["read_gbps"] > 0.1
    for part in ("threads of", "torch", "bars of the", written["machine"]["isa"]):
        assert part in text


def test_every_kind_of_case_ran_fused(tiny):
    cases = {case["name"]: case for case in tiny[1]["cases"]}
    assert {case["group"] for case in cases.values()} == {"tiny", "end to end", "memory"}
    for case in cases.values():
        if case["group"] == "tiny":
            assert set(case["paths"]["attention"]) == {"fused"} and case["candidates"]["ours"]["seconds"] > 0
    assert cases["tiny-bf16/forward"]["hidden_amx"] and cases["tiny-rotating/forward"]["buffers"] > 1


def test_no_peer_is_dropped_in_silence(tiny):
    for case in tiny[1]["cases"]:
        if case["name"] == "tiny-plain/forward":
            assert {"sdpa", "eager"} <= set(case["ratios"])
            if importlib.util.find_spec("onnxruntime") is None:
                assert "pip install onnxruntime onnx" in case["absent"]["onnx"] and "pip install" in tiny[0]
            else:
                assert "onnx" in case["ratios"], case["absent"]


def test_the_plot_is_written(tiny):
    xml.dom.minidom.parseString(tiny[2])
    assert "tiny-plain/forward" in tiny[2]


@pytest.mark.parametrize("words, message", [
    (("no-such-case",), "[attention_cpu] expected a word of a case's name (--list); found no-such-case"),
    (("--threads", "0"), "[attention_cpu] expected --threads >= 1; found 0")])
def test_bad_arguments_are_named(build_tree, words, message):
    done = run(*words)
    assert done.returncode != 0 and message in done.stderr


def test_a_fallback_is_an_error(build_tree):
    import torch

    import regard
    from benchmarks import runner

    q = torch.randn(1, 1, 4, 8)
    case = Case("made-up/forward", "made up", "forward")
    runner._reset_counts()
    regard.attention(q, q, q, path="fused")
    runner._check_paths(case, [])
    regard.attention(q, q, q, path="composite")
    with pytest.raises(RuntimeError, match="expected made-up/forward to run attention fused"):
        runner._check_paths(case, [])
