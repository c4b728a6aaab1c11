"""Seeds, tolerances and small helpers of the Python tests."""

import pathlib
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import regard  # noqa: E402  (the root conftest has put the package on the path)


@pytest.fixture(autouse=True)
def _seeded():
    """Every test draws the same numbers, and leaves torch's and Regard's global settings as it found them."""
    torch.manual_seed(0)
    regard.reset_path_counts()
    yield
    torch.use_deterministic_algorithms(False)
    torch.ops.regard.set_strict(False)


@pytest.fixture
def qkv():
    """Makes q (B, H, M, Dh), k (B, Hk, N, Dh), v (B, Hk, N, Dv)."""

    def make(B=2, H=4, Hk=2, M=7, N=9, Dh=8, Dv=6, dtype=torch.float64, grad=False):
        shapes = ((B, H, M, Dh), (B, Hk, N, Dh), (B, Hk, N, Dv))
        return [torch.randn(*shape, dtype=dtype, requires_grad=grad) for shape in shapes]

    return make


@pytest.fixture
def paths_of():
    """Runs f() and returns its result and which paths of which ops ran: ({"attention": {"fused": 1}}, result)."""

    def run(f):
        regard.reset_path_counts()
        result = f()
        counts = {op: {path: n for path, n in paths.items() if n} for op, paths in regard.path_counts().items()}
        return {op: paths for op, paths in counts.items() if paths}, result

    return run
