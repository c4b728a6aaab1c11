"""normalized-attention: the block written out for every variant, the linear-time form, properties of standardized rows."""

import json

import pytest
import regard
import torch
from mechanisms import call, decoded, gradcheck, main, named, refuses, tokens, weights_of

ID = "normalized-attention"
F = torch.nn.functional
B, M = 3, 7
CONFIGS = [{}, {"epsilon": 0.1}, {"epsilon": 1e-2, "epsilon_place": "inside", "gelu": "erf"},
           {"epsilon": 0.1, "epsilon_place": "inside_count", "norm_epsilon": 1e-5}, {"head_width": 5, "scale": 0.3},
           {"bert_layer_norm": True}, {"attention_gelu": False, "hidden": 9}, {"variant": "non"}, {"variant": "softmax"},
           {"variant": "softmax", "bert_layer_norm": True, "attention_gelu": False}, {"variant": "sum"}, {"variant": "max"},
           {"variant": "sum", "bert_layer_norm": True}]
CONFIGS = [{"width": 12, "heads": 3, "hidden": 10, **config} for config in CONFIGS]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: json.dumps({k: v for k, v in c.items() if k != "width"}))


def standardized(z, keep, config):
    """(z - mean) / deviation over the kept keys of a row, 0 where there are none."""
    n = keep.double().sum(-1, keepdim=True).clamp(min=1)
    mean = (z * keep).sum(-1, keepdim=True) / n
    variance = ((z - mean).square() * keep).sum(-1, keepdim=True) / n
    epsilon, place = config.get("epsilon", 1e-3), config.get("epsilon_place", "outside")
    if place == "outside":  # the root's derivative at 0 is taken to be 0
        root = torch.where(variance > 0, torch.where(variance > 0, variance, 1.0).sqrt(), 0.0)
        return (z - mean) / (root + epsilon)
    return (z - mean) / {"inside": variance + epsilon, "inside_count": (variance * n + epsilon) / (n + epsilon)}[place].sqrt()


def written_out(config, weights, x, keep=None):
    w, variant = named(ID, config, weights), config.get("variant", "nap")
    heads, tokens_ = config["heads"], x.shape[1]
    keep = torch.ones(x.shape[0], 1, tokens_, tokens_, dtype=torch.bool) if keep is None else keep
    epsilon, bert = config.get("norm_epsilon", config.get("epsilon", 1e-3)), config.get("bert_layer_norm")

    def norm(t, name):
        t = (t - t.mean(-1, keepdim=True)) / (t.var(-1, unbiased=False, keepdim=True) + epsilon).sqrt()
        return w[f"{name}.gamma"] * t + w[f"{name}.beta"]

    def linear(t, name):
        return F.linear(t, w[f"{name}.layer.weight"], w[f"{name}.layer.bias"])

    def gelu(t):
        return F.gelu(t, approximate="none" if config.get("gelu") == "erf" else "tanh")

    p, pools = None, variant in ("sum", "max")
    if variant == "sum":
        o = keep[:, 0].double() @ x
    elif variant == "max":
        seen = keep[:, 0].any(1)[..., None]
        o = x.masked_fill(~seen, -torch.inf).amax(1, keepdim=True).expand_as(x)
    else:
        q, k, v = (linear(x, f"attention.{n}").unflatten(-1, (heads, -1)).transpose(1, 2)
                   for n in ("query", "key", "value"))
        z = q @ k.transpose(-1, -2) * config.get("scale", 1 if variant == "nap" else q.shape[-1] ** -0.5)
        if variant == "nap":
            gain, bias = w["attention.normalize.gain"], w["attention.normalize.bias"]
            p = (gain * standardized(z, keep, config) + bias) * keep
        elif variant == "non":
            p = z * keep / keep.double().sum(-1, keepdim=True).clamp(min=1).sqrt()
        else:
            p = z.masked_fill(~keep, -torch.inf).softmax(-1).nan_to_num(0)
        o = (p @ v).transpose(1, 2).flatten(2)
    h = o if bert else norm(o, "attention_layer_norm")
    last = "attention_layer_norm" if pools else "mixing_layer_norm"
    if not pools:
        h = linear(gelu(h) if config.get("attention_gelu", True) else h, "mixing_layer")
        h = h if bert else norm(h, last)
    y = norm(x + h, last) if bert else x + h
    f = linear(y, "feedforward")
    f = linear(gelu(f if bert else norm(f, "feedforward_layer_norm")), "feedforward2")
    out = norm(y + f, "feedforward2_layer_norm") if bert else y + norm(f, "feedforward2_layer_norm")
    return out, o, p


