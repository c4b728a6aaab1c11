"""Reductions of the attention map: against the map itself, by name, of mechanisms, edited, packed and cached."""

import subprocess
import sys

import pytest
import regard
import torch

NAMES = ["entropy", "effective_keys", "max", "mass", "mass:0", "mass:1,3-5", "own_mass", "mean_distance",
         "sum_of_squares", "column_sums", "column_square_sums", "top_k:3", "rows:0,4-5,-1", "rows", "blocks:3x4",
         "blocks:100x1", "offsets:2", "offsets:0"]


def dense(P, name, query=None, key=None):
    """The reduction called `name` of a map P (B, H, M, N) in plain torch."""
    M, N = P.shape[-2:]
    query = torch.arange(M) if query is None else query
    key = torch.arange(N) if key is None else key
    apart = query[:, None] - key
    name, _, rest = name.partition(":")

    def indices(length):
        found = []
        for part in rest.split(","):
            first, dash, last = part.partition("-") if not part.startswith("-") else (part, "", "")
            found += range(int(first), int(last) + 1) if dash else [int(first) % length]
        return found

    if name == "entropy":
        return torch.where(P > 0, -P * torch.where(P > 0, P, 1).log(), 0).sum(-1)
    if name == "effective_keys":
        return torch.where((P > 0).any(-1), dense(P, "entropy").exp(), 0)
    if name == "max":
        return P.amax(-1)
    if name == "mass":
        return P.sum(-1) if not rest else (P * torch.isin(key, torch.tensor(indices(1 << 30)))).sum(-1)
    if name == "own_mass":
        return (P * (apart == 0)).sum(-1)
    if name == "mean_distance":
        return (P * apart.abs()).sum(-1)
    if name == "sum_of_squares":
        return P.square().sum(-1)
    if name == "column_sums":
        return P.sum(-2)
    if name == "column_square_sums":
        return P.square().sum(-2)
    if name == "top_k":
        return P.topk(int(rest)).values
    if name == "rows":
        return P[:, :, indices(M)] if rest else P
    if name == "blocks":
        p, q = map(int, rest.split("x"))
        return torch.stack([torch.stack([P[:, :, i:i + p, j:j + q].mean((-2, -1)) for j in range(0, N, q)], -1)
                            for i in range(0, M, p)], -2)
    reach = int(rest)
    clamped = apart.clamp(-reach, reach)
    return torch.stack([(P * (clamped == offset)).sum((-2, -1)) for offset in range(-reach, reach + 1)], -1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"is_causal": True, "query_offset": 2}, {"normalizer": "sigmoid"},
                                     {"weight": lambda b, h, i, j: 0.5 + 0.1 * h, "is_causal": True}],
                         ids=["softmax", "causal", "sigmoid", "weighted"])
def test_each_equals_the_dense_reduction(qkv, name, options):
    q, k, _ = qkv(M=7, N=10, grad=True)
    P = regard.AttentionMap(q, k, **options)
    rows = P.rows(torch.arange(7))
    query = torch.arange(7) + options.get("query_offset", 0)
    expected, found = dense(rows, name, query), P.measure(name)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    w = torch.randn_like(expected)
    want = torch.autograd.grad((expected * w).sum(), [q, k])
    got = torch.autograd.grad((found * w).sum(), [q, k], allow_unused=True)
    for a, b in zip(want, got):
        torch.testing.assert_close(torch.zeros_like(a) if b is None else b, a, atol=1e-9, rtol=1e-9)


def test_stripes_give_what_one_stripe_gives(qkv):
    q, k, _ = qkv(B=1, H=2, Hk=1, M=301, N=7001, Dh=4, dtype=torch.float32)  # more than one stripe of 2^22 entries
    names = ["entropy", "max", "column_square_sums", "top_k:5", "top_k_index:5", "blocks:7x64", "offsets:9"]
    striped = regard.AttentionMap(q, k, is_causal=True, query_offset=6700).measure(names)
    whole = regard.AttentionMap(q, k, is_causal=True, query_offset=6700, path="composite").measure(names)
    for name in names:
        torch.testing.assert_close(striped[name], whole[name], atol=2e-6, rtol=2e-5)


