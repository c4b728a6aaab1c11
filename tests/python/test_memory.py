"""M = N = 65536, D = 64, forward and backward: O(N) memory, measured as a process's peak.

The stripe path's masks and captures are measured at a quarter of that length: at the full one they take ten minutes."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch, regard
path, score = sys.argv[1:3]
n, d = int(sys.argv[3]), 64
q, k, v = (torch.randn(1, 1, n, d, requires_grad=True) for _ in range(3))
g = torch.randn(1, 1, n, d)
functions = {"plain": {}, "alibi": {"score": lambda s, b, h, i, j: s - 0.5 * (i - j).abs(), "is_causal": True}}[score]
small = [x[:, :, :64].detach().requires_grad_() for x in (q, k, v)]   # what torch allocates once is not counted
regard.attention(*small, path=path, **functions).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
o = regard.attention(q, k, v, path=path, **functions)
o.backward(g)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
counts = regard.path_counts()
assert counts["attention"][path] == 2 and counts["attention_backward"][path] == 2, counts
assert all(torch.isfinite(x.grad).all() for x in (q, k, v))
outputs = 4 * n * d * 4 // 1024    # o, dq, dk, dv, KiB
print((after - before - outputs) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("path, score, n", [("fused", "plain", 65536), ("fused", "alibi", 65536),
                                            ("stripe", "plain", 65536), ("stripe", "alibi", 16384)])
def test_peak_memory(path, score, n):
    result = subprocess.run([sys.executable, "-c", PROGRAM, path, score, str(n)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    gibibytes = float(result.stdout)
    print(f"{path} {score} {n}: {gibibytes:.3f} GiB over inputs and outputs")
    assert gibibytes < (1.0 if n == 65536 else 0.5)
