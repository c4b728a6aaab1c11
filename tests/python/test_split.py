"""The executors of one device against the whole: split:n cuts keys, stripe takes the stripe path."""

import json

import executor_cases as cases
import pytest
import torch
from mechanisms import CASES as MECHANISMS
from mechanisms import call, tokens, weights_of

import regard


def both(executor, name, M, N, **options):
    """Outputs and gradients whole and on the executor."""
    results = []
    for where in ("local", executor):
        t = cases.leaves(cases.tensors(M, N))
        out = cases.run(where, name, t, **options)
        cases.objective(out, [cases.cotangent(x) for x in out]).backward()
        gradients = [x.grad if x.grad is not None else torch.zeros_like(x) for x in t.values()]
        results.append([x.detach() for x in out] + gradients)
    return zip(*results)


@pytest.mark.parametrize("parts", [1, 3, 11])
@pytest.mark.parametrize("name", cases.CASES)
def test_split_is_the_whole(name, parts):
    for whole, part in both(f"split:{parts}", name, M=6, N=7):
        assert cases.error(part, whole) < 1e-12


@pytest.mark.parametrize("name", ["softmax alibi", "sum", "z_score", "softmax sinks"])
def test_split_with_an_offset_and_no_keys(name):
    for whole, part in both("split:3", name, M=2, N=9, query_offset=7):
        assert cases.error(part, whole) < 1e-12
    for whole, part in both("split:3", name, M=2, N=0):
        assert cases.error(part, whole) < 1e-12


def test_split_runs_fused_and_strict(paths_of):
    t = cases.tensors(32, 64, dtype=torch.float32)
    counts, out = paths_of(lambda: cases.run("split:4", "softmax causal", t, query_offset=32))
    assert counts == {"attention": {"fused": 4}}
    assert cases.error(out[0], cases.run("local", "softmax causal", t, query_offset=32)[0]) < 1e-5


def test_split_drops_what_the_whole_drops():
    t = cases.tensors(6, 9)
    spec = json.dumps({"dropout": 0.5})
    seed = torch.tensor(5)
    whole, part = [torch.ops.regard.attend_on(e, t["q"], t["k"], t["v"], spec, [], [], None, seed, 0)[0]
                   for e in ("local", "split:4")]
    assert cases.error(part, whole) < 1e-12


def test_second_derivatives_and_bfloat16():
    t = cases.tensors(3, 5)

    def f(q, k, v):
        return cases.run("split:2", "softmax causal", {**t, "q": q, "k": k, "v": v})[0]

    leaves = [t[name].requires_grad_() for name in "qkv"]
    assert torch.autograd.gradgradcheck(f, leaves, fast_mode=True)
    assert torch.autograd.gradcheck(f, leaves, fast_mode=True, check_forward_ad=True)
    low = {name: x.detach().to(torch.bfloat16) for name, x in t.items()}
    out = cases.run("split:2", "softmax causal", low)[0]
    assert out.dtype == torch.bfloat16
    assert cases.error(out.double(), cases.run("local", "softmax causal", low)[0].double()) < 1e-2


def test_stripe_takes_the_stripe_path(paths_of):
    t = cases.tensors(6, 9)
    counts, out = paths_of(lambda: cases.run("stripe", "softmax causal", t))
    assert counts == {"attention": {"stripe": 1}}
    assert cases.error(out[0], cases.run("local", "softmax causal", t)[0]) < 1e-12


# They ask an executor for nothing, in some configuration: it is refused, never left out silently.
ALONE = {"multi-token-attention", "landmark", "symbol-retrieval", "token-pooling", "class-token", "poolformer"}


@pytest.mark.parametrize("executor", ["split:3", "stripe"])
@pytest.mark.parametrize("id, config", MECHANISMS)
def test_every_mechanism(id, config, executor):
    try:
        call(id, config, weights_of(id, config), tokens(config, length=8), seed=torch.tensor(3), executor=executor)
    except ValueError as error:
        assert "that asks an executor for nothing" in str(error) and id in ALONE, error
        return
    weights, x = weights_of(id, config), tokens(config, length=8)
    results = []
    for where in ("local", executor):
        leaves = [w.clone().requires_grad_(w.is_floating_point()) for w in weights]
        given = x.clone().requires_grad_()
        out = call(id, config, leaves, given, seed=torch.tensor(3), executor=where)[0]
        (out * cases.cotangent(out)).sum().backward()
        results.append([out.detach(), given.grad if given.grad is not None else torch.zeros_like(given)] +
                       [w.grad for w in leaves if w.grad is not None])
    # A gradient that is truly zero (a bias of all keys) is rounding beside the largest.
    largest = max(t.abs().max() for t in results[0])
    for whole, part in zip(*results):
        assert (part - whole).abs().max() < 1e-12 * largest


@pytest.mark.parametrize("text, message", [
    ("split", "[executor] expected split:N with a number of parts N >= 1; found split"),
    ("split:0", "[executor] expected split:N with a number of parts N >= 1; found split:0"),
    ("split:x", "[executor] expected split:N with a number of parts N >= 1; found split:x"),
    ("stripe:2", "[executor] expected stripe alone; found stripe:2"),
])
def test_bad_executors(text, message):
    t = cases.tensors(2, 2)
    with pytest.raises(ValueError) as error:
        cases.run(text, "softmax", t)
    assert str(error.value) == message


def test_offers_are_derived():
    offered = json.loads(torch.ops.regard.offers(regard.Spec(mask=cases.causal).json))
    assert offered == {"merge": "", "commutative": "", "shards": ""}
    bias = {"nodes": [["row"], ["column"], ["capture", "bias", "float", 0, 1]], "score": 2}
    assert "capture 'bias' is read by row() and column() together" in json.loads(
        torch.ops.regard.offers(json.dumps(bias)))["shards"]
    local = {"nodes": [["row"], ["column"], ["ge", 0, 1]], "keep": 2}
    assert "outside the index of a capture" in json.loads(torch.ops.regard.offers(json.dumps(local)))["shards"]
