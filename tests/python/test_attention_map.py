"""AttentionMap against the materialized map: products, rows and statistics, with their gradients."""

import math

import pytest
import reference
import regard
import torch
from test_attention import close

SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625], dtype=torch.float64)
CASES = {
    "plain": {},
    "causal": {"is_causal": True, "scale": 0.7},
    "alibi, window": {"score": lambda s, b, h, i, j: s - SLOPES[h] * (i - j).abs(),
                      "mask": lambda b, h, i, j: (i - j).abs() <= 3},
    "empty rows": {"mask": lambda b, h, i, j: (i != 2) & (i > j)},
    "masked by score": {"score": lambda s, b, h, i, j: torch.where(i >= j, s, -math.inf)},
    "sinks": {"sinks": torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64), "is_causal": True},
    "offset": {"is_causal": True, "query_offset": 3},
}


@pytest.fixture(params=CASES)
def case(request, qkv):
    """The map, the materialized P and lse, and q, k."""
    q, k, _ = qkv(M=7, N=9, grad=True)
    arguments = CASES[request.param]
    p, lse = reference.weights(q, k, **arguments)
    return regard.AttentionMap(q, k, **arguments), p, lse, (q, k), arguments


def same_gradients(actual, expected, inputs, tolerance=1e-10):
    g = torch.randn_like(expected)
    for a, e in zip(torch.autograd.grad(actual, inputs, g, allow_unused=True),
                    torch.autograd.grad(expected, inputs, g, allow_unused=True, retain_graph=True)):
        e = torch.zeros_like(inputs[0]) if e is None else e
        close(torch.zeros_like(e) if a is None else a, e, tolerance)


def test_apply(case):
    P, p, _, inputs, _ = case
    v = torch.randn(2, 2, 9, 5, dtype=torch.float64, requires_grad=True)
    expected = p @ v.repeat_interleave(2, dim=1)
    actual = P.apply(v)
    close(actual, expected)
    same_gradients(actual, expected, (*inputs, v))


def test_apply_transposed(case):
    P, p, _, inputs, _ = case
    u = torch.randn(2, 4, 7, 5, dtype=torch.float64, requires_grad=True)
    expected = p.transpose(-1, -2) @ u
    actual = P.apply_transposed(u)
    close(actual, expected)
    same_gradients(actual, expected, (*inputs, u))


def test_rows(case):
    P, p, _, inputs, _ = case
    rows = torch.tensor([5, 0, 2])
    close(P.rows(rows), p[:, :, rows])
    close(P.rows(4), p[:, :, 4:5])
    same_gradients(P.rows(rows), p[:, :, rows], inputs)


def test_column_sums(case):
    P, p, _, inputs, _ = case
    close(P.column_sums(), p.sum(-2))
    same_gradients(P.column_sums(), p.sum(-2), inputs)


def test_entropy(case):
    P, p, _, inputs, _ = case
    expected = torch.where(p > 0, -p * torch.where(p > 0, p, 1.0).log(), 0.0).sum(-1)
    actual = P.entropy()
    close(actual, expected, 1e-10)
    same_gradients(actual, expected, inputs, 1e-9)


def test_mean_distance(case):
    P, p, _, inputs, arguments = case
    _, _, i, j = reference.positions(2, 4, 7, 9, arguments.get("query_offset", 0))
    expected = (p * (i - j).abs()).sum(-1)
    close(P.mean_distance(), expected)
    same_gradients(P.mean_distance(), expected, inputs)


