"""Weights of one attention as those of another."""

from __future__ import annotations

import torch

from .errors import fail
from .nn import Mechanism, create

__all__ = ["group_heads"]


def group_heads(module: torch.nn.Module, kv_heads: int) -> Mechanism:
    """Multi-head attention as grouped-query attention: the key and value projections of each group are averaged.

        W'_g = mean of W_h over the heads h of group g,    for wk, wv and their biases

    Exact where the heads of a group are equal; otherwise the start of a short training (Ainslie et al., 2023, about 5 %
    of the original steps).

    Args:
        module: a `regard.nn.MultiQuery`, or a `torch.nn.MultiheadAttention` whose kdim and vdim are equal (it has no
            biases of single keys: add_bias_kv and add_zero_attn are refused).
        kv_heads: key and value heads of the result, a divisor of those of `module`; 1 gives multi-query attention.

    Returns:
        A new `regard.nn.MultiQuery` of the same dtype and device.
    """
    if isinstance(kv_heads, bool) or not isinstance(kv_heads, int):
        fail("group_heads", "kv_heads to be an integer", type(kv_heads).__name__)
    if isinstance(module, torch.nn.MultiheadAttention):
        config, state = _of_torch(module)
    elif isinstance(module, Mechanism) and module.id == "multi-query":
        config, state = module.config, module.state_dict()
    else:
        fail("group_heads", "a regard.nn.MultiQuery or a torch.nn.MultiheadAttention", type(module).__name__)
    before = config["kv_heads"]
    if kv_heads < 1 or before % kv_heads:
        fail("group_heads", f"kv_heads to be a divisor of the {before} key heads", str(kv_heads))
    weight = state["wq.weight"]
    grouped = create("multi-query", **{**config, "kv_heads": kv_heads}, device=weight.device, dtype=weight.dtype)
    state = {name: torch.ops.regard.mean_pool_heads(tensor, before, kv_heads) if name[:2] in ("wk", "wv") else tensor
             for name, tensor in state.items()}
    grouped.load_state_dict(state)
    return grouped.train(module.training)


def _of_torch(module: torch.nn.MultiheadAttention) -> tuple[dict, dict]:
    """The configuration and the weights of torch's module as multi-query's."""
    if module.bias_k is not None or module.add_zero_attn:
        fail("group_heads", "a MultiheadAttention without add_bias_kv and add_zero_attn", "one with them")
    if module.kdim != module.vdim:
        fail("group_heads", "a MultiheadAttention whose kdim and vdim are equal", f"{module.kdim} and {module.vdim}")
    weights = {name: tensor.detach() for name, tensor in module.named_parameters()}
    if module.in_proj_weight is not None:
        parts = weights["in_proj_weight"].chunk(3)
    else:
        parts = [weights[f"{name}_proj_weight"] for name in "qkv"]
    state = {f"w{name}.weight": part for name, part in zip("qkv", parts)}
    state["wo.weight"] = weights["out_proj.weight"]
    bias = module.in_proj_bias is not None
    if bias:
        state |= {f"w{name}.bias": part for name, part in zip("qkv", weights["in_proj_bias"].chunk(3))}
        state["wo.bias"] = weights["out_proj.bias"]
    heads = module.num_heads
    return {"width": module.embed_dim, "heads": heads, "kv_heads": heads, "memory_width": module.kdim, "q_bias": bias,
            "kv_bias": bias, "out_bias": bias, "attn_drop": module.dropout}, state
