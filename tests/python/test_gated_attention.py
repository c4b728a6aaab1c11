"""gated-attention: every position, granularity and activation of the gate written out; the official row order; cache."""

import json

import pytest
import regard
import torch
from mechanisms import call, decoded, gradcheck, main, named, refuses, tokens, weights_of

ID = "gated-attention"
F = torch.nn.functional
B, M, N = 3, 7, 9
BASE = {"width": 12, "heads": 4, "kv_heads": 2, "head_width": 6}
CONFIGS = [{"headwise": True}, {}, {"qkv_bias": True, "headwise": True}, {"qk_norm": False, "rope": False, "kv_heads": 4},
           {"shared": True}, {"shared": True, "headwise": True}, {"additive": True}, {"activation": "ns_sigmoid"},
           {"activation": "silu"}, {"additive": True, "activation": "sigmoid"}, {"input_independent": True},
           {"input_independent": True, "headwise": True, "position": "G2"}, {"elementwise": False},
           {"position": "G2"}, {"position": "G2", "headwise": True, "shared": True}, {"position": "G3"},
           {"position": "G3", "headwise": True}, {"position": "G4"}, {"position": "G4", "shared": True, "additive": True},
           {"position": "G5"}, {"position": "G5", "input_independent": True, "additive": True}]
CONFIGS = [{**BASE, **config} for config in CONFIGS]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: json.dumps({k: v for k, v in c.items() if k not in BASE}))


def rotated(t, theta=1e4):
    width = t.shape[-1]
    angles = torch.arange(t.shape[2]).double()[:, None] * theta ** (-torch.arange(0, width, 2).double() / width)
    cos, sin = (torch.cat([f, f], -1) for f in (angles.cos(), angles.sin()))
    a, b = t.chunk(2, -1)
    return t * cos + torch.cat([-b, a], -1) * sin


def written_out(config, weights, x, memory=None, causal=False):
    w, memory = named(ID, config, weights), x if memory is None else memory
    H, Hk, Dh, position = config["heads"], config["kv_heads"], config["head_width"], config.get("position", "G1")
    G, kind = H // Hk, config.get("activation", "auto")
    gated = config.get("headwise") or config.get("elementwise", True)
    channels = 1 if config.get("headwise") else Dh
    act = {"sigmoid": torch.sigmoid, "silu": F.silu, "ns_sigmoid": lambda z: 0.5 + 0.5 * torch.sigmoid(z),
           "auto": F.silu if config.get("additive") else torch.sigmoid}[kind]

    def project(t, name):
        return F.linear(t, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def gate(at, y, token, z=None):
        if position != at or not gated:
            return y
        if z is None and at == "G5":
            z = w["gate"][0] if "gate" in w else project(token, "gate_proj")
        elif z is None and "gate" in w:
            z = w["gate"][:, None]
        elif z is None:
            z = project(token, "gate_proj").unflatten(-1, (-1, channels)).transpose(1, 2)
        return y + act(z) if config.get("additive") else y * act(z)

    rows, z = project(x, "q_proj"), None
    if rows.shape[-1] != H * Dh:  # grouped: per key head, G Dh query rows, then G gate rows (of `channels`)
        q, z = [], []
        for part in rows.chunk(Hk, -1):
            q += part[..., :G * Dh].chunk(G, -1)
            z += part[..., G * Dh:].chunk(G, -1)
        q, z = torch.stack(q, 1), torch.stack(z, 1)
    else:
        q = rows.unflatten(-1, (H, Dh)).transpose(1, 2)
    k, v = (project(memory, n).unflatten(-1, (Hk, Dh)).transpose(1, 2) for n in ("k_proj", "v_proj"))
    q, k, v = gate("G4", q, x), gate("G3", k, memory), gate("G2", v, memory)
    if config.get("qk_norm", True):
        q, k = (w[f"{n}_norm.weight"] * t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt()
                for n, t in (("q", q), ("k", k)))
    if config.get("rope", True):
        q, k = rotated(q), rotated(k)
    k, v = (t.repeat_interleave(G, 1) for t in (k, v))
    s = q @ k.transpose(-1, -2) * Dh ** -0.5
    if causal:
        s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    o = gate("G1", s.softmax(-1) @ v, x, z)
    return gate("G5", project(o.transpose(1, 2).flatten(2), "o_proj"), x)


@each_config
@pytest.mark.parametrize("causal", [False, True])
def test_equals_the_formula_with_gradients(config, causal):
    leaves = [t.requires_grad_() for t in (tokens(config, B, M), *weights_of(ID, config))]
    y = main(ID, {**config, "causal": causal}, leaves[1:], leaves[0])
    expected = written_out(config, leaves[1:], leaves[0], causal=causal)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    w = torch.randn_like(y)
    for a, e in zip(*(torch.autograd.grad((t * w).sum(), leaves) for t in (y, expected))):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-10)


