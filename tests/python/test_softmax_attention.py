"""softmax-attention: every option against a dense reference, torch's own module, the properties of attention, refusals."""

import json
import math

import pytest
import torch
from mechanisms import call, gradcheck, main, refuses, tokens, weights_of

ID = "softmax-attention"
F = torch.nn.functional


def named(config, weights):
    return dict(zip([w["name"] for w in json.loads(torch.ops.regard.declare(ID, json.dumps(config)))["weights"]], weights))


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
    w = named(config, weights)
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


OPTIONS = [
    ({}, ()),
    ({"qkv_bias": False, "out_bias": False}, ()),
    ({"head_width": 5, "value_width": 2}, ()),
    ({"heads": 6, "kv_heads": 2, "scale": 0.3}, ()),
    ({"causal": True}, ("lengths",)),
    ({"window_left": 2}, ()),
    ({"window_right": 1}, ("lengths",)),
    ({"causal": True, "window_left": 1}, ("hidden",)),
    ({"causal": True}, ("memory", "memory_lengths")),
    ({"causal": True, "alignment": "top_left"}, ("memory", "lengths")),
    ({"window_left": 2, "window_right": 2}, ("memory",)),
    ({}, ("hidden", "key_hidden", "bias")),
    ({}, ("memory", "hidden", "key_hidden", "bias")),
    ({}, ("segments",)),
    ({}, ("memory", "segments", "memory_segments")),
    ({"alibi": True, "heads": 4}, ()),
    ({"alibi": True, "heads": 4, "causal": True}, ("memory",)),
    ({}, ("slopes", "lengths")),
    ({"softcap": 0.5}, ("bias",)),
    ({"rope": True, "head_width": 4}, ()),
    ({"rope": True, "head_width": 6, "rope_width": 4, "rope_theta": 100.0, "rope_interleaved": True}, ("positions",)),
    ({"rope": True, "head_width": 4, "causal": True}, ("memory",)),
    ({"rope": True, "head_width": 4}, ("memory", "positions", "memory_positions")),
    ({"rope": True, "head_width": 4}, ("memory",)),
    ({"rope": True, "head_width": 4}, ("memory", "memory_lengths")),
    ({"rope": True, "head_width": 4, "alibi": True, "heads": 2}, ("memory", "lengths")),
    ({"qk_norm": True, "output_norm": True, "norm_epsilon": 1e-5}, ()),
    ({"sinks": 1}, ("hidden",)),
    ({"sinks": 3, "softcap": 2.0}, ("lengths",)),
    ({"normalizer": "softmax1"}, ("hidden",)),
    ({"normalizer": "sigmoid"}, ("hidden",)),
    ({"normalizer": "sigmoid"}, ("lengths",)),
    ({"normalizer": "sigmoid", "sigmoid_bias": -1.5, "causal": True}, ()),
    ({"normalizer": "relu"}, ("lengths",)),
    ({"normalizer": "relu", "divisor": "visible"}, ("hidden",)),
    ({"normalizer": "none"}, ("hidden",)),
    ({"normalizer": "none", "divisor": "sqrt_keys"}, ("lengths",)),
    ({"memory_width": 5}, ("memory",)),
    ({"memory_width": 5, "qkv_bias": False}, ("memory", "memory_lengths", "key_hidden")),
]
OPTIONS = [({"width": 12, "heads": 3, **config}, inputs) for config, inputs in OPTIONS]
each_option = pytest.mark.parametrize(
    "config, wanted", OPTIONS, ids=["-".join([*(f"{k}={v}" for k, v in c.items() if k != "width"), *i]) for c, i in OPTIONS])
FUSED = ("softmax", "softmax1")


