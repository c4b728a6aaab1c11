"""Rings: shards on Gloo processes and in threads against the whole."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import executor_cases as cases
import pytest
import ring_checks
import torch

import regard
from regard import scale

HERE = pathlib.Path(__file__).parent

MEMBER = """
import json, os, sys
sys.path[:0] = [{here!r}, {package!r}]
import torch
rank, ranks = int(sys.argv[1]), int(sys.argv[2])
import regard, ring_checks
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=ranks)
failures, refused = ring_checks.run_all(rank, ranks, None)
print(json.dumps([failures, refused]))
torch.distributed.destroy_process_group()
"""


def start_processes(ranks):
    """What `run_all` returned in each of `ranks` Gloo processes."""
    with tempfile.TemporaryDirectory() as folder:
        code = MEMBER.format(here=str(HERE), package=str(pathlib.Path(regard.__file__).parents[1]))
        members = [subprocess.Popen([sys.executable, "-c", code, str(rank), str(ranks), os.path.join(folder, "store")],
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                   for rank in range(ranks)]
        results = []
        for member in members:
            out, err = member.communicate(timeout=300)
            assert member.returncode == 0, err[-4000:]
            results.append(json.loads(out.strip().splitlines()[-1]))
    return results


# What a shard must never refuse: attention whose states merge, linear attention, sums and maxima over tokens.
ALWAYS = {"softmax-attention", "multi-query", "cog-attention", "gated-attention", "normalized-attention",
          "relational-attention", "moba", "mixture-of-head", "linear-attention", "set-transformer", "mean", "max",
          "generalized-mean", "log-sum-exp", "class-token"}


def judge(results):
    failures = [line for failed, _ in results for line in failed]
    assert not failures, "\n".join(failures[:40])
    refused = [r for _, r in results]
    assert all(r == refused[0] for r in refused)  # all ranks refuse, or none
    contiguous, zigzag = refused[0]
    assert not ALWAYS & set(contiguous) and not ALWAYS & set(zigzag) - {"linear-attention"}  # its spans have an order


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_processes(ranks):
    judge(start_processes(ranks))


@pytest.mark.parametrize("ranks", [2, 3])
def test_threads(ranks):
    judge(scale.run_in_threads(ranks, lambda rank, group: ring_checks.run_all(rank, ranks, group, THREAD_CASES)))


THREAD_CASES = ["softmax causal", "softmax counted sinks", "signed softmax epsilon", "z_score counted", "sum weight",
                "relu kept", "identity keys"]


@pytest.mark.golden
def test_golden():
    files = ring_checks.golden_files()
    if not files:
        pytest.skip("no golden case of ring-attention")
    for ranks, layout in {ring_checks.golden_case(file)[1:3] for file in files}:
        def body(rank, group, ranks=ranks, layout=layout):
            member = ring_checks.Member(rank, ranks, group, layout)
            ring_checks.check_golden(member)
            return member.failures

        assert scale.run_in_threads(ranks, body) == [[]] * ranks


def test_one_rank_is_the_whole_without_traffic():
    def body(rank, group):
        executor = scale.ring(group)
        t = cases.leaves(cases.tensors(5, 5))
        out = cases.run(executor, "softmax causal", t)
        out[0].sum().backward()
        whole = cases.leaves(cases.tensors(5, 5))
        expected = cases.run("local", "softmax causal", whole)
        expected[0].sum().backward()
        assert cases.error(out[0], expected[0]) < 1e-12
        assert cases.error(t["k"].grad, whole["k"].grad) < 1e-12
        return scale.bytes_sent()[executor]

    (sent,) = scale.run_in_threads(1, body)
    assert sent == {"forward": 0, "backward": 0, "metadata": 0, "collective": 0}


@pytest.mark.parametrize("layout", scale.LAYOUTS)
@pytest.mark.parametrize("tokens, ranks", [(0, 2), (1, 4), (5, 4), (7, 3), (16, 4), (9, 1)])
def test_token_of_rank_deals_every_token_once(tokens, ranks, layout):
    parts = [scale.token_of_rank(tokens, ranks, layout, rank) for rank in range(ranks)]
    assert sorted(torch.cat(parts).tolist()) == list(range(tokens))
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= (1 if layout == "contiguous" else 2)


def test_zigzag_is_the_published_layout():
    assert scale.token_of_rank(16, 4, "zigzag", 1).tolist() == [2, 3, 12, 13]
    assert scale.token_of_rank(16, 4, "contiguous", 1).tolist() == [4, 5, 6, 7]


def test_zigzag_balances_a_causal_mask():
    """Pairs of every rank: equal in zigzag, 1 to 2W - 1 in the contiguous layout."""
    def pairs(layout, rank):
        return int((scale.token_of_rank(32, 4, layout, rank) + 1).sum())

    assert len({pairs("zigzag", rank) for rank in range(4)}) == 1
    assert pairs("contiguous", 3) > 3 * pairs("contiguous", 0)


def test_declared_bytes_are_the_published_formula():
    B, n, Hk, D = 2, 8, 2, 16
    for W in (2, 3, 4):
        for element, accumulator in ((2, 4), (4, 4), (8, 8)):
            sent = torch.ops.regard.ring_bytes(W * n, W, "zigzag", 1, 2 * B * Hk * D, element)
            forward = (W - 1) * 2 * B * n * Hk * D * element
            assert tuple(sent) == (forward, forward + W * 2 * B * n * Hk * D * accumulator)


def test_a_failing_member_stops_the_others():
    def body(rank, group):
        if rank == 1:
            raise RuntimeError("out of luck")
        t = cases.tensors(2, 2)
        cases.run(scale.ring(group), "softmax", t)

    with pytest.raises((RuntimeError, ValueError), match="out of luck"):
        scale.run_in_threads(3, body)


def test_second_derivatives_are_refused():
    def body(rank, group):
        t = cases.leaves(cases.tensors(4, 4))
        own = {key: scale.shard(x, 2, rank=rank, ranks=2) if key in "qkv" else x for key, x in t.items()}
        out = cases.run(scale.ring(group), "softmax", own)[0]
        torch.autograd.grad(out.sum(), t["q"], create_graph=True)

    with pytest.raises((RuntimeError, ValueError), match=r"\[ring\] expected first derivatives; found create_graph"):
        scale.run_in_threads(2, body)


def test_the_python_door():
    """regard.scale.attention with functions, on a ring and in parts."""
    t = cases.tensors(6, 6)
    slopes = t["slopes"]
    whole = regard.attention(t["q"], t["k"], t["v"], score=cases.alibi(slopes), is_causal=True)
    assert cases.error(scale.attention("split:2", t["q"], t["k"], t["v"], score=cases.alibi(slopes), is_causal=True).o,
                       whole) < 1e-12

    def body(rank, group):
        own = [scale.shard(t[x], 2, "zigzag", rank=rank, ranks=2) for x in "qkv"]
        o = scale.attention(scale.ring(group, "zigzag"), *own, score=cases.alibi(slopes), is_causal=True).o
        return scale.unshard(o, 2, "zigzag", group)

    for o in scale.run_in_threads(2, body):
        assert cases.error(o, whole) < 1e-12
    assert {"local", "ring", "split", "stripe"} <= set(scale.executors())


@pytest.mark.parametrize("text, message", [
    ("ring", "[executor] expected ring:GROUP, with the name of a group; found ring"),
    ("ring:nobody", "[executor] expected the name of a process group of torch.distributed (group.group_name); "
                    "found 'nobody'"),
    ("ring:0:zigzga", "[layout] expected contiguous or zigzag; found 'zigzga'; did you mean 'zigzag'?"),
    ("ring:threads/nobody/0", "[thread group] expected the name of an open group; found 'nobody'"),
    ("rings:0", "[executor] expected one of 'local', 'ring', 'split', 'stripe'; found 'rings'; did you mean 'ring'?"),
])
def test_bad_names(text, message):
    t = cases.tensors(2, 2)
    with pytest.raises(ValueError) as error:
        cases.run(text, "softmax", t)
    assert str(error.value) == message
