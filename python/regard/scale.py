"""Sequences dealt out over devices: the executor text of a ring, and the cutting and joining of tensors.

::

    torch.distributed.init_process_group("gloo")            # or nccl
    executor = regard.scale.ring(layout="zigzag")            # over the default group
    x_own = regard.scale.shard(x, dim=1, layout="zigzag")    # this rank's tokens
    y_own = layer(x_own, executor=executor)                  # any mechanism that shards
    y = regard.scale.unshard(y_own, dim=1, layout="zigzag")  # whole again, on every rank

Gradients: the objective is the **sum over the ranks** of what each computes from its results. Weights lie on every
rank and get their local contribution: all-reduce (sum) their gradients, as in data parallelism without the division. A
result that every rank holds alike (a pool's) counts once a rank: let one rank use it, or divide by the number of ranks.
Every rank must run the backward if one does. First derivatives only.
"""

from __future__ import annotations

import itertools
import json
import threading

import torch

from .attention import AttentionOutput, _check_tensors, _integer, _path, _prepare, _seed
from .errors import fail, suggestion

__all__ = ["attention", "bytes_sent", "executors", "reset_bytes_sent", "ring", "run_in_threads", "shard",
           "token_of_rank", "unshard"]

LAYOUTS = ("contiguous", "zigzag")
_count = itertools.count()


def token_of_rank(tokens: int, ranks: int, layout: str, rank: int) -> torch.Tensor:
    """(n) int64: which of `tokens` tokens lie on `rank`, ascending.

    contiguous: part `rank` of `ranks`; zigzag: parts rank and 2 ranks - 1 - rank of 2 ranks, the same work for all
    under a causal mask. Parts are as equal as can be, longer ones first (`torch.tensor_split`); some are empty when
    tokens are few.
    """
    return torch.ops.regard.token_of_rank(tokens, ranks, _layout(layout), rank)


def ring(group=None, layout: str = "contiguous") -> str:
    """The executor text of a ring over a process group (default: the world), for every `executor=` argument.

    group: a `torch.distributed.ProcessGroup`, or a group's name as text.
    """
    if not isinstance(group, str):
        group = _process_group(group).group_name
    return f"ring:{group}:{_layout(layout)}"


def shard(tensor: torch.Tensor, dim: int, layout: str = "contiguous", group=None, rank=None, ranks=None):
    """This rank's slice of a whole tensor along its dimension of tokens; differentiable."""
    _check_tensors("shard", tensor=tensor)
    if ranks is None:
        members = _process_group(group)
        rank, ranks = members.rank(), members.size()
    index = token_of_rank(tensor.shape[dim], ranks, layout, rank)
    return tensor.index_select(dim, index.to(tensor.device))


def unshard(tensor: torch.Tensor, dim: int, layout: str = "contiguous", group=None) -> torch.Tensor:
    """The whole of all ranks' slices, in order, on every rank; differentiable (see the module's note on gradients).

    group: as in `ring`.
    """
    _check_tensors("unshard", tensor=tensor)
    return torch.ops.regard.gather_on(ring(group, layout), tensor, dim)


def attention(executor: str, q, k, v, *, score=None, mask=None, weight=None, counted=None, pair_outputs=(), spec=None,
              captures=None, operands=None, normalizer="softmax", sinks=None, scale=None, query_offset=0,
              is_causal=False, dropout=0.0, seed=None, path="auto") -> AttentionOutput:
    """`regard.attention` on an executor: "local", "split:4", "stripe", or `ring(...)` with this rank's q, k, v.

    On a ring, i and j in the functions are positions in the whole sequence, and tensors that they read by i or j hold
    the whole sequence on every rank. Returns o, lse, pairs of this rank's queries.
    """
    name = "attention"
    _check_tensors(name, q=q, k=k, v=v)
    query_offset, seed = _integer(name, "query_offset", query_offset), _seed(name, seed)
    call = _prepare(name, q, score=score, mask=mask, weight=weight, counted=counted, pair_outputs=pair_outputs,
                    spec=spec, captures=captures, operands=operands, normalizer=normalizer, sinks=sinks, scale=scale,
                    is_causal=is_causal, dropout=dropout)
    if call.dropout and seed is None:
        fail(name, "a seed with dropout, the same on every rank", "none")
    return AttentionOutput(*torch.ops.regard.attend_on(
        executor, q, k, v, call.spec, call.captures, call.operands, sinks, seed, query_offset, _path(name, path)))


def executors() -> dict[str, str]:
    """The kinds of executors, with what each does."""
    return json.loads(torch.ops.regard.executors())


def bytes_sent() -> dict[str, dict[str, int]]:
    """Bytes that this process sent, by executor text: {"forward", "backward", "metadata", "collective"}."""
    return json.loads(torch.ops.regard.scale_bytes())


def reset_bytes_sent() -> None:
    """Sets all counts of `bytes_sent` to zero."""
    torch.ops.regard.reset_scale_bytes()


def run_in_threads(ranks: int, body) -> list:
    """[body(rank, group) for every rank], each in a thread of its own; `group` is a name for `ring`.

    For looking at a sharded run without starting processes. The first exception of a member is raised; the others stop
    waiting for it.
    """
    name = f"python-{next(_count)}"
    torch.ops.regard.open_thread_group(name, ranks)
    results, failures = [None] * ranks, []

    def member(rank):
        try:
            results[rank] = body(rank, f"threads/{name}/{rank}")
        except BaseException as error:  # whatever it is, the others must not wait for this member
            failures.append(error)
            torch.ops.regard.poison_thread_group(name, f"member {rank} failed: {error}")

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.ops.regard.close_thread_group(name)
    if failures:
        raise failures[0]
    return results


def _layout(layout: str) -> str:
    if layout not in LAYOUTS:
        fail("layout", "contiguous or zigzag", f"{layout!r}{suggestion(str(layout), LAYOUTS)}")
    return layout


def _process_group(group):
    import torch.distributed as distributed  # a build of torch without it has no processes to ring

    if group is None:
        if not distributed.is_initialized():
            fail("ring", "torch.distributed.init_process_group before a ring over all processes", "none")
        group = distributed.group.WORLD
    return group