@each_option
def test_equals_the_reference_with_gradients(config, wanted):
    inputs = random_inputs(*wanted, width=config.get("memory_width", 12), heads=config["heads"])
    leaves = [x_of(config), *weights_of(ID, config), *(t for t in inputs.values() if t.is_floating_point())]
    leaves = [t.requires_grad_() for t in leaves]
    x, weights = leaves[0], leaves[1:1 + len(weights_of(ID, config))]
    y, attn = call(ID, config, weights, x, inputs, outputs=["attn"])
    expected, p, seen = reference(config, weights, x, inputs)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    if "lengths" not in inputs:
        torch.testing.assert_close(attn, p, rtol=1e-10, atol=1e-12)
    w = torch.randn_like(y)
    got = torch.autograd.grad((y * w).sum(), leaves, allow_unused=True)
    want = torch.autograd.grad((expected * w).sum(), leaves, allow_unused=True)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b if b is not None else torch.zeros_like(a), rtol=1e-8, atol=1e-10)


@each_option
def test_float32_takes_the_fused_path(config, wanted, paths_of):
    """Masks, biases, sinks and RoPE never cost the fast path; only other normalizers take the stripe."""
    inputs = random_inputs(*wanted, width=config.get("memory_width", 12), heads=config["heads"])
    inputs = {name: t.float() if t.is_floating_point() else t for name, t in inputs.items()}
    weights = [w.requires_grad_() for w in weights_of(ID, config, torch.float32)]
    x = x_of(config).float()
    counts, y = paths_of(lambda: main(ID, config, weights, x, inputs))
    assert counts["attention"] == {"fused" if config.get("normalizer", "softmax") in FUSED else "stripe": 1}
    double = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    expected, _, _ = reference(config, [w.double() for w in weights], x.double(), double)
    torch.testing.assert_close(y.double(), expected, rtol=2e-5, atol=2e-6)
    y.sum().backward()


@pytest.mark.parametrize("config, wanted", OPTIONS[:1] + OPTIONS[8:9] + OPTIONS[12:13] + OPTIONS[20:21] + OPTIONS[25:26])
def test_gradcheck(config, wanted):
    inputs = random_inputs(*wanted, width=config.get("memory_width", 12), heads=config["heads"])
    small = {**config, "width": 6}
    if "memory" in inputs:
        inputs["memory"] = inputs["memory"][..., :6]
    gradcheck(lambda x, *weights: main(ID, small, weights, x, inputs), x_of(small), *weights_of(ID, small), second=False)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (7, 9), (3, 7, 9), (1, 1, 1, 9), (3, 1, 7, 1), (3, 3, 7, 9), (9,)],
                         ids=str)
def test_bias_and_hidden_broadcast(shape):
    config = {"width": 12, "heads": 3}
    inputs = {**random_inputs("memory"), "bias": torch.randn(shape, dtype=torch.float64, requires_grad=True),
              "hidden": torch.rand(shape) < 0.3}
    weights, x = weights_of(ID, config), x_of(config)
    y, (expected, _, _) = main(ID, config, weights, x, inputs), reference(config, weights, x, inputs)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    got, want = (torch.autograd.grad(t.square().sum(), inputs["bias"])[0] for t in (y, expected))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kdim", [None, 5])
def test_equals_torchs_module(kdim):
    """torch.nn.MultiheadAttention's state dict loads as it is."""
    theirs = torch.nn.MultiheadAttention(12, 3, kdim=kdim, vdim=kdim, batch_first=True, dtype=torch.float64)
    torch.nn.init.normal_(theirs.in_proj_bias)
    config = {"width": 12, "heads": 3, **({"memory_width": kdim} if kdim else {})}
    state = theirs.state_dict()
    assert set(state) == set(named(config, torch.ops.regard.initialize(ID, json.dumps(config))))
    weights = [state[name] for name in named(config, torch.ops.regard.initialize(ID, json.dumps(config)))]
    inputs = random_inputs("memory", "hidden", "bias", width=kdim or 12)
    inputs["hidden"][2] = False
    key_hidden = torch.zeros(B, N, dtype=torch.bool)
    key_hidden[1, 5:] = True
    mask = inputs["bias"].masked_fill(inputs["hidden"], -torch.inf)
    key_mask = torch.zeros(B, N, dtype=torch.float64).masked_fill(key_hidden, -torch.inf)
    expected, attn = theirs(x_of(config) * 0 + 1, inputs["memory"], inputs["memory"], key_padding_mask=key_mask,
                            attn_mask=mask, average_attn_weights=False)
    got, weights_seen = call(ID, config, weights, x_of(config) * 0 + 1, {**inputs, "key_hidden": key_hidden}, outputs=["attn"])
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(weights_seen, attn)