def test_top_k_names_the_keys_and_marks_rows_with_fewer():
    q, k = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 8)
    P = regard.AttentionMap(q, k, is_causal=True)
    weights, index = P.top_k(3)
    assert index.dtype == torch.int64
    rows = P.rows(torch.arange(4))
    assert (index[0, 0, 0] == torch.tensor([0, -1, -1])).all() and (weights[0, 0, 0, 1:] == 0).all()
    torch.testing.assert_close(rows.gather(-1, index.clamp_min(0)) * (index >= 0), weights)
    more, places = P.top_k(6)  # more than there are keys, as early in a decode
    assert (more[..., 4:] == 0).all() and (places[..., 4:] == -1).all() and torch.equal(more[..., :3], weights)


def test_top_k_of_signed_weights(qkv):
    q, k, _ = qkv(M=3, N=5)
    P = regard.AttentionMap(q, k, normalizer="identity")
    weights, index = P.top_k(7)
    rows = P.rows(range(3))
    torch.testing.assert_close(weights[..., :5], rows.sort(-1, descending=True).values)
    torch.testing.assert_close(rows.gather(-1, index[..., :5]), weights[..., :5])


def test_marked_mass_and_one_pass_of_several(qkv, paths_of):
    q, k, _ = qkv(M=5, N=6)
    marked = torch.rand(2, 6, dtype=torch.float64)
    P = regard.AttentionMap(q, k)
    counts, found = paths_of(lambda: P.measure(["mass:0", "marked_mass", "entropy", "mean_distance"], marked=marked))
    assert counts == {"attention": {"stripe": 1}}
    torch.testing.assert_close(found["marked_mass"], (P.rows(range(5)) * marked[:, None, None]).sum(-1))
    torch.testing.assert_close(found["entropy"], P.entropy())


def test_column_sums_take_the_fused_pass(qkv, paths_of):
    q, k, _ = qkv(dtype=torch.float32)
    counts, _ = paths_of(lambda: regard.AttentionMap(q, k).measure("column_sums"))
    assert counts == {"attention": {"fused": 1}, "attention_backward": {"fused": 1}}
    with regard.strict():
        regard.AttentionMap(q, k).measure(["column_sums", "entropy", "max"])


def test_second_gradients(qkv):
    q, k, _ = qkv(B=1, H=1, Hk=1, M=3, N=4, Dh=3, grad=True)
    names = ["entropy", "max", "sum_of_squares", "top_k:2", "blocks:2x2", "offsets:1", "column_square_sums"]

    def f(q, k):
        return tuple(regard.AttentionMap(q, k).measure(names).values())

    assert torch.autograd.gradcheck(f, (q, k)) and torch.autograd.gradgradcheck(f, (q, k))


def test_rows_without_keys_and_sinks(qkv):
    q, k, _ = qkv(M=4, N=5)
    P = regard.AttentionMap(q, k, mask=lambda b, h, i, j: i > 0, sinks=torch.zeros(4, dtype=torch.float64))
    found = P.measure(["entropy", "effective_keys", "max", "mass", "top_k:2", "sum_of_squares"])
    for name, value in found.items():
        assert torch.isfinite(value).all() and (value[:, :, 0] == 0).all(), name
    assert (found["mass"][:, :, 1:] < 1).all()


@pytest.mark.parametrize("name, message", [
    ("entrpy", r"\[tap\] expected one of 'entropy', .*; found 'entrpy'; did you mean 'entropy'\?"),
    ("top_k", r"\[tap\] expected the form 'top_k:K'; found 'top_k'"),
    ("entropy:3", r"\[tap\] expected the form 'entropy'; found 'entropy:3'"),
    ("top_k:0", r"\[tap\] expected a number >= 1 in 'top_k:0'; found '0'"),
    ("top_k:x", r"\[tap\] expected a number >= 1 in 'top_k:x'; found 'x'"),
    ("blocks:4", r"\[tap\] expected the form 'blocks:PxQ'; found 'blocks:4'"),
    ("rows:5-2", r"\[tap\] expected a list of numbers and ranges .* in 'rows:5-2'; found '5-2'"),
    ("rows:7", r"\[tap\] expected rows among the 7 queries in 'rows:7'; found 7"),
    ("mass:-1", r"\[tap\] expected key positions >= 0 in 'mass:-1'; found '-1'"),
    ("marked_mass", r"\[tap\] expected the tensor of marked keys with 'marked_mass'; found none"),
])
def test_bad_names_are_refused(qkv, name, message):
    q, k, _ = qkv()
    with pytest.raises(ValueError, match=message):
        regard.AttentionMap(q, k).measure(name)