@each_config
def test_cross_attention_gates_by_the_owner(config):
    weights, x, memory = weights_of(ID, config), tokens(config, B, M), torch.randn(B, N, 12, dtype=torch.float64)
    torch.testing.assert_close(main(ID, config, weights, x, {"memory": memory}),
                               written_out(config, weights, x, memory))


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[1], CONFIGS[13], CONFIGS[18]], ids=json.dumps)
def test_takes_the_fused_path(config, paths_of):
    weights, x = weights_of(ID, config, torch.float32), tokens(config, B, M, torch.float32)
    counts, y = paths_of(lambda: main(ID, config, weights, x, {"lengths": torch.tensor([M, 3, 0])}))
    assert counts["attention"] == {"fused": 1}
    expected = main(ID, config, weights, x, {"lengths": torch.tensor([M, 3, 0])}, path="composite")
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


# ---- properties ------------------------------------------------------------------------------------------------------


def test_zero_gate_rows_give_exactly_half_and_large_ones_the_plain_attention():
    config = {**BASE, "headwise": True, "qkv_bias": True}
    weights, x = weights_of(ID, config), tokens(config, B, M)
    w = named(ID, config, weights)
    w["o_proj.bias"].zero_()
    rows = [part.split([12, 2]) for part in w["q_proj.weight"].chunk(2)]
    bias = [part.split([12, 2]) for part in w["q_proj.bias"].chunk(2)]
    rest = weights[2:]
    plain = main(ID, {**BASE, "elementwise": False, "qkv_bias": True},
                 [torch.cat([q for q, _ in rows]), torch.cat([q for q, _ in bias]), *rest], x)
    for shift, factor in ((0.0, 0.5), (50.0, 1.0)):
        gates = [torch.cat([torch.cat([q, torch.zeros_like(g)]) for q, g in rows]),
                 torch.cat([torch.cat([q, torch.full_like(g, shift)]) for q, g in bias])]
        torch.testing.assert_close(main(ID, config, [*gates, *rest], x), factor * plain)


def test_headwise_is_elementwise_with_equal_rows():
    config = {**BASE, "headwise": True}
    weights, x = weights_of(ID, config), tokens(config, B, M)
    parts = [part.split([12, 2]) for part in weights[0].chunk(2)]
    rows = torch.cat([torch.cat([q, g.repeat_interleave(6, 0)]) for q, g in parts])
    torch.testing.assert_close(main(ID, BASE, [rows, *weights[1:]], x), main(ID, config, weights, x))


def test_both_flags_are_headwise():
    config = {**BASE, "headwise": True, "elementwise": False}
    weights, x = weights_of(ID, config), tokens(config, B, M)
    assert torch.equal(main(ID, {**config, "elementwise": True}, weights, x), main(ID, config, weights, x))


def base_queries(module, x):
    w = module.state_dict()
    q = F.linear(x, w["q_proj.weight"]).unflatten(-1, (4, 6)).transpose(1, 2)
    return rotated(w["q_norm.weight"] * q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt())


def test_a_value_gate_scales_the_values():
    """The cache holds gated values; over them plain attention gives the gated one."""
    config, plain = {**BASE, "position": "G2"}, {**BASE, "elementwise": False}
    x = tokens(config, B, M)
    gated = regard.create(ID, **config, causal=True, dtype=torch.float64)
    base = regard.create(ID, **plain, causal=True, dtype=torch.float64)
    base.load_state_dict({name: t for name, t in gated.state_dict().items() if name != "gate_proj.weight"})
    y, cache, others = gated.decode(x, outputs=["gate"])
    _, own = base.decode(x)
    assert others["gate"].shape == (B, 2, M, 6)
    torch.testing.assert_close(cache["v"], own["v"] * others["gate"])
    torch.testing.assert_close(cache["k"], own["k"])
    q, k, v = base_queries(base, x), cache["k"], cache["v"]
    o = regard.attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(F.linear(o, gated.state_dict()["o_proj.weight"]), y)


