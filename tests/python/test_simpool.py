"""simpool: its formula written out, its properties, its options, its refusals."""

import json

import pytest
import torch
from mechanisms import call, gradcheck, main, refuses, tokens, weights_of

ID = "simpool"
CONFIGS = [{"width": 12}, {"width": 12, "heads": 3}, {"width": 12, "heads": 2, "qkv_bias": True, "qk_scale": 0.7},
           {"width": 12, "gamma": 2.0}, {"width": 12, "heads": 3, "gamma": 1.25, "use_beta": True},
           {"width": 12, "gamma": 0.5, "parity": True}]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=json.dumps)


def names(config):
    return [w["name"] for w in json.loads(torch.ops.regard.declare(ID, json.dumps(config)))["weights"]]


def written_out(config, weights, x):
    """The formula for one sample at a time, keys formed by projection; x (B, N, D)."""
    w = dict(zip(names(config), weights))
    heads, width = config.get("heads", 1), config["width"]
    scale = config.get("qk_scale", (width / heads) ** -0.5)
    z = torch.nn.functional.layer_norm(x, (width,), w["norm_patches.weight"], w["norm_patches.bias"], 1e-6)
    q = torch.nn.functional.linear(x.mean(1), w["wq.weight"], w.get("wq.bias"))
    k = torch.nn.functional.linear(z, w["wk.weight"], w.get("wk.bias"))
    rows = []
    for b in range(x.shape[0]):
        pooled = []
        for part in torch.arange(width).chunk(heads):
            a = torch.softmax(scale * k[b][:, part] @ q[b, part], 0)
            v = z[b][:, part]
            if "gamma" in config:
                least = z.min() if config.get("parity") else z[b].min()
                pooled.append((a @ (v - least + 1e-6) ** config["gamma"]) ** (1 / config["gamma"]))
            else:
                pooled.append(a @ v)
        rows.append(torch.cat(pooled) + w.get("beta", 0))
    return torch.stack(rows)


@each_config
def test_equals_the_formula_with_gradients(config):
    leaves = [t.requires_grad_() for t in (tokens(config, 3, 7), *weights_of(ID, config))]
    y, expected = main(ID, config, leaves[1:], leaves[0]), written_out(config, leaves[1:], leaves[0])
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-12)
    w = torch.randn_like(y)
    for got, want in zip(torch.autograd.grad((y * w).sum(), leaves), torch.autograd.grad((expected * w).sum(), leaves)):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@each_config
def test_gradcheck(config):
    config = {**config, "width": 6}
    x, weights = tokens(config, 2, 4), weights_of(ID, config)
    gradcheck(lambda x, *weights: main(ID, config, weights, x), x, *weights, second="gamma" not in config)


@each_config
def test_gradcheck_with_lengths(config):
    config = {**config, "width": 6}
    lengths = torch.tensor([4, 2, 0])
    gradcheck(lambda x, *weights: main(ID, config, weights, x, {"lengths": lengths}),
              tokens(config, 3, 4), *weights_of(ID, config), second=False)


@each_config
@pytest.mark.parametrize("path", ["fused", "stripe", "composite"])
def test_paths_agree(config, path, paths_of):
    weights, x = weights_of(ID, config), tokens(config, 3, 9)
    counts, y = paths_of(lambda: main(ID, config, weights, x, path=path))
    assert counts["attention"] == {path: 1}
    torch.testing.assert_close(y, written_out(config, weights, x), rtol=1e-11, atol=1e-12)


def test_takes_the_fused_path_by_itself(paths_of):
    weights = weights_of(ID, {"width": 8}, torch.float32)
    counts, _ = paths_of(lambda: main(ID, {"width": 8}, weights, torch.randn(2, 6, 8), {"lengths": torch.tensor([6, 2])}))
    assert counts["attention"] == {"fused": 1}