def test_entropy_of_signed_weights_is_refused(qkv):
    q, k, _ = qkv()
    with pytest.raises(ValueError,
                       match=r"\[tap\] expected weights that are not negative with 'entropy'; found normalizer"):
        regard.AttentionMap(q, k, normalizer="z_score").measure("entropy")


# ---- taps of mechanisms ------------------------------------------------------------------------------------------


@pytest.fixture
def module():
    return regard.nn.SoftmaxAttention(width=16, heads=2, causal=True, dtype=torch.float64)


def test_a_mechanism_gives_its_taps(module):
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    names = [f"tap.{name}" for name in NAMES]
    _, found = module(x, outputs=[*names, "attn", "tap.q", "tap.lse", "tap.o", "tap.entropy@0"])
    for name in NAMES:
        torch.testing.assert_close(found[f"tap.{name}"], dense(found["attn"], name), atol=1e-10, rtol=1e-10)
    assert found["tap.q"].shape == (2, 2, 7, 8) and found["tap.lse"].shape == (2, 2, 7)
    assert torch.equal(found["tap.entropy@0"], found["tap.entropy"])


def test_taps_of_a_decode_and_of_a_packed_call(module):
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    whole, taps = module(x, outputs=["tap.mass:0", "tap.mean_distance", "tap.rows:8"])
    _, cache = module.decode(x[:, :6])
    _, cache, found = module.decode(x[:, 6:], cache, outputs=["tap.mass:0", "tap.mean_distance", "tap.rows:-1"])
    torch.testing.assert_close(found["tap.mass:0"], taps["tap.mass:0"][:, :, 6:])
    torch.testing.assert_close(found["tap.mean_distance"], taps["tap.mean_distance"][:, :, 6:])
    torch.testing.assert_close(found["tap.rows:-1"], taps["tap.rows:8"])
    _, packed = module(x, cu_seqlens=torch.tensor([0, 4, 9]), outputs=["tap.mass:0", "tap.mean_distance"])
    for begin, end in ((0, 4), (4, 9)):
        _, alone = module(x[:, begin:end], outputs=["tap.mass:0", "tap.mean_distance"])
        for name, value in alone.items():
            torch.testing.assert_close(packed[name][:, :, begin:end], value)


def test_taps_train_a_module(module):
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    _, found = module(x, outputs="tap.mass:0")
    (-torch.log1p(-0.9 * found["tap.mass:0"]).mean()).backward()
    assert module.in_proj_weight.grad.abs().sum() > 0


@pytest.mark.parametrize("outputs, message", [
    ("tap.entropyy", r"\[tap\] expected one of 'entropy'"),
    ("tap.entropy@x", r"\[tap\] expected the number of an attention behind '@' in 'tap.entropy@x'; found 'x'"),
    ("tap.entropy@1",
     r"expected outputs that this call computes \(taps of an attention it runs\); found 'tap.entropy@1'"),
])
def test_bad_taps_are_refused(module, outputs, message):
    with pytest.raises(ValueError, match=message):
        module(torch.randn(1, 5, 16, dtype=torch.float64), outputs=outputs)


def test_taps_compile(qkv):
    q, k, _ = qkv()

    def f(q, k):
        found = regard.AttentionMap(q, k, is_causal=True).measure(["entropy", "max", "column_sums", "blocks:2x2"])
        return torch.cat([t.flatten() for t in found.values()])

    torch.testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(q, k), f(q, k))


def test_taps_under_vmap(qkv):
    q, k = torch.randn(3, 1, 2, 4, 5, dtype=torch.float64), torch.randn(3, 1, 2, 6, 5, dtype=torch.float64)
    names = ["entropy", "max", "top_k:2", "column_square_sums", "blocks:2x2"]

    def f(q, k):
        return tuple(regard.AttentionMap(q, k).measure(names).values())

    for batched, *alone in zip(torch.func.vmap(f)(q, k), *(f(a, b) for a, b in zip(q, k))):
        torch.testing.assert_close(batched, torch.stack(alone))


MEMORY = """
import resource, torch, regard
q, k = (torch.randn(1, 1, 8192, 8) for _ in range(2))
names = ["entropy", "max", "top_k:4", "top_k_index:4", "blocks:64x64", "column_square_sums", "offsets:4", "mass:0"]
regard.AttentionMap(q[:, :, :8], k[:, :, :8]).measure(names)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
regard.AttentionMap(q, k, is_causal=True).measure(names)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_the_map_is_never_stored():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 200  # MiB; the map has 256 in float32
