"""The digits arena: data and split, training end to end, interruption and going on, reports, errors."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

import regard  # noqa: F401  (loads the library)

ROOT = pathlib.Path(__file__).parents[2]
TINY = ["--epochs", "1", "--train-limit", "64", "--width", "16", "--depth", "1", "--heads", "2"]


def arena(tmp_path, *arguments):
    """The program's status, in this process, with its run folder in tmp_path and its JSON."""
    report = tmp_path / "report.json"
    status = torch.ops.regard.cli(["arena", "digits", *TINY, "--json", str(report), *arguments])
    return status, json.loads(report.read_text()) if report.exists() else None


def start(tmp_path, *arguments):
    """The program in a process of its own, through Python, its run in tmp_path / run."""
    code = "import sys, torch, regard; sys.exit(torch.ops.regard.cli(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code, "arena", "digits", "--run", str(tmp_path / "run"), *arguments],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_data_is_whole_and_named():
    rows = [[int(cell) for cell in line.split(",")] for line in (ROOT / "data" / "digits.csv").read_text().split()]
    assert len(rows) == 1797 and all(len(row) == 65 and max(row[:64]) <= 16 for row in rows)
    readme = (ROOT / "data" / "README.md").read_text()
    assert "CC BY 4.0" in readme and "digits-quarter" in readme and "Alpaydin" in readme


def test_table_and_json(tmp_path, capfd):
    status, report = arena(tmp_path, "--mixers", "softmax-attention,poolformer", "--pools", "class-token,mean",
                           "--seeds", "2", "--run", str(tmp_path / "run"))
    text = capfd.readouterr()
    assert status == 0
    assert [(p["mixer"], p["pool"]) for p in report["pairs"]] == [
        ("softmax-attention", "class-token"), ("softmax-attention", "mean"), ("poolformer", "mean")]
    for pair in report["pairs"]:
        assert len(pair["accuracies"]) == 2 and all(0 <= a <= 1 for a in pair["accuracies"])
        mean = sum(pair["accuracies"]) / 2
        assert pair["accuracy"] == pytest.approx(mean)
        assert pair["accuracy_spread"] == pytest.approx(abs(pair["accuracies"][0] - mean) * 2 ** 0.5)
        assert pair["train_seconds"] > 0 and pair["inference_seconds"] > 0 and pair["parameters"] > 1000
    assert report["split"] == "digits-quarter" and report["held_out"] == "test"
    assert report["train_images"] == 64 and report["held_out_images"] == 445
    [skipped] = report["skipped"]
    assert (skipped["mixer"], skipped["pool"]) == ("poolformer", "class-token")
    assert "no place for tokens outside the grid" in skipped["reason"]
    # The table: one line a pair, columns aligned, the split named, the skipped pair with its reason.
    lines = text.out.splitlines()
    assert "held-out split 'digits-quarter'" in text.out and any(l.startswith("skipped: poolformer") for l in lines)
    rule = next(i for i, line in enumerate(lines) if set(line) == {"-", " "})
    assert {len(lines[rule + k]) for k in (-1, 0, 1, 2, 3)} == {len(lines[rule])}
    # Not a terminal: plain lines of progress, no control characters.
    assert len(re.findall(r"^\[\d/6\] .*%", text.err, re.M)) == 6 and "\x1b" not in text.err


def test_bars_on_a_terminal(tmp_path):
    primary, secondary = os.openpty()
    code = "import sys, torch, regard; sys.exit(torch.ops.regard.cli(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, "arena", "digits", "--run", str(tmp_path / "run"), "--mixers",
                                "poolformer", "--pools", "mean", "--seeds", "2", "--workers", "1", "--epochs", "6"],
                               stdout=subprocess.PIPE, stderr=secondary, text=True,
                               env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    os.close(secondary)
    shown = b""
    while True:
        try:
            part = os.read(primary, 65536)
        except OSError:   # the other end is closed
            break
        if not part:
            break
        shown += part
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "\x1b[1A\x1b[2K" in text and re.search(r"poolformer \+ mean, seed 0 +\[#+-+\] +\d+ %  .* left", text)
    assert re.search(r"all: [01] of 2 trainings done +\[#*-+\]", text)
    assert "poolformer" in process.stdout.read()
    # What stays on the screen: the lines of finished trainings.
    assert re.search(r"\[2/2\] poolformer \+ mean, seed 1: [\d.]+ % in", text)