def test_the_gate_of_a_token_scales_that_token_only():
    config = {**BASE, "position": "G5"}
    weights, x = weights_of(ID, config), tokens(config, B, M)
    y, gate = call(ID, config, weights, x, outputs=["gate"])
    plain = main(ID, {**BASE, "elementwise": False}, weights[:-1], x)
    torch.testing.assert_close(y, plain * gate)


def test_row_order_matters():
    """[all q | all gates] is not the official layout: with two key heads the two differ, with one they agree."""
    for kv_heads, same in ((1, True), (2, False)):
        config = {**BASE, "kv_heads": kv_heads}
        weights, x = weights_of(ID, config), tokens(config, B, M)
        parts = [part.chunk(2) for part in weights[0].chunk(kv_heads)]
        other = torch.cat([q for q, _ in parts] + [g for _, g in parts])
        assert torch.equal(other, weights[0]) == same
        assert torch.allclose(main(ID, config, [other, *weights[1:]], x), main(ID, config, weights, x)) == same


def test_tables_replace_theta():
    config = {**BASE, "causal": True}
    weights, x = weights_of(ID, config), tokens(config, B, M)
    angles = torch.arange(M).double()[:, None] * 1e4 ** (-torch.arange(0, 6, 2).double() / 6)
    for prepare in (lambda t: t, lambda t: t.repeat(1, 2), lambda t: t.repeat(1, 2).expand(B, M, 6)):
        inputs = {"cos": prepare(angles.cos()), "sin": prepare(angles.sin())}
        torch.testing.assert_close(main(ID, config, weights, x, inputs), main(ID, config, weights, x))


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[16]], ids=json.dumps)
def test_gradcheck(config):
    config = {**config, "width": 4, "heads": 2, "kv_heads": 1, "head_width": 2, "causal": True}
    gradcheck(lambda x, *weights: main(ID, config, weights, x), tokens(config, 2, 3), *weights_of(ID, config), second=False)


@each_config
def test_a_decode_in_chunks_equals_one_shot(config):
    module = regard.create(ID, **config, causal=True, dtype=torch.float64)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(decoded(module, x, [3, 1, 1, 2]), module(x))


@each_config
def test_packed_sequences_are_apart(config):
    module = regard.create(ID, **config, dtype=torch.float64)
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    packed = module(x, cu_seqlens=torch.tensor([0, 4, 9]))
    torch.testing.assert_close(packed, torch.cat([module(x[:, :4]), module(x[:, 4:])], 1))


def test_weights_have_the_official_names_and_sizes():
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"]
    for config, rows in (({**BASE, "headwise": True}, 4 * 6 + 4), (BASE, 2 * 4 * 6)):
        weights = named(ID, config, weights_of(ID, config))
        assert list(weights) == [f"{name}.weight" for name in names]
        assert weights["q_proj.weight"].shape == (rows, 12)


def test_bad_input():
    refuses("[gated-attention] expected position among 'G1', 'G2', 'G3', 'G4', 'G5'; found 'G6'; did you mean 'G1'?", ID,
            {"width": 8, "heads": 2, "position": "G6"})
    refuses("[gated-attention] expected headwise or elementwise with options of a gate; found neither", ID,
            {"width": 8, "heads": 2, "elementwise": False, "shared": True})
    refuses("[gated-attention] expected an elementwise gate at G5, which has no heads; found headwise", ID,
            {"width": 8, "heads": 2, "headwise": True, "position": "G5"})
    refuses("[gated-attention] expected heads to be a multiple of kv_heads; found heads 4, kv_heads 3", ID,
            {"width": 8, "heads": 4, "kv_heads": 3})
    refuses("[gated-attention] expected an even head width with rope; found 1", ID, {"width": 8})
    refuses("[gated-attention] expected cos and sin together; found one of them", ID, {"width": 8, "heads": 2},
            inputs={"cos": torch.ones(6, 4)})
    refuses("[gated-attention] expected positions and their tables only with rope; found positions", ID,
            {"width": 8, "heads": 2, "rope": False}, inputs={"positions": torch.arange(6)})
    refuses("[gated-attention] expected a gate with the output gate; found none", ID,
            {"width": 8, "heads": 2, "elementwise": False}, outputs=["gate"])
