"""robust-token-attention: the pooling by hand, the loss against stored maps, updated statistics, refusals."""

import json

import pytest
import torch
import torch.nn.functional as F
from mechanisms import call, gradcheck, main, refuses, weights_of

ID = "robust-token-attention"
PLAIN = {"width": 8, "heads": 2, "num_scales": 4, "host": "none"}
ops = torch.ops.regard


def tokens(grid=(4, 5), batch=2, width=8, prefix=0):
    return torch.randn(batch, prefix + grid[0] * grid[1], width, dtype=torch.float64)


def names_of(config):
    return [w["name"] for w in json.loads(ops.declare(ID, json.dumps(config)))["weights"]]


def named(config):
    weights = weights_of(ID, config)
    return weights, dict(zip(names_of(config), weights))


def boxes(x, grid, d):
    """S_d by torch's own convolution."""
    X = x.transpose(1, 2).unflatten(2, grid)
    ones = torch.full((X.shape[1], 1, 3, 3), 1 / 9, dtype=x.dtype)
    return F.conv2d(X, ones, padding=d, dilation=d, groups=X.shape[1]).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("grid", [(4, 5), (1, 7), (2, 2)], ids=str)
def test_pooling_is_the_mixture_of_dilated_means(grid):
    x, weights = tokens(grid), weights_of(ID, PLAIN)
    _, g, pooled = call(ID, PLAIN, weights, x, grid=grid, outputs=["tap_weights", "pooled"])
    assert g.shape == (2, 1, *grid, 4)
    torch.testing.assert_close(g.sum(-1), torch.ones_like(g[..., 0]))
    g = g[:, 0].flatten(1, 2)
    expected = g[..., :1] * x + sum(g[..., d:d + 1] * boxes(x, grid, d) for d in (1, 2, 3))
    torch.testing.assert_close(pooled, expected, rtol=1e-12, atol=1e-13)


def test_one_scale_is_no_pooling_and_zero_weights_mix_evenly():
    x, config = tokens(), {**PLAIN, "num_scales": 1}
    assert (call(ID, config, weights_of(ID, config), x, grid=(4, 5), outputs=["pooled"])[1] == x).all()
    weights, _ = named(PLAIN)
    weights[0].zero_(), weights[names_of(PLAIN).index("dilation_predictor.proj.2.weight")].zero_()
    _, g, pooled = call(ID, PLAIN, weights, torch.ones_like(tokens((9, 9))), grid=(9, 9),
                        outputs=["tap_weights", "pooled"])
    assert (g == 0.25).all()
    pooled = pooled.unflatten(1, (9, 9))
    torch.testing.assert_close(pooled[:, 3:6, 3:6], torch.ones_like(pooled[:, 3:6, 3:6]))
    torch.testing.assert_close(pooled[:, 0, 0], torch.full_like(pooled[:, 0, 0], (1 + 3 * 4 / 9) / 4))


def test_pooling_moves_with_the_image():
    weights, _ = named({**PLAIN, "num_scales": 2})
    image = torch.zeros(1, 12, 12, 8, dtype=torch.float64)
    image[:, 3:6, 4:7] = torch.randn(3, 3, 8, dtype=torch.float64)
    pooled = [call(ID, {**PLAIN, "num_scales": 2}, weights, im.flatten(1, 2), grid=(12, 12), outputs=["pooled"])[1]
              .unflatten(1, (12, 12)) for im in (image, image.roll((2, 1), (1, 2)))]
    torch.testing.assert_close(pooled[0].roll((2, 1), (1, 2))[:, 4:10, 4:10], pooled[1][:, 4:10, 4:10])


def test_prefix_tokens_pass_by_the_pooling():
    x, (weights, _) = tokens(prefix=2), named(PLAIN)
    _, pooled = call(ID, PLAIN, weights, x, grid=(4, 5), prefix=2, outputs=["pooled"])
    assert (pooled[:, :2] == x[:, :2]).all()
    torch.testing.assert_close(
        pooled[:, 2:], call(ID, PLAIN, weights, x[:, 2:], grid=(4, 5), outputs=["pooled"])[1])
    config = {**PLAIN, "host": "rvt"}
    weights, w = named(config)
    y = main(ID, config, weights, x, grid=(4, 5), prefix=2)
    w["mlp.bn3.weight"].mul_(2)  # the mlp reaches the patches alone
    changed = main(ID, config, weights, x, grid=(4, 5), prefix=2)
    assert (changed[:, :2] == y[:, :2]).all() and (changed[:, 2:] != y[:, 2:]).any()


def similarity(attn, threshold):
    a = attn.mean(1)
    s = a.mean(1, keepdim=True)
    t = threshold / attn.shape[-1]
    return F.cosine_similarity(a * (a > t), s * (s > t), dim=-1, eps=1e-8).mean()


@pytest.mark.parametrize("threshold", [0, 1, 2])
@pytest.mark.parametrize("host", ["none", "rvt"])
def test_the_loss_is_that_of_the_stored_map(host, threshold):
    config = {**PLAIN, "host": host, "threshold": threshold, "adl_weight": 0.5, "layers": 3}
    weights, _ = named(config)
    x = (3 * tokens()).requires_grad_()
    leaves = [x] + [w.requires_grad_() for n, w in zip(names_of(config), weights) if "attn.qkv" in n]
    _, attn, loss, found = call(ID, config, weights, x, grid=(4, 5), outputs=["attn", "loss.adl", "similarity"])
    expected = similarity(attn, threshold)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ops.map_similarity(attn, threshold), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(loss, 0.5 * expected / (3 + 1e-6))
    for f, e in zip(torch.autograd.grad(found, leaves, retain_graph=True), torch.autograd.grad(expected, leaves)):
        torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-13)


