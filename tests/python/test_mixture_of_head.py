"""mixture-of-head: gates, the balance loss, the hard rule, gathered execution, caches and packing."""

import json

import pytest
import torch

import regard  # noqa: F401  (loads the library)

ID = "mixture-of-head"
BASE = {"width": 12, "heads": 6, "shared_heads": 2, "routed_heads": 2, "qkv_bias": True}
LLAMA = {"width": 16, "heads": 8, "kv_heads": 2, "shared_heads": 4, "routed_heads": 2, "router": "query_norm",
         "separate": True, "rope": True, "out_bias": False, "causal": True}


def setup(config, seed=0):
    torch.manual_seed(seed)
    text = json.dumps(config)
    names = [w["name"] for w in json.loads(torch.ops.regard.declare(ID, text))["weights"]]
    return {n: torch.randn_like(w) for n, w in zip(names, torch.ops.regard.initialize(ID, text, torch.float64))}


def run(config, weights, x, inputs=None, outputs=(), **more):
    inputs = inputs or {}
    return torch.ops.regard.mechanism(ID, json.dumps(config), list(weights.values()), x, input_names=list(inputs),
                                      inputs=list(inputs.values()), outputs=list(outputs), **more)


def x_of(batch=2, tokens=7, width=12, seed=1):
    torch.manual_seed(seed)
    return torch.randn(batch, tokens, width, dtype=torch.float64)


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_sums_of_gates():
    weights, x = setup(BASE), x_of()
    gates, chosen = run(BASE, weights, x, outputs=["gates", "topk_indices"])[1:]
    a = 2 * torch.softmax(x @ weights["wg_0.weight"].T, -1)
    close(gates[..., :2].sum(-1), 2 * a[..., 0])
    close(gates[..., 2:].sum(-1), 2 * a[..., 1])
    assert torch.equal((gates[..., 2:] > 0).nonzero()[:, 2].view(2, 7, 2), chosen.sort(-1)[0])
    weights["wg_0.weight"].zero_()
    close(run(BASE, weights, x, outputs=["gates"])[1].sum(-1), torch.full((2, 7), 4.0, dtype=torch.float64))


def test_even_gates_are_ordinary_attention():
    config = {**BASE, "routed_heads": 4}
    weights, x = setup(config), x_of()
    for name in ("wg.weight", "wg_0.weight", "wg_1.weight"):
        weights[name].zero_()
    y, gates, loss = run(config, weights, x, outputs=["gates", "loss.balance"])
    close(gates, torch.ones_like(gates))
    assert loss.item() == pytest.approx(4)
    plain = {"width": 12, "heads": 6}
    close(y, torch.ops.regard.mechanism("softmax-attention", json.dumps(plain), [weights[n] for n in (
        "qkv.weight", "qkv.bias", "proj.weight", "proj.bias")], x)[0])


def test_balance_of_the_tokens_that_exist():
    weights, x, lengths = setup(BASE), x_of(), torch.tensor([7, 4])
    padded = run(BASE, weights, x, inputs={"lengths": lengths}, outputs=["loss.balance"])[1]
    real = torch.cat([x[0], x[1, :4]])[None]
    close(padded, run(BASE, weights, real, outputs=["loss.balance"])[1])


def test_the_hard_rule():
    weights, x = setup(LLAMA), x_of(width=16)
    gates, chosen = run(LLAMA, weights, x, outputs=["gates", "topk_indices"])[1:]
    assert set(gates.unique().tolist()) == {0.0, 1.0} and bool((gates[..., :4] == 1).all())
    assert bool((gates.sum(-1) == 6).all())
    weights["q_proj.weight"][8:] *= 3  # all routed heads alike
    assert torch.equal(run(LLAMA, weights, x, outputs=["topk_indices"])[1], chosen)
    weights["q_proj.weight"][8:] = weights["q_proj.weight"][8:].view(4, 2, 16).flip(0).reshape(8, 16)
    assert torch.equal(run(LLAMA, weights, x, outputs=["topk_indices"])[1], 3 - chosen)


@pytest.mark.parametrize("config", [BASE, {**BASE, "kv_heads": 2, "shared_heads": 1, "causal": True},
                                    {**LLAMA, "width": 12, "head_width": 2}, {**BASE, "shared_heads": 0}])
def test_gathered_equals_dense(config):
    x = x_of().requires_grad_()
    weights = {n: w.requires_grad_() for n, w in setup(config).items()}
    lengths = {"lengths": torch.tensor([7, 3])}
    results = []
    for execution in ("dense", "gathered"):
        y = run({**config, "execution": execution}, weights, x, inputs=lengths)[0]
        results.append(
            [y, *torch.autograd.grad((y * y.detach().cos()).sum(), [x, *weights.values()], allow_unused=True)])
    for dense, gathered in zip(*results):
        close(dense, gathered, 1e-10)


@pytest.mark.parametrize("config", [{**BASE, "causal": True}, LLAMA])
def test_decode_and_packing(config):
    weights, x = setup(config), x_of(batch=1, width=config["width"])
    whole, cache, names, pieces = run(config, weights, x)[0], {}, ["cache.k", "cache.v"], []
    for piece in x.split([3, 1, 1, 2], 1):
        out = run(config, weights, piece, inputs=cache, outputs=names)
        pieces.append(out[0])
        cache = dict(zip(names, out[1:]))
    close(torch.cat(pieces, 1), whole)
    packed = run(config, weights, x, inputs={"cu_seqlens": torch.tensor([0, 3, 7])})[0]
    close(packed, torch.cat([run(config, weights, part)[0] for part in x.split([3, 4], 1)], 1))


def test_cross_attention_routes_by_the_query():
    weights, x, memory = setup(BASE), x_of(), x_of(tokens=5, seed=3)
    y, chosen = run(BASE, weights, x, inputs={"memory": memory}, outputs=["topk_indices"])
    assert torch.equal(chosen, run(BASE, weights, x, outputs=["topk_indices"])[1])
    close(run(BASE, weights, x, inputs={"memory": x.clone()})[0], run(BASE, weights, x)[0])
    assert y.shape == x.shape


@pytest.mark.parametrize("change, message", [
    ({"routed_heads": 5}, "routed_heads in \\[0, heads - shared_heads = 4\\]"),
    ({"shared_heads": 7}, "shared_heads in"), ({"routed_heads": 0}, "where not all heads are shared"),
    ({"router": "query_norm", "shared_heads": 5, "routed_heads": 1}, "at least 2 heads to choose from"),
    ({"router": "soft"}, "router 'learned'"), ({"execution": "gathered", "attn_drop": 0.1}, "attn_drop 0"),
    ({"cosine": True, "causal": True}, "cosine without causal"),
])
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        torch.ops.regard.declare(ID, json.dumps({**BASE, **change}))
