"""Keys in pages and packed sequences, against dense calls; dropout by positions."""

import pytest
import regard
import torch


@pytest.fixture
def paged():
    """Sequences of 5, 0 and 8 tokens in pages of 4, in no order; entries that nothing lies on are -1."""
    torch.manual_seed(1)
    lengths, table = torch.tensor([5, 0, 8]), torch.tensor([[6, 2, -1], [-1, -1, -1], [0, 4, -1]], dtype=torch.int32)
    k = torch.randn(7, 2, 4, 8, dtype=torch.float64)
    v = torch.randn(7, 2, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        k[2, :, 1:] = torch.nan  # behind the fifth token of sequence 0
        v[2, :, 1:] = torch.nan
        k[[1, 3, 5]] = torch.nan  # pages of nobody
    return k.requires_grad_(), v.requires_grad_(), table, lengths


def dense(pages, table, length):
    """(1, Hk, length, D) of one sequence."""
    tokens = [pages[table[j // 4], :, j % 4] for j in range(length)]
    return torch.stack(tokens, 1)[None] if tokens else pages.new_zeros(1, pages.shape[1], 0, pages.shape[3])


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"normalizer": "sigmoid"},
                                     {"score": lambda s, b, h, i, j: s - 0.2 * (i - j)}],
                         ids=["plain", "causal", "sigmoid", "biased"])
def test_equals_dense(paged, options):
    k, v, table, lengths = paged
    q = torch.randn(3, 4, 2, 8, dtype=torch.float64, requires_grad=True)
    positions = lengths[:, None] - 2 + torch.arange(2)
    o, lse = regard.attention_paged(q, k, v, table, lengths, query_positions=positions, return_lse=True, **options)
    expected = [regard.attention(q[b:b + 1], dense(k, table[b], n), dense(v, table[b], n), query_offset=n - 2,
                                 return_lse=True, **options) for b, n in enumerate(lengths.tolist())]
    torch.testing.assert_close(o, torch.cat([a for a, _ in expected]))
    torch.testing.assert_close(lse, torch.cat([a for _, a in expected]))
    w = torch.randn_like(o)
    got = torch.autograd.grad((o * w).sum(), [q, k, v])
    want = torch.autograd.grad((torch.cat([a for a, _ in expected]) * w).sum(), [q, k, v])
    for a, b in zip(got, want):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b)
    assert (o[1] == 0).all()


def test_gradcheck():
    q, k, v = (torch.randn(*shape, dtype=torch.float64, requires_grad=True)
               for shape in ((1, 2, 2, 3), (3, 1, 2, 3), (3, 1, 2, 2)))
    table, lengths = torch.tensor([[2, 0]]), torch.tensor([3])
    assert torch.autograd.gradcheck(lambda q, k, v: regard.attention_paged(q, k, v, table, lengths), (q, k, v))


@pytest.mark.parametrize("change, message", [
    ({"table": torch.zeros(3, 2)}, r"\[attention_paged\] expected table \(B, n\), integer; found Float of shape \(3, 2\)"),
    ({"table": torch.zeros(2, 2, dtype=torch.long)}, r"expected a row of table for each of q's"),
    ({"table": torch.tensor([[7, 2], [0, 0], [0, 4]])}, r"expected pages in \[0, 7\) where a sequence has tokens; found 7"),
    ({"table": torch.tensor([[-1, 2], [0, 0], [0, 4]])}, r"expected pages in \[0, 7\) where .*; found -1"),
    ({"lengths": torch.tensor([5, 0, 13])}, r"expected lengths in \[0, 12\], what the pages of a row hold; found 13"),
    ({"lengths": torch.tensor([5., 0, 8])}, r"expected lengths \(B\), integer"),
    ({"v_pages": torch.randn(7, 2, 3, 6, dtype=torch.float64)}, r"expected value pages \(P, Hk, page, Dv\) like the key pages"),
    ({"query_positions": torch.zeros(3, 3, dtype=torch.long)}, r"expected query_positions \(M\) or \(B, M\), integer"),
    ({"query_positions": torch.zeros(2, dtype=torch.long), "query_offset": 3}, r"expected query_positions or query_offset; found both"),
])
def test_errors(paged, change, message):
    k, v, table, lengths = paged
    call = {"k_pages": k, "v_pages": v, "table": table, "lengths": lengths, **change}
    with pytest.raises(ValueError, match=message):
        regard.attention_paged(torch.randn(3, 4, 2, 8, dtype=torch.float64), **call)


# ---- packed ------------------------------------------------------------------------------------------------------

BOUNDS = torch.tensor([0, 3, 3, 8], dtype=torch.int32)


def pieces(t, bounds):
    bounds = bounds.tolist()
    return [t[:, :, a:b] for a, b in zip(bounds, bounds[1:])]


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"score": lambda s, b, h, i, j: s * 0.5 - 0.3 * (i - j)},
                                     {"normalizer": "z_score"}], ids=["plain", "causal", "biased", "z_score"])
