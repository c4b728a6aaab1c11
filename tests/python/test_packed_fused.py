"""Packed sequences on the fused kernel: each as it would be by itself, in values, gradients and in what reaches what."""

import pytest
import regard
import torch

LENGTHS = [70, 1, 0, 333, 64, 17]
BOUNDS = torch.tensor([0, *LENGTHS]).cumsum(0)
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"mask": lambda b, h, i, j: (i >= j) & (i - j < 50)},
    "by head": {"mask": lambda b, h, i, j: (i + j + h) % 3 != 0},
    "biased": {"score": lambda s, b, h, i, j: torch.tanh(s) - 0.1 * (i - j), "is_causal": True},
    "weighted": {"weight": lambda b, h, i, j: 1.0 + 0.5 * (j % 2)},
    "counted": {"counted": lambda b, h, i, j: j % 5 != 0},
    "sinks": {"sinks": torch.tensor([[0.5], [0.1], [0.3], [1.0]], dtype=torch.float64)},
}


def operands(dtype=torch.float64, tokens=sum(LENGTHS), keys=None):
    return [torch.randn(1, h, n, d, dtype=dtype, requires_grad=True)
            for h, n, d in ((4, tokens, 24), (2, keys or tokens, 24), (2, keys or tokens, 20))]


def with_gradients(tensors, outputs):
    torch.manual_seed(5)
    return [*outputs, *torch.autograd.grad(sum((torch.where(t.isinf(), 0, t) * torch.randn_like(t)).sum()
                                               for t in outputs), tensors)]


def apart(qkv, of_queries=BOUNDS, of_keys=BOUNDS, **options):
    parts = []
    for s in range(len(of_queries) - 1):
        rows, keys = slice(*of_queries[s:s + 2].tolist()), slice(*of_keys[s:s + 2].tolist())
        parts.append(regard.attention(qkv[0][:, :, rows], *(t[:, :, keys] for t in qkv[1:]), return_lse=True,
                                      **options))
    return [torch.cat([p[n] for p in parts], 2) for n in (0, 1)]


@pytest.mark.parametrize("name", OPTIONS)
def test_each_is_as_by_itself(name, paths_of):
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 2e-5)):
        options = {key: value.to(dtype) if isinstance(value, torch.Tensor) else value
                   for key, value in OPTIONS[name].items()}
        qkv = operands(dtype)
        paths, found = paths_of(lambda: with_gradients(qkv, regard.attention(  # noqa: B023
            *qkv, cu_seqlens=BOUNDS, return_lse=True, **options)))  # noqa: B023
        assert paths == {"attention": {"fused": 1}, "attention_backward": {"fused": 1}}
        for f, e in zip(found, with_gradients(qkv, apart(qkv, **options)), strict=True):
            torch.testing.assert_close(f, e, rtol=tolerance, atol=tolerance)


def test_cross_attention_between_packs():
    of_queries, of_keys = torch.tensor([0, 3, 3, 100, 130]), torch.tensor([0, 200, 210, 210, 300])
    for options in ({}, {"is_causal": True}):
        qkv = operands(tokens=130, keys=300)
        found = with_gradients(qkv, regard.attention(*qkv, cu_seqlens_q=of_queries, cu_seqlens_k=of_keys,
                                                     return_lse=True, **options))
        for f, e in zip(found, with_gradients(qkv, apart(qkv, of_queries, of_keys, **options)), strict=True):
            torch.testing.assert_close(f, e, rtol=1e-8, atol=1e-8)
        assert (found[0][:, :, 3:100] == 0).all()


def test_captures_have_gradients():
    qkv = operands()
    bias = torch.randn(4, 400, dtype=torch.float64, requires_grad=True)
    options = {"score": lambda s, b, h, i, j: s + bias[h, j], "is_causal": True}
    found = with_gradients([*qkv, bias], regard.attention(*qkv, cu_seqlens=BOUNDS, return_lse=True, **options))
    for f, e in zip(found, with_gradients([*qkv, bias], apart(qkv, **options)), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=str)
def test_nan_stays_in_its_sequence(options):
    clean = operands(torch.float32)
    poisoned = [t.detach().clone() for t in clean]
    for t in poisoned:
        t[:, :, BOUNDS[3]:BOUNDS[4]] = torch.nan
    poisoned = [t.requires_grad_() for t in poisoned]
    rows = torch.ones(sum(LENGTHS), dtype=torch.bool)
    rows[BOUNDS[3]:BOUNDS[4]] = False

    def run(qkv):
        o = regard.attention(*qkv, cu_seqlens=BOUNDS, **options)
        return [o, *torch.autograd.grad(o[:, :, rows].sum(), qkv)]
    for f, e in zip(run(poisoned), run(clean), strict=True):
        assert torch.equal(f[:, :, rows], e[:, :, rows])


def test_bits_depend_neither_on_threads_nor_on_the_other_sequences():
    qkv = operands(torch.float32)
    threads = torch.get_num_threads()

    def run():
        return with_gradients(qkv, regard.attention(*qkv, cu_seqlens=BOUNDS, is_causal=True, return_lse=True))
    try:
        torch.set_num_threads(1)
        alone = run()
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(run(), alone))
    finally:
        torch.set_num_threads(threads)
    changed = [t.detach().clone() for t in qkv]
    for t in changed:
        t[:, :, :BOUNDS[3]] = torch.randn_like(t[:, :, :BOUNDS[3]])
    rest = slice(int(BOUNDS[3]), None)
    assert torch.equal(regard.attention(*changed, cu_seqlens=BOUNDS, is_causal=True)[:, :, rest],
                       alone[0][:, :, rest])


def test_documents_in_any_order_are_still_right():
    qkv = operands(tokens=150)
    ids = torch.randint(0, 3, (1, 150))
    for own in (ids, ids.sort().values):
        mask = lambda b, h, i, j: own[b, i] == own[b, j]  # noqa: B023, E731
        found = with_gradients(qkv, regard.attention(*qkv, mask=mask, return_lse=True))
        expected = with_gradients(qkv, regard.attention(*qkv, mask=mask, return_lse=True, path="composite"))
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-8, atol=1e-8)
