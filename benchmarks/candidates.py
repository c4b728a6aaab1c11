"""Ours and the peers: a name and a case to a call that can be timed, or the reason why there is none."""

from __future__ import annotations

import importlib.util
import math

import torch
import torch.nn.functional as F

import regard

from . import expressions, machine, onnx_peer
from .cases import Case
from .inputs import Inputs, key_value_bytes
from .measure import Candidate


class Absent(Exception):
    """A peer that cannot run this case; the text says why."""


def make(name: str, case: Case, inputs: Inputs, probe: machine.Probe | None) -> Candidate:
    if name == "fma_peak":
        return Candidate(name, rate=probe.fma_gflops, pool="probe")
    if name == "read_peak":
        return Candidate(name, rate=lambda: probe.read_gbps(key_value_bytes(case)), pool="probe")
    if name == "onnx":
        return Candidate(name, _onnx(case, inputs), pool="onnx")
    function = {"ours": _ours, "plain": _plain, "op": _op, "sdpa": _sdpa, "eager": _eager, "compiled": _compiled,
                "flex": _flex}[name](case, inputs)
    return Candidate(name, _with_mode(case, inputs, function))


def _with_mode(case: Case, inputs: Inputs, function):
    """function(q, k, v) -> o as a call without arguments, with the gradients of q, k, v in mode "both"."""
    if case.mode == "both":
        return inputs.rotated(lambda q, k, v: torch.autograd.grad(function(q, k, v), (q, k, v), inputs.do))

    def forward(q, k, v):
        with torch.no_grad():
            return function(q, k, v)

    return inputs.rotated(forward)


# ---- ours ---------------------------------------------------------------------------------------------------------


def _ours(case: Case, inputs: Inputs):
    """The public function as its users call it; an expression as a Spec that was traced once."""
    if not case.expression:
        return lambda q, k, v: regard.attention(q, k, v, is_causal=case.causal)
    spec = regard.Spec(score=inputs.expression.score, mask=inputs.expression.mask, is_causal=case.causal)
    return lambda q, k, v: regard.attention(q, k, v, spec=spec)


def _plain(case: Case, inputs: Inputs):
    """The same call without the expression: causal when that is its mask, all pairs when the mask is sparser."""
    is_causal = case.causal or inputs.expression.mask is expressions.causal
    return lambda q, k, v: regard.attention(q, k, v, is_causal=is_causal)


def plain_share(inputs: Inputs) -> float:
    """What share of the plain call's work the expression leaves: that of the kept blocks under a sparse mask."""
    return 1.0 if inputs.expression.mask in (None, expressions.causal) else inputs.kept_blocks


def _op(case: Case, inputs: Inputs):
    """torch.ops.regard.attention itself, its arguments made beforehand."""
    spec = regard.Spec(score=inputs.expression.score, mask=inputs.expression.mask, is_causal=case.causal)
    captures = [spec.captures[name] for name in spec.settings["captures"]]
    op = torch.ops.regard.attention.default
    return lambda q, k, v: op(q, k, v, spec.json, captures, [], None, None, 0, "auto")[0]


# ---- torch --------------------------------------------------------------------------------------------------------


def _sdpa(case: Case, inputs: Inputs):
    if case.expression:
        raise Absent("takes no expression but a dense additive tensor")
    grouped = case.H != case.Hk
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=case.causal, enable_gqa=grouped)


def _composite(case: Case, inputs: Inputs):
    """matmul, expression, softmax, matmul; a group's query heads are folded into rows of one product."""
    kept = expressions.dense_mask(inputs.expression, case.causal, case.M, case.N)
    hidden = None if kept is None else ~kept
    score, scale = inputs.expression.score, 1 / math.sqrt(case.Dh)
    axes = [torch.arange(size).view([-1 if a == axis else 1 for a in range(4)])
            for axis, size in enumerate((case.B, case.H, case.M, case.N))]

    def composite(q, k, v):
        folded = (case.B, case.Hk, case.H // case.Hk * case.M, case.N)
        s = (q.reshape(*folded[:3], case.Dh) * scale) @ k.transpose(-1, -2)
        if score is not None or hidden is not None:
            s = s.view(case.B, case.H, case.M, case.N)
            s = s if score is None else score(s, *axes)
            s = s if hidden is None else s.masked_fill(hidden, -math.inf)
        p = torch.softmax(s, -1).reshape(folded)
        return (p @ v).view(case.B, case.H, case.M, case.Dv)

    return composite


def _check_dense(case: Case) -> None:
    if case.B * case.H * case.M * case.N * 4 * 3 > machine.free_memory() / 2:
        raise Absent("its scores do not fit this machine's memory")


def _eager(case: Case, inputs: Inputs):
    _check_dense(case)
    return _composite(case, inputs)


def _check_compiler() -> None:
    # Every case compiles the same functions anew for its shapes.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 4096


def _compiled(case: Case, inputs: Inputs):
    _check_dense(case)
    _check_compiler()
    return torch.compile(_composite(case, inputs), dynamic=False)


def _flex(case: Case, inputs: Inputs):
    if case.mode == "both":
        raise Absent("has no backward on a CPU")
    if case.H != case.Hk or case.Dh != case.Dv or case.M == 1:
        raise Absent("not compared on grouped heads, other value widths and single queries")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    _check_compiler()
    mask, block_mask = inputs.expression.mask, None
    if case.causal:
        mask = expressions.causal
    if mask is not None:
        block_mask = create_block_mask(mask, None, None, case.M, case.N, device="cpu")
    score = inputs.expression.score
    return torch.compile(lambda q, k, v: flex_attention(q, k, v, score_mod=score, block_mask=block_mask), dynamic=False)


# ---- ONNX Runtime -------------------------------------------------------------------------------------------------


def _onnx(case: Case, inputs: Inputs):
    for package in ("onnxruntime", "onnx"):
        if importlib.util.find_spec(package) is None:
            raise Absent(f"{package} is not installed: pip install onnxruntime onnx")
    if case.mode == "both":
        raise Absent("has no backward")
    if case.expression or case.H != case.Hk or case.dtype != "float32":
        raise Absent("its MultiHeadAttention takes neither expressions nor grouped heads nor bfloat16")
    return onnx_peer.make(case, inputs.sets, torch.get_num_threads())