def test_packed_is_each_by_itself(qkv, options):
    q, k, v = qkv(B=1, M=8, N=8, grad=True)
    o = regard.attention(q, k, v, cu_seqlens=BOUNDS, **options)
    alone = torch.cat([regard.attention(*piece, **options) for piece in
                       zip(*(pieces(t, BOUNDS) for t in (q, k, v)))], 2)
    torch.testing.assert_close(o, alone)
    w = torch.randn_like(o)
    for a, b in zip(torch.autograd.grad((o * w).sum(), [q, k, v]), torch.autograd.grad((alone * w).sum(), [q, k, v])):
        torch.testing.assert_close(a, b)


def test_packed_cross(qkv):
    q, k, v = qkv(B=1, M=5, N=8)
    of_q = torch.tensor([0, 1, 4, 5])
    o = regard.attention(q, k, v, cu_seqlens_q=of_q, cu_seqlens_k=BOUNDS, is_causal=True)
    alone = [regard.attention(*piece, is_causal=True) for piece in
             zip(pieces(q, of_q), pieces(k, BOUNDS), pieces(v, BOUNDS))]
    torch.testing.assert_close(o, torch.cat(alone, 2))
    assert (o[:, :, 1:4] == 0).all()  # their sequence has no keys


@pytest.mark.parametrize("call, message", [
    ({"cu_seqlens": torch.tensor([0, 3, 7])}, r"expected cu_seqlens_q that ends with the 8 tokens; found 7"),
    ({"cu_seqlens": torch.tensor([1, 8])}, r"expected cu_seqlens_q that begins with 0; found 1"),
    ({"cu_seqlens": torch.tensor([0, 5, 3, 8])}, r"expected cu_seqlens_q that never falls; found 5 before 3"),
    ({"cu_seqlens": torch.tensor([0., 8.])}, r"expected cu_seqlens_q \(S \+ 1\), integer"),
    ({"cu_seqlens_q": torch.tensor([0, 8])}, r"expected cu_seqlens, or cu_seqlens_q and cu_seqlens_k; found cu_seqlens_q"),
    ({"cu_seqlens_q": torch.tensor([0, 8]), "cu_seqlens_k": BOUNDS}, r"expected as many key sequences as query sequences"),
    ({"cu_seqlens": BOUNDS, "query_offset": 2}, r"expected query_offset 0 with cu_seqlens"),
])
def test_packed_errors(qkv, call, message):
    q, k, v = qkv(B=1, M=8, N=8)
    with pytest.raises(ValueError, match=message):
        regard.attention(q, k, v, **call)


def test_packed_takes_one_row(qkv):
    q, k, v = qkv(B=2, M=8, N=8)
    with pytest.raises(ValueError, match=r"expected q \(1, heads, tokens, width\) with cu_seqlens"):
        regard.attention(q, k, v, cu_seqlens=BOUNDS)


# ---- dropout by positions ----------------------------------------------------------------------------------------

SEED = torch.tensor(1234567890123)


def dropped(q, k, spec, captures=None, **call):
    """The weights of a call that drops some: its map."""
    v = torch.eye(k.shape[2], dtype=q.dtype).expand(k.shape[0], k.shape[1], -1, -1)
    return regard.attention(q, k, v, spec=spec, captures=captures, seed=SEED, **call)


def test_split_keys_drop_the_same_pairs(qkv):
    q, k, _ = qkv(M=6, N=10)
    whole = dropped(q, k, {"dropout": 0.4, "normalizer": "sigmoid"})
    spec = {"dropout": 0.4, "normalizer": "sigmoid", "positions": {"key": {"tensor": "at", "per_batch": False}}}
    for part in (torch.arange(4), torch.arange(4, 10), torch.tensor([9, 2, 5])):
        found = dropped(q, k[:, :, part].contiguous(), spec, {"at": part})
        torch.testing.assert_close(found, whole[..., part])
    assert 0.2 < (whole == 0).double().mean() < 0.6


def test_split_queries_drop_the_same_pairs(qkv):
    q, k, _ = qkv(M=6, N=10)
    whole = dropped(q, k, {"dropout": 0.4})
    spec = {"dropout": 0.4, "positions": {"query": {"tensor": "at"}}}
    rows = torch.tensor([5, 0, 3])
    found = dropped(q[:, :, rows].contiguous(), k, spec, {"at": rows.expand(2, -1)})
    torch.testing.assert_close(found, whole[:, :, rows])
    torch.testing.assert_close(dropped(q[:, :, 2:], k, {"dropout": 0.4}, query_offset=2), whole[:, :, 2:])
    strided = {"dropout": 0.4, "positions": {"query": {"offset": 1, "stride": 2}}}
    torch.testing.assert_close(dropped(q[:, :, 1::2].contiguous(), k, strided), whole[:, :, 1::2])


def test_packed_drops_what_a_batch_drops(qkv):
    q, k, v = qkv(B=1, M=8, N=8)
    packed = regard.attention(q, k, v, cu_seqlens=torch.tensor([0, 4, 8]), dropout=0.4, seed=SEED)
    batch = [t.unflatten(2, (2, 4)).squeeze(0).transpose(0, 1).contiguous() for t in (q, k, v)]
    rows = regard.attention(*batch, dropout=0.4, seed=SEED)
    torch.testing.assert_close(packed, torch.cat([rows[:1], rows[1:]], 2))
