"""The plain pools: formulas, limits, padding, prefix tokens, refusals."""

import pytest
import torch
from mechanisms import gradcheck, main, refuses, tokens, weights_of

FORMULAS = {
    "class-token": ({"width": 8}, lambda x: x[:, 0]),
    "mean": ({"width": 8}, lambda x: x.mean(1)),
    "max": ({"width": 8}, lambda x: x.max(1).values),
    "generalized-mean": ({"width": 8, "p": 2.5}, lambda x: x.clamp_min(1e-6).pow(2.5).mean(1).pow(1 / 2.5)),
    "log-sum-exp": ({"width": 8, "r": 3.0, "learned": True}, lambda x: (3 * x).exp().mean(1).log() / 3),
}
each_pool = pytest.mark.parametrize("id", FORMULAS)
UNORDERED = [id for id in FORMULAS if id != "class-token"]


def pool(id, x, inputs=None, config=None, **options):
    config = config or FORMULAS[id][0]
    return main(id, config, torch.ops.regard.initialize(id, __import__("json").dumps(config), x.dtype), x, inputs, **options)


@each_pool
def test_equals_the_formula(id):
    x = tokens({"width": 8}, 3, 7)
    torch.testing.assert_close(pool(id, x, config=None if id == "class-token" else {**FORMULAS[id][0], "include_prefix": True},
                                    prefix=1), FORMULAS[id][1](x))


@pytest.mark.parametrize("id", UNORDERED)
def test_prefix_tokens_are_left_out(id):
    x = tokens({"width": 8}, 3, 7)
    torch.testing.assert_close(pool(id, x, prefix=2), FORMULAS[id][1](x[:, 2:]))


@pytest.mark.parametrize("id", UNORDERED)
def test_a_map_is_its_tokens(id):
    image = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(pool(id, image), pool(id, image.flatten(2).transpose(1, 2)))
    volume = torch.randn(2, 8, 2, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(pool(id, volume), pool(id, volume.flatten(2).transpose(1, 2)))


@pytest.mark.parametrize("id", UNORDERED)
def test_the_order_of_tokens_does_not_matter(id):
    x = tokens({"width": 8}, 3, 7)
    torch.testing.assert_close(pool(id, x[:, torch.randperm(7)]), pool(id, x))


@each_pool
def test_gradients_with_and_without_padding(id):
    x = tokens({"width": 8}, 4, 4).add(0.3)
    weights = weights_of(id, FORMULAS[id][0])
    lengths = torch.tensor([4, 3, 1, 0])
    for inputs in ({}, {"lengths": lengths}):
        gradcheck(lambda x, *weights: main(id, FORMULAS[id][0], weights, x, inputs), x, *weights)


@pytest.mark.parametrize("id", UNORDERED)
def test_lengths_count_the_prefix(id):
    x, lengths = tokens({"width": 8}, 3, 6), torch.tensor([6, 4, 1])
    y = pool(id, x, {"lengths": lengths}, prefix=1)
    torch.testing.assert_close(y[:2], torch.cat([FORMULAS[id][1](x[:1, 1:]), FORMULAS[id][1](x[1:2, 1:4])]))
    assert (y[2] == 0).all(), "one token, and it is the prefix"


def test_the_maximum_gives_its_gradient_to_the_first_largest():
    x = torch.zeros(1, 3, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(pool("max", x).sum(), x)
    assert (gradient[0] == torch.tensor([1.0, 0.0, 0.0])[:, None]).all()


def test_limits():
    x = tokens({"width": 8}, 3, 7)
    positive = x.abs() + 0.1
    plain = {"width": 8, "learned": False}
    torch.testing.assert_close(pool("generalized-mean", positive, config={**plain, "p": 1.0}), positive.mean(1))
    torch.testing.assert_close(pool("generalized-mean", positive, config={**plain, "p": 500.0}), positive.amax(1), rtol=0.01, atol=0)
    torch.testing.assert_close(pool("generalized-mean", positive, config={**plain, "p": -1.0}), 1 / (1 / positive).mean(1))
    torch.testing.assert_close(pool("log-sum-exp", x, config={**plain, "r": 1e-6}), x.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pool("log-sum-exp", x, config={**plain, "r": 1e4}), x.amax(1), rtol=0, atol=1e-3)
    torch.testing.assert_close(pool("log-sum-exp", x, config={**plain, "r": -1e4}), x.amin(1), rtol=0, atol=1e-3)


def test_nothing_overflows():
    x = torch.full((1, 3, 8), 3e4)
    assert pool("log-sum-exp", x, config={"width": 8, "r": 50.0}).isfinite().all()
    half = (x / 10).half()
    torch.testing.assert_close(pool("generalized-mean", half, config={"width": 8, "p": 3.0}), half[:, 0], rtol=1e-3, atol=0)
    assert pool("log-sum-exp", half, config={"width": 8, "r": 50.0}).isfinite().all()


def test_signed_entries_of_the_generalized_mean_count_as_epsilon():
    x = -torch.rand(2, 4, 8, dtype=torch.float64) - 0.1
    x.requires_grad_()
    y = pool("generalized-mean", x, config={"width": 8, "epsilon": 0.01})
    torch.testing.assert_close(y, torch.full_like(y, 0.01))
    assert (torch.autograd.grad(y.sum(), x)[0] == 0).all()


def test_learned_powers_are_weights():
    assert [float(w) for w in torch.ops.regard.initialize("generalized-mean", '{"width": 8}')] == [3.0]
    assert [float(w) for w in torch.ops.regard.initialize("log-sum-exp", '{"width": 8, "r": 10.0, "learned": true}')] == [10.0]
    assert torch.ops.regard.initialize("generalized-mean", '{"width": 8, "learned": false}') == []


def test_bad_input():
    refuses("[class-token] expected a class token in front (prefix >= 1); found prefix 0", "class-token", prefix=0)
    refuses("[class-token] expected x (B, N, 8) of a floating type; found (2, 8, 3, 3) float32", "class-token",
            x=torch.randn(2, 8, 3, 3))
    refuses("[generalized-mean] expected p other than 0; found 0", "generalized-mean", {"width": 8, "p": 0.0})
    refuses("[generalized-mean] expected epsilon > 0; found 0.000000", "generalized-mean", {"width": 8, "epsilon": 0.0})
    refuses("[log-sum-exp] expected r other than 0; found 0", "log-sum-exp", {"width": 8, "r": 0.0})
    for id in UNORDERED:
        refuses(f"[{id}] expected at least one token to pool; found (2, 1, 8) float32 with prefix 1", id,
                x=torch.randn(2, 1, 8), prefix=1)
