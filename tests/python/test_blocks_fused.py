"""attention_blocks in place on the fused kernel: equal to the gathered form, and blocks that are not kept cost nothing."""

import pytest
import regard
import torch
from regard import BlockIndex, attention, attention_blocks

B, H, HK = 2, 4, 2
# Whole tiles, several tiles a block, off every unit, blocks longer than the sequences.
SIZES = [(16, 16), (64, 64), (128, 40), (17, 33), (100, 300), (48, 256), (400, 500)]
LENGTHS = [(130, 201), (64, 64), (17, 515)]
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True, "query_offset": 70},
    "window": {"mask": lambda b, h, i, j: (i - j).abs() < 40},
    "masked by batch and head": {"mask": lambda b, h, i, j: (i + j + b + h) % 3 != 0},
    "biased": {"score": lambda s, b, h, i, j: torch.tanh(s) - 0.01 * (i - j).abs()},
    "weighted": {"weight": lambda b, h, i, j: 1.0 + 0.5 * (j % 2)},
    "counted": {"counted": lambda b, h, i, j: j % 5 != 0, "mask": lambda b, h, i, j: j % 5 != 1},
}


def operands(M, N, dtype=torch.float64, Dh=24, Dv=20):
    return [torch.randn(B, h, n, d, dtype=dtype, requires_grad=True)
            for h, n, d in ((H, M, Dh), (HK, N, Dh), (HK, N, Dv))]


def choice(M, N, query_block, key_block, heads=H, batch=B, share=0.5, **options):
    kept = torch.rand(batch, heads, -(-M // query_block), -(-N // key_block)) < share
    return BlockIndex.from_mask(kept, query_block, key_block, **options)


def with_gradients(tensors, function):
    outputs = function()
    torch.manual_seed(5)
    loss = sum((torch.where(t.isinf(), 0, t) * torch.randn_like(t)).sum() for t in outputs)
    return [*outputs, *torch.autograd.grad(loss, tensors)]


def alike(found, expected, **tolerance):
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, **tolerance)


def check(qkv, index, paths_of, extra=(), **options):
    def run(path):
        return with_gradients([*qkv, *extra], lambda: list(
            attention_blocks(*qkv, index, return_lse=True, path=path, **options)))
    paths, found = paths_of(lambda: run("auto"))
    assert paths["attention_blocks"] == {"fused": 1} and paths["attention"] == {"fused": 1}
    assert paths["attention_backward"] == {"fused": 1}
    paths, expected = paths_of(lambda: run("composite"))
    assert paths["attention_blocks"] == {"composite": 1} and "fused" not in paths["attention"]
    # Of the two it is torch's first exponential of a process that may be off by 1e-8.
    exact = qkv[0].dtype == torch.float64
    alike(found, expected, rtol=1e-7 if exact else 1e-4, atol=1e-8 if exact else 2e-5)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_the_gathered_form(sizes, lengths, paths_of):
    check(operands(*lengths), choice(*lengths, *sizes), paths_of)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("sizes", [(64, 32), (33, 100)], ids=str)
def test_expressions(name, sizes, paths_of):
    for dtype in (torch.float64, torch.float32):
        check(operands(140, 230, dtype), choice(140, 230, *sizes), paths_of, **OPTIONS[name])


@pytest.mark.parametrize("name", ["causal", "window", "counted"])
def test_the_mask_is_not_asked_in_full_blocks(name, paths_of):
    index = choice(140, 230, 32, 48)
    index.full = torch.rand(index.blocks.shape) < 0.5
    check(operands(140, 230), index, paths_of, **OPTIONS[name])


@pytest.mark.parametrize("heads, batch", [(1, 1), (2, B), (H, 1)])
def test_index_heads_and_batch_are_shared(heads, batch, paths_of):
    check(operands(100, 130), choice(100, 130, 32, 16, heads=heads, batch=batch), paths_of, is_causal=True)


def test_captures_and_sinks_have_gradients(paths_of):
    bias = torch.randn(H, 130, dtype=torch.float64, requires_grad=True)
    sinks = torch.randn(H, 2, dtype=torch.float64, requires_grad=True)
    check(operands(100, 130), choice(100, 130, 32, 16), paths_of, (bias, sinks), sinks=sinks,
          score=lambda s, b, h, i, j: s + bias[h, j])


def test_queries_that_are_not_selected_have_the_value_given(paths_of):
    rest = torch.randn(B, 1, 140, 1, dtype=torch.float64, requires_grad=True)
    index = choice(140, 230, 32, 48)
    order = torch.stack([torch.stack([torch.randperm(5) for _ in range(H)]) for _ in range(B)])[..., :3]
    blocks = index.blocks.gather(2, order[..., None].expand(*order.shape, index.blocks.shape[3]))
    order[0, 0, 0] = -1
    chosen = BlockIndex(blocks, 32, 48, queries=order, otherwise=rest)
    check(operands(140, 230), chosen, paths_of, (rest,), is_causal=True, query_offset=90)


def test_order_of_entries_and_fillers_between_them_do_not_matter():
    qkv = operands(64, 230, torch.float32)
    entries = torch.tensor([4, -1, 0, 2, -1, 1]).expand(B, H, 2, 6)
    found = attention_blocks(*qkv, BlockIndex(entries, 32, 48))
    sorted_entries = torch.tensor([0, 1, 2, 4]).expand(B, H, 2, 4)
    assert torch.equal(found, attention_blocks(*qkv, BlockIndex(sorted_entries, 32, 48)))


def test_bits_depend_neither_on_threads_nor_on_batch_mates():
    qkv = operands(200, 700, torch.float32)
    index = choice(200, 700, 64, 64)

    def run():
        return with_gradients(qkv, lambda: [attention_blocks(*qkv, index, is_causal=True, query_offset=500)])

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run()
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(run(), alone))
    finally:
        torch.set_num_threads(threads)

    def squares(part, blocks):
        leaves = [t.detach()[part].requires_grad_() for t in qkv]
        o = attention_blocks(*leaves, BlockIndex(blocks, 64, 64), is_causal=True, query_offset=500)
        return [o, *torch.autograd.grad(o.square().sum(), leaves)]
    for blocks in (index.blocks, index.blocks[:1]):  # each batch entry's own, and a shared one
        both, first = squares(slice(None), blocks), squares(slice(1), blocks[:1])
        assert all(torch.equal(a[:1], b) for a, b in zip(both, first))


