"""NaN where nothing is kept reaches nothing, and fresh memory is never read."""

import math

import pytest
import regard
import torch

PATHS = ["fused", "stripe", "composite"]
H, M, N, D = 2, 9, 11, 4


@pytest.fixture
def poisoned():
    """Fresh tensors are filled with NaN (largest integers) by torch."""
    torch.use_deterministic_algorithms(True)
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)


def results(f, leaves):
    o, lse = f()
    loss = o.square().sum() + torch.where(torch.isneginf(lse), torch.zeros_like(lse), lse).sum()
    return o.detach(), lse.detach(), *torch.autograd.grad(loss, leaves, allow_unused=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("path", PATHS)
def test_masked_keys_and_values_reach_nothing(path, bad, dtype):
    """Keys 0 and 7 are masked for all queries: whatever they hold, results and gradients are bit by bit the same."""
    q, k, v = (torch.randn(1, H, n, D, dtype=dtype) for n in (M, N, N))
    bias = torch.randn(H, M, N, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    mask = lambda b, h, i, j: (j != 0) & (j != 7) & (i + 2 >= j)  # noqa: E731

    def run(fill):
        leaves = [x.clone() for x in (q, k, v, bias)]
        for x in leaves[1:3]:
            x[:, :, [0, 7]] = fill
        leaves[3][:, :, [0, 7]] = fill
        leaves = [x.requires_grad_() for x in leaves]
        score = lambda s, b, h, i, j: torch.tanh(s) + leaves[3][h, i, j]  # noqa: E731
        return results(lambda: regard.attention(*leaves[:3], score=score, mask=mask, path=path, return_lse=True), leaves)

    for clean, dirty in zip(run(0.0), run(bad)):
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("path", PATHS)
def test_a_masked_query_row_with_nan(path):
    """A row without keys gives zeros and zero gradients even if its query is NaN."""
    q, k, v = (torch.randn(1, H, n, D) for n in (M, N, N))
    q[:, :, 4] = math.nan
    leaves = [x.requires_grad_() for x in (q, k, v)]
    o, lse, *gradients = results(
        lambda: regard.attention(*leaves, mask=lambda b, h, i, j: i != 4, path=path, return_lse=True), leaves)
    assert (o[:, :, 4] == 0).all() and torch.isneginf(lse[:, :, 4]).all()
    assert (gradients[0][:, :, 4] == 0).all() and all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("path", PATHS)
def test_nan_of_a_kept_pair_stays_in_its_row(path):
    q, k, v = (torch.randn(1, H, n, D) for n in (M, N, N))
    q[:, :, 4] = math.nan
    o = regard.attention(q, k, v, path=path)
    assert o[:, :, 4].isnan().all()
    assert torch.isfinite(o[:, :, [r for r in range(M) if r != 4]]).all()


@pytest.mark.parametrize("path", PATHS)
def test_the_branch_not_chosen_may_be_nan(path):
    """where(s > 0, log(s), s) has the derivative of the branch it takes."""
    q, k, v = (torch.randn(1, H, n, D).requires_grad_() for n in (M, N, N))
    score = lambda s, b, h, i, j: torch.where(s > 0, torch.log(s), s)  # noqa: E731
    for result in results(lambda: regard.attention(q, k, v, score=score, path=path, return_lse=True), (q, k, v)):
        assert torch.isfinite(result).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (1, 1), (7, 70), (70, 7)])
@pytest.mark.parametrize("path", PATHS)
def test_fresh_memory_is_never_read(path, sizes, dtype, poisoned):
    m, n = sizes
    q, k, v = (torch.randn(2, H, length, D, dtype=dtype, requires_grad=True) for length in (m, n, n))
    slopes = torch.rand(H, dtype=dtype, requires_grad=True)
    score = lambda s, b, h, i, j: s - slopes[h] * (i - j).abs()  # noqa: E731
    for mask in (None, lambda b, h, i, j: i > j, lambda b, h, i, j: j > 100):
        out = results(lambda: regard.attention(q, k, v, score=score, mask=mask, path=path, return_lse=True),
                      (q, k, v, slopes))
        for result in out:
            assert not result.isnan().any()


def test_fresh_memory_of_the_map_and_of_merge(poisoned):
    q, k, v = (torch.randn(1, H, n, D, requires_grad=True) for n in (M, N, N))
    P = regard.AttentionMap(q, k, mask=lambda b, h, i, j: i > j)
    for result in (P.column_sums(), P.entropy(), P.mean_distance(), P.mass(torch.arange(N) < 3), P.rows([0, 3]),
                   P.apply(v), *P.row_statistics()[:3]):
        assert not result.isnan().any()
        for g in torch.autograd.grad(torch.where(torch.isneginf(result), 0.0, result).sum(), (q, k), allow_unused=True,
                                     retain_graph=True):
            assert g is None or not g.isnan().any()
    o, lse = regard.attention(q, k, v, return_lse=True)
    assert not any(x.isnan().any() for x in regard.merge(o, lse, torch.zeros_like(o), torch.full_like(lse, -math.inf)))


def test_fresh_memory_of_every_mechanism(poisoned):
    from test_compile import ENTRIES, EXAMPLES, inputs_of
    import json

    for id, example in EXAMPLES:
        config = json.loads(example)
        module = regard.nn.create(id, **config, dtype=torch.float64)
        x, call = inputs_of(ENTRIES[id], config, module)
        o = module(x.requires_grad_(), **call)
        o.square().sum().backward()
        assert not o.isnan().any() and (x.grad is None or not x.grad.isnan().any()), id
        for name, p in module.named_parameters():
            assert p.grad is None or not p.grad.isnan().any(), (id, name)
