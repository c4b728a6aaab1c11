"""softmax-attention: every option against a dense reference, torch's own module."""

import json

import pytest
import torch
from mechanisms import call, gradcheck, main, named, weights_of
from reference_softmax_attention import ID, B, N, random_inputs, reference, x_of

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
    """Masks, biases, sinks, RoPE and other normalizers never cost the fast path."""
    inputs = random_inputs(*wanted, width=config.get("memory_width", 12), heads=config["heads"])
    inputs = {name: t.float() if t.is_floating_point() else t for name, t in inputs.items()}
    weights = [w.requires_grad_() for w in weights_of(ID, config, torch.float32)]
    x = x_of(config).float()
    counts, y = paths_of(lambda: main(ID, config, weights, x, inputs))
    assert counts["attention"] == {"fused": 1}
    double = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    expected, _, _ = reference(config, [w.double() for w in weights], x.double(), double)
    torch.testing.assert_close(y.double(), expected, rtol=2e-5, atol=2e-6)
    y.sum().backward()


@pytest.mark.parametrize("config, wanted",
                         OPTIONS[:1] + OPTIONS[8:9] + OPTIONS[12:13] + OPTIONS[20:21] + OPTIONS[25:26])
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
    assert set(state) == set(named(ID, config, torch.ops.regard.initialize(ID, json.dumps(config))))
    weights = [state[name] for name in named(ID, config, torch.ops.regard.initialize(ID, json.dumps(config)))]
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