@each_config
def test_a_map_is_its_tokens_row_by_row(config):
    weights, image = weights_of(ID, config), torch.randn(2, 12, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(main(ID, config, weights, image),
                               main(ID, config, weights, image.flatten(2).transpose(1, 2)))


@each_config
def test_does_not_depend_on_the_order_of_tokens_nor_on_duplication(config):
    weights, x = weights_of(ID, config), tokens(config, 2, 7)
    y = main(ID, config, weights, x)
    torch.testing.assert_close(main(ID, config, weights, x[:, torch.randperm(7)]), y)
    torch.testing.assert_close(main(ID, config, weights, x.repeat(1, 2, 1)), y)


def test_attention_rows_sum_to_one_and_weigh_the_tokens():
    config = {"width": 12, "heads": 3}
    weights, x = weights_of(ID, config), tokens(config, 2, 7)
    y, attn = call(ID, config, weights, x, {"lengths": torch.tensor([7, 4])}, outputs=["attn"])
    assert attn.shape == (2, 3, 1, 7)
    torch.testing.assert_close(attn.sum(-1), torch.ones(2, 3, 1, dtype=torch.float64))
    assert (attn[1, ..., 4:] == 0).all()
    z = torch.nn.functional.layer_norm(x, (12,), weights[0], weights[1], 1e-6)
    by_hand = torch.einsum("bhn,bnhe->bhe", attn[:, :, 0], z.unflatten(-1, (3, 4))).flatten(1)
    torch.testing.assert_close(by_hand, y)


def test_uniform_attention_is_the_mean_of_the_normalized_tokens():
    weights, x = weights_of(ID, {"width": 8}), tokens({"width": 8})
    weights[2] = torch.zeros_like(weights[2])
    z = torch.nn.functional.layer_norm(x, (8,), weights[0], weights[1], 1e-6)
    torch.testing.assert_close(main(ID, {"width": 8}, weights, x), z.mean(1))


def test_gamma_one_keeps_the_shift_and_a_large_gamma_tends_to_the_maximum():
    weights, x = weights_of(ID, {"width": 8}), tokens({"width": 8})
    z = torch.nn.functional.layer_norm(x, (8,), weights[0], weights[1], 1e-6)
    least = z.amin((1, 2))[:, None]
    plain = main(ID, {"width": 8}, weights, x)
    torch.testing.assert_close(main(ID, {"width": 8, "gamma": 1.0}, weights, x), plain - least + 1e-6)
    torch.testing.assert_close(main(ID, {"width": 8, "gamma": 400.0}, weights, x), z.amax(1) - least, rtol=0.02, atol=0.02)


def test_folded_keys_equal_projected_ones():
    """A bias of zero takes the direct form; without a bias the projection is folded into the query."""
    weights, x = weights_of(ID, {"width": 12, "heads": 3}), tokens({"width": 12})
    zero = torch.zeros(12, dtype=torch.float64)
    scale, shift, wq, wk = weights
    direct = main(ID, {"width": 12, "heads": 3, "qkv_bias": True}, [scale, shift, wq, zero, wk, zero], x)
    torch.testing.assert_close(main(ID, {"width": 12, "heads": 3}, weights, x), direct, rtol=1e-12, atol=1e-13)


def test_the_minimum_is_the_samples_own_unless_parity():
    x = tokens({"width": 8}, 3, 5)
    weights = weights_of(ID, {"width": 8})

    def alone(config):
        return torch.cat([main(ID, config, weights, one[None]) for one in x])

    own, batch = {"width": 8, "gamma": 2.0}, {"width": 8, "gamma": 2.0, "parity": True}
    torch.testing.assert_close(main(ID, own, weights, x), alone(own), rtol=1e-13, atol=1e-13)
    assert (main(ID, batch, weights, x) - alone(batch)).abs().max() > 1e-3


def test_a_batch_minimum_ignores_padding():
    config = {"width": 8, "gamma": 2.0, "parity": True}
    weights, x = weights_of(ID, config), tokens({"width": 8}, 2, 5)
    padded = torch.cat([x, torch.full_like(x, torch.nan)], 1)
    torch.testing.assert_close(main(ID, config, weights, padded, {"lengths": torch.tensor([5, 5])}),
                               main(ID, config, weights, x))


def test_prefix_tokens_are_left_out_unless_asked_for():
    weights, x = weights_of(ID, {"width": 8}), tokens({"width": 8})
    torch.testing.assert_close(main(ID, {"width": 8}, weights, x, prefix=2), main(ID, {"width": 8}, weights, x[:, 2:]))
    torch.testing.assert_close(main(ID, {"width": 8, "include_prefix": True}, weights, x, prefix=2),
                               main(ID, {"width": 8}, weights, x))
    lengths = torch.tensor([6, 3])
    torch.testing.assert_close(main(ID, {"width": 8}, weights, x, {"lengths": lengths}, prefix=2),
                               main(ID, {"width": 8}, weights, x[:, 2:], {"lengths": lengths - 2}))


def test_one_token_and_half_types_with_gamma():
    config = {"width": 8, "gamma": 2.0}
    weights = weights_of(ID, config, torch.float32)
    x = torch.randn(2, 5, 8)
    half = main(ID, config, [w.half() for w in weights], x.half())
    torch.testing.assert_close(half.float(), main(ID, config, weights, x), rtol=0.02, atol=0.02)
    assert main(ID, config, weights, x[:, :1]).isfinite().all()


def test_weights_have_the_official_names():
    assert names({"width": 8, "qkv_bias": True, "gamma": 1.25, "use_beta": True}) == [
        "norm_patches.weight", "norm_patches.bias", "wq.weight", "wq.bias", "wk.weight", "wk.bias", "beta"]
    assert names({"width": 8}) == ["norm_patches.weight", "norm_patches.bias", "wq.weight", "wk.weight"]


def test_bad_input():
    refuses("[simpool] expected width to be a multiple of heads; found width 8, heads 3", ID, {"width": 8, "heads": 3})
    refuses("[simpool] expected width to be a multiple of heads; found width 8, heads 0", ID, {"width": 8, "heads": 0})
    refuses("[simpool] expected gamma > 0; found -1.000000", ID, {"width": 8, "gamma": -1.0})
    refuses("[simpool] expected gamma with use_beta (beta is added to the power mean); found gamma null", ID,
            {"width": 8, "use_beta": True})
    refuses("[simpool] expected norm_epsilon > 0; found 0.000000", ID, {"width": 8, "norm_epsilon": 0.0})
    refuses("[simpool] expected at least one token to pool; found (2, 0, 8) float32 with prefix 0", ID, x=torch.randn(2, 0, 8))
    refuses("[simpool] expected at least one token to pool; found (2, 6, 8) float32 with prefix 6", ID, prefix=6)
    refuses("[simpool] expected x (B, N, 8) or (B, 8, H, W) of a floating type; found (2, 6, 9) float32", ID,
            x=torch.randn(2, 6, 9))
    refuses("[simpool] expected no prefix with x as a map; found prefix 1", ID, x=torch.randn(2, 8, 3, 3), prefix=1)
    refuses("[simpool] expected outputs among 'attn'; found 'atn'; did you mean 'attn'?", ID, outputs=["atn"])
