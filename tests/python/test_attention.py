"""regard.attention against attention by the book, torch's own functions and FlexAttention."""

import math

import pytest
import reference
import regard
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

PATHS = ["fused", "stripe", "composite"]
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625], dtype=torch.float64)


def close(actual, expected, tolerance=1e-11, floor=1e-30):
    """Equal within `tolerance` of the largest finite magnitude, at least `floor`; infinities in the same places."""
    assert actual.shape == expected.shape
    finite = torch.isfinite(expected)
    assert torch.equal(torch.isfinite(actual), finite) and torch.equal(actual[~finite], expected[~finite])
    if finite.any():
        scale = expected[finite].abs().max().clamp(min=floor).item()
        assert (actual[finite] - expected[finite]).abs().max().item() <= tolerance * scale


def once(path):
    """The counters of one forward and backward; the composite path is differentiated by torch, op by op."""
    counts = {"attention": {path: 1}, "attention_backward": {path: 1}}
    return counts if path != "composite" else {"attention": {path: 1}}


CASES = {
    "plain": {},
    "scale": {"scale": 0.3},
    "causal": {"is_causal": True},
    "causal, later": {"is_causal": True, "query_offset": 2},
    "bottom right": {"is_causal": True, "query_offset": 9 - 7},
    "mask": {"mask": lambda b, h, i, j: (i - j).abs() <= 2},
    "causal and mask": {"is_causal": True, "mask": lambda b, h, i, j: (i - j) % 2 == 0},
    "alibi": {"score": lambda s, b, h, i, j: s - SLOPES[h] * (i - j).abs()},
    "softcap": {"score": lambda s, b, h, i, j: 2.0 * torch.tanh(s / 2.0), "is_causal": True},
    "masked by score": {"score": lambda s, b, h, i, j: torch.where(i >= j, s, -math.inf)},
    "rows without keys": {"mask": lambda b, h, i, j: (i != 2) & (i > j)},
    "no keys at all": {"mask": lambda b, h, i, j: j > 100},
    "weight": {"weight": lambda b, h, i, j: 1.0 / (1 + i + j)},
    "sinks": {"sinks": torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64), "is_causal": True},
    "two sinks": {"sinks": torch.arange(8, dtype=torch.float64).reshape(4, 2) / 4},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients(name, path, qkv, paths_of):
    case = CASES[name]
    q, k, v = qkv(grad=True)
    expected_o, expected_lse = reference.attention(q, k, v, **case)
    alive = ~torch.isneginf(expected_lse)
    go, gl = torch.randn_like(expected_o), torch.randn_like(expected_lse)

    def loss(o, lse):
        return (o * go).sum() + torch.where(alive, lse * gl, 0.0).sum()

    expected = torch.autograd.grad(loss(expected_o, expected_lse), (q, k, v), allow_unused=True)

    def run():
        o, lse = regard.attention(q, k, v, path=path, return_lse=True, **case)
        return o, lse, torch.autograd.grad(loss(o, lse), (q, k, v))

    counts, (o, lse, actual) = paths_of(run)
    assert counts == once(path)
    close(o, expected_o)
    close(lse, expected_lse)
    for a, e in zip(actual, expected):
        close(a, torch.zeros_like(a) if e is None else e)


@pytest.mark.parametrize("path", PATHS)
def test_gradients_of_captures_operands_and_sinks(path, qkv, paths_of):
    B, H, M, N = 2, 4, 5, 7
    q, k, v = qkv(M=M, N=N)
    slopes, bias = torch.randn(H, dtype=torch.float64), torch.randn(H, M, N, dtype=torch.float64)
    table, factor = torch.randn(4, dtype=torch.float64), torch.tensor(1.5, dtype=torch.float64)
    qx, kx = torch.randn(B, 2, M, 3, dtype=torch.float64), torch.randn(B, 2, N, 3, dtype=torch.float64)
    sinks = torch.randn(H, dtype=torch.float64)
    bucket = (torch.arange(M)[:, None] + 2 * torch.arange(N)) % 4
    leaves = [x.requires_grad_() for x in (slopes, bias, table, factor, qx, kx, sinks)]

    def score(extra):
        return lambda s, b, h, i, j: (factor * s + extra() - slopes[h] * (i - j) + bias[h, i, j] * table[bucket[i, j]]
                                      + bias[h, i, 0])

    dots = (qx @ kx.transpose(-1, -2)).repeat_interleave(2, dim=1)  # head h reads operand head h // 2
    expected_o, _ = reference.attention(q, k, v, score=score(lambda: dots), sinks=sinks)
    expected = torch.autograd.grad(expected_o.square().sum(), leaves)

    def run():
        o = regard.attention(q, k, v, score=score(lambda: regard.expr.dot("extra")), operands={"extra": (qx, kx)},
                             sinks=sinks, path=path)
        return o, torch.autograd.grad(o.square().sum(), leaves)

    counts, (o, actual) = paths_of(run)
    assert counts == once(path)
    close(o, expected_o)
    for a, e in zip(actual, expected):
        close(a, e)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("path", PATHS)