def test_parameters_are_those_of_the_model(tmp_path):
    _, report = arena(tmp_path, "--mixers", "softmax-attention", "--pools", "simpool", "--seeds", "1",
                      "--run", str(tmp_path / "run"))
    config = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 16, "depth": 1, "num_heads": 2,
              "mlp_ratio": 2, "class_token": False, "mixer": "softmax-attention", "pool": "simpool"}
    weights = torch.ops.regard.initialize("vit", json.dumps(config))
    assert report["pairs"][0]["parameters"] == sum(w.numel() for w in weights)


def test_outcomes_do_not_depend_on_workers(tmp_path):
    accuracies = []
    for workers in ("1", "2"):
        folder = tmp_path / workers
        status, report = arena(tmp_path, "--mixers", "softmax-attention", "--pools", "mean,simpool", "--seeds", "2",
                               "--batch", "16", "--workers", workers, "--run", str(folder))
        assert status == 0
        files = sorted(folder.glob("*seed*.json"))
        assert len(files) == 4
        accuracies.append([(f.name, json.loads(f.read_text())["final_loss"]) for f in files])
    assert accuracies[0] == accuracies[1]
    assert len({loss for _, loss in accuracies[0]}) == 4


def test_threads_are_given_back(tmp_path):
    before = torch.get_num_threads()
    arena(tmp_path, "--mixers", "poolformer", "--pools", "mean", "--seeds", "1", "--run", str(tmp_path / "run"))
    assert torch.get_num_threads() == before


def test_training_learns(tmp_path):
    report = tmp_path / "report.json"
    status = torch.ops.regard.cli(["arena", "digits", "--epochs", "40", "--depth", "1", "--mixers", "softmax-attention",
                                   "--pools", "mean", "--seeds", "1", "--validate", "--json", str(report),
                                   "--run", str(tmp_path / "run")])
    result = json.loads(report.read_text())
    assert status == 0 and result["held_out"] == "validation" and result["pairs"][0]["accuracy"] > 0.5
    assert result["train_images"] + result["held_out_images"] == 1797 - 445


def test_resume_takes_what_is_there(tmp_path, capfd):
    run = ["--run", str(tmp_path / "run")]
    choice = ["--mixers", "poolformer", "--pools", "mean,max"]
    arena(tmp_path, *choice, "--seeds", "1", *run)
    file = tmp_path / "run" / "poolformer+mean+seed0.json"
    kept = json.loads(file.read_text()) | {"accuracy": 0.125}
    file.write_text(json.dumps(kept))
    capfd.readouterr()
    status = torch.ops.regard.cli(["arena", "digits", "--resume", *run, "--seeds", "2", "--json", str(tmp_path / "r.json")])
    report = json.loads((tmp_path / "r.json").read_text())
    assert status == 0 and report["settings"]["epochs"] == 1 and report["settings"]["seeds"] == 2
    assert report["pairs"][0]["accuracies"][0] == 0.125   # not trained again
    assert len(re.findall(r"^\[[34]/4\]", capfd.readouterr().err, re.M)) == 2


def test_resume_refuses_other_settings(tmp_path, capfd):
    run = ["--run", str(tmp_path / "run")]
    arena(tmp_path, "--mixers", "poolformer", "--pools", "mean", "--seeds", "1", *run)
    assert torch.ops.regard.cli(["arena", "digits", "--resume", *run, "--epochs", "2"]) == 2
    assert "settings" in capfd.readouterr().err
    assert arena(tmp_path, "--mixers", "poolformer", "--pools", "mean", *run)[0] == 2
    assert "or --resume to go on with it" in capfd.readouterr().err


