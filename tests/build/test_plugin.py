"""A mechanism of one header and one source, built against the install tree, is picked up everywhere by its name."""

import json
import shutil
import sys

import pytest
from cmake_helpers import ROOT, build_project, clean_environment, run

ID = "moving-average"


@pytest.fixture(scope="module")
def plugin(install_tree, tmp_path_factory, torch_options):
    """The example plug-in, built outside of the checkout from its own files alone."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "examples" / "plugin", folder / "source")
    assert len(list((folder / "source").glob("*.cpp"))) == len(list((folder / "source").glob("*.h"))) == 1
    build_project(folder / "source", folder / "build", install_tree, *torch_options)
    return folder / "build" / "libregard_plugin.so"


def environment(plugin, install_tree, **changes):
    return clean_environment(REGARD_PLUGINS=str(plugin), PYTHONPATH=str(ROOT / "python"),
                             REGARD_LIBRARY=str(install_tree / "lib" / "libregard.so"), **changes)


def test_list_shows_it_and_shows_it_only_with_the_plugin(plugin, install_tree, tmp_path):
    program = install_tree / "bin" / "regard"
    assert ID in run(program, "list", cwd=tmp_path, env=environment(plugin, install_tree))
    assert ID not in run(program, "list", cwd=tmp_path, env=clean_environment())


def test_check_holds_it_against_the_theorems(plugin, install_tree, tmp_path):
    report = tmp_path / "report.json"
    run(install_tree / "bin" / "regard", "check", ID, "--json", report, cwd=tmp_path,
        env=environment(plugin, install_tree))
    outcomes = {theorem["theorem"]: theorem["outcome"] for theorem in json.loads(report.read_text())["theorems"]}
    assert outcomes["paths-agree"] == "pass" and "fail" not in outcomes.values(), outcomes


def test_arena_trains_it(plugin, install_tree, tmp_path):
    output = run(install_tree / "bin" / "regard", "arena", "digits", "--mixers", ID, "--pools", "mean", "--seeds", 1,
                 "--epochs", 1, "--train-limit", 64, "--width", 16, "--depth", 1, "--heads", 2, "--workers", 1,
                 "--run", tmp_path / "run", "--json", tmp_path / "results.json", cwd=tmp_path,
                 env=environment(plugin, install_tree))
    assert ID in output
    assert ID in (tmp_path / "results.json").read_text()


def test_python_owns_it(plugin, install_tree, tmp_path):
    code = """
import torch, regard
layer = regard.nn.MovingAverage(width=8, heads=2)
x = torch.randn(2, 5, 8, requires_grad=True)
layer(x).sum().backward()
print(sorted(layer.state_dict()), tuple(x.grad.shape))
"""
    output = run(sys.executable, "-c", code, cwd=tmp_path, env=environment(plugin, install_tree))
    assert "log_rate" in output and "(2, 5, 8)" in output


def test_a_plugin_that_does_not_load_is_one_clear_line(install_tree, tmp_path):
    broken = tmp_path / "libbroken.so"
    broken.write_text("not a library")
    output = run(install_tree / "bin" / "regard", "list", cwd=tmp_path, env=environment(broken, install_tree), expect=1)
    assert str(broken) in output and "Traceback" not in output and "terminate" not in output, output
