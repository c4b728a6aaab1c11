"""The mechanism that CONTRIBUTING.md shows, built from the page as a plug-in: what readers copy compiles and holds."""

import json
import os
import pathlib
import re
import sys

import pytest
from cmake_helpers import ROOT, build_project, clean_environment, run

ID = "gated-mean"


def files_of_the_page():
    """{path: text} of the fenced blocks whose file is named in the line above them."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    return dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def page(install_tree, tmp_path_factory, torch_options):
    source = tmp_path_factory.mktemp("page")
    for path, text in files_of_the_page().items():
        # The project of the example plug-in takes the sources beside it; its headers keep their paths.
        file = source / (pathlib.Path(path).name if path.endswith(".cpp") else path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    lists = (ROOT / "examples" / "plugin" / "CMakeLists.txt").read_text()
    (source / "CMakeLists.txt").write_text(lists + "target_include_directories(regard_plugin PRIVATE .)\n")
    build_project(source, source / "build", install_tree, *torch_options)
    return source


def environment(source, install_tree, **changes):
    return clean_environment(REGARD_PLUGINS=str(source / "build" / "libregard_plugin.so"), **changes)


def test_the_page_holds_the_three_files():
    assert sorted(files_of_the_page()) == ["regard/nn/pooling/gated_mean.cpp", "regard/nn/pooling/gated_mean.h",
                                           "tests/python/test_gated_mean.py"]


def test_it_holds_against_the_theorems(page, install_tree, tmp_path):
    report = tmp_path / "report.json"
    run(install_tree / "bin" / "regard", "check", ID, "--json", report, cwd=tmp_path,
        env=environment(page, install_tree, XDG_CACHE_HOME=str(tmp_path)))
    outcomes = {theorem["theorem"]: theorem["outcome"] for theorem in json.loads(report.read_text())["theorems"]}
    assert outcomes["gradients"] == "pass" and "fail" not in outcomes.values(), outcomes


def test_its_own_test_passes(page, install_tree):
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("python", "tests/python"))
    output = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", page, page / "tests", cwd=page,
                 env=environment(page, install_tree, PYTHONPATH=paths,
                                 REGARD_LIBRARY=str(install_tree / "lib" / "libregard.so")))
    assert "3 passed" in output, output