@each_config
@pytest.mark.parametrize("causal", [False, True])
def test_equals_the_formula_with_gradients(config, causal):
    if causal and config.get("variant") == "max":
        pytest.skip("one maximum for all queries")
    leaves = [t.requires_grad_() for t in (tokens(config, B, M), *weights_of(ID, config, spread=0.4))]
    wanted = ["attention"] + ["attn"] * (config.get("variant", "nap") not in ("sum", "max"))
    y, *others = call(ID, {**config, "causal": causal}, leaves[1:], leaves[0], outputs=wanted)
    keep = torch.ones(B, 1, M, M, dtype=torch.bool).tril() if causal else None
    expected, *parts = written_out(config, leaves[1:], leaves[0], keep)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    for got, want in zip(others, parts):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    w = torch.randn_like(y)
    for a, e in zip(*(torch.autograd.grad((t * w).sum(), leaves) for t in (y, expected))):
        torch.testing.assert_close(a, e, rtol=1e-7, atol=1e-9)


@each_config
def test_masks_and_lengths(config):
    weights, x = weights_of(ID, config, spread=0.4), tokens(config, B, M)
    lengths, key_hidden = torch.tensor([M, 3, 1]), torch.rand(B, M) < 0.2
    key_hidden[:, 0] = False
    keep = (~key_hidden & (torch.arange(M) < lengths[:, None]))[:, None, None].expand(B, 1, M, M)
    inputs = {"lengths": lengths, "key_hidden": key_hidden}
    if config.get("variant") != "max":
        hidden = torch.rand(B, 1, M, M) < 0.2
        hidden[0, :, 2] = True  # a query without keys
        keep, inputs["hidden"] = keep & ~hidden, hidden
    y, o = call(ID, config, weights, x, inputs, outputs=["attention"])
    padded = (torch.arange(M) >= lengths[:, None])[..., None]
    torch.testing.assert_close(y, written_out(config, weights, x, keep)[0].masked_fill(padded, 0), rtol=1e-9, atol=1e-11)
    assert config.get("variant") == "max" or (o[0, 2] == 0).all()


# ---- properties ------------------------------------------------------------------------------------------------------

PLAIN = {"width": 12, "heads": 3, "hidden": 10, "epsilon": 0.0, "epsilon_place": "inside", "norm_epsilon": 1e-5}


