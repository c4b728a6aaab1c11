"""`regard check FILE.py`: somebody's module against the theorems, planted faults and their counterexamples."""

import json
import pathlib

import pytest
import torch

import regard
from regard.cli import main

FOLDER = pathlib.Path(__file__).parent / "faulty"

# The theorem that finds the fault, words of the claim that fails, and the most tokens that its counterexample needs.
FAULTS = {
    "leaking_convolution": ("causality", "outputs before token", 2),
    "mask_one_off": ("causality", "outputs before token", 2),
    "merge_without_rescale": ("cache", "a decode", 2),
    "gradient_over_ranks": ("gradients", "first derivative", 1),
    "padding_in_mean": ("padding", "equals the sample without padding", 3),
    "cache_off_by_one": ("cache", "a decode", 2),
    "softmax_wrong_axis": ("causality", "outputs before token", 2),
    "batch_wide_normalization": ("batch", "alone equals the sample in its batch", 2),
}


def failed(report):
    return [entry for entry in report["theorems"] if entry["outcome"] == "fail"]


def entry(report, theorem):
    return next(e for e in report["theorems"] if e["theorem"] == theorem)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_and_shrunk(name):
    theorem, words, tokens = FAULTS[name]
    report = regard.check_file(str(FOLDER / f"{name}.py"))
    assert [e["theorem"] for e in failed(report)] == [theorem], [(e["theorem"], e["reason"]) for e in failed(report)]
    counterexample = failed(report)[0]["counterexample"]
    assert words in counterexample["claim"]
    x = torch.tensor(counterexample["tokens"]["x"])
    assert x.dim() == 3 and x.shape[1] <= tokens and x.shape[0] <= 3 and x.shape[2] == 8
    assert (x == 0).float().mean() >= 0.5, "most entries say nothing and are zero"
    assert not report["passed"] and report["rounding"]


def test_a_right_module_passes_everything():
    for name in ("attention", "decoding"):
        report = regard.check_file(str(FOLDER / f"{name}.py"))
        assert report["passed"], [(e["theorem"], e["reason"]) for e in failed(report)]
        assert entry(report, "causality")["outcome"] == "pass"
    assert entry(report, "cache")["outcome"] == "pass" and entry(report, "compile")["outcome"] == "pass"


def test_multihead_attention_has_one_finding_its_rows_without_keys():
    report = regard.check_file(str(FOLDER / "multihead.py"))
    assert [e["theorem"] for e in failed(report)] == ["empty-rows"], [(e["theorem"], e["reason"]) for e in failed(report)]
    found = failed(report)[0]
    assert "is finite" in found["counterexample"]["claim"] or "are finite" in found["counterexample"]["claim"]
    assert any("hidden" in claim for claim in found["failed_claims"]), "a mask that hides every key of a query"
    assert any("lengths is 0" in claim for claim in found["failed_claims"]), "a row of padding alone"
    for theorem in ("gradients", "padding", "batch", "threads", "dtypes", "checkpoint", "compile", "export"):
        assert entry(report, theorem)["outcome"] == "pass", entry(report, theorem)
    for theorem in ("causality", "cache", "split", "packed"):
        assert entry(report, theorem)["outcome"] == "not applicable" and entry(report, theorem)["reason"]


def write(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text("import torch\n" + text)
    return str(path)


def test_a_function_is_checked_as_it_is(tmp_path):
    path = write(tmp_path, "def attend(q, k, v):\n    return (q @ k.transpose(1, 2)).softmax(-1) @ v\n")
    report = regard.check_file(path, theorems=["gradients", "batch", "permutation"])
    assert report["passed"] and report["id"] == "mine.py:attend"
    assert any(note.startswith("equivariant") for note in entry(report, "permutation")["notes"])


def test_the_command(tmp_path, capsys):
    path = write(tmp_path,
                 "class Mean(torch.nn.Module):\n    def forward(self, tokens):\n        return tokens.mean(1)\n")
    report = tmp_path / "report.json"
    assert main(["check", path, "--theorems", "batch,gradients", "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mine.py:Mean: passed") and "gradients" in out and "equal to rounding" in out
    assert json.loads(report.read_text())["passed"]
    assert main(["check", str(FOLDER / "padding_in_mean.py"), "--theorems", "padding"]) == 1
    out = capsys.readouterr().out
    assert "padding fails" in out and "smallest case: x (" in out and "x = [[[" in out
    assert main(["check", path, "--theorems", "batch", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["theorems"][0]["theorem"] == "batch"


def test_a_module_that_writes_into_its_argument_fails_by_name(tmp_path):
    """Its backward raises, in theorems that made a longer case of their own too."""
    report = regard.check_file(write(tmp_path, """
import torch
class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Linear(8, 24)
    def forward(self, x):
        q, k, v = self.proj(x).chunk(3, -1)
        y = (q @ k.mT).softmax(-1) @ v
        with torch.no_grad():
            x.mul_(0.5)
        return y
"""), theorems=["threads", "gradients"])
    assert [e["theorem"] for e in failed(report)] == ["gradients", "threads"]


@pytest.mark.parametrize("text, arguments, message", [
    ("", [], "expected a torch.nn.Module or a function in"),
    ("def f(x):\n    return x\n", ["--object", "g"], "'g'"),
    ("def f(x):\n    return x\n", ["--padding", "mask"], "expected arguments among x; found 'mask'"),
    ("def f(x):\n    return x\n", ["--padding-true", "maybe"], "padding_true 'ignore' or 'attend'; found 'maybe'"),
    ("def f(x):\n    return x\n", ["--pading", "mask"], "found '--pading'; did you mean 'padding'?"),
    ("def f(x):\n    return x\n", ["--theorems", "batsh"], "did you mean 'batch'?"),
    ("def f(x):\n    return x\n", ["--json", "/nowhere/x.json"], "--json FILE that can be written; found '/nowhere/x.json'"),
    ("def f(x):\n    return x\n", ["--width", "eight"], "--width to be an integer of at least 0; found 'eight'"),
    ("def f(x):\n    return x\ndef g(x):\n    return x\n", [], "--object NAME, one of f, g; found none named"),
    ("def f(x):\n    return x.sum()\n", [], "a module that takes x (2, 5, D)"),
    ("raise KeyError('a')\n", [], "a Python file that runs"),
    ("import sys\nsys.exit(3)\n", [], "a Python file that runs"),
    ("regard = dict(paddin='m')\ndef f(x):\n    return x\n", [], "found 'paddin'; did you mean 'padding'?"),
])
def test_wrong_input_is_one_clear_line(tmp_path, capsys, text, arguments, message):
    assert main(["check", write(tmp_path, text), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err, captured.err


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert main(["check", str(tmp_path / "gone.py")]) == 2
    assert "and no such file exists" in capsys.readouterr().err

