"""Fixtures of the tests that run CMake: the tested build, its install tree, made-up torch packages."""

import os
import pathlib
import sys

import pytest

from cmake_helpers import run


@pytest.fixture(scope="session")
def build_tree():
    """The build tree under test."""
    tree = pathlib.Path(os.environ["REGARD_BUILD_DIR"])
    if not (tree / "lib" / "libregard.so").exists():
        pytest.skip(f"no build tree at {tree}")
    return tree


@pytest.fixture(scope="session")
def install_tree(build_tree, tmp_path_factory):
    """What `cmake --install` makes of the build tree."""
    prefix = tmp_path_factory.mktemp("install")
    run("cmake", "--install", build_tree, "--prefix", prefix)
    return prefix


@pytest.fixture(scope="session")
def torch_options():
    """Tells CMake to take the torch of the interpreter that runs the tests."""
    return (f"-DPython_EXECUTABLE={sys.executable}",)


@pytest.fixture
def fake_torch(tmp_path):
    """Makes a folder that looks like a torch package (without CUDA) of a version."""

    def make(version):
        torch = tmp_path / f"torch-{version}"
        for path in ("include/ATen/ATen.h", "lib/libtorch_cpu.so", "lib/libc10.so"):
            (torch / path).parent.mkdir(parents=True, exist_ok=True)
            (torch / path).touch()
        (torch / "version.py").write_text(f"__version__ = '{version}'\n")
        return torch

    return make
