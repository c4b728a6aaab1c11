"""cog-attention: signed softmax written out, both forms, the properties of signed weights, cache, refusals."""

import json

import numpy as np
import pytest
import regard
import torch
from mechanisms import call, decoded, gradcheck, main, named, refuses, tokens, weights_of
from safetensors.numpy import save_file

ID = "cog-attention"
F = torch.nn.functional
B, M, N = 3, 7, 9
CONFIGS = [{"width": 12, "heads": 3}, {"width": 12, "heads": 2, "head_width": 4, "epsilon": 1e-2, "rope_theta": 100.0},
           {"width": 12, "heads": 3, "rope": False, "scale": 0.3},
           {"width": 12, "heads": 3, "form": "image"}, {"width": 12, "heads": 4, "form": "image", "qkv_bias": True},
           {"width": 12, "heads": 2, "form": "image", "rope": True, "epsilon": 1e-6},
           {"width": 12, "heads": 3, "attention": "softmax"}]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=json.dumps)


def turned(t, positions, theta):
    """RoPE over pairs (2t, 2t + 1) by complex numbers: t (B, H, L, Dh), positions (L)."""
    width = t.shape[-1]
    angles = positions.double()[:, None] * theta ** (-torch.arange(0, width, 2).double() / width)
    pairs = torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def signed(s, keep, epsilon=0.0):
    """The paper's weights; with epsilon those of the analysis code, hidden scores set to 0 first."""
    if epsilon:
        s = s.masked_fill(~keep, 0)
        sign = s.detach().sign()
        e = sign * (sign * s - s.abs().amax(-1, keepdim=True)).exp()
        return e / (e.abs().sum(-1, keepdim=True) + epsilon)
    return s.detach().sign() * s.abs().masked_fill(~keep, -torch.inf).softmax(-1).nan_to_num(0)


def written_out(config, weights, x, memory=None, keep=None, positions=None):
    w, memory = named(ID, config, weights), x if memory is None else memory
    heads = config["heads"]
    if config.get("form") == "image":
        rows, bias = w["qkv.weight"].chunk(3), w.get("qkv.bias")
        bias = bias.chunk(3) if bias is not None else (None,) * 3
        q, k, v = (F.linear(t, r, b) for t, r, b in zip((x, memory, memory), rows, bias))
    else:
        q, k, v = x @ w["qw"], memory @ w["kw"], memory @ w["vw"]
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    if config.get("rope", config.get("form") != "image"):
        theta = config.get("rope_theta", 1e4)
        q = turned(q, torch.arange(x.shape[1]) if positions is None else positions, theta)
        k = turned(k, torch.arange(memory.shape[1]), theta)
    s = q @ k.transpose(-1, -2) * config.get("scale", q.shape[-1] ** -0.5)
    keep = torch.ones_like(s, dtype=torch.bool) if keep is None else keep.expand(s.shape)
    if config.get("attention") == "softmax":
        p = s.masked_fill(~keep, -torch.inf).softmax(-1).nan_to_num(0)
    else:
        p = signed(s, keep, config.get("epsilon", 0))
    o = (p @ v).transpose(1, 2).flatten(2)
    return (F.linear(o, w["proj.weight"], w["proj.bias"]) if "proj.weight" in w else o @ w["ow"]), p


def random_weights(config):
    """Larger than the initial ones: scores of some size."""
    return [t + 0.3 * torch.randn_like(t) for t in weights_of(ID, config)]


@each_config
@pytest.mark.parametrize("causal", [False, True])
def test_equals_the_formula_with_gradients(config, causal):
    leaves = [t.requires_grad_() for t in (tokens(config, B, M), *random_weights(config))]
    y, attn = call(ID, {**config, "causal": causal}, leaves[1:], leaves[0], outputs=["attn"])
    keep = torch.ones(M, M, dtype=torch.bool).tril() if causal else None
    expected, p = written_out(config, leaves[1:], leaves[0], keep=keep)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(attn, p, rtol=1e-10, atol=1e-12)
    w = torch.randn_like(y)
    for a, e in zip(*(torch.autograd.grad((t * w).sum(), leaves) for t in (y, expected))):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-10)