@pytest.mark.parametrize("causal", [False, True])
def test_the_linear_time_form_equals_the_quadratic_one(causal):
    """A = sum k v^T, V = sum v, mean and covariance of the keys: O(N Dh^2), no weights."""
    config = {**PLAIN, "causal": causal, "epsilon": 1e-2}
    weights, x = weights_of(ID, config, spread=0.4), tokens(config, B, M)
    w = named(ID, config, weights)
    q, k, v = (F.linear(x, w[f"attention.{n}.layer.weight"], w[f"attention.{n}.layer.bias"]).unflatten(-1, (3, 4))
               .transpose(1, 2) for n in ("query", "key", "value"))

    def total(t):  # over the keys that each query sees
        return t.cumsum(2) if causal else t.sum(2, keepdim=True).expand_as(t)

    n = total(torch.ones(B, 3, M, 1, dtype=torch.float64))
    A, V, mean = total(k[..., :, None] * v[..., None, :]), total(v), total(k) / n
    covariance = total(k[..., :, None] * k[..., None, :]) / n[..., None] - mean[..., :, None] * mean[..., None, :]
    rate = (torch.einsum("bhnd,bhnde,bhne->bhn", q, covariance, q)[..., None].clamp(min=0) + 1e-2).rsqrt()
    o = torch.einsum("bhnd,bhnde->bhne", q, A) - (q * mean).sum(-1, keepdim=True) * V
    o = w["attention.normalize.gain"] * rate * o + w["attention.normalize.bias"] * V
    got = call(ID, config, weights, x, outputs=["attention"])[1]
    torch.testing.assert_close(got, o.transpose(1, 2).flatten(2), rtol=1e-8, atol=1e-10)


def test_rows_have_the_bias_as_mean_and_the_gain_as_deviation():
    weights, x = weights_of(ID, PLAIN, spread=0.4), tokens(PLAIN, B, M)
    w = named(ID, PLAIN, weights)
    attn = call(ID, PLAIN, weights, x, {"lengths": torch.tensor([M, 5, 2])}, outputs=["attn"])[1]
    for row, length in enumerate((M, 5, 2)):
        own = attn[row, :, :length, :length]
        torch.testing.assert_close(own.mean(-1), w["attention.normalize.bias"][0, :, 0].expand(3, length))
        torch.testing.assert_close(own.std(-1, unbiased=False), w["attention.normalize.gain"][0, :, 0].expand(3, length))
        assert (attn[row, :, :, length:] == 0).all()


def test_shifted_keys_and_scaled_queries_change_no_weight():
    weights, x = weights_of(ID, PLAIN, spread=0.4), tokens(PLAIN, B, M)
    attn = call(ID, PLAIN, weights, x, outputs=["attn"])[1]
    names = list(named(ID, PLAIN, weights))
    other = list(weights)
    other[names.index("attention.key.layer.bias")] = other[names.index("attention.key.layer.bias")] + 3
    for part in ("weight", "bias"):
        other[names.index(f"attention.query.layer.{part}")] = 2 * other[names.index(f"attention.query.layer.{part}")]
    torch.testing.assert_close(call(ID, PLAIN, other, x, outputs=["attn"])[1], attn, rtol=1e-8, atol=1e-9)


def test_without_a_bias_a_constant_in_all_values_changes_nothing():
    weights, x = weights_of(ID, PLAIN, spread=0.4), tokens(PLAIN, B, M)
    w = named(ID, PLAIN, weights)
    w["attention.normalize.bias"].zero_()
    before = main(ID, PLAIN, weights, x)
    w["attention.value.layer.bias"] += 5
    torch.testing.assert_close(main(ID, PLAIN, weights, x), before)


def test_one_visible_key_gives_the_bias_times_its_value():
    for place in ("outside", "inside", "inside_count"):
        config = {**PLAIN, "epsilon": 1e-3, "epsilon_place": place, "causal": True}
        weights, x = weights_of(ID, config, spread=0.4), tokens(config, B, M)
        attn = call(ID, config, weights, x, outputs=["attn"])[1]
        torch.testing.assert_close(attn[:, :, 0, 0],
                                   named(ID, config, weights)["attention.normalize.bias"][:, :, 0, 0].expand(B, 3))


def test_the_order_of_tokens_does_not_matter():
    order = torch.randperm(M)
    for config in CONFIGS:
        weights, x = weights_of(ID, config), tokens(config, B, M)
        torch.testing.assert_close(main(ID, config, weights, x[:, order]), main(ID, config, weights, x)[:, order])


