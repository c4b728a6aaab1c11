"""Cases computed by other people's code: every file under REGARD_GOLDEN whose id is a registered mechanism."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

import regard  # noqa: F401  (loads the library)

pytestmark = pytest.mark.golden

DIRECTORY = pathlib.Path(os.environ.get("REGARD_GOLDEN") or pathlib.Path(__file__).parents[1] / "golden")
EXCUSES = {entry["id"]: entry["golden"]["excuse"] for entry in json.loads(torch.ops.regard.registry())}
FOLDERS = {entry["id"]: entry["golden"]["folders"] for entry in json.loads(torch.ops.regard.registry())}
IDS = list(EXCUSES)
PLUGIN = pathlib.Path(os.environ.get("REGARD_BUILD_DIR", ".")) / "tests" / "golden_forms.so"


def golden(id, directory=DIRECTORY):
    return json.loads(torch.ops.regard.golden(id, str(directory)))


def complaints(report):
    lines = []
    for file in report["files"]:
        if not file["passed"]:
            lines.append(f"{file['file']}: {file['reason']}; unmatched {file['unmatched']}, missing {file['missing']}")
        for run in file["runs"]:
            lines += [f"{file['file']} {run['path']} {run['dtype']}: {tensor}" for tensor in run["tensors"]
                      if not tensor["passed"]]
    return "\n".join(lines)


def read(path):
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def files_of(id):
    """The cases of an id by the name that the report gives them: those in other folders with their folder."""
    return {path.name if folder == id else f"{folder}/{path.name}": path
            for folder in FOLDERS[id] for path in sorted((DIRECTORY / folder).glob("*.safetensors"))}


@pytest.mark.parametrize("id", IDS)
def test_equals_the_official_code(id):
    files = files_of(id)
    if not files:
        pytest.skip(f"no case of {id} in {DIRECTORY}")
    report = golden(id)
    if EXCUSES[id]:
        assert not report["files"] and report["notes"] == [f"{name}: not run, {EXCUSES[id]}" for name in files]
        pytest.skip(f"{id}: {EXCUSES[id]}")
    assert report["passed"], complaints(report)
    excused = [note.split(": not run, ")[0] for note in report["notes"] if ": not run, " in note]
    assert [file["file"] for file in report["files"]] == [name for name in files if name not in excused]
    for file in report["files"]:
        tensors, _ = read(files[file["file"]])
        composite = file["runs"][0]
        assert (composite["path"], composite["dtype"], composite["ran"]) == ("composite", "float64", True)
        compared = {tensor["name"] for tensor in composite["tensors"]}
        assert {name for name in tensors if name.startswith("grad.")} <= compared
        assert any(name.startswith("out.") for name in compared)


def test_softmax_attention_runs_fused_too():
    files = sorted((DIRECTORY / "softmax-attention").glob("*.safetensors"))
    if not files:
        pytest.skip(f"no case of softmax-attention in {DIRECTORY}")
    report = golden("softmax-attention")
    assert report["passed"], complaints(report)
    for file in report["files"]:
        fused = [run for run in file["runs"] if run["path"] == "fused"]
        assert len(fused) == 1 and fused[0]["ran"] and fused[0]["dtype"] == "float32", file
        assert {tensor["name"] for tensor in fused[0]["tensors"]} >= {"out.out", "grad.in.x"}


# ---- the comparison itself -------------------------------------------------------------------------------------------


@pytest.fixture
def mean_case(tmp_path):
    """Writes a case of the mean pool, with changes, and returns the report."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 5, 4)), rng.standard_normal((2, 4))
    tensors = {"in.x": x, "out.y": x.mean(1), "w": w, "grad.in.x": np.repeat(w[:, None] / 5, 5, axis=1)}

    def run(config=None, metadata=None, **changes):
        (tmp_path / "mean").mkdir(exist_ok=True)
        own = {**tensors, **{name.replace("__", "."): value for name, value in changes.items()}}
        own = {name: np.ascontiguousarray(value) for name, value in own.items() if value is not None}
        metadata = {"config": json.dumps(config or {"width": 4}), "source": "numpy", **(metadata or {})}
        save_file(own, tmp_path / "mean" / "a.safetensors", metadata)
        return golden("mean", tmp_path)

    run.tensors = tensors
    return run


def test_a_right_case_passes(mean_case):
    report = mean_case()
    assert report["passed"], complaints(report)
    assert report["claims"] == 2 and report["failures"] == 0 and report["error"] < 1e-15
    assert report["files"][0]["source"] == "numpy"