@each_config
def test_cross_attention_masks_and_lengths(config):
    weights, x = random_weights(config), tokens(config, B, M)
    memory, hidden = torch.randn(B, N, 12, dtype=torch.float64), torch.rand(B, 1, M, N) < 0.3
    hidden[0, :, 2] = True  # a query without keys
    lengths = torch.tensor([N, 4, 0])
    keep = ~hidden & (torch.arange(N) < lengths[:, None])[:, None, None]
    poisoned = memory.masked_fill((torch.arange(N) >= lengths[:, None])[..., None], torch.nan)
    y = main(ID, config, weights, x, {"memory": poisoned, "memory_lengths": lengths, "hidden": hidden})
    expected, p = written_out(config, weights, x, memory, keep)
    torch.testing.assert_close(y, expected)
    assert (p[0, :, 2] == 0).all()
    if config.get("form") != "image":
        assert (y[0, 2] == 0).all() and (y[2] == 0).all()


def test_tables_replace_theta():
    """Rows by position, of either width, or of the tokens themselves; also under a cache."""
    config = {"width": 12, "heads": 3, "causal": True}
    weights, x = random_weights(config), tokens(config, B, M)
    angles = torch.arange(16).double()[:, None] * 1e4 ** (-torch.arange(0, 4, 2).double() / 4)
    expected = main(ID, config, weights, x)
    for prepare in (lambda t: t, lambda t: t.repeat_interleave(2, -1), lambda t: t[:M].expand(B, M, 2)):
        inputs = {"freqs_cos": prepare(angles.cos()), "freqs_sin": prepare(angles.sin())}
        torch.testing.assert_close(main(ID, config, weights, x, inputs), expected)
    module = regard.create(ID, **config, dtype=torch.float64)
    tables = {"freqs_cos": angles.cos(), "freqs_sin": angles.sin()}
    first, cache = module.decode(x[:, :4], **tables)
    second, _ = module.decode(x[:, 4:], cache, **tables)
    torch.testing.assert_close(torch.cat([first, second], 1), module(x))


# ---- signed weights ------------------------------------------------------------------------------------------------

IMAGE = {"width": 12, "heads": 3, "form": "image"}


def test_magnitudes_sum_to_one():
    weights, x = random_weights(IMAGE), tokens(IMAGE, B, M)
    attn = call(ID, IMAGE, weights, x, outputs=["attn"])[1]
    torch.testing.assert_close(attn.abs().sum(-1), torch.ones(B, 3, M, dtype=torch.float64))
    assert (attn < 0).any() and (attn > 0).any()


def test_positive_scores_are_softmax_attention():
    config = {**IMAGE, "scale": 1.0}
    weights, x = random_weights(config), tokens(config, B, M).abs()
    weights[0] = weights[0].abs()  # queries, keys and so scores are positive
    torch.testing.assert_close(main(ID, config, weights, x), main(ID, {**config, "attention": "softmax"}, weights, x))


def test_negating_queries_negates_the_output():
    weights, x = random_weights(IMAGE), tokens(IMAGE, B, M)
    weights[2] = torch.zeros_like(weights[2])
    other = weights[0] * torch.cat([-torch.ones(12), torch.ones(24)])[:, None]
    assert torch.equal(main(ID, IMAGE, [other, *weights[1:]], x), -main(ID, IMAGE, weights, x))


def test_negating_a_key_and_its_value_changes_nothing():
    weights, x = random_weights(IMAGE), tokens(IMAGE, B, M)
    memory = torch.randn(B, N, 12, dtype=torch.float64)
    other = memory.clone()
    other[:, 4] *= -1
    torch.testing.assert_close(main(ID, IMAGE, weights, x, {"memory": other}),
                               main(ID, IMAGE, weights, x, {"memory": memory}))


def test_an_exact_zero_counts_in_the_sum_unless_epsilon_leaves_it_out():
    weights, x = random_weights(IMAGE), tokens(IMAGE, B, M)
    memory = torch.randn(B, 3, 12, dtype=torch.float64)
    longer = torch.cat([memory, torch.zeros(B, 1, 12, dtype=torch.float64)], 1)  # key 0: score 0
    for epsilon, same in ((0.0, False), (1e-3, True)):
        config = {**IMAGE, "epsilon": epsilon}
        a, b = (call(ID, config, weights, x, {"memory": t}, outputs=["attn"])[1] for t in (memory, longer))
        assert (b[..., 3] == 0).all() and torch.allclose(a, b[..., :3]) == same


