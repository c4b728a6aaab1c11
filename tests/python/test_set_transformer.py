"""set-transformer: its blocks written out, sets and their padding, stages, refusals."""

import json
import math

import pytest
import torch
from mechanisms import call, gradcheck, main, named, refuses, tokens, weights_of

ID = "set-transformer"
CONFIGS = [{"width": 8, "heads": 2, "inducing": 3}, {"width": 6, "hidden": 8, "heads": 4, "layer_norm": True, "inducing": 3,
            "stages": ["isab", "sab", "pma", "sab"], "seeds": 2, "keep_seeds": True},
           {"width": 8, "heads": 2, "stages": ["sab", "sab"]}]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=json.dumps)


def mab(config, w, name, queries, keys):
    linear = lambda x, part: torch.nn.functional.linear(x, w[name + part + ".weight"], w[name + part + ".bias"])
    norm = lambda x, part: torch.nn.functional.layer_norm(x, x.shape[-1:], w[name + part + ".weight"], w[name + part + ".bias"]) \
        if config.get("layer_norm") else x
    q, k, v = linear(queries, "fc_q"), linear(keys, "fc_k"), linear(keys, "fc_v")
    width, heads = q.shape[-1], config.get("heads", 4)
    parts = [t.split(width // heads, -1) for t in (q, k, v)]
    o = torch.cat([a + torch.softmax(a @ b.mT / math.sqrt(width), -1) @ c for a, b, c in zip(*parts)], -1)
    o = norm(o, "ln0")
    return norm(o + torch.relu(linear(o, "fc_o")), "ln1")


def written_out(config, weights, x):
    w, seen = named(ID, config, weights), {}
    stages = config.get("stages", ["isab", "isab", "pma"])
    for kind in stages:
        number = seen.get(kind, 0)
        seen[kind] = number + 1
        name = f"{kind}{number}." if stages.count(kind) > 1 else f"{kind}."
        if kind == "sab":
            x = mab(config, w, name + "mab.", x, x)
        elif kind == "isab":
            points = w[name + "I"].expand(len(x), -1, -1)
            x = mab(config, w, name + "mab1.", x, mab(config, w, name + "mab0.", points, x))
        else:
            x = mab(config, w, name + "mab.", w[name + "S"].expand(len(x), -1, -1), x)
    return x if config.get("keep_seeds") or "pma" not in stages else x.flatten(1)


@each_config
def test_equals_the_formula_with_gradients(config):
    leaves = [t.requires_grad_() for t in (tokens(config, 3, 7), *weights_of(ID, config))]
    y, expected = main(ID, config, leaves[1:], leaves[0]), written_out(config, leaves[1:], leaves[0])
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-11)
    w = torch.randn_like(y)
    for got, want in zip(torch.autograd.grad((y * w).sum(), leaves), torch.autograd.grad((expected * w).sum(), leaves)):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_gradcheck():
    config = {"width": 4, "heads": 2, "inducing": 2, "layer_norm": True}
    gradcheck(lambda x, *weights: main(ID, config, weights, x), tokens(config, 2, 3), *weights_of(ID, config))


@each_config
def test_order_of_the_elements(config):
    x, weights, order = tokens(config, 2, 7), weights_of(ID, config), torch.randperm(7)
    y, turned = main(ID, config, weights, x), main(ID, config, weights, x[:, order])
    pooled = "pma" in config.get("stages", ["pma"])
    torch.testing.assert_close(turned, y if pooled else y[:, order], rtol=1e-11, atol=1e-12)


@each_config
def test_padding_is_no_element(config):
    x, weights, lengths = tokens(config, 3, 7), weights_of(ID, config), torch.tensor([7, 4, 0])
    x[1, 4:], x[2] = torch.nan, torch.nan
    y = main(ID, config, weights, x, {"lengths": lengths})
    alone = main(ID, config, weights, x[1:2, :4])
    torch.testing.assert_close(y[1:2] if "pma" in config.get("stages", ["pma"]) else y[1:2, :4], alone, rtol=1e-11, atol=1e-12)
    assert torch.count_nonzero(y[2]) == 0


def test_duplicated_elements_change_no_pool():
    config = {"width": 8, "heads": 2, "stages": ["pma"], "seeds": 3}
    x, weights = tokens(config), weights_of(ID, config)
    torch.testing.assert_close(main(ID, config, weights, torch.cat([x, x], 1)), main(ID, config, weights, x))
    y, attn = call(ID, config, weights, x, outputs=["attn"])
    assert y.shape == (2, 24) and attn.shape == (2, 2, 3, 6)
    torch.testing.assert_close(attn.sum(-1), torch.ones(2, 2, 3, dtype=x.dtype))


def test_one_element_and_stages():
    config = {"width": 8, "heads": 2, "inducing": 3, "stages": ["isab", "pma", "linear"], "classes": 5}
    x, weights = tokens(config, 2, 1), weights_of(ID, config)
    y, first, second = call(ID, config, weights, x, outputs=["stage0", "stage1"])
    assert y.shape == (2, 5) and first.shape == (2, 1, 8) and second.shape == (2, 1, 8) and y.isfinite().all()


def test_cross():
    config = {"width": 8, "heads": 2, "stages": ["mab"], "memory_width": 6}
    x, memory, weights = tokens(config), torch.randn(2, 5, 6, dtype=torch.float64), weights_of(ID, config)
    y = main(ID, config, weights, x, {"memory": memory})
    torch.testing.assert_close(y, mab(config, named(ID, config, weights), "mab.", x, memory), rtol=1e-11, atol=1e-12)
    memory[:, 3:] = torch.nan
    short = main(ID, config, weights, x, {"memory": memory, "memory_lengths": torch.tensor([3, 3])})
    torch.testing.assert_close(short, main(ID, config, weights, x, {"memory": memory[:, :3]}), rtol=1e-11, atol=1e-12)


def test_sab_runs_packed():
    config = CONFIGS[2]
    x, weights, bounds = tokens(config, 1, 9), weights_of(ID, config), torch.tensor([0, 4, 9])
    y = main(ID, config, weights, x, {"cu_seqlens": bounds})
    alone = [main(ID, config, weights, part) for part in (x[:, :4], x[:, 4:])]
    torch.testing.assert_close(y, torch.cat(alone, 1), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("change,expected", [
    ({"heads": 3}, "hidden (or width) to be a multiple of heads; found 8, heads 3"),
    ({"stages": ["pma", "pma"]}, "one stage pma at most; found 2"),
    ({"stages": ["sab", "linear"]}, "classes > 0 with a stage linear, and only then; found classes 0"),
    ({"stages": ["sab"], "keep_seeds": True}, "a stage pma with keep_seeds; found none"),
    ({"stages": ["mab"]}, "memory (B, N, 8) with the batch of x (2, 6, 8) float32; found none"),
])
def test_refusals(change, expected):
    refuses("[set-transformer] expected " + expected, ID, {"width": 8, **change})