def test_dtypes(path, dtype, tolerance, qkv):
    q, k, v = qkv(M=33, N=65, dtype=dtype)
    expected, expected_lse = reference.attention(q.double(), k.double(), v.double(), is_causal=True)
    o, lse = regard.attention(q, k, v, is_causal=True, path=path, return_lse=True)
    assert o.dtype == dtype and lse.dtype == torch.float32
    close(o.double(), expected, tolerance)
    close(lse.double(), expected_lse, max(tolerance / 10, 2e-6))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("gqa", [False, True])
def test_against_torchs_attention(is_causal, gqa, qkv):
    q, k, v = qkv(H=4, Hk=2 if gqa else 4, M=6, N=6, grad=True)
    arguments = {"is_causal": is_causal, "enable_gqa": gqa}
    expected = F.scaled_dot_product_attention(q, k, v, **arguments)
    actual = regard.scaled_dot_product_attention(q, k, v, **arguments)
    close(actual, expected)
    g = torch.randn_like(expected)
    for a, e in zip(torch.autograd.grad(actual, (q, k, v), g), torch.autograd.grad(expected, (q, k, v), g)):
        close(a, e)


def test_causal_is_aligned_top_left_as_torchs(qkv):
    q, k, v = qkv(Hk=4, M=5, N=8)
    close(regard.attention(q, k, v, is_causal=True), F.scaled_dot_product_attention(q, k, v, is_causal=True))


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (4, 5, 7), (2, 1, 5, 7), (2, 4, 5, 1), (1, 1, 1, 7)])
@pytest.mark.parametrize("boolean", [True, False])
def test_drop_in_masks(shape, boolean, qkv):
    q, k, v = qkv(Hk=4, M=5, N=7)
    attn_mask = torch.randn(shape, dtype=torch.float64)
    attn_mask = attn_mask > -0.5 if boolean else attn_mask.requires_grad_()
    if boolean:
        attn_mask[..., 0] = True  # torch gives NaN for rows without keys
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=0.4)
    actual = regard.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=0.4)
    close(actual, expected)
    if not boolean:
        gradients = [torch.autograd.grad(o.square().sum(), attn_mask)[0] for o in (actual, expected)]
        close(*gradients, floor=1.0)  # a bias that is the same for all keys has no gradient


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 2, 3)])
def test_drop_in_ranks(leading):
    q, k, v = (torch.randn(*leading, n, d, dtype=torch.float64) for n, d in ((5, 4), (6, 4), (6, 3)))
    actual = regard.scaled_dot_product_attention(q, k, v)
    expected = F.scaled_dot_product_attention(q, k, v)
    close(actual, expected)


