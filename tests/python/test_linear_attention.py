"""linear-attention: the layers of the family written out, decoding, packed and padded calls, refusals."""

import json

import pytest
import torch
from mechanisms import REGISTRY, call, gradcheck, main, named, refuses, tokens, weights_of

import regard

ID = "linear-attention"
EXAMPLES = REGISTRY[ID]["examples"]
MAPS = ["elu1", "relu", "identity", "silu", "softmax", "dpfp", "t2r", "hadamard", "hedgehog", "taylor2"]
causal_examples = pytest.mark.parametrize("config", [c for c in EXAMPLES if c.get("causal", True)], ids=json.dumps)


def close(a, b, tolerance=1e-11):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def phi(config, w, x, which):
    map, F, prefix = config["feature_map"], torch.nn.functional, f"feature_map_{which}."
    linear = lambda name: F.linear(x, w[prefix + name + ".weight"], w.get(prefix + name + ".bias"))
    if map == "elu1":
        return F.elu(x) + 1
    if map == "dpfp":
        both = torch.cat([x.relu(), -x.relu()], -1)
        return torch.cat([both * both.roll(j, -1) for j in range(1, config.get("dpfp_order", 1) + 1)], -1)
    if map == "t2r":
        return linear("layer").relu()
    if map == "hadamard":
        return linear("layer1") * linear("layer2")
    if map == "hedgehog":
        return torch.cat([2 * linear("layer"), -2 * linear("layer")], -1).softmax(-1)
    return {"relu": torch.relu, "identity": lambda t: t, "silu": F.silu, "softmax": lambda t: t.softmax(-1)}[map](x)


@pytest.mark.parametrize("map", [m for m in MAPS if m != "taylor2"])
def test_feature_maps_and_weights(map):
    config = {"width": 8, "heads": 2, "feature_map": map, "normalize": False, "dpfp_order": 2, "scale": 1.0}
    x, weights = tokens(config), weights_of(ID, config)
    w = named(ID, config, weights)
    q, k, v = [torch.nn.functional.linear(x, w[f"{n}_proj.weight"]).unflatten(-1, (2, 4)).transpose(1, 2) for n in "qkv"]
    o = (phi(config, w, q, "q") @ phi(config, w, k, "k").mT).tril() @ v
    close(main(ID, config, weights, x), torch.nn.functional.linear(o.transpose(1, 2).flatten(2), w["o_proj.weight"]))


def test_taylor2_is_the_exponential_to_second_order():
    config = {"width": 8, "heads": 2, "feature_map": "taylor2"}
    x, weights = tokens(config), weights_of(ID, config)
    w = named(ID, config, weights)
    q, k = [torch.nn.functional.linear(x, w[f"{n}_proj.weight"]).unflatten(-1, (2, 4)).transpose(1, 2) for n in "qk"]
    c = q @ k.mT / 2
    p = (1 + c + c * c / 2).tril()
    close(call(ID, config, weights, x, outputs=["attn"])[1], p / (p.sum(-1, keepdim=True) + 1e-6))


def test_gated_delta_layer_written_out():
    config = EXAMPLES[4]
    x, weights = tokens(config), weights_of(ID, config)
    w = named(ID, config, weights)
    F = torch.nn.functional
    heads = lambda n: F.linear(x, w[f"{n}_proj.weight"]).unflatten(-1, (2, 4)).transpose(1, 2)
    unit = lambda t: t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    g = (-w["A_log"].exp() * F.softplus(F.linear(x, w["a_proj.weight"]) + w["dt_bias"])).transpose(1, 2)
    beta = F.linear(x, w["b_proj.weight"]).sigmoid().transpose(1, 2)
    o = torch.ops.regard.linear_attention(unit(F.silu(heads("q"))), unit(F.silu(heads("k"))), heads("v"), log_decay=g,
                                          beta=beta, form="recurrent")[0].transpose(1, 2)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w["o_norm.weight"]
    y = F.linear(o.flatten(2) * F.silu(F.linear(x, w["g_proj.weight"])), w["o_proj.weight"])
    close(main(ID, config, weights, x), y)


@causal_examples
def test_decode_in_chunks_equals_one_call(config):
    x, weights = tokens(config, 2, 12), weights_of(ID, config)
    names = ["cache." + s["name"] for s in json.loads(torch.ops.regard.declare(ID, json.dumps(config)))["caches"]]
    parts, cache = [], {}
    for part in x.split([5, 1, 1, 5], 1):
        y, *state = call(ID, config, weights, part, cache, outputs=names)
        parts, cache = [*parts, y], dict(zip(names, state))
    close(torch.cat(parts, 1), main(ID, config, weights, x))


@causal_examples
def test_packed_equals_separate_and_padded_equals_cut(config):
    x, weights = tokens(config, 1, 12), weights_of(ID, config)
    packed = main(ID, config, weights, x, {"cu_seqlens": torch.tensor([0, 5, 12])})
    close(packed, torch.cat([main(ID, config, weights, part) for part in x.split([5, 7], 1)], 1))
    padded = x.clone()
    padded[:, 7:] = torch.nan
    y = main(ID, config, weights, padded, {"lengths": torch.tensor([7])})
    close(y[:, :7], main(ID, config, weights, x[:, :7]))
    assert torch.count_nonzero(y[:, 7:]) == 0


@pytest.mark.parametrize("config", EXAMPLES, ids=json.dumps)
def test_the_map_gives_the_output_and_compiles(config):
    x, weights = tokens(config, 2, 9), weights_of(ID, config)
    y, attn = call(ID, config, weights, x, outputs=["attn"])
    assert attn.shape == (2, config["heads"], 9, 9)
    if config.get("causal", True):
        assert torch.count_nonzero(attn.triu(1)) == 0
    torch._dynamo.reset()
    text = json.dumps(config)
    compiled = torch.compile(lambda x: main(ID, text, weights, x), backend="aot_eager", fullgraph=True, dynamic=True)
    close(compiled(x), y)


def test_cross_attention():
    config = {"width": 8, "heads": 2, "causal": False, "memory_width": 6}
    x, memory, weights = tokens(config), torch.randn(2, 9, 6, dtype=torch.float64), weights_of(ID, config)
    memory[:, 4:] = torch.nan
    lengths = torch.tensor([4, 4])
    close(main(ID, config, weights, x, {"memory": memory, "memory_lengths": lengths}),
          main(ID, config, weights, x, {"memory": memory[:, :4]}))


def test_gradcheck():
    config = {**EXAMPLES[3], "width": 4}
    gradcheck(lambda x, *weights: main(ID, config, weights, x), tokens(config, 2, 5), *weights_of(ID, config))


def test_paths_are_counted():
    config = {"width": 8, "heads": 2, "chunk": 4}
    regard.reset_path_counts()
    main(ID, config, weights_of(ID, config), tokens(config, 2, 9))
    assert regard.path_counts()["linear_attention"]["stripe"] == 1


@pytest.mark.parametrize("change,expected", [
    ({"heads": 3}, "width to be a multiple of heads (or key_width and value_width); found width 8, heads 3"),
    ({"delta": True, "normalize": True}, "normalize false with delta; found normalize true"),
    ({"feature_map": "identity", "normalize": True},
     "a feature map of one sign with normalize (or allow_signed); found 'identity'"),
    ({"causal": False, "decay": "fixed"}, "causal with a decay or delta, which need an order; found causal = false"),
    ({"output_norm": True, "output_gate": True}, "output_norm or output_gate, which norms too; found both"),
])
def test_refusals(change, expected):
    refuses("[linear-attention] expected " + expected, ID, {"width": 8, **change})
