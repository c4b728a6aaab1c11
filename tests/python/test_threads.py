"""Kernels run on torch's threads, and their results do not depend on how many there are."""

import os
import subprocess
import sys

import regard
import torch


def in_process(code, **environment):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                            env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_a_parallel_op_uses_torchs_threads():
    """Also one that was asked for by more threads than there are processors."""
    for threads in (1, 2, 4):
        code = f"import torch, regard; torch.set_num_threads({threads}); print(torch.ops.regard.thread_count())"
        assert in_process(code) == [str(threads)]


def test_one_openmp_runtime():
    code = ("import regard; print(len({line.split()[-1] for line in open('/proc/self/maps') "
            "if 'gomp' in line or 'libomp' in line or 'libiomp' in line}))")
    assert in_process(code) == ["1"]


def attend(threads, batch=slice(None)):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        q, k, v = (torch.randn(3, 2, n, 16) for n in (150, 170, 170))
        bias = torch.randn(2, 150, 170, requires_grad=True)
        leaves = [x[batch].clone().requires_grad_() for x in (q, k, v)]
        o, lse = regard.attention(*leaves, score=lambda s, b, h, i, j: s + bias[h, i, j], is_causal=True, path="fused",
                                  return_lse=True)
        return [o, lse, *torch.autograd.grad(o.square().sum() + lse.sum(), [*leaves, bias])]
    finally:
        torch.set_num_threads(before)


def test_bits_do_not_depend_on_threads():
    for one, many in zip(attend(1), attend(3)):
        assert torch.equal(one, many)


def test_bits_do_not_depend_on_batch_mates():
    whole = attend(2)
    for index in range(3):
        alone = attend(2, slice(index, index + 1))
        for a, w in zip(alone[:5], whole[:5]):
            assert torch.equal(a[0], w[index])