@pytest.mark.parametrize("name", ["alibi", "softcap", "causal", "documents", "bias"])
def test_flex_attention_functions_run_unchanged(name):
    B, H, Hk, L, D = 2, 4, 2, 16, 8
    q, k, v = (torch.randn(B, n, L, D) for n in (H, Hk, Hk))  # FlexAttention has no backward on CPU
    slopes, bias = torch.rand(H), torch.randn(H, L, L)
    document = torch.arange(L, dtype=torch.int32).div(5, rounding_mode="floor").expand(B, L)
    score_mod, mask_mod = {
        "alibi": (lambda score, b, h, q_idx, kv_idx: score + slopes[h] * (kv_idx - q_idx), None),
        "softcap": (lambda score, b, h, q_idx, kv_idx: 3.0 * torch.tanh(score / 3.0), None),
        "causal": (None, lambda b, h, q_idx, kv_idx: q_idx >= kv_idx),
        "documents": (None, lambda b, h, q_idx, kv_idx:
                      (document[b, q_idx] == document[b, kv_idx]) & (q_idx >= kv_idx)),
        "bias": (lambda score, b, h, q_idx, kv_idx: score + bias[h, q_idx, kv_idx], None),
    }[name]
    block_mask = create_block_mask(mask_mod, B, H, L, L, device="cpu") if mask_mod else None
    expected = flex_attention(q, k, v, score_mod=score_mod, block_mask=block_mask, enable_gqa=True)
    o = regard.attention(q, k, v, score=score_mod, mask=mask_mod)
    torch.testing.assert_close(o, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", ["stripe", "composite"])
def test_pair_outputs(path, qkv):
    q, k, v = qkv(M=5, N=7)
    distance = lambda b, h, i, j: (i - j).abs()  # noqa: E731
    out = regard.attention(q, k, v, is_causal=True, path=path, pair_outputs=[
        lambda s, b, h, i, j: s, distance, regard.PairOutput(lambda b, h, i, j: 1.0, lambda b, h, i, j: j % 3, 3)])
    p, lse = reference.weights(q, k, is_causal=True)
    _, _, i, j = reference.positions(2, 4, 5, 7)
    assert out.pairs.shape == (2, 4, 5, 5)
    close(out.o, reference.attention(q, k, v, is_causal=True)[0])
    close(out.lse, lse)
    close(out.pairs[..., 0], (p * reference.scores(q, k)).sum(-1))
    close(out.pairs[..., 1], (p * (i - j).abs()).sum(-1))
    for bucket in range(3):
        close(out.pairs[..., 2 + bucket], p[..., bucket::3].sum(-1))


@pytest.mark.parametrize("normalizer", ["signed_softmax", "sum", "sigmoid", "relu", "identity", "z_score",
                                        {"kind": "relu", "divisor": "keys"}, {"kind": "identity", "divisor": "kept"},
                                        {"kind": "sum", "floor": 1.5}, {"kind": "z_score", "epsilon": 1e-3},
                                        {"kind": "z_score", "epsilon": 0.1, "epsilon_place": "outside"},
                                        {"kind": "z_score", "epsilon": 0.1, "epsilon_place": "inside_count"},
                                        {"kind": "signed_softmax", "epsilon": 0.1}])
@pytest.mark.parametrize("path", PATHS)
def test_normalizers(normalizer, path, qkv, paths_of):
    q, k, v = qkv(M=5, N=7)
    settings = {"kind": normalizer} if isinstance(normalizer, str) else normalizer
    kind = settings["kind"]
    if path == "fused" and kind == "signed_softmax" and "epsilon" in settings:
        pytest.skip("the stripe's")
    positive = (lambda s, b, h, i, j: torch.exp(s)) if kind == "sum" else None
    _, _, i, j = reference.positions(2, 4, 5, 7)
    keep = (i >= j).expand(2, 4, 5, 7)
    s = reference.scores(q, k)
    s = s.exp() if kind == "sum" else s
    n = keep.sum(-1, keepdim=True)
    divisor = {"keys": 7, "kept": n, None: 1}[settings.get("divisor")]
    mean = (s * keep).sum(-1, keepdim=True) / n
    variance = ((s - mean) ** 2 * keep).sum(-1, keepdim=True) / n
    epsilon = settings.get("epsilon", 0.0)
    deviation = {"inside": (variance + epsilon).sqrt(), "outside": variance.sqrt() + epsilon,
                 "inside_count": ((n * variance + epsilon) / (n.double() + epsilon)).sqrt()}
    e = (s.abs() - (s.abs() * keep).amax(-1, keepdim=True)).exp()
    expected = {
        "signed_softmax": lambda: s.sign() * e / ((e * keep).sum(-1, keepdim=True) + epsilon),
        "sum": lambda: s / (s * keep).sum(-1, keepdim=True).clamp(min=settings.get("floor", 0.0)),
        "sigmoid": lambda: s.sigmoid(),
        "relu": lambda: s.relu() / divisor,
        "identity": lambda: s / divisor,
        # One kept key has no variance: the first row's weight is 0 / sqrt(epsilon).
        "z_score": lambda: torch.where(n > 1, (s - mean) / deviation[settings.get("epsilon_place", "inside")], 0.0),
    }[kind]()
    expected = (expected * keep) @ v.repeat_interleave(2, dim=1)
    counts, o = paths_of(
        lambda: regard.attention(q, k, v, score=positive, is_causal=True, normalizer=normalizer, path=path))
    assert counts == {"attention": {path: 1}}
    rows = slice(1, None) if kind == "z_score" else slice(None)
    close(o[:, :, rows], expected[:, :, rows])


@pytest.mark.parametrize("normalizer", [{"kind": "z_score", "epsilon": 0.1, "epsilon_place": "outside"},
                                        {"kind": "z_score", "epsilon": 0.1, "epsilon_place": "inside_count"},
                                        {"kind": "signed_softmax", "epsilon": 0.1}])
@pytest.mark.parametrize("path", PATHS)
def test_gradients_of_epsilons(normalizer, path, qkv):
    """The first query sees one key: variance 0, which must not make a gradient NaN."""
    if path == "fused" and normalizer["kind"] == "signed_softmax":
        pytest.skip("the stripe's")
    tensors = qkv(B=1, M=4, N=5, grad=True)

    def f(*tensors):
        return regard.attention(*tensors, is_causal=True, normalizer=normalizer, path=path)

    assert torch.autograd.gradcheck(f, tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, tensors, fast_mode=True)
    assert all(g.isfinite().all() for g in torch.autograd.grad(f(*tensors).sum(), tensors))


def test_an_exact_zero_leaves_the_sum_only_with_an_epsilon():
    q = torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64)
    k = torch.tensor([[[[0.0, 1.0], [2.0, 0.0]]]], dtype=torch.float64)  # scores 0 and 2
    v = torch.ones_like(k)
    plain = regard.attention(q, k, v, scale=1.0, normalizer="signed_softmax")
    left_out = regard.attention(q, k, v, scale=1.0, normalizer={"kind": "signed_softmax", "epsilon": 1e-6})
    close(plain, torch.full_like(plain, 1 / (1 + math.exp(-2))))
    close(left_out, torch.full_like(plain, 1 / (1 + 1e-6)))