def test_alibi_slopes_of_other_head_counts():
    """Six heads: those of four, then every second one of eight."""
    config = {"width": 12, "heads": 6}
    weights, x = weights_of(ID, config), x_of(config)
    slopes = torch.tensor([2.0 ** -e for e in (2, 4, 6, 8, 1, 3)], dtype=torch.float64)
    torch.testing.assert_close(main(ID, {**config, "alibi": True}, weights, x), main(ID, config, weights, x, {"slopes": slopes}))


# ---- properties ------------------------------------------------------------------------------------------------------

PLAIN = {"width": 12, "heads": 3}


def test_rows_sum_to_one_or_leave_the_sinks_their_share():
    x = x_of(PLAIN)
    for config, total in (({}, 1), ({"sinks": 2}, None), ({"normalizer": "softmax1"}, None)):
        config = {**PLAIN, **config}
        weights = weights_of(ID, config)
        attn, lse = call(ID, config, weights, x, outputs=["attn", "lse"])[1:]
        if total is None:
            sinks = named(config, weights).get("sinks", torch.zeros(3, 1, dtype=torch.float64))
            total = 1 - (sinks[None, :, None] - lse[..., None]).exp().sum(-1)
        torch.testing.assert_close(attn.sum(-1), torch.as_tensor(total, dtype=torch.float64).expand(B, 3, M))


def test_sinks_of_zero_are_softmax1_and_of_minus_infinity_are_none():
    weights, x = weights_of(ID, PLAIN), x_of(PLAIN)
    zero = torch.zeros(3, dtype=torch.float64)
    with_sinks = {**PLAIN, "sinks": 1}
    torch.testing.assert_close(main(ID, with_sinks, [*weights, zero], x), main(ID, {**PLAIN, "normalizer": "softmax1"}, weights, x))
    torch.testing.assert_close(main(ID, with_sinks, [*weights, zero - 1e4], x), main(ID, PLAIN, weights, x))


def test_a_row_that_sees_nothing_is_zero_before_the_output_bias():
    weights = [w.requires_grad_() for w in weights_of(ID, PLAIN)]
    x = x_of(PLAIN).requires_grad_()
    hidden = torch.zeros(M, M, dtype=torch.bool)
    hidden[4] = True
    y, attn, lse = call(ID, PLAIN, weights, x, {"hidden": hidden}, outputs=["attn", "lse"])
    torch.testing.assert_close(y[:, 4], named(PLAIN, weights)["out_proj.bias"].expand(B, 12))
    assert (attn[:, :, 4] == 0).all() and (lse[:, :, 4] == -math.inf).all()
    alone = torch.autograd.grad(y[:, 4].sum(), [x, weights[0]])
    assert all((g == 0).all() for g in alone)
    torch.testing.assert_close(y[:, :4], main(ID, PLAIN, weights, x)[:, :4])


def test_nan_in_hidden_keys_reaches_nothing():
    weights = [w.requires_grad_() for w in weights_of(ID, PLAIN)]
    x, inputs = x_of(PLAIN), random_inputs("memory")
    clean = main(ID, PLAIN, weights, x, {"memory": inputs["memory"][:, :6]})
    inputs["memory"][:, 6:] = torch.nan
    inputs["key_hidden"] = (torch.arange(N) >= 6).expand(B, N)
    y = main(ID, PLAIN, weights, x, inputs)
    torch.testing.assert_close(y, clean)
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), weights))


def test_causal_outputs_do_not_change_with_the_future():
    config = {**PLAIN, "causal": True}
    weights, x = weights_of(ID, config, torch.float32), x_of(config).float()
    other = x.clone()
    other[:, 4:] = torch.randn_like(other[:, 4:])
    torch.testing.assert_close(main(ID, config, weights, other)[:, :4], main(ID, config, weights, x)[:, :4], rtol=1e-6, atol=1e-6)


