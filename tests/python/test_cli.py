"""The program: its commands, its help, and one clear line for wrong input."""

import json
import os
import pathlib
import subprocess

import pytest
import torch

import regard  # noqa: F401  (loads the library)


def cli(*arguments):
    return torch.ops.regard.cli(list(arguments))


def refused(capfd, *arguments):
    assert cli(*arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("regard: ")
    return captured.err


def program():
    """The C++ program beside the library that is loaded."""
    library = pathlib.Path(next(path for path in torch.ops.loaded_libraries if "libregard" in path))
    found = library.parent.parent / "bin" / "regard"
    if not found.exists():
        pytest.skip(f"no program at {found}")
    return str(found)


def test_help_greets_a_newcomer(capfd):
    assert cli() == 0
    bare = capfd.readouterr().out
    assert cli("--help") == 0
    text = capfd.readouterr().out
    assert text == bare
    for command in ("list", "check", "arena", "explain", "version"):
        assert f"  {command}" in text
    assert "Start here:" in text and "regard arena digits" in text and "--plugin" in text


@pytest.mark.parametrize("command", [["list"], ["check"], ["arena"], ["arena", "digits"], ["explain"], ["version"]])
def test_every_command_explains_itself(capfd, command):
    assert cli(*command, "--help") == 0
    text = capfd.readouterr().out
    assert "Usage: " in text and (command == ["version"] or "Example" in text)


def test_version(capfd):
    assert cli("version") == 0
    out = capfd.readouterr().out
    assert out.startswith(f"regard {torch.ops.regard.version()}\n") and "torch 2." in out


def test_list(capfd):
    assert cli("list") == 0
    out = capfd.readouterr().out
    for id in ("softmax-attention", "poolformer", "simpool", "class-token", "vit"):
        assert f"\n{id} " in out
    row = next(line for line in out.splitlines() if line.startswith("poolformer"))
    assert "mixer" in row and "needs a grid" in row and "no prefix tokens" in row
    assert cli("list", "--role", "pool") == 0
    assert "softmax-attention" not in capfd.readouterr().out


def test_list_as_json(capfd, tmp_path):
    assert cli("list", "--json", "-") == 0
    listed = json.loads(capfd.readouterr().out)
    assert {m["id"] for m in listed} == {m["id"] for m in json.loads(torch.ops.regard.registry())
                                          if m["family"] != "foreign"}
    assert cli("list", "--role", "host", "--json", str(tmp_path / "x.json")) == 0
    assert [m["id"] for m in json.loads((tmp_path / "x.json").read_text())] == ["vit"]


def test_json_goes_into_a_pipe_that_stays_one(tmp_path):
    """A device or a pipe is written to, never replaced by a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        assert cli("list", "--role", "host", "--json", str(pipe)) == 0
        assert pipe.is_fifo() and [m["id"] for m in json.loads(os.read(reader, 1 << 16))] == ["vit"]
    finally:
        os.close(reader)


@pytest.mark.parametrize("arguments, message", [
    (["lst"], "unknown command 'lst'; did you mean 'list'?"),
    (["arena", "digit"], "arena: unknown command 'digit'; did you mean 'digits'?"),
    (["xyzzy"], "unknown command 'xyzzy'\n"),
    (["list", "--rol", "pool"], "list: unknown option '--rol'; did you mean '--role'?"),
    (["list", "--role", "mixr"], "mixr"),
    (["list", "extra"], "list: unexpected argument 'extra'"),
    (["arena"], "A subcommand is required"),
    (["explain"], "SPEC is required"),
    (["explain", "/nowhere.json"], "/nowhere.json"),
    (["check"], "expected the id of a mechanism (or --all); found none"),
    (["check", "simpol"], "did you mean 'simpool'?"),
    (["check", "mine.py"], "python -m regard check mine.py"),
    (["check", "simpool", "--theorems", "gradient"], "gradients"),
    (["list", "--plugin", "/nowhere.so"], "/nowhere.so"),
    (["list", "--json", "/nowhere/x.json"],
     "[list] expected --json FILE in a folder that exists; found no folder '/nowhere' for '/nowhere/x.json'"),
    (["check", "mean", "--json", "/nowhere/x.json"], "[check] expected --json FILE in a folder that exists"),
    (["list", "--json", "/tmp"], "[list] expected --json to name a file; found the folder '/tmp'"),
    (["check", "mean", "--seed", "-1"], "[check] expected --seed of at least 0; found -1"),
])
def test_wrong_input_is_one_clear_line(capfd, arguments, message):
    assert message in refused(capfd, *arguments)


def test_the_program_checks_a_specification(capfd, tmp_path):
    path = tmp_path / "band.json"
    path.write_text(regard.Spec(mask=lambda b, h, i, j: (i >= j) & (i - j < 3)).json)
    assert cli("check", str(path), "--theorems", "causality,cache,gradients") == 0
    out = capfd.readouterr().out
    assert out.startswith("spec: passed") and "causality" in out and "cache" in out
    path.write_text(regard.Spec(score=lambda s, b, h, i, j: s + torch.zeros(4)[h]).json)
    assert "a specification without captures" in refused(capfd, "check", str(path))


def test_explain(capfd, tmp_path):
    path = tmp_path / "spec.json"
    path.write_text('{"scale": 0.125}')
    assert cli("explain", str(path)) == 0
    assert "fused on CPU: yes" in capfd.readouterr().out
    path.write_text('{"normalizer": {"kind": "sigmoid"}}')
    assert cli("explain", str(path)) == 0
    assert "fused on CPU: yes" in capfd.readouterr().out
    path.write_text('{"dropout": 0.5}')
    assert cli("explain", str(path)) == 0
    assert "fused on CPU: no: dropout" in capfd.readouterr().out
    path.write_text('{"nodes": [["scal"]], "score": 0}')
    assert "did you mean 'scale'" in refused(capfd, "explain", str(path))


def test_check_reports_and_list_remembers(capfd, tmp_path, monkeypatch):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    def run(*arguments):
        return subprocess.run([program(), *arguments], capture_output=True, text=True, env=environment)
    checked = run("check", "mean", "--json", str(tmp_path / "report.json"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["id"] == "mean" and report["passed"]
    for theorem in report["theorems"]:
        assert theorem["theorem"] in checked.stdout
    listed = json.loads(run("list", "--json", "-").stdout)
    assert next(m for m in listed if m["id"] == "mean")["check"] == report
    assert next(m for m in listed if m["id"] == "max")["check"] is None
    row = next(line for line in run("list").stdout.splitlines() if line.startswith("mean"))
    assert "pass" in row


def test_the_program_is_the_same_function(capfd):
    result = subprocess.run([program(), "list"], capture_output=True, text=True)
    cli("list")
    assert result.returncode == 0 and result.stdout == capfd.readouterr().out
    result = subprocess.run([program(), "lst"], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr == "regard: unknown command 'lst'; did you mean 'list'?\n"
    assert result.stdout == ""