def test_dropout(qkv):
    q, k, v = qkv(M=64, N=64)
    v = torch.ones_like(v)
    seed = torch.tensor(7)
    o = regard.attention(q, k, v, dropout=0.25, seed=seed)
    assert torch.equal(o, regard.attention(q, k, v, dropout=0.25, seed=seed))
    assert not torch.equal(o, regard.attention(q, k, v, dropout=0.25, seed=torch.tensor(8)))
    assert abs(o.mean().item() - 1.0) < 0.02  # the expectation is that of no dropout
    torch.manual_seed(3)
    first = regard.attention(q, k, v, dropout=0.25)
    torch.manual_seed(3)
    assert torch.equal(first, regard.attention(q, k, v, dropout=0.25))
    close(regard.attention(q, k, v, dropout=0.25, seed=seed, path="stripe"),
          regard.attention(q, k, v, dropout=0.25, seed=seed, path="composite"))


# ---- states ------------------------------------------------------------------------------------------------------


def test_merge_of_halves_is_the_whole(qkv):
    q, k, v = qkv(N=10, grad=True)
    whole, lse = regard.attention(q, k, v, return_lse=True)
    parts = [regard.attention(q, k[:, :, s], v[:, :, s], return_lse=True) for s in (slice(0, 4), slice(4, 10))]
    merged, merged_lse = regard.merge(*parts[0], *parts[1])
    close(merged, whole)
    close(merged_lse, lse)
    g, gl = torch.randn_like(whole), torch.randn_like(lse)
    for a, e in zip(torch.autograd.grad((merged, merged_lse), (q, k, v), (g, gl)),
                    torch.autograd.grad((whole, lse), (q, k, v), (g, gl))):
        close(a, e)


def test_neutral_element_of_merge(qkv):
    q, k, v = qkv()
    o, lse = regard.attention(q, k, v, return_lse=True)
    empty, nothing = torch.zeros_like(o), torch.full_like(lse, -math.inf)
    for result in (regard.merge(o, lse, empty, nothing), regard.merge(empty, nothing, o, lse)):
        assert torch.equal(result[0], o) and torch.equal(result[1], lse)
    o2, lse2 = regard.merge(empty, nothing, empty, nothing)
    assert torch.equal(o2, empty) and torch.equal(lse2, nothing)