def test_permutations_and_limits():
    weights, x, memory = weights_of(ID, PLAIN), x_of(PLAIN), random_inputs("memory")["memory"]
    y, order = main(ID, PLAIN, weights, x, {"memory": memory}), torch.randperm(N)
    torch.testing.assert_close(main(ID, PLAIN, weights, x, {"memory": memory[:, order]}), y)
    torch.testing.assert_close(main(ID, PLAIN, weights, x[:, [3, 1]], {"memory": memory}), y[:, [3, 1]])
    torch.testing.assert_close(main(ID, {**PLAIN, "softcap": 1e6}, weights, x, {"memory": memory}), y)
    one = memory[:, :1]
    torch.testing.assert_close(main(ID, PLAIN, weights, x, {"memory": one}), main(ID, PLAIN, weights, x * 0, {"memory": one}))
    nothing = main(ID, PLAIN, weights, x, {"memory": memory[:, :0]})
    torch.testing.assert_close(nothing, named(PLAIN, weights)["out_proj.bias"].expand_as(x))


def test_attention_dropout_drops_weights():
    config = {**PLAIN, "attn_drop": 0.5}
    weights, x = weights_of(ID, config), x_of(config)
    y, attn = call(ID, config, weights, x, outputs=["attn"], training=True, seed=torch.tensor(5))
    whole = call(ID, config, weights, x, outputs=["attn"])[1]
    kept = attn != 0
    torch.testing.assert_close(attn[kept], 2 * whole[kept])
    assert 0.35 < kept.double().mean() < 0.65
    w = named(config, weights)
    v = F.linear(x, w["in_proj_weight"][24:], w["in_proj_bias"][24:]).unflatten(-1, (3, 4)).transpose(1, 2)
    torch.testing.assert_close(F.linear((attn @ v).transpose(1, 2).flatten(2), w["out_proj.weight"], w["out_proj.bias"]), y)


def test_bad_configurations():
    def bad(text, **config):
        refuses(f"[softmax-attention] expected {text}", ID, {"width": 8, "heads": 2, **config})

    bad("width to be a multiple of heads, or head_width given; found width 8, heads 3", heads=3)
    bad("heads >= 1; found 0", heads=0)
    bad("heads to be a multiple of kv_heads; found heads 2, kv_heads 3", kv_heads=3)
    bad("kv_heads >= 0; found -1", kv_heads=-1)
    bad("an even rope_width, at most the head width 4; found 6", rope=True, rope_width=6)
    bad("an even rope_width, at most the head width 3; found 3", rope=True, head_width=3)
    bad("rope_theta > 0; found 0.000000", rope=True, rope_theta=0.0)
    bad("window_left >= -1; found -2", window_left=-2)
    bad("softcap >= 0; found -1.000000", softcap=-1.0)
    bad("norm_epsilon > 0; found 0.000000", norm_epsilon=0.0)
    bad("0 <= attn_drop < 1; found 1.000000", attn_drop=1.0)
    bad("0 <= proj_drop < 1; found -0.100000", proj_drop=-0.1)
    bad("normalizer among 'softmax', 'softmax1', 'sigmoid', 'relu', 'none'; found 'softmx'; did you mean 'softmax'?",
        normalizer="softmx")
    bad("alignment among 'bottom_right', 'top_left'; found 'top_lft'; did you mean 'top_left'?", alignment="top_lft")
    bad("sinks only with normalizer 'softmax'; found 'relu'", sinks=1, normalizer="relu")
    bad("sigmoid_bias only with normalizer 'sigmoid'; found 'softmax'", sigmoid_bias=0.0)
    bad("a divisor only with normalizer 'relu' or 'none'; found 'softmax'", divisor="keys")
    bad("divisor 'sqrt_keys' only with normalizer 'none'; found 'relu'", divisor="sqrt_keys", normalizer="relu")


