"""Error against float64, held against SDPA's; and memory at lengths where an M x N matrix would not fit."""

from __future__ import annotations

import math
import subprocess
import sys

import torch
import torch.nn.functional as F

import regard

from . import verdict
from .cases import Bar

# (label, B, H, N, Dh, causal)
SHAPES = (("n197-d64", 2, 3, 197, 64, False), ("n1025-d64", 1, 2, 1025, 64, False),
          ("n2048-d64-causal", 1, 2, 2048, 64, True), ("n2048-d128", 1, 2, 2048, 128, False))
SEEDS = (11, 12, 13, 14)
NAMES = ("o", "dq", "dk", "dv")
ERROR = Bar("error", 1.5)  # of SDPA's
GROWTH = Bar("growth", 2.5, peers=("half the length",))  # linear is 2, quadratic 4
LENGTH = 65536


def _attend(function, q, k, v, do, is_causal):
    """(o, dq, dk, dv) in float64."""
    leaves = [x.detach().clone().requires_grad_(True) for x in (q, k, v)]
    o = function(*leaves, is_causal)
    return [x.detach().double() for x in (o, *torch.autograd.grad(o, leaves, do.to(o.dtype)))]


def _exact(q, k, v, is_causal):
    s = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if is_causal:
        s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    return torch.softmax(s, -1) @ v


def _errors(b, h, n, d, is_causal, dtype, seed) -> list[tuple[float, float]]:
    """(ours, SDPA's) of o, dq, dk, dv: the largest error over the largest entry."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, do = (torch.randn(b, h, n, d, generator=generator).to(dtype) for _ in range(4))
    exact = _attend(_exact, q.double(), k.double(), v.double(), do.double(), is_causal)
    ours = _attend(lambda q, k, v, c: regard.attention(q, k, v, is_causal=c, path="fused"), q, k, v, do, is_causal)
    sdpa = _attend(lambda q, k, v, c: F.scaled_dot_product_attention(q, k, v, is_causal=c), q, k, v, do, is_causal)
    return [tuple(((x - e).abs().max() / e.abs().max()).item() for x in pair)
            for e, *pair in zip(exact, ours, sdpa)]


def accuracy(dtype: str) -> list[dict]:
    """Ours over SDPA's, of the output and each gradient; means over SEEDS: a largest error is one entry's luck."""
    records = []
    for label, *shape in SHAPES:
        runs = [_errors(*shape, getattr(torch, dtype), seed) for seed in SEEDS]
        for tensor, name in enumerate(NAMES):
            ours, sdpa = (sum(run[tensor][side] for run in runs) / len(runs) for side in (0, 1))
            records.append({"name": f"error-{dtype}-{label}/{name}", "group": "error against float64", "dtype": dtype,
                            "errors": {"ours": ours, "sdpa": sdpa},
                            "bars": [verdict.judge(ERROR, ours / sdpa, "sdpa")]})
    return records


# Run in a process of its own, whose largest resident size is then that of one call.
_MEASURE = """
import resource, sys, torch
import regard
n, threads = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
def call(length):
    q, k, v = (torch.randn(1, 1, length, 64, requires_grad=True) for _ in range(3))
    before = peak()
    o = regard.attention(q, k, v, path="fused")
    o.backward(torch.ones_like(o))
    return peak() - before
call(1024)  # threads' scratch, libraries
print(call(n))
"""


def memory(threads: int, length: int = LENGTH) -> list[dict]:
    """What the largest resident size grows by in a call forward and backward, at N and at N / 2."""
    growth = []
    for n in (length // 2, length):
        done = subprocess.run([sys.executable, "-c", _MEASURE, str(n), str(threads)], check=True, capture_output=True,
                              text=True)
        growth.append(int(done.stdout.strip().splitlines()[-1]))
    # A size below a page's worth of noise is held as one mebibyte.
    bar = verdict.judge(GROWTH, growth[1] / max(growth[0], 1 << 20), GROWTH.peers[0])
    return [{"name": f"memory-h1-n{length}-d64/both", "group": "memory", "dtype": "float32", "bytes": growth[1],
             "bytes_at_half": growth[0], "matrix_bytes": 4 * length * length, "bars": [bar]}]