# ---- specs -------------------------------------------------------------------------------------------------------


def test_spec_stands_for_the_functions(qkv):
    q, k, v = qkv()
    arguments = {"score": lambda s, b, h, i, j: s - SLOPES[h] * (i - j).abs(), "is_causal": True, "scale": 0.5}
    spec = regard.Spec(**arguments)
    expected = regard.attention(q, k, v, **arguments)
    assert torch.equal(regard.attention(q, k, v, spec=spec), expected)
    assert torch.equal(regard.attention(q, k, v, spec=spec.json, captures=spec.captures), expected)
    other = regard.attention(q, k, v, spec=spec, captures={"c0": torch.zeros(4, dtype=torch.float64)})
    close(other, reference.attention(q, k, v, is_causal=True, scale=0.5)[0])


def test_spec_is_a_value():
    import pickle

    make = lambda: regard.Spec(score=lambda s, b, h, i, j: s - SLOPES[h] * (i - j), is_causal=True)  # noqa: E731
    assert make() == make() and hash(make()) == hash(make()) and make() != regard.Spec()
    copy = pickle.loads(pickle.dumps(make()))
    assert copy == make() and torch.equal(copy.captures["c0"], SLOPES)
    assert "c0[h]" in make().explain() and "fused on CPU" in str(make())


def test_strict(qkv):
    q, k, v = qkv()
    with regard.strict():
        regard.attention(q, k, v, is_causal=True)
        with pytest.raises(ValueError, match="strict is on"):
            regard.attention(q, k, v, dropout=0.5)
    regard.attention(q, k, v, dropout=0.5)
    assert regard.path_counts()["attention"]["fused"] == 1


def test_auto_takes_the_fused_path_and_counts(qkv):
    q, k, v = qkv(dtype=torch.float32)
    regard.attention(q, k, v)
    regard.attention(q, k, v, normalizer="relu")
    regard.attention(q, k, v, dropout=0.5)
    counts = regard.path_counts()["attention"]
    assert counts["fused"] == 2 and counts["stripe"] + counts["composite"] == 1
    regard.reset_path_counts()
    assert sum(regard.path_counts().get("attention", {}).values()) == 0


def test_a_second_call_with_the_same_spec_analyzes_nothing():
    q, k, v, slopes = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 7, 4), torch.randn(1, 2, 7, 3), torch.randn(2)
    spec = regard.Spec(score=lambda s, b, h, i, j: s - 0.4321 * slopes[h], is_causal=True)
    first = regard.attention(q, k, v, spec=spec)
    before = torch.ops.regard.specs_analyzed()
    again = regard.attention(q, k, v, spec=spec)
    q.requires_grad_()
    regard.attention(q, k, v, spec=spec).sum().backward()
    assert torch.ops.regard.specs_analyzed() == before
    assert torch.equal(first, again)
    regard.attention(q, k, v, scale=0.987654)
    assert torch.ops.regard.specs_analyzed() == before + 1


@pytest.mark.parametrize("settings", [{"is_causal": 1}, {"scale": 1}, {"dropout": 0}])
def test_settings_of_other_types_mean_what_the_kept_ones_mean(settings):
    """Calls without functions are kept by their settings; equal settings of other types go the long way."""
    q = torch.randn(1, 2, 5, 4)
    kept = {"is_causal": True, "scale": 1.0, "dropout": 0.0}
    name = next(iter(settings))
    assert torch.equal(regard.attention(q, q, q, **settings), regard.attention(q, q, q, **{name: kept[name]}))


def test_a_kept_setting_does_not_admit_its_equal_of_another_type():
    q = torch.randn(1, 2, 5, 4)
    regard.attention(q, q, q, scale=1.0)
    with pytest.raises(ValueError, match=r"\[attention\] expected scale to be a number .*; found bool"):
        regard.attention(q, q, q, scale=True)
    with pytest.raises(ValueError, match=r"\[attention\] expected dropout in \[0, 1\); found False"):
        regard.attention(q, q, q, dropout=False)