def test_limits_and_lists_of_the_loss():
    same = torch.zeros(2, 3, 6, 6, dtype=torch.float64)
    same[..., 2] = 1
    one = ops.map_similarity(same, 2)
    torch.testing.assert_close(one, torch.ones_like(one))
    torch.testing.assert_close(ops.map_similarity(torch.eye(64).expand(1, 2, 64, 64), 1), torch.tensor(0.))
    assert ops.map_similarity(torch.full((1, 1, 4, 4), 0.25), 2) == 0  # every row below the threshold
    torch.testing.assert_close(ops.diversification_loss([one, 0.5 * one]), 1.5 * one / (2 + 1e-6))
    q = torch.randn(2, 2, 9, 4, dtype=torch.float64)
    assert 0 <= ops.attention_similarity(q, q, 1.0) <= 1


def test_many_stripes_are_one():
    q, k = (torch.randn(1, 2, 1500, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))  # 2 stripes
    found = ops.attention_similarity(q, 2 * k, 2.0)
    expected = similarity((q @ (2 * k).mT / 8 ** 0.5).softmax(-1), 2)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    for f, e in zip(torch.autograd.grad(found, (q, k)), torch.autograd.grad(expected, (q, k))):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-12)


def test_gradcheck_of_block_and_loss():
    config = {**PLAIN, "host": "rvt", "num_scales": 2, "mlp_ratio": 1, "layer_scale": 0.3, "threshold": 1}
    weights, _ = named(config)
    x = tokens((2, 3), batch=1)
    assert gradcheck(lambda x, *w: main(ID, config, w, x, grid=(2, 3)), x, *weights, second=False)
    assert gradcheck(lambda x: call(ID, config, weights, x, grid=(2, 3), outputs=["loss.adl"])[1], x)


def test_training_returns_the_updated_statistics():
    config = {**PLAIN, "host": "rvt", "mlp_ratio": 2}
    weights, w = named(config)
    norms = ["dilation_predictor.proj.1", "mlp.bn1", "mlp.bn2", "mlp.bn3"]
    buffers = [f"{n}.running_{s}" for n in norms for s in ("mean", "var")]
    x, before = tokens(), [w[b].clone() for b in buffers]
    results = call(ID, config, weights, x, grid=(4, 5), training=True, outputs=[f"buffer.{b}" for b in buffers])
    assert all((w[b] == old).all() for b, old in zip(buffers, before)), "the weights given are left alone"
    norm = torch.nn.BatchNorm2d(4).double()
    norm.weight.data, norm.bias.data = w["dilation_predictor.proj.1.weight"], w["dilation_predictor.proj.1.bias"]
    norm.running_mean, norm.running_var = before[0].clone(), before[1].clone()
    X = F.conv2d(x.transpose(1, 2).unflatten(2, (4, 5)), w["dilation_predictor.proj.0.weight"], padding=1)
    logits = F.conv2d(norm(X), w["dilation_predictor.proj.2.weight"], padding=1)
    torch.testing.assert_close(results[1], norm.running_mean)
    torch.testing.assert_close(results[2], norm.running_var)
    _, g = call(ID, config, weights, x, grid=(4, 5), training=True, outputs=["tap_weights"])
    torch.testing.assert_close(g[:, 0].permute(0, 3, 1, 2), logits.softmax(1))
    assert (call(ID, config, weights, x, grid=(4, 5), outputs=["buffer.mlp.bn1.running_mean"])[1] == before[2]).all()


def test_the_loss_sees_the_weights_before_dropout_and_with_parity_after():
    x, weights = tokens(), weights_of(ID, PLAIN)
    seed = torch.tensor(3)
    values = {}
    for name, extra in {"none": {}, "before": {"attn_drop": 0.5}, "after": {"attn_drop": 0.5, "parity": True}}.items():
        values[name] = call(ID, {**PLAIN, "threshold": 0, **extra}, weights, x, grid=(4, 5), training=True, seed=seed,
                            outputs=["similarity"])[1]
    torch.testing.assert_close(values["none"], values["before"])
    assert (values["none"] - values["after"]).abs() > 1e-4


def test_bad_input_is_refused_by_name():
    x = torch.randn(2, 6, 8)
    refuses("[robust-token-attention] expected a grid of one or two dimensions; found 3", ID, {"width": 8}, x,
            grid=[1, 2, 3])
    refuses("[robust-token-attention] expected host 'rvt' or 'none'; found 'fan'", ID, {"width": 8, "host": "fan"}, x)
    refuses("[robust-token-attention] expected num_scales > 0; found 0", ID, {"width": 8, "num_scales": 0}, x)
    refuses("[robust-token-attention] expected threshold >= 0; found -1.000000", ID, {"width": 8, "threshold": -1}, x)
    refuses("[robust-token-attention] expected layer_scale with host 'rvt'; found host 'none'", ID,
            {"width": 8, "host": "none", "layer_scale": 1}, x)
    with pytest.raises(ValueError, match=r"\[diversification_loss\] expected the similarity of one layer at least"):
        ops.diversification_loss([])
    with pytest.raises(ValueError, match=r"\[map_similarity\] expected attn \(B, H, M, N\)"):
        ops.map_similarity(x, 2)