@pytest.mark.parametrize("shape", [(9,), (2, 9), (1, 9), (2, 4, 9), (2, 1, 9), (2, 4, 7, 9), (1, 1, 7, 9)])
def test_mass(shape, qkv):
    q, k, _ = qkv(M=7, N=9, grad=True)
    P, p = regard.AttentionMap(q, k, is_causal=True), reference.weights(q, k, is_causal=True)[0]
    for marked in (torch.rand(shape) > 0.5, torch.rand(shape, dtype=torch.float64)):
        whole = marked if len(shape) == 4 else marked.reshape(*shape[:1] if len(shape) > 1 else (1,),
                                                              shape[1] if len(shape) == 3 else 1, 1, 9)
        expected = (p * whole).sum(-1)
        close(P.mass(marked), expected)
        same_gradients(P.mass(marked), expected, (q, k))


def test_row_statistics_are_one_pass(case, paths_of):
    P, p, lse, _, _ = case
    marked = torch.arange(9) < 4
    counts, statistics = paths_of(lambda: P.row_statistics(marked))
    assert sum(counts["attention"].values()) == 1
    close(statistics.lse, lse)
    close(statistics.entropy, P.entropy())
    close(statistics.mean_distance, P.mean_distance())
    close(statistics.mass, p[..., :4].sum(-1))
    assert P.row_statistics().mass is None
    close(P.lse(), lse)


def test_uniform_map():
    """Equal scores: entropy log N, mean distance and mass by hand."""
    q = torch.zeros(1, 1, 3, 4)
    P = regard.AttentionMap(q, torch.randn(1, 1, 8, 4))
    torch.testing.assert_close(P.entropy(), torch.full((1, 1, 3), math.log(8)))
    torch.testing.assert_close(P.mass(torch.arange(8) < 2), torch.full((1, 1, 3), 0.25))
    torch.testing.assert_close(P.mean_distance()[0, 0, 0], torch.tensor(3.5))
    torch.testing.assert_close(P.column_sums(), torch.full((1, 1, 8), 3 / 8))


def test_map_of_a_spec_with_captures(qkv):
    q, k, _ = qkv(M=7, N=9)
    slopes = torch.rand(4, dtype=torch.float64, requires_grad=True)
    score = lambda s, b, h, i, j: s - slopes[h] * (i - j).abs()  # noqa: E731
    P = regard.AttentionMap(q, k, spec=regard.Spec(score=score))
    p, _ = reference.weights(q, k, score=score)
    marked = torch.rand(9, dtype=torch.float64)
    close(P.mass(marked), (p * marked).sum(-1))
    same_gradients(P.mass(marked), (p * marked).sum(-1), (slopes,))
    same_gradients(P.column_sums(), p.sum(-2), (slopes,))


def test_second_derivatives_of_a_statistic():
    q, k = (torch.randn(1, 1, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradgradcheck(lambda q, k: regard.AttentionMap(q, k, is_causal=True).entropy(), (q, k))


@pytest.mark.parametrize("call, expected", [
    (lambda P: P.rows(torch.tensor([0.5])), "[AttentionMap.rows] expected integer indices (R); found torch.float32"),
    (lambda P: P.rows(torch.tensor([9])), "[attention_rows] expected rows in [0, 7)"),
    (lambda P: P.mass(torch.ones(5)), "[AttentionMap.mass] expected marked (N), (B, N)"),
    (lambda P: P.apply_transposed(torch.ones(2, 4, 9, 3)), "[attention_transposed] expected u of shape"),
    (lambda P: P.apply(3), "[AttentionMap.apply] expected v to be a tensor; found int"),
])
def test_refused(call, expected, qkv):
    q, k, _ = qkv(M=7, N=9)
    with pytest.raises(ValueError) as error:
        call(regard.AttentionMap(q, k))
    assert str(error.value).startswith(expected), str(error.value)


def test_entropy_needs_softmax(qkv):
    q, k, _ = qkv()
    with pytest.raises(ValueError, match=r"\[AttentionMap.entropy\] expected softmax weights alone; found normalizer relu"):
        regard.AttentionMap(q, k, normalizer="relu").entropy()
    with pytest.raises(ValueError, match="found a weight"):
        regard.AttentionMap(q, k, weight=lambda b, h, i, j: 1.0 / (1 + j)).entropy()