@pytest.mark.parametrize("name", ["out.y", "grad.in.x"])
def test_a_small_deviation_fails_and_is_located(mean_case, name):
    wrong = mean_case.tensors[name].copy()
    wrong[1, 2] += 1e-8
    report = mean_case(**{name.replace(".", "__"): wrong})
    assert not report["passed"] and report["failures"] == 1
    assert report["counterexample"]["claim"] == name and report["counterexample"]["index"][:2] == [1, 2]
    assert mean_case(metadata={"tolerance": "1e-6"}, **{name.replace(".", "__"): wrong})["passed"]


def test_a_zero_gradient_passes_only_when_it_is_zero(mean_case):
    assert not mean_case(grad__in__x=np.zeros((2, 5, 4)))["passed"]


@pytest.mark.parametrize("changes, reason", [
    ({"out__attn": np.ones(3)}, "no place for out.attn"),
    ({"param__gamma": np.ones(3)}, "no place for param.gamma"),
    ({"in__mask": np.ones(3)}, "no place for in.mask"),
    ({"extra": np.ones(3)}, "no place for extra"),
    ({"grad__param__gamma": np.ones(3)}, "no place for grad.param.gamma"),
    ({"w": None}, "no w in the shape of a mapped output"),
    ({"w": np.ones((3, 7))}, "no w in the shape of a mapped output"),
    ({"in__x": None, "grad__in__x": None}, "expected an input that maps to x"),
    ({"in__x": np.ones((2, 5, 3))}, r"expected x \(B, N, 4\)"),
])
def test_what_has_no_place_is_named(mean_case, changes, reason):
    report = mean_case(**changes)
    assert not report["passed"]
    assert re.search(reason, report["files"][0]["reason"]), report["files"][0]["reason"]


def test_unknown_options_are_named(mean_case):
    report = mean_case(config={"width": 4, "include_prefx": True})
    assert not report["passed"] and "did you mean 'include_prefix'" in report["reason"]