def test_pools_have_as_many_parameters():
    """sum and max: round(D (12 D + 8) / (2 D + 1)) hidden channels make up for the projections and for mixing."""
    pool, nap = ({w["name"]: w["shape"] for w in json.loads(torch.ops.regard.declare(
        ID, json.dumps({"width": 64, "variant": variant})))["weights"]} for variant in ("sum", "nap"))
    assert pool["feedforward.layer.weight"] == [385, 64]
    count = {name: sum(torch.Size(s).numel() for n, s in shapes.items() if ".layer." in n)
             for name, shapes in (("pool", pool), ("nap", nap))}
    assert abs(count["pool"] / count["nap"] - 1) < 0.002


def test_dropout_drops_gain_and_bias_of_the_same_pairs():
    config = {**PLAIN, "attn_drop": 0.5}
    weights, x = weights_of(ID, config, spread=0.4), tokens(config, B, M)
    options = {"training": True, "seed": torch.tensor(5), "outputs": ["attn"]}
    attn, full = call(ID, config, weights, x, **options)[1], call(ID, config, weights, x, outputs=["attn"])[1]
    kept = attn != 0
    assert 0.3 < kept.double().mean() < 0.7
    torch.testing.assert_close(attn[kept], 2 * full[kept])


@pytest.mark.parametrize("config", [CONFIGS[1], CONFIGS[3]], ids=json.dumps)
def test_gradcheck(config):
    config = {**config, "width": 4, "heads": 2, "hidden": 3, "causal": True}
    gradcheck(lambda x, *weights: main(ID, config, weights, x), tokens(config, 2, 4), *weights_of(ID, config, spread=0.5),
              second=False)


@each_config
def test_a_decode_in_chunks_equals_one_shot(config):
    if config.get("variant") == "max":
        pytest.skip("never causal")
    module = regard.create(ID, **config, causal=True, dtype=torch.float64)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(decoded(module, x, [3, 1, 1, 2]), module(x))


@each_config
def test_packed_sequences_are_apart(config):
    module = regard.create(ID, **config, dtype=torch.float64)
    x, bounds = torch.randn(1, 9, 12, dtype=torch.float64), torch.tensor([0, 4, 9])
    if config.get("variant") == "max":
        with pytest.raises(ValueError, match="expected a mechanism that runs on packed sequences"):
            module(x, cu_seqlens=bounds)
        return
    torch.testing.assert_close(module(x, cu_seqlens=bounds), torch.cat([module(x[:, :4]), module(x[:, 4:])], 1))


def test_weights_have_the_official_names():
    assert list(named(ID, {"width": 8}, range(99)))[:8] == [
        "attention.query.layer.weight", "attention.query.layer.bias", "attention.key.layer.weight",
        "attention.key.layer.bias", "attention.value.layer.weight", "attention.value.layer.bias",
        "attention.normalize.gain", "attention.normalize.bias"]


def test_bad_input():
    def bad(text, inputs=None, outputs=(), **config):
        refuses(f"[normalized-attention] expected {text}", ID, {"width": 8, **config}, inputs=inputs, outputs=list(outputs))

    bad("variant among 'nap', 'non', 'softmax', 'sum', 'max'; found 'mean'; did you mean 'max'?", variant="mean")
    bad("epsilon_place among 'outside', 'inside', 'inside_count'; found 'root'", epsilon_place="root")
    bad("gelu among 'tanh', 'erf'; found 'quick'", gelu="quick")
    bad("width to be a multiple of heads, or head_width given; found width 8, heads 3", heads=3)
    bad("norm_epsilon > 0, or epsilon > 0; found 0.000000", epsilon=0.0)
    bad("a scale only with a variant that has scores; found 'sum'", variant="sum", scale=1.0)
    bad("a variant that can be causal; found 'max', one maximum for all queries", variant="max", causal=True)
    bad("no hidden with variant 'max', one maximum for all queries; found hidden", variant="max",
        inputs={"hidden": torch.zeros(6, 6, dtype=torch.bool)})
    bad("a variant with weights with the output attn; found 'max'", variant="max", outputs=["attn"])
