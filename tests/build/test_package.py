"""pip builds the Python package from the checkout; it stands alone, with its libraries, data and command."""

import importlib.util
import re
import sys

import pytest
from cmake_helpers import ROOT, clean_environment, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which `pip install --no-build-isolation` has put the package."""
    if importlib.util.find_spec("scikit_build_core") is None:
        pytest.skip("scikit-build-core is not installed")
    folder = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--disable-pip-version-check",
        "--target", folder, ROOT, env=clean_environment())
    return folder


def python(site, code):
    return run(sys.executable, "-c", code, cwd=site, env=clean_environment(PYTHONPATH=str(site)))


def test_package_holds_libraries_data_and_headers(site):
    for path in ("__init__.py", "lib/libregard.so", "lib/libregard_kernels.so", "include/regard/base/version.h",
                 "lib/cmake/Regard/RegardConfig.cmake", "share/regard/data"):
        assert (site / "regard" / path).exists(), path
    assert not (site / "regard" / "bin").exists()


def test_package_loads_its_own_library(site):
    output = python(site, "import regard, torch; print(regard.__file__, torch.ops.regard.version())")
    assert str(site) in output
    assert output.split()[-1] == (ROOT / "VERSION").read_text().strip()
    maps = python(site, "import regard; print(open('/proc/self/maps').read())")
    assert str(site / "regard" / "lib" / "libregard.so") in maps


def test_command_runs(site):
    env = clean_environment(PYTHONPATH=str(site))
    assert "arena" in run(site / "bin" / "regard", "--help", env=env)
    assert "softmax-attention" in run(site / "bin" / "regard", "list", env=env)


def test_no_tracked_file_changes(site):
    status = run("git", "-C", ROOT, "status", "--porcelain")
    assert not re.search(r"egg-info|dist/|\.so$|_skbuild", status), status


def test_consumer_finds_torch_beside_the_package(site, tmp_path):
    """find_package(Regard) works on the package's own folder."""
    output = run("cmake", "-G", "Ninja", "-S", ROOT / "examples" / "consumer", "-B", tmp_path,
                 f"-DCMAKE_PREFIX_PATH={site / 'regard'}", f"-DPython_EXECUTABLE={sys.executable}",
                 env=clean_environment())
    assert "Found TorchWheel" in output
