"""token-pooling: clusterings by hand, limits, permutations, padding, gradients, the blackboard's weights, refusals."""

import json

import pytest
import torch
from mechanisms import call, gradcheck, main, refuses

ID = "token-pooling"
VARIANTS = ["kmeans", "kmedoids", "thirdparty-kmedoids"]


def pool(x, weight=None, outputs=(), inputs=None, **config):
    inputs = {**(inputs or {}), **({} if weight is None else {"weight": weight})}
    config = {"width": x.shape[-1], "weighted": weight is not None, **config}
    results = call(ID, config, [], x, inputs, outputs=list(outputs))
    return results[0] if not outputs else results


def tokens(batch=2, length=12, width=5):
    return torch.randn(batch, length, width, dtype=torch.float64)


def by_hand(x, w, K, iterations, variant, squared=False):
    """One sample, cluster by cluster; starts at the K heaviest tokens."""
    N = x.shape[0]
    d = torch.cdist(x, x)
    index = w.argsort(descending=True, stable=True)[:K].clone()
    centers = x[index]
    for _ in range(iterations):
        a = (torch.cdist(x, centers) if variant == "kmeans" else d[:, index]).argmin(1)
        for k in range(K):
            own = (a == k).nonzero().flatten()
            if variant == "kmeans" and len(own):
                centers[k] = (w[own, None] * x[own]).sum(0) / w[own].sum()
            elif variant == "kmedoids" and len(own):
                index[k] = min(own, key=lambda i: sum(w[j] * d[i, j] ** (2 if squared else 1) for j in own))
            elif variant == "thirdparty-kmedoids":
                cost = torch.full((N,), 1e6 * N, dtype=x.dtype)
                cost[own] = w[own] * d[own].sum(1)
                index[k] = cost.argmin()
    if variant != "kmeans":
        centers = x[index]
    return centers, torch.cdist(x, centers).argmin(1), index


@pytest.mark.parametrize("variant, distance", [*((v, "euclidean") for v in VARIANTS), ("kmedoids", "squared")])
def test_is_the_clustering_written_out(variant, distance):
    x, w = tokens(3, 14), torch.rand(3, 14, dtype=torch.float64)
    wanted = ["assignment", "sizes"] + (["center_index"] if variant != "kmeans" else [])
    y, assignment, sizes, *index = pool(x, w, wanted, count=4, variant=variant, distance=distance)
    for b in range(3):
        centers, a, medoids = by_hand(x[b], w[b], 4, 5, variant, distance == "squared")
        torch.testing.assert_close(y[b], centers, rtol=1e-11, atol=1e-12)
        assert (assignment[b] == a).all() and (sizes[b] == torch.bincount(a, minlength=4)).all()
        if index:
            assert (index[0][b] == medoids).all() and (y[b] == x[b, medoids]).all()


@pytest.mark.parametrize("variant", VARIANTS[:2])
@pytest.mark.parametrize("weighted", [False, True])
def test_as_many_clusters_as_tokens_give_a_permutation(variant, weighted):
    x = tokens()
    w = torch.rand(2, 12, dtype=torch.float64) if weighted else None
    y = pool(x, w, count=12, variant=variant)
    assert (torch.cdist(y, x).amin(2) < 1e-12).all() and (torch.cdist(x, y).amin(2) < 1e-12).all()


def test_the_objective_never_rises():
    x, w = tokens(4, 40), torch.rand(4, 40, dtype=torch.float64)
    errors = [(w * torch.cdist(x, pool(x, w, count=6, iterations=n)).square().amin(2)).sum(1) for n in range(7)]
    for before, after in zip(errors, errors[1:]):
        assert (after <= before + 1e-12).all()


@pytest.mark.parametrize("variant", VARIANTS[:2])
def test_permuted_tokens_permute_the_assignment(variant):
    x, w, order = tokens(1, 15), torch.rand(1, 15, dtype=torch.float64), torch.randperm(15)
    for weight in (w, None) if variant == "kmeans" else (w,):  # without weights, clusters of two are ties
        y, a = pool(x, weight, ["assignment"], count=4, variant=variant)
        z, b = pool(x[:, order], None if weight is None else w[:, order], ["assignment"], count=4, variant=variant)
        torch.testing.assert_close(y, z, rtol=1e-11, atol=1e-12)
        assert (a[:, order] == b).all()


@pytest.mark.parametrize("variant", VARIANTS[:2])
def test_copies_of_points_are_reproduced(variant):
    points = tokens(1, 3)
    x = points.repeat(1, 4, 1)[:, torch.randperm(12)]
    y = pool(x, count=3, variant=variant)
    assert (torch.cdist(x, y).amin(2) < 1e-7).all()


def test_equal_weights_are_no_weights_and_clusters_without_members_keep_their_center():
    x = torch.tensor([[[0.0], [0.0], [1.0], [9.0], [10.0]]], dtype=torch.float64)
    w = torch.tensor([[5.0, 4.0, 1.0, 1.0, 3.0]], dtype=torch.float64)
    y, sizes = pool(x, w, ["sizes"], count=3, iterations=1)  # starts at tokens 0, 1 and 4; cluster 1 is empty
    torch.testing.assert_close(y.flatten(), torch.tensor([0.1, 0.0, 9.75], dtype=torch.float64))
    assert sizes.tolist() == [[1, 2, 2]]
    x = tokens(1, 9)
    for variant in VARIANTS[:2]:
        same = pool(x, torch.full((1, 9), 3.0, dtype=torch.float64), count=9, variant=variant)
        assert (torch.cdist(same, x).amin(1) < 1e-12).all()