def test_interruption_keeps_what_has_finished(tmp_path):
    # One worker: the first training is short work done, the second is under way when the signal comes.
    choice = ["--mixers", "softmax-attention", "--pools", "mean", "--workers", "1", "--depth", "1", "--width", "16", "--heads", "2",
              "--epochs", "8", "--seeds", "40"]
    process = start(tmp_path, *choice)
    folder = tmp_path / "run"
    for _ in range(600):
        if len(list(folder.glob("*seed*.json"))) >= 1:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    done = len(list(folder.glob("*seed*.json")))
    assert 1 <= done < 40 and not list(folder.glob("*.tmp.*"))
    assert f"interrupted: {done} of 40 trainings are done" in out and "--resume" in out
    assert "softmax-attention  mean" in out   # the table of what there is
    process = start(tmp_path, "--resume", "--seeds", str(done + 1), "--json", str(tmp_path / "r.json"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads((tmp_path / "r.json").read_text())["finished"] == done + 1


def test_python_keeps_its_interrupt_handler(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        arena(tmp_path, "--mixers", "poolformer", "--pools", "mean", "--seeds", "1", "--run", str(tmp_path / "run"))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_configurations_of_mechanisms(tmp_path, capfd):
    status, report = arena(tmp_path, "--mixers", "poolformer", "--pools", "mean", "--seeds", "1",
                           "--config", 'poolformer={"pool_size": 5}', "--run", str(tmp_path / "run"))
    assert status == 0 and report["settings"]["configs"] == {"poolformer": '{"pool_size": 5}'}
    assert arena(tmp_path, "--config", "poolformer", "--run", str(tmp_path / "x"))[0] == 2
    assert "--config ID={...}" in capfd.readouterr().err
    assert arena(tmp_path, "--config", "poolformer={pool_size}", "--run", str(tmp_path / "x"))[0] == 2
    assert ("[arena] expected the configuration of 'poolformer' to be a JSON object; found '{pool_size}'"
            in capfd.readouterr().err)


@pytest.mark.parametrize("arguments, message", [
    (["--mixers", "softmax-atention"], "did you mean 'softmax-attention'"),
    (["--pools", "poolformer"], "expected pools among"),
    (["--seeds", "0"], "seeds of at least 1; found 0"),
    (["--patch", "3"], "patch to divide 8; found 3"),
    (["--mixers", "poolformer", "--pools", "class-token"], "expected a mixer and a pool that go together"),
    (["--data", "/nowhere"], "digits.csv"),
    (["--epochs", "many"], "epochs"),
    (["--resume"], "a run to resume"),
    (["--mixers", "poolformer", "--config", 'poolformer={"width": 99}'], "or with embed_dim 48; found 99"),
    (["--mixers", "poolformer", "--config", 'poolformer={"pool_size": -1}'], "pool_size"),
    (["--mixers", "poolformer", "--config", 'poolformer={"pool_sise": 3}'], "did you mean 'pool_size'?"),
    (["--mixers", "poolformer", "--config", 'softmax-attention={"heads": 2}'],
     "expected --config of a mixer or pool of this run, 'poolformer'"),
    (["--config", "vit={}"], "expected --config of a mixer or pool of this run"),
    (["--json", "/nowhere/results.json"], "[arena] expected --json FILE in a folder that exists; found no folder '/nowhere'"),
])
def test_refusals(tmp_path, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert torch.ops.regard.cli(["arena", "digits", *arguments]) == 2
    err = capfd.readouterr().err
    assert message in err and err.count("\n") == 1 and err.startswith("regard: ")
    assert not (tmp_path / "runs").exists()


def test_malformed_data(tmp_path, capfd):
    (tmp_path / "digits.csv").write_text("1,2,3\n")
    assert torch.ops.regard.cli(["arena", "digits", "--data", str(tmp_path), "--run", str(tmp_path / "run")]) == 2
    assert "65 integers a line" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_data_without_a_held_out_part(tmp_path, capfd):
    row = ",".join(["1"] * 64 + ["3"])
    (tmp_path / "digits.csv").write_text((row + "\n") * 2)
    assert torch.ops.regard.cli(["arena", "digits", "--data", str(tmp_path), "--run", str(tmp_path / "run")]) == 2
    err = capfd.readouterr().err
    assert "in digits.csv; found 2 images: 2 for training, 0 held out" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_training_that_fails_is_one_clear_line(tmp_path, capfd):
    status = torch.ops.regard.cli(["arena", "digits", "--mixers", "softmax-attention", "--pools", "mean", "--seeds", "1",
                                   "--run", str(tmp_path / "run"), "--json", str(tmp_path / "r.json"),
                                   "--width", "1000000000000"])
    report = json.loads((tmp_path / "r.json").read_text())
    text = capfd.readouterr()
    shown = text.out + text.err
    assert status == 1 and len(report["failures"]) == 1 and report["pairs"] == []
    assert report["failures"][0]["reason"] in text.out and "\n" not in report["failures"][0]["reason"]
    assert shown.count(report["failures"][0]["reason"]) == 1
    assert "frame #" not in shown and "Exception raised from" not in shown and ".so" not in shown


@pytest.mark.slow
def test_demo(tmp_path):
    begun = time.time()
    status = torch.ops.regard.cli(["arena", "digits", "--mixers", "softmax-attention,poolformer", "--pools",
                                   "class-token,mean,simpool", "--seeds", "2", "--json", str(tmp_path / "r.json"),
                                   "--run", str(tmp_path / "run")])
    report = json.loads((tmp_path / "r.json").read_text())
    assert status == 0 and len(report["pairs"]) == 5 and len(report["skipped"]) == 1
    for pair in report["pairs"]:
        if pair["mixer"] == "softmax-attention":
            assert pair["accuracy"] > 0.95, pair
    assert time.time() - begun < 600   # 5 minutes on two idle cores; tests may share theirs
