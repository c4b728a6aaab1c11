"""The find module: which torch it takes, what it says of the others, and no need of a CUDA toolkit."""

import os
import re
import shutil
import sys

import pytest
from cmake_helpers import ROOT, clean_environment, run

PROJECT = """
cmake_minimum_required(VERSION 3.24)
project(probe LANGUAGES CXX)
list(APPEND CMAKE_MODULE_PATH "@ROOT@/cmake")
find_package(TorchWheel REQUIRED)
message(STATUS "version ${TorchWheel_VERSION} cuda ${TorchWheel_HAS_CUDA}")
"""


def probe(folder, *options, expect=0, env=None):
    source = folder / "probe"
    source.mkdir(exist_ok=True)
    (source / "CMakeLists.txt").write_text(PROJECT.replace("@ROOT@", str(ROOT)))
    output = run("cmake", "-G", "Ninja", "-S", source, "-B", folder / "build", *options, expect=expect,
                 env=env or clean_environment())
    return re.sub(r"\s+", " ", output)


def accepted_range():
    text = (ROOT / "cmake" / "FindTorchWheel.cmake").read_text()
    return re.search(r"TorchWheel_MINIMUM (\S+)\)", text)[1], re.search(r"TorchWheel_BELOW (\S+)\)", text)[1]


@pytest.mark.parametrize("version", ["2.11.0", "2.12.1+cu130", "2.13.0+cpu", "2.14.2"])
def test_versions_in_the_range_are_taken(tmp_path, fake_torch, version):
    output = probe(tmp_path, f"-DREGARD_TORCH_DIR={fake_torch(version)}")
    assert f"version {version.split('+')[0]} cuda OFF" in output


@pytest.mark.parametrize("version", ["2.10.1", "2.15.0", "1.13.1+cu117"])
def test_versions_outside_are_refused(tmp_path, fake_torch, version):
    output = probe(tmp_path, f"-DREGARD_TORCH_DIR={fake_torch(version)}", expect=1)
    least, below = accepted_range()
    assert f"torch {version.split('+')[0]} in" in output
    assert f"[regard] expected torch >={least},<{below}" in output


def test_interpreter_without_torch_is_named(tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    output = probe(tmp_path, f"-DPython_EXECUTABLE={tmp_path / 'venv' / 'bin' / 'python'}", expect=1)
    assert "[regard]" in output and "no torch package in the Python given" in output
    assert "venv/bin/python" in output


def test_folder_without_libraries_is_named(tmp_path, fake_torch):
    torch = fake_torch("2.13.0")
    (torch / "lib" / "libc10.so").unlink()
    assert "no lib/libc10.so in" in probe(tmp_path, f"-DREGARD_TORCH_DIR={torch}", expect=1)


def test_cuda_is_linked_only_from_a_cuda_wheel(tmp_path, fake_torch):
    torch = fake_torch("2.13.0")
    output = probe(tmp_path, f"-DREGARD_TORCH_DIR={torch}", "-DREGARD_CUDA=ON", expect=1)
    assert "REGARD_CUDA=ON, but no lib/libtorch_cuda.so" in output


def test_python_package_declares_the_same_range():
    least, below = accepted_range()
    assert f'"torch>={least},<{below}"' in (ROOT / "pyproject.toml").read_text()


def test_pinned_version_is_in_the_range():
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    least, below = accepted_range()
    parts = [tuple(int(p) for p in v.split(".")[:2]) for v in (least, pinned, below)]
    assert parts[0] <= parts[1] < parts[2]


def environment_without_toolkit(folder):
    """An environment whose PATH holds the compiler and CMake but no nvcc, and which names no toolkit."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("cmake", "ninja", "c++", "g++", "cc", "gcc", "as", "ld", "ar", "ranlib", "nm", "ccache", "sh"):
        if shutil.which(name):
            (tools / name).symlink_to(os.path.realpath(shutil.which(name)))
    env = {k: v for k, v in clean_environment().items() if not k.startswith(("CUDA", "NVCC", "CPATH"))}
    env["PATH"] = str(tools)
    assert shutil.which("nvcc", path=env["PATH"]) is None
    return env


def test_regard_configures_and_builds_without_a_cuda_toolkit(tmp_path):
    """With a CUDA wheel (torch's libraries and a libtorch_cuda beside them) and every toolkit hidden."""
    import torch as real

    package = os.path.dirname(real.__file__)
    wheel = tmp_path / "torch"
    (wheel / "lib").mkdir(parents=True)
    for name in os.listdir(os.path.join(package, "lib")):
        (wheel / "lib" / name).symlink_to(os.path.join(package, "lib", name))
    if not (wheel / "lib" / "libtorch_cuda.so").exists():
        (wheel / "lib" / "libtorch_cuda.so").touch()
    (wheel / "include").symlink_to(os.path.join(package, "include"))
    (wheel / "version.py").write_text(f"__version__ = '{real.__version__}'\n")

    env = environment_without_toolkit(tmp_path)
    build = tmp_path / "build"
    output = run("cmake", "-G", "Ninja", "-S", ROOT, "-B", build, f"-DREGARD_TORCH_DIR={wheel}",
                 "-DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON",
                 "-DCMAKE_DISABLE_FIND_PACKAGE_CUDA=ON", "-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON", env=env)
    assert "Found TorchWheel" in output
    assert "nvcc" not in (build / "CMakeCache.txt").read_text()
    # One source that includes ATen and torch's registration, compiled against this wheel.
    target = "CMakeFiles/regard_aten_objects.dir/regard/ops/version_op.cpp.o"
    run("cmake", "--build", build, "--target", target, env=env)
    assert (build / target).exists()
