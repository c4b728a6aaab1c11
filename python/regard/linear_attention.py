"""regard.linear_attention: kernelized, gated and delta-rule attention with a state."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["LinearAttentionOutput", "linear_attention"]


class LinearAttentionOutput(NamedTuple):
    o: torch.Tensor           # (B, H, M, Dv), dtype of q
    state: torch.Tensor       # (B, Hk, Dk, Dv), float32 (float64 for float64); packed: (S, Hk, Dk, Dv)
    z: torch.Tensor | None    # (B, Hk, Dk) with normalize


def linear_attention(q, k, v, *, log_decay=None, decay_side="key", beta=None, initial_state=None, initial_z=None,
                     cu_seqlens=None, padding=None, causal=True, normalize=False, eps=1e-6, scale=None, chunk=0,
                     form="auto", path="auto", allow_growth=False) -> LinearAttentionOutput:
    """S_t = diag(e^g_t) S_{t-1} + k_t u_t^T, o_t = s S_t^T q_t; normalized: o_t / (s <q_t, z_t> + eps).

    u_t = v_t, or with `beta` the delta rule: u_t = beta_t (v_t - (diag(e^g_t) S_{t-1})^T k_t). z_t sums k as S sums
    k v^T.

    q (B, H, M, Dk), k (B, Hk, T, Dk), v (B, Hk, T, Dv) after any feature map; query head h reads key head
    h // (H / Hk). float64, float32, bfloat16, float16; sums and states in float32 at least.

    log_decay       g <= 0: (Hk), (B, Hk, T), (B, Hk, T, Dk); with decay_side "value" (B, Hk, T, Dv). Applied before the
                    write; -inf empties the state
    beta            (B, Hk, T)
    initial_state   (B, Hk, Dk, Dv); packed (S, Hk, Dk, Dv); initial_z (B, Hk, Dk) with normalize
    cu_seqlens      (S + 1): B = 1 holds S sequences, one after the other
    padding         (B, T) boolean, true where a key does not exist
    causal          False: every query reads the sum over all keys; M may differ from T; no decay, no beta
    normalize, eps  default False, 1e-6; ask for q, k >= 0
    scale           s; default Dk^-1/2, and 1 with normalize
    chunk           tokens; default 64, and 128 where nothing decays
    form            "chunked", "recurrent" (a loop, for few tokens) or "auto"
    path            "stripe" (chunks recomputed in the backward, O(T) memory), "composite" (kept) or "auto"

    Differentiable to any order and in forward mode. ValueError for shapes, log_decay > 0 (unless allow_growth), heads
    that do not divide, states of another shape or dtype, bounds that do not cover T, and options that exclude each
    other.

    Katharopoulos et al., 2020 (arXiv 2006.16236); Yang et al., 2023 (2312.06635); Yang et al., 2024 (2406.06484,
    2412.06464).
    """
    for name, value in (("q", q), ("k", k), ("v", v)):
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"[linear_attention] expected {name} to be a torch.Tensor; found {type(value).__name__}")
    o, state, z = torch.ops.regard.linear_attention(
        q, k, v, log_decay=log_decay, decay_side=decay_side, beta=beta, initial_state=initial_state,
        initial_z=initial_z, cu_seqlens=cu_seqlens, padding=padding, causal=causal, normalize=normalize, eps=eps,
        scale=scale, chunk=chunk, form=form, path=path, allow_growth=allow_growth)
    return LinearAttentionOutput(o, state, z if normalize else None)