def test_bad_inputs():
    x, config = torch.randn(2, 6, 8), {"width": 8, "heads": 2}
    memory = torch.randn(2, 5, 8)

    def bad(text, config=config, **inputs):
        refuses(f"[softmax-attention] expected {text}", ID, config, x, inputs=inputs)

    bad("memory (B, N, 8) with the batch of x (2, 6, 8) float32; found (2, 5, 7) float32", memory=memory[..., :7])
    bad("memory (B, N, 8) with the batch of x (2, 6, 8) float32; found (1, 5, 8) float32", memory=memory[:1])
    bad("input memory (B, N, 5), since memory_width is not width; found none", {**config, "memory_width": 5})
    bad("memory with memory_lengths; found memory_lengths alone", memory_lengths=torch.tensor([1, 2]))
    bad("key_hidden (B, N) bool (true = not attended) for keys of (2, 6, 8) float32; found (2, 5) bool",
        key_hidden=torch.zeros(2, 5, dtype=torch.bool))
    bad("hidden of type bool (true = not attended); found (6, 6) float32", hidden=torch.zeros(6, 6))
    bad("hidden to broadcast to (B, H, M, N) = (2, 2, 6, 6); found (5, 6) bool", hidden=torch.zeros(5, 6, dtype=torch.bool))
    bad("bias to broadcast to (B, H, M, N) = (2, 2, 6, 5); found (6, 6) float32", memory=memory, bias=torch.zeros(6, 6))
    bad("bias of a floating type; found (6, 6) int64", bias=torch.zeros(6, 6).long())
    bad("slopes (2,); found (3,) float32", slopes=torch.zeros(3))
    bad("segments (B, L), integer, L = 6; found (2, 5) int64", segments=torch.zeros(2, 5).long())
    bad("segments and memory_segments together; found segments alone", memory=memory, segments=torch.zeros(2, 6).long())
    bad("positions only with rope; found positions", positions=torch.arange(6))
    bad("positions (L) or (B, L), L = 6; found (5,) int64", {**config, "rope": True}, positions=torch.arange(5))
    bad("inputs among 'memory', 'lengths', 'memory_lengths', 'hidden', 'key_hidden', 'bias', 'slopes', 'segments', "
        "'memory_segments', 'positions', 'memory_positions'; found 'memry'; did you mean 'memory'?", memry=memory)
    bad("lengths in [0, 6]; found 9 in row 0", lengths=torch.tensor([9, 1]))
    bad("lengths in [0, 6]; found -1 in row 1", lengths=torch.tensor([6, -1], dtype=torch.int32))
    bad("lengths in [0, 6]; found 7 in row 1", lengths=torch.tensor([1, 0, 7])[::2])
    bad("memory_lengths in [0, 5]; found 6 in row 1", memory=memory, memory_lengths=torch.tensor([5, 6]))
    bad("memory_lengths (B), integer; found (2,) float32", memory=memory, memory_lengths=torch.ones(2))
    bad("memory_lengths of the 2 rows of x; found (3,) int64", memory=memory, memory_lengths=torch.ones(3).long())


def test_default_positions_of_rope_count_from_zero():
    """x and memory from 0 each, unless a causal mask, a window or ALiBi says where the queries lie."""
    config = {"width": 8, "heads": 2, "rope": True}
    weights, x = weights_of(ID, config), torch.randn(2, 3, 8, dtype=torch.float64)
    memory = torch.randn(2, 7, 8, dtype=torch.float64)

    def y(config, **inputs):
        return main(ID, config, weights, x, {"memory": memory, **inputs})

    given = {"positions": torch.arange(3), "memory_positions": torch.arange(7)}
    assert torch.equal(y(config), y(config, **given))
    for aligned in ({"causal": True}, {"window_left": 6}, {"window_right": 6}):
        assert torch.equal(y({**config, **aligned}), y({**config, **aligned}, positions=torch.arange(4, 7)))
        assert not torch.allclose(y({**config, **aligned}), y({**config, **aligned}, positions=torch.arange(3)))
