"""softmax-attention again, dense and in plain PyTorch, with inputs of every kind: what its tests are held against."""

import torch
from mechanisms import named, tokens

ID = "softmax-attention"
F = torch.nn.functional


def rotated(x, positions, theta, width, interleaved):
    """RoPE by complex numbers: x (B, H, L, Dh), positions (L) or (B, L)."""
    turn = positions.double()[..., None] * theta ** (-torch.arange(0, width, 2).double() / width)
    turn = torch.polar(torch.ones_like(turn), turn)
    turn = turn[:, None] if turn.dim() == 3 else turn
    part, rest = x[..., :width], x[..., width:]
    pairs = part.unflatten(-1, (-1, 2)) if interleaved else part.unflatten(-1, (2, -1)).transpose(-1, -2)
    pairs = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    return torch.cat([(pairs if interleaved else pairs.transpose(-1, -2)).flatten(-2), rest], -1)


def reference(config, weights, x, inputs):
    """Everything dense, in the order of the documentation; returns y, the weights p and what queries see."""
    c = {"heads": 8, "norm_epsilon": 1e-6, "rope_theta": 1e4, "normalizer": "softmax", "divisor": "auto", **config}
    w = named(ID, config, weights)
    H, D = c["heads"], c["width"]
    Hk, Dh = c.get("kv_heads") or H, c.get("head_width") or D // H
    Dv = c.get("value_width") or Dh
    memory = inputs.get("memory", x)
    B, M, N = x.shape[0], x.shape[1], memory.shape[1]
    sizes = (H * Dh, Hk * Dh, Hk * Dv)
    bq, bk, bv = w["in_proj_bias"].split(sizes) if "in_proj_bias" in w else (None,) * 3
    if "in_proj_weight" in w:
        wq, wk, wv = w["in_proj_weight"].split(sizes)
    else:
        wq, wk, wv = w["q_proj_weight"], w["k_proj_weight"], w["v_proj_weight"]
    q, k, v = (F.linear(t, a, b).unflatten(-1, (h, -1)).transpose(1, 2)
               for t, a, b, h in ((x, wq, bq, H), (memory, wk, bk, Hk), (memory, wv, bv, Hk)))
    if c.get("qk_norm"):
        q = F.layer_norm(q, (Dh,), w["q_norm.weight"], w["q_norm.bias"], c["norm_epsilon"])
        k = F.layer_norm(k, (Dh,), w["k_norm.weight"], w["k_norm.bias"], c["norm_epsilon"])
    offset = torch.zeros(B, 1, dtype=torch.long)
    aligned = (c.get("causal") or c.get("alibi") or "slopes" in inputs or c.get("window_left", -1) >= 0
               or c.get("window_right", -1) >= 0)
    if "memory" in inputs and aligned and c.get("alignment") != "top_left":  # padding moves no corner
        own = [inputs.get(name, torch.tensor([size])) for name, size in (("memory_lengths", N), ("lengths", M))]
        offset = (own[0] - own[1]).expand(B)[:, None]
    if c.get("rope"):
        at = inputs.get("positions", torch.arange(M) + offset)
        at_key = inputs.get("memory_positions", torch.arange(N)) if "memory" in inputs else at
        width = c.get("rope_width") or Dh
        q = rotated(q, at, c["rope_theta"], width, c.get("rope_interleaved"))
        k = rotated(k, at_key, c["rope_theta"], width, c.get("rope_interleaved"))
    k, v = (t.repeat_interleave(H // Hk, 1) for t in (k, v))
    s = (q @ k.transpose(-1, -2)) * c.get("scale", Dh ** -0.5)
    if c.get("softcap"):
        s = c["softcap"] * torch.tanh(s / c["softcap"])
    if "bias" in inputs:
        s = s + inputs["bias"]
    i, j = (torch.arange(M) + offset)[:, None, :, None], torch.arange(N)
    if c.get("alibi") or "slopes" in inputs:
        slopes = inputs.get("slopes", torch.tensor([2.0 ** (-8 * (h + 1) / H) for h in range(H)], dtype=s.dtype))
        s = s - slopes[:, None, None] * (i - j).abs()
    seen = torch.ones(B, H, M, N, dtype=torch.bool)
    if c.get("causal"):
        seen = seen & (j <= i)
    if c.get("window_left", -1) >= 0:
        seen = seen & (j >= i - c["window_left"])
    if c.get("window_right", -1) >= 0:
        seen = seen & (j <= i + c["window_right"])
    lengths = inputs.get("memory_lengths") if "memory" in inputs else inputs.get("lengths")
    count = torch.full((B, 1, 1, 1), N, dtype=s.dtype)
    if lengths is not None:
        seen = seen & (j < lengths[:, None, None, None])
        count = lengths.clamp(1, N)[:, None, None, None].to(s.dtype)
    if "key_hidden" in inputs:
        seen = seen & ~inputs["key_hidden"][:, None, None]
    if "hidden" in inputs:
        seen = seen & ~inputs["hidden"]
    if "segments" in inputs:
        seen = seen & (inputs["segments"][:, None, :, None] == inputs.get("memory_segments", inputs["segments"])[:, None, None])
    kind = c["normalizer"]
    if kind in ("softmax", "softmax1"):
        sinks = w.get("sinks", torch.zeros(H, 1 if kind == "softmax1" else 0, dtype=s.dtype)).reshape(H, -1)
        extra = sinks[None, :, None].expand(B, H, M, sinks.shape[1])
        logits = torch.cat([s.masked_fill(~seen, -torch.inf), extra], -1)
        dead = torch.isinf(logits).all(-1, keepdim=True)
        p = torch.softmax(logits.masked_fill(dead, 0), -1)[..., :N]
    elif kind == "sigmoid":
        p = torch.sigmoid(s + (c["sigmoid_bias"] if "sigmoid_bias" in c else -count.log()))
    else:
        visible = seen.sum(-1, keepdim=True).clamp_min(1)
        by = {"auto": count if kind == "relu" else 1, "one": 1, "keys": count, "sqrt_keys": count.sqrt(), "visible": visible}
        p = (s.relu() if kind == "relu" else s) / by[c["divisor"]]
    p = p.masked_fill(~seen, 0)
    y = (p @ v).transpose(1, 2).flatten(2)
    if c.get("output_norm"):
        y = F.layer_norm(y, y.shape[-1:], w["norm.weight"], w["norm.bias"], c["norm_epsilon"])
    y = F.linear(y, w["out_proj.weight"], w.get("out_proj.bias"))
    if "lengths" in inputs:
        y = y.masked_fill((torch.arange(M) >= inputs["lengths"][:, None])[..., None], 0)
    return y, p, seen


B, M, N = 3, 7, 9


def x_of(config, length=M):
    return tokens(config, B, length)


def random_inputs(*wanted, width=12, heads=3):
    """Named inputs of every kind, for x (B, M) and memory (B, N)."""
    memory = any(name.startswith("memory") for name in wanted)
    n = N if memory else M
    hidden = torch.rand(M, n) < 0.3
    hidden[2] = True  # a query that sees nothing
    every = {
        "memory": lambda: torch.randn(B, N, width, dtype=torch.float64),
        "lengths": lambda: torch.tensor([M, 3, 0]),
        "memory_lengths": lambda: torch.tensor([N, 4, 0]),
        "hidden": lambda: hidden,
        "key_hidden": lambda: torch.rand(B, n) < 0.3,
        "bias": lambda: torch.randn(M, n, dtype=torch.float64),
        "slopes": lambda: torch.rand(heads, dtype=torch.float64),
        "segments": lambda: torch.randint(0, 3, (B, M)).sort().values,
        "memory_segments": lambda: torch.randint(0, 3, (B, N)).sort().values,
        "positions": lambda: torch.randint(0, 50, (B, M)),
        "memory_positions": lambda: torch.randint(0, 50, (N,)),
    }
    return {name: every[name]() for name in wanted}