def test_a_small_epsilon_tends_to_the_paper():
    weights, x = random_weights(IMAGE), tokens(IMAGE, B, M)
    near = main(ID, {**IMAGE, "epsilon": 1e-6}, weights, x)
    torch.testing.assert_close(near, main(ID, IMAGE, weights, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [{"width": 6, "heads": 1}, {"width": 6, "heads": 1, "epsilon": 0.1, "causal": True}],
                         ids=json.dumps)
def test_gradcheck(config):
    gradcheck(lambda x, *weights: main(ID, config, weights, x), tokens(config, 2, 4), *random_weights(config))


@pytest.mark.parametrize("epsilon", [0.0, 0.01])
@pytest.mark.parametrize("path", ["stripe", "composite"])
def test_paths_agree(epsilon, path, paths_of):
    config = {"width": 12, "heads": 3, "epsilon": epsilon}
    weights, x = random_weights(config), tokens(config, B, M)
    counts, y = paths_of(lambda: main(ID, config, weights, x, path=path))
    assert counts["attention"] == {path: 1}
    torch.testing.assert_close(y, written_out(config, weights, x)[0])


@each_config
@pytest.mark.parametrize("cuts", [[1] * 7, [3, 1, 3]])
def test_a_decode_in_chunks_equals_one_shot(config, cuts):
    module = regard.create(ID, **config, causal=True, dtype=torch.float64)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(decoded(module, x, cuts), module(x))


@each_config
def test_packed_sequences_are_apart(config):
    module = regard.create(ID, **config, dtype=torch.float64)
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    packed = module(x, cu_seqlens=torch.tensor([0, 4, 9]))
    torch.testing.assert_close(packed, torch.cat([module(x[:, :4]), module(x[:, 4:])], 1))


@pytest.mark.golden
@pytest.mark.parametrize("config", CONFIGS[3:5], ids=json.dumps)
def test_official_names_of_the_image_form(config, tmp_path):
    """A case of the image module is recognized by its tensors: qkv and, where there is one, its bias."""
    leaves = [t.requires_grad_() for t in (tokens(config, B, M), *random_weights(config))]
    y, _ = written_out(config, leaves[1:], leaves[0])
    w = torch.randn_like(y)
    tensors = {"out.out": y, "w": w}
    names = ["in.x", *(f"param.{name}" for name in named(ID, config, leaves[1:]))]
    for name, leaf, gradient in zip(names, leaves, torch.autograd.grad((y * w).sum(), leaves)):
        tensors |= {name: leaf, f"grad.{name}": gradient}
    (tmp_path / ID).mkdir()
    save_file({name: np.ascontiguousarray(t.detach().numpy()) for name, t in tensors.items()}, tmp_path / ID / "b.safetensors",
              {"config": json.dumps({"dim": 12, "num_heads": config["heads"], "module": "U-ViC"})})
    report = json.loads(torch.ops.regard.golden(ID, str(tmp_path)))
    assert report["passed"] and report["claims"] >= 5, report["files"]


def test_weights_have_the_official_names():
    assert list(named(ID, {"width": 16}, range(4))) == ["qw", "kw", "vw", "ow"]
    assert list(named(ID, {**IMAGE, "qkv_bias": True}, range(4))) == ["qkv.weight", "qkv.bias", "proj.weight", "proj.bias"]


def test_bad_input():
    refuses("[cog-attention] expected form 'lm' or 'image'; found 'vit'", ID, {"width": 8, "form": "vit"})
    refuses("[cog-attention] expected attention 'cog' or 'softmax'; found 'np'", ID, {"width": 8, "heads": 2, "attention": "np"})
    refuses("[cog-attention] expected qkv_bias only in the form 'image'; found 'lm'", ID, {"width": 8, "qkv_bias": True})
    refuses("[cog-attention] expected an even head width with rope; found 1", ID, {"width": 8})
    refuses("[cog-attention] expected epsilon >= 0; found -1.000000", ID, {"width": 8, "heads": 2, "epsilon": -1.0})
    refuses("[cog-attention] expected epsilon only with attention 'cog'; found 'softmax'", ID,
            {"width": 8, "heads": 2, "epsilon": 1.0, "attention": "softmax"})
    two = {"width": 8, "heads": 2}
    refuses("[cog-attention] expected freqs_cos and freqs_sin together; found one of them", ID, two,
            inputs={"freqs_cos": torch.ones(6, 2)})
    refuses("[cog-attention] expected positions and their tables only with rope; found freqs_cos", ID, {**two, "rope": False},
            inputs={"freqs_cos": torch.ones(6, 2)})
    refuses("[cog-attention] expected freqs_cos (T, C), row p of position p, or (B, L, C) with L = 6, C = 4 or its half; "
            "found (6, 3) float32", ID, two, inputs={"freqs_cos": torch.ones(6, 3), "freqs_sin": torch.ones(6, 3)})
    refuses("[cog-attention] expected positions (L) or (B, L), L = 6; found (5,) int64", ID, two,
            inputs={"positions": torch.arange(5)})