def test_a_malformed_file_fails_by_name(tmp_path):
    (tmp_path / "mean").mkdir()
    (tmp_path / "mean" / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    report = golden("mean", tmp_path)
    assert not report["passed"] and "broken.safetensors" in report["reason"]


def test_layouts_are_read_by_their_shapes(tmp_path):
    """A map (B, D, H, W) is its tokens, read row by row, for the pool as for the comparison."""
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((2, 4, 3, 5)), rng.standard_normal((2, 4))
    (tmp_path / "mean").mkdir()
    save_file({"in.x": x, "out.y": x.mean((2, 3)), "w": w,
               "grad.in.x": np.ascontiguousarray(np.broadcast_to(w[:, :, None, None] / 15, x.shape))},
              tmp_path / "mean" / "a.safetensors", {"config": '{"width": 4}'})
    report = golden("mean", tmp_path)
    assert report["passed"], complaints(report)


def own_case(folder, id, config, x, weights, official=None, **extra):
    """A case of our own composite path in float64, so that only float32 differs from it."""
    names = [w["name"] for w in json.loads(torch.ops.regard.declare(id, json.dumps(config)))["weights"]]
    leaves = [t.detach().requires_grad_() for t in (x, *weights)]
    y = torch.ops.regard.mechanism(id, json.dumps(config), leaves[1:], leaves[0], path="composite")[0]
    w = torch.randn_like(y)
    gradients = torch.autograd.grad((y * w).sum(), leaves, allow_unused=True)
    tensors = {"out.out": y, "w": w}
    for name, leaf, gradient in zip(["in.x", *(f"param.{n}" for n in names)], leaves, gradients):
        tensors[name] = leaf
        if gradient is not None:
            tensors["grad." + name] = gradient
    (folder / id).mkdir(exist_ok=True)
    tensors = {name: np.ascontiguousarray(t.detach().numpy()) for name, t in tensors.items()} | extra
    save_file(tensors, folder / id / "a.safetensors", {"config": json.dumps(official or config)})
    return golden(id, folder)


@pytest.mark.parametrize("spread", [0.1, 4.0])
def test_float32_may_round_as_the_composite_does(tmp_path, spread):
    """max(1e-5, 4 x the composite's error in float32): sharp scores round by more than 1e-5 on every path."""
    torch.manual_seed(0)
    config = {"width": 8, "heads": 2}
    weights = [spread * torch.randn_like(t) for t in torch.ops.regard.initialize("softmax-attention", json.dumps(config),
                                                                                 torch.float64)]
    config["alignment"] = "top_left"  # what the mapping of official cases sets
    report = own_case(tmp_path, "softmax-attention", config, torch.randn(2, 9, 8, dtype=torch.float64), weights)
    assert report["passed"], complaints(report)
    [composite, fused] = report["files"][0]["runs"]
    assert fused["path"] == "fused" and fused["ran"]
    assert {t["tolerance"] for t in composite["tensors"]} == {1e-9}
    tolerances = [t["tolerance"] for t in fused["tensors"]]
    assert min(tolerances) >= 1e-5 and max(tolerances) < 1
    # Only where float32 itself rounds by more is the bound wider.
    assert (max(tolerances) > 1e-5) == (spread > 1)


@pytest.mark.parametrize("extra", [{}, {"grad.param.beta": np.zeros(1)}])
def test_simpool_with_a_beta_that_nothing_reads(tmp_path, extra):
    """Official checkpoints without gamma still hold beta; its gradient is absent, or zero."""
    config = {"width": 8, "use_beta": True, "parity": True}
    weights = torch.ops.regard.initialize("simpool", json.dumps(config), torch.float64)
    report = own_case(tmp_path, "simpool", config, torch.randn(2, 5, 8, dtype=torch.float64), weights,
                      {"dim": 8, "gamma": None, "use_beta": True}, **extra)
    assert report["passed"], complaints(report)
    compared = {t["name"] for t in report["files"][0]["runs"][0]["tensors"]}
    assert ("grad.param.beta" in compared) == bool(extra)
    wrong = own_case(tmp_path, "simpool", config, torch.randn(2, 5, 8, dtype=torch.float64), weights,
                     {"dim": 8, "gamma": None, "use_beta": True}, **{"grad.param.beta": np.ones(1)})
    assert not wrong["passed"]


def test_no_cases_is_no_failure_and_a_missing_directory_is_one(tmp_path):
    assert golden("mean", tmp_path)["files"] == []
    with pytest.raises(ValueError, match=r"\[golden\] expected a directory of golden cases; found '/nowhere'"):
        golden("mean", "/nowhere")
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        torch.ops.regard.golden("meen", str(tmp_path))


def test_an_excused_case_is_skipped_with_its_reason(tmp_path):
    (tmp_path / "poolformer").mkdir()
    save_file({"in.x": np.zeros((1, 4, 2))}, tmp_path / "poolformer" / "a.safetensors", {"config": "{}"})
    report = golden("poolformer", tmp_path)
    assert report["passed"] and report["files"] == [] and "backbone" in report["reason"]
    entry = json.loads(torch.ops.regard.check(
        "poolformer", json.dumps({"theorems": ["golden"], "golden": str(tmp_path)})))["theorems"][0]
    assert entry["outcome"] == "not applicable" and "backbone" in entry["reason"]


def test_names_match_by_pattern(tmp_path):
    """A position embedding resized to a grid is no output of the model: Info.golden ignores "*#x#*"."""
    source = DIRECTORY / "vit" / "a.safetensors"
    if not source.exists():
        pytest.skip(f"no case of vit in {DIRECTORY}")
    tensors, metadata = read(source)
    (tmp_path / "vit").mkdir()
    for name, passes in [("out.resized_2x5", True), ("out.resized_2x", False), ("out.resized", False)]:
        save_file({**tensors, name: np.zeros((1, 2))}, tmp_path / "vit" / "a.safetensors", metadata)
        report = golden("vit", tmp_path)
        assert report["passed"] == passes and report["files"][0]["unmatched"] == ([] if passes else [name])


@pytest.mark.parametrize("tolerance, bounds", [
    ("1e-6", (1e-6, 1e-6)), ("1e-6 (the official buffer is float32, says 'y')", (1e-6, 1e-6)),
    ("1e-6 for y", (1e-6, 1e-9)), ("1e-6 for out.* (float32)", (1e-6, 1e-9)), ("1e-7 for out.y; 1e-8 for the rest", (1e-7, 1e-8)),
    ("1e-7 for y and grad.in.x", (1e-7, 1e-7)), ("1e-12", (1e-9, 1e-9)),
])
def test_a_tolerance_may_be_of_named_tensors(mean_case, tolerance, bounds):
    [file] = mean_case(metadata={"tolerance": tolerance})["files"]
    assert {t["name"]: t["tolerance"] for t in file["runs"][0]["tensors"]} == dict(zip(("out.y", "grad.in.x"), bounds))


# ---- forms of cases, on a mechanism made for it -------------------------------------------------------------------------


def forms_report(folder, cases):
    """Writes {"folder/name": (tensors, config)} and returns the report of the plug-in's mechanism, from its own process."""
    for name, (tensors, config) in cases.items():
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
        save_file(tensors, path, {"config": json.dumps(config)})
    script = """
import sys, torch
import regard
torch.ops.regard.load_plugin(sys.argv[1])
print(torch.ops.regard.golden("golden-forms", sys.argv[2]))
"""
    done = subprocess.run([sys.executable, "-c", script, str(PLUGIN), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def forms_cases():
    """One case of each form: nested options, inverted mask and added loss; another folder; a chain of two calls."""
    rng = np.random.default_rng(3)
    x, w, a, b = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 4)), *rng.standard_normal((2, 4))
    mask = np.array([[True, True, False], [True, False, True]])
    y = 2 * x * a * mask[..., None]
    slope = (w + 2 * y / y.size) * mask[..., None]  # of sum(y w) + mean(y^2)
    masked = {"in.x": x, "in.mask": mask, "param.net.weight": a, "w": w, "out.y": y,
              "out.square": (y ** 2).mean().reshape(1), "grad.in.x": 2 * a * slope,
              "grad.param.net.weight": (2 * x * slope).sum((0, 1))}
    v = rng.standard_normal((2, 3, 4))
    chain = {"in.x": x, "param.first.weight": a, "param.second.weight": b, "aux.table": x, "w.second": w, "w.first": v,
             "out.first": x * a, "out.second": x * a * b, "grad.in.x": a * (v + b * w),
             "grad.param.first.weight": (x * (v + b * w)).sum((0, 1)), "grad.param.second.weight": (x * a * w).sum((0, 1))}
    other = {"in.x": x, "param.scale.weight": a, "out.y": 2 * x * a}
    return {"golden-forms/masked": (masked, {"net": {"dim": 4}, "mode": "twice"}),
            "golden-forms/chain": (chain, {"dim": 4, "layers": 2}),
            "golden-forms-elsewhere/other": (other, {"hidden_size": 4}),
            "golden-forms/picture": ({"in.image": x, "out.y": x}, {})}


def test_cases_of_every_form(tmp_path):
    report = forms_report(tmp_path, forms_cases())
    assert report["passed"] and report["failures"] == 0, complaints(report)
    assert [file["file"] for file in report["files"]] == [
        "chain.safetensors", "masked.safetensors", "golden-forms-elsewhere/other.safetensors"]
    assert report["notes"] == ["picture.safetensors: not run, an image is no sequence"]
    compared = [{t["name"] for t in file["runs"][0]["tensors"]} for file in report["files"]]
    assert compared[0] == {"out.first", "out.second", "grad.in.x", "grad.param.first.weight", "grad.param.second.weight"}
    assert compared[1] == {"out.y", "out.square", "grad.in.x", "grad.param.net.weight"} and compared[2] == {"out.y"}
    assert [file["config"] for file in report["files"]][0] == [{"width": 4, "factor": 1.0}] * 2


@pytest.mark.parametrize("case, name", [
    ("golden-forms/masked", "in.mask"), ("golden-forms/masked", "out.square"), ("golden-forms/masked", "grad.in.x"),
    ("golden-forms/chain", "w.first"), ("golden-forms/chain", "out.second"), ("golden-forms/chain", "grad.param.first.weight"),
    ("golden-forms-elsewhere/other", "out.y"),
])
def test_a_deviation_in_any_form_fails(tmp_path, case, name):
    """What enters the case or the loss wrongly shows in an output or a gradient."""
    cases = forms_cases()
    tensors = cases[case][0]
    tensors[name] = ~tensors[name] if tensors[name].dtype == bool else tensors[name] + 1e-6
    report = forms_report(tmp_path, cases)
    assert not report["passed"] and report["failures"] >= 1
    assert {file["file"] for file in report["files"] if not file["passed"]} == {
        (case if "elsewhere" in case else case.split("/")[1]) + ".safetensors"}


def test_what_no_step_has_a_place_for_is_named(tmp_path):
    cases = forms_cases()
    cases["golden-forms/chain"][0]["param.third.weight"] = np.ones(4)
    cases["golden-forms/masked"][0]["aux.table"] = np.ones(4)
    chain, masked, _ = forms_report(tmp_path, cases)["files"]
    assert chain["unmatched"] == ["param.third.weight"] and masked["unmatched"] == ["aux.table"]


def test_check_includes_the_golden_cases(mean_case, tmp_path):
    mean_case()
    report = json.loads(torch.ops.regard.check("mean", json.dumps({"theorems": ["golden"], "golden": str(tmp_path)})))
    assert report["passed"] and report["theorems"][0]["outcome"] == "pass" and report["theorems"][0]["cases"] == 1
    mean_case(out__y=np.zeros((2, 4)))
    report = json.loads(torch.ops.regard.check("mean", json.dumps({"theorems": ["golden"], "golden": str(tmp_path)})))
    assert not report["passed"] and report["theorems"][0]["counterexample"]["claim"] == "out.y"