def test_keep_rate_prefix_and_dtype():
    x = tokens(2, 10)
    assert pool(x, keep_rate=0.7).shape == (2, 7, 5) and pool(x, keep_rate=0.01).shape == (2, 1, 5)
    y = call(ID, {"width": 5, "weighted": False}, [], x, {}, prefix=2)[0]
    assert y.shape == (2, 6, 5) and (y[:, :2] == x[:, :2]).all()
    torch.testing.assert_close(y[:, 2:], pool(x[:, 2:]))
    assert pool(x.bfloat16(), variant="kmedoids").dtype == torch.bfloat16


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_does_not_exist(variant):
    x, w = tokens(3, 11), torch.rand(3, 11, dtype=torch.float64)
    lengths = torch.tensor([11, 6, 1])
    for b, n in enumerate(lengths):
        x[b, n:], w[b, n:] = torch.nan, torch.nan
    y, assignment, kept = pool(x, w, ["assignment", "lengths"], {"lengths": lengths}, variant=variant)
    assert kept.tolist() == [5, 3, 1]
    for b, n in enumerate(lengths):
        alone, own = pool(x[b:b + 1, :n], w[b:b + 1, :n], ["assignment"], variant=variant)
        torch.testing.assert_close(y[b, :kept[b]], alone[0], rtol=1e-12, atol=1e-12)
        assert (y[b, kept[b]:] == 0).all() and (assignment[b, n:] == -1).all() and (assignment[b, :n] == own[0]).all()


def test_gradients_go_straight_through():
    x, w = tokens(1, 9).requires_grad_(), torch.rand(1, 9, dtype=torch.float64, requires_grad=True)
    y, index = pool(x, w, ["center_index"], count=3, variant="kmedoids")
    expected = torch.zeros_like(x).scatter(1, index[..., None].expand(-1, -1, 5), 1)
    assert (torch.autograd.grad(y.sum(), x)[0] == expected).all()
    assert torch.autograd.grad(pool(x, w, count=3).sum(), [x, w], allow_unused=True)[1] is None
    assert gradcheck(lambda x: pool(x, w.detach(), count=3), x)
    assert gradcheck(lambda x, w: pool(x, w, count=3, weight_gradient=True), x, w)


def test_significance_of_the_attention_before_weighs_the_tokens():
    x = tokens(2, 8, 8)
    weights = torch.ops.regard.initialize("softmax-attention", '{"width": 8, "heads": 2}', torch.float64)
    _, significance = call("softmax-attention", {"width": 8, "heads": 2}, weights, x, outputs=["significance"])
    found = main(ID, {"width": 8, "count": 3}, [], x, {"significance": significance})
    assert (found == pool(x, significance, count=3)).all() and (found == pool(x, significance[..., None], count=3)).all()


@pytest.mark.parametrize("variant", VARIANTS[:2])
def test_traces_with_dynamic_lengths(variant):
    text = json.dumps({"width": 5, "variant": variant})

    def f(x, w):
        return torch.ops.regard.mechanism(ID, text, [], x, [w], ["weight"])[0]
    torch._dynamo.reset()
    traced = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (9, 14):
        x, w = tokens(2, length), torch.rand(2, length, dtype=torch.float64)
        torch.testing.assert_close(traced(x, w), f(x, w))


def test_bad_input_is_refused_by_name():
    x = tokens(2, 6, 8)
    refuses("[token-pooling] expected the input weight, or significance that an attention before published, with "
            "weighted; found neither", ID, x=x, weights=[])
    plain = {"width": 8, "weighted": False}
    weight = torch.rand(2, 6)
    refuses("[token-pooling] expected no weight with weighted false; found weight", ID, plain, x, [],
            {"weight": weight})
    refuses("[token-pooling] expected weight or significance; found both", ID, {"width": 8}, x, [],
            {"weight": weight, "significance": weight})
    refuses("[token-pooling] expected weight (B, N), floating, for the tokens of x (2, 6, 8) float64; found (2, 5) "
            "float32", ID, {"width": 8}, x, [], {"weight": weight[:, 1:]})
    refuses("[token-pooling] expected count <= the number of tokens; found 7 of 6", ID, {**plain, "count": 7}, x, [])
    refuses("[token-pooling] expected count <= the number of tokens in every row; found 3 of 2", ID,
            {**plain, "count": 3}, x, [], {"lengths": torch.tensor([6, 2])})
    refuses("[token-pooling] expected keep_rate in (0, 1]; found 1.500000", ID, {**plain, "keep_rate": 1.5}, x, [])
    refuses("[token-pooling] expected variant 'kmeans', 'kmedoids' or 'thirdparty-kmedoids'; found 'k'", ID,
            {**plain, "variant": "k"}, x, [])
    refuses("[token-pooling] expected distance 'squared' with variant 'kmedoids' alone; found variant 'kmeans'", ID,
            {**plain, "distance": "squared"}, x, [])
    refuses("[token-pooling] expected at least one token behind the prefix; found none", ID, plain, x[:, :0], [])
    refuses("[token-pooling] expected center_index of medoids, which are tokens; found variant kmeans", ID, plain, x, [],
            outputs=["center_index"])
