"""A decode over pages reads them where they lie: equal to the gathered form, with counted paths."""

import pytest
import regard
import torch

LENGTHS = torch.tensor([70, 0, 333, 129])


def cache(page, dtype=torch.float64, Hk=2, Dh=24, Dv=20):
    """Pages in random order; entries behind the last page are -1, what holds no token is NaN."""
    torch.manual_seed(page)
    needed = [-(-n // page) for n in LENGTHS.tolist()]
    order = iter(torch.randperm(sum(needed) + 3).tolist())
    table = torch.full((len(needed), max(needed) + 1), -1)
    k, v = (torch.full((sum(needed) + 3, Hk, page, d), torch.nan, dtype=torch.float64) for d in (Dh, Dv))
    for b, n in enumerate(LENGTHS.tolist()):
        for i in range(needed[b]):
            table[b, i] = number = next(order)
            tokens = min(page, n - i * page)
            k[number, :, :tokens] = torch.randn(Hk, tokens, Dh, dtype=torch.float64)
            v[number, :, :tokens] = torch.randn(Hk, tokens, Dv, dtype=torch.float64)
    return k.to(dtype), v.to(dtype), table.to(torch.int32)


OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"mask": lambda b, h, i, j: (i >= j) & (i - j < 50)},
    "biased": {"score": lambda s, b, h, i, j: torch.tanh(s) - 0.1 * (i - j)},
    "weighted": {"weight": lambda b, h, i, j: 1.0 + 0.5 * (j % 2)},
    "counted": {"counted": lambda b, h, i, j: j % 5 != 0},
    "sinks": {"sinks": torch.tensor([[0.5, 1.0], [0.1, -1.0], [0.3, 0.2], [1.0, 2.0]], dtype=torch.float64)},
}


def run(q, k, v, table, path, **options):
    positions = LENGTHS[:, None] - q.shape[2] + torch.arange(q.shape[2])
    return regard.attention_paged(q, k, v, table, LENGTHS, query_positions=positions, return_lse=True, path=path,
                                  **options)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("page", [1, 7, 16, 64, 100, 256])
def test_equals_the_gathered_form(page, name, paths_of):
    k, v, table = cache(page)
    for M in (1, 3):
        q = torch.randn(4, 4, M, 24, dtype=torch.float64)
        paths, found = paths_of(lambda: run(q, k, v, table, "auto", **OPTIONS[name]))  # noqa: B023
        assert paths == {"attention_paged": {"fused": 1}}
        paths, expected = paths_of(lambda: run(q, k, v, table, "composite", **OPTIONS[name]))  # noqa: B023
        assert paths["attention_paged"] == {"composite": 1}
        for f, e in zip(found, expected):
            torch.testing.assert_close(f, e, rtol=1e-7, atol=1e-8)
        assert (found[0][1] == 0).all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_stored_types_are_read_as_they_are(dtype, tolerance, paths_of):
    k, v, table = cache(16, dtype)
    q = torch.randn(4, 8, 2, 24, dtype=dtype)
    paths, (o, lse) = paths_of(lambda: run(q, k, v, table, "auto", is_causal=True))
    assert paths == {"attention_paged": {"fused": 1}} and o.dtype == dtype and lse.dtype == torch.float32
    exact = run(q.double(), k.double(), v.double(), table, "composite", is_causal=True)[0]
    assert (o.double() - exact).abs().max() < tolerance


def test_pages_and_contiguous_keys_have_the_same_bits():
    k, v, table = cache(16, torch.float32)
    q = torch.randn(1, 4, 1, 24)
    n = int(LENGTHS[2])
    keys, values = (torch.cat([pages[i] for i in table[2, :-(-n // 16)]], 1)[None, :, :n] for pages in (k, v))
    found = regard.attention_paged(q, k, v, table[2:3], LENGTHS[2:3])
    assert torch.equal(found, regard.attention(q, keys, values))


def test_bits_depend_neither_on_threads_nor_on_batch_mates():
    k, v, table = cache(16, torch.float32)
    q = torch.randn(4, 4, 2, 24)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = regard.attention_paged(q, k, v, table, LENGTHS)
        torch.set_num_threads(3)
        assert torch.equal(regard.attention_paged(q, k, v, table, LENGTHS), alone)
    finally:
        torch.set_num_threads(threads)
    for b in range(4):
        part = slice(b, b + 1)
        assert torch.equal(regard.attention_paged(q[part], k, v, table[part], LENGTHS[part]), alone[part])


def test_strided_caches_and_captures(paths_of):
    k, v, table = cache(16)
    bias = torch.randn(4, 512, dtype=torch.float64)
    options = {"score": lambda s, b, h, i, j: s + bias[h, j]}
    q = torch.randn(4, 4, 2, 24, dtype=torch.float64)
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (k, v)]
    spread = [t.repeat_interleave(2, 3)[..., ::2] for t in (k, v)]
    expected = run(q, k, v, table, "composite", **options)[0]
    for pages in (strided, spread):
        paths, (o, _) = paths_of(lambda: run(q, *pages, table, "auto", **options))  # noqa: B023
        assert paths == {"attention_paged": {"fused": 1}}
        torch.testing.assert_close(o, expected, rtol=1e-7, atol=1e-8)


def test_what_gathers_says_so(paths_of):
    k, v, table = cache(16, torch.float32)
    k, v = k.nan_to_num(0), v.nan_to_num(0)
    q = torch.randn(4, 4, 2, 24)
    many = torch.randn(4, 4, 9, 24)
    for call in (lambda: run(q.clone().requires_grad_(), k, v, table, "auto"),
                 lambda: run(q, k.clone().requires_grad_(), v, table, "auto"),
                 lambda: run(many, k, v, table, "auto")):
        paths, _ = paths_of(call)
        assert paths == {"attention_paged": {"composite": 1}, "attention": {"fused": 1}}
    with torch.no_grad():
        paths, _ = paths_of(lambda: run(q.clone().requires_grad_(), k, v, table, "auto"))
    assert paths == {"attention_paged": {"fused": 1}}