def test_nan_in_blocks_that_are_not_kept_reaches_nothing():
    qkv = [t.detach() for t in operands(128, 256)]
    index = BlockIndex(torch.tensor([[0, 3], [1, -1]]).expand(B, H, 2, 2), 64, 64)
    clean = [t.clone().requires_grad_() for t in qkv]
    poisoned = [t.clone() for t in qkv]
    for t in poisoned[1:]:
        t[:, :, 128:192] = torch.nan
    poisoned = [t.requires_grad_() for t in poisoned]
    expected = with_gradients(clean, lambda: [attention_blocks(*clean, index)])
    found = with_gradients(poisoned, lambda: [attention_blocks(*poisoned, index)])
    alike(found, expected, rtol=0, atol=0)
    assert (found[2][:, :, 128:192] == 0).all() and (found[3][:, :, 128:192] == 0).all()


def test_a_mask_written_by_blocks_is_the_same(paths_of):
    """What the index becomes, a captured boolean read by blocks, can be written by hand."""
    qkv = operands(140, 230)
    kept = torch.rand(B, H, 5, 5) < 0.5
    written = with_gradients(qkv, lambda: [attention(*qkv, mask=lambda b, h, i, j: kept[b, h, i // 32, j // 48])])
    index = BlockIndex.from_mask(kept, 32, 48)
    alike(written, with_gradients(qkv, lambda: [attention_blocks(*qkv, index)]), rtol=1e-10, atol=1e-12)


def test_small_blocks_and_other_specs_say_that_they_are_gathered(paths_of):
    qkv = operands(40, 50, torch.float32)
    for index, options in ((choice(40, 50, 1, 16), {}), (choice(40, 50, 16, 4), {}),
                           (choice(40, 50, 16, 16), {"pair_outputs": [lambda b, h, i, j: i - j]})):
        paths, _ = paths_of(lambda: attention_blocks(*qkv, index, **options))  # noqa: B023
        assert paths["attention_blocks"] == {"composite": 1}


def test_derivatives_of_second_order(paths_of):
    q, k, v = (torch.randn(1, 1, n, 2, dtype=torch.float64, requires_grad=True) for n in (17, 18, 18))
    index = BlockIndex(torch.tensor([[0], [1]])[None, None], 16, 16)
    assert torch.autograd.gradgradcheck(lambda *x: attention_blocks(*x, index), (q, k, v))
    assert torch.autograd.gradcheck(lambda *x: attention_blocks(*x, index), (q, k, v), check_forward_ad=True)


@pytest.mark.parametrize("dynamic", [True, False])
def test_traces(dynamic):
    def f(q, k, v, blocks):
        return attention_blocks(q, k, v, BlockIndex(blocks, 16, 32), is_causal=True)
    torch._dynamo.reset()
    traced = torch.compile(f, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for M, N in ((40, 70), (90, 33)):
        qkv = operands(M, N)
        blocks = choice(M, N, 16, 32).blocks
        alike([traced(*qkv, blocks)], [f(*qkv, blocks)])
