"""attention_blocks: equal to attention with a dense mask of the index, in memory of what is kept."""

import itertools
import subprocess
import sys

import pytest
import regard
import torch
from mechanisms import gradcheck
from regard import BlockIndex, attention, attention_blocks

B, H = 2, 4
# (query_block, key_block): keys gathered, queries packed, single keys, single queries, blocks longer than the sequence.
SIZES = [(1, 1), (4, 2), (3, 3), (1, 4), (2, 5), (1, 50), (50, 1), (16, 16)]


def operands(M, N, kv_heads=2, dtype=torch.float64):
    return [torch.randn(B, h, n, d, dtype=dtype, requires_grad=True)
            for h, n, d in ((H, M, 5), (kv_heads, N, 5), (kv_heads, N, 3))]


def choice(M, N, query_block, key_block, heads=H, batch=B, share=0.5, **options):
    kept = torch.rand(batch, heads, -(-M // query_block), -(-N // key_block)) < share
    index = BlockIndex.from_mask(kept, query_block, key_block, **options)
    return index, spread(kept, M, N, query_block, key_block)


def spread(kept, M, N, query_block, key_block):
    """The mask of blocks as (B, H, M, N)."""
    pairs = kept.repeat_interleave(query_block, 2)[:, :, :M].repeat_interleave(key_block, 3)[..., :N]
    return pairs.expand(B, -1, -1, -1).repeat_interleave(H // pairs.shape[1], 1)


def same(found, expected, tensors=()):
    """Values, and gradients along one direction."""
    for f, e in zip(found, expected):
        torch.testing.assert_close(f, e, rtol=1e-10, atol=1e-12)
    if tensors:
        weights = [torch.randn_like(e) for e in expected]

        def gradients(outputs):
            loss = sum((torch.where(o.isinf(), 0, o) * w).sum() for o, w in zip(outputs, weights))
            return torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
        for f, e in zip(gradients(found), gradients(expected)):
            torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("M, N", [(7, 13), (16, 16), (1, 9)])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_attention_with_a_dense_mask(sizes, M, N):
    qkv = operands(M, N)
    index, kept = choice(M, N, *sizes)
    found = attention_blocks(*qkv, index, return_lse=True)
    same(found, attention(*qkv, mask=lambda b, h, i, j: kept[b, h, i, j], return_lse=True), qkv)


@pytest.mark.parametrize("sizes", [(4, 2), (1, 4)], ids=str)
@pytest.mark.parametrize("heads, batch", [(1, 1), (2, B), (H, 1)])
def test_index_heads_and_batch_are_shared(sizes, heads, batch):
    qkv = operands(9, 11)
    index, kept = choice(9, 11, *sizes, heads=heads, batch=batch)
    same([attention_blocks(*qkv, index)], [attention(*qkv, mask=lambda b, h, i, j: kept[b, h, i, j])], qkv)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_functions_see_the_indices_of_the_whole_call(sizes):
    M, N = 6, 11
    qkv = operands(M, N)
    index, kept = choice(M, N, *sizes, share=0.6)
    slopes, bias = torch.rand(H, dtype=torch.float64), torch.randn(B, H, M, N, dtype=torch.float64)
    gains, sinks = torch.rand(B, N, dtype=torch.float64), torch.randn(H, 2, dtype=torch.float64)
    extra = (torch.randn(B, 2, M, 3, dtype=torch.float64), torch.randn(B, 2, N, 3, dtype=torch.float64))
    tensors = [*qkv, *(t.requires_grad_() for t in (slopes, bias, gains, sinks, *extra))]

    def options(mask):
        return dict(
            score=lambda s, b, h, i, j: s - slopes[h] * (i - j).abs() + bias[b, h, i - 5, j] + regard.expr.dot("x"),
            mask=mask, weight=lambda b, h, i, j: gains[b, j], pair_outputs=[lambda b, h, i, j: i - j],
            operands={"x": extra}, sinks=sinks, query_offset=5)
    found = attention_blocks(*qkv, index, **options(lambda b, h, i, j: i >= j))
    same(found, attention(*qkv, **options(lambda b, h, i, j: (i >= j) & kept[b, h, i - 5, j])), tensors)


@pytest.mark.parametrize("sizes", [(4, 2), (1, 4), (1, 1)], ids=str)
def test_the_mask_is_not_asked_in_full_blocks(sizes):
    qkv = operands(9, 11)
    index, kept = choice(9, 11, *sizes)
    full = torch.rand(index.blocks.shape) < 0.5
    index.full = full
    marked = torch.zeros(B, H, *(-(-n // s) for n, s in zip((9, 11), sizes)), dtype=torch.bool)
    for place in itertools.product(*map(range, full.shape)):
        if index.blocks[place] >= 0 and full[place]:
            marked[*place[:3], index.blocks[place]] = True
    whole = spread(marked, 9, 11, *sizes)
    same([attention_blocks(*qkv, index, is_causal=True)],
         [attention(*qkv, mask=lambda b, h, i, j: kept[b, h, i, j] & (whole[b, h, i, j] | (i >= j)))], qkv)


@pytest.mark.parametrize("sizes", [(4, 2), (2, 5), (1, 1)], ids=str)
def test_queries_that_are_not_selected_have_the_value_given(sizes):
    M, N = 11, 13
    qkv = operands(M, N)
    index, kept = choice(M, N, *sizes)
    order = torch.stack([torch.stack([torch.randperm(index.blocks.shape[2]) for _ in range(H)]) for _ in range(B)])
    order = order[..., :-1]
    rest = torch.randn(B, 1, M, 1, dtype=torch.float64, requires_grad=True)
    chosen = BlockIndex(index.blocks.gather(2, order[..., None].expand(*order.shape, index.blocks.shape[3])), *sizes,
                        queries=order, otherwise=rest)
    chosen.queries[0, 0, 0] = -1
    selected = torch.zeros(B, H, index.blocks.shape[2] + 1, dtype=torch.bool).scatter(
        2, chosen.queries % (index.blocks.shape[2] + 1), True)[..., :-1].repeat_interleave(sizes[0], 2)[..., :M, None]
    dense = attention(*qkv, mask=lambda b, h, i, j: kept[b, h, i, j])
    same([attention_blocks(*qkv, chosen)], [torch.where(selected, dense, rest)], [*qkv, rest])
    chosen.otherwise = None
    o, lse = attention_blocks(*qkv, chosen, return_lse=True)
    assert (o[~selected.expand_as(o)] == 0).all() and lse[~selected[..., 0]].isneginf().all()


@pytest.mark.parametrize("sizes", [(3, 2), (1, 4)], ids=str)
def test_derivatives_of_second_order_and_forward_mode(sizes):
    qkv = operands(5, 7)
    index, _ = choice(5, 7, *sizes)
    assert gradcheck(lambda q, k, v: attention_blocks(q, k, v, index, is_causal=True, query_offset=2), *qkv)


@pytest.mark.parametrize("sizes", [(3, 2), (1, 4)], ids=str)
def test_rows_without_keys_are_zero_and_hidden_nan_reaches_nothing(sizes):
    q, k, v = operands(8, 8)
    index, kept = choice(8, 8, *sizes)
    index.blocks[0, :, 1] = -1
    o = attention_blocks(q, k, v, index)
    rows = slice(sizes[0], 2 * sizes[0])
    assert (o[0, :, rows] == 0).all()
    poisoned_k, poisoned_v = k.detach().clone(), v.detach().clone()
    poisoned_k[:, :, 6] = poisoned_v[:, :, 6] = torch.nan
    leaves = [t.detach().requires_grad_() for t in (q, poisoned_k, poisoned_v)]
    hidden = attention_blocks(*leaves, index, mask=lambda b, h, i, j: j != 6)
    same([hidden], [attention_blocks(q, k, v, index, mask=lambda b, h, i, j: j != 6)])
    assert all(g.isfinite().all() for g in torch.autograd.grad(hidden.sum(), leaves))


@pytest.mark.parametrize("M, N", [(0, 5), (4, 0), (0, 0)])
@pytest.mark.parametrize("sizes", [(2, 2), (1, 4)], ids=str)
def test_empty_sequences(M, N, sizes):
    q, k, v = operands(M, N)
    o = attention_blocks(q, k, v, choice(M, N, *sizes)[0])
    assert o.shape == (B, H, M, 3) and (o == 0).all()


@pytest.mark.parametrize("sizes", [(4, 2), (1, 4)], ids=str)
def test_traces_with_dynamic_lengths(sizes):
    def f(q, k, v, blocks):
        return attention_blocks(q, k, v, BlockIndex(blocks, *sizes), is_causal=True)
    torch._dynamo.reset()
    traced = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for M, N in ((9, 11), (12, 17)):
        qkv = operands(M, N)
        blocks = choice(M, N, *sizes)[0].blocks
        same([traced(*qkv, blocks)], [f(*qkv, blocks)], qkv)


@pytest.mark.parametrize("sizes", [(3, 2), (1, 4)], ids=str)
def test_vmap(sizes):
    q, k, v = (t.detach() for t in operands(6, 8))
    index, _ = choice(6, 8, *sizes, batch=1)
    one = lambda q, k, v: attention_blocks(q, k, v, index)  # noqa: E731
    stacked = torch.vmap(one)(*(t.unsqueeze(1) for t in (q, k, v)))
    same([stacked[:, 0]], [torch.cat([one(q[i:i + 1], k[i:i + 1], v[i:i + 1]) for i in range(B)])])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype):
    qkv = [t.detach() for t in operands(20, 24)]
    for sizes in ((1, 4), (4, 4)):
        index, _ = choice(20, 24, *sizes)
        exact, found = attention_blocks(*qkv, index), attention_blocks(*(t.to(dtype) for t in qkv), index)
        assert found.dtype == dtype
        assert (found - exact).abs().max() < (1e-5 if dtype == torch.float32 else 4e-2)


def refused(message, *arguments, **options):
    with pytest.raises(ValueError) as error:
        attention_blocks(*arguments, **options)
    assert message in str(error.value)


def test_bad_input_is_refused_by_name():
    q, k, v = operands(6, 8)
    good, _ = choice(6, 8, 2, 4)

    def index(**changes):
        options = {"blocks": torch.zeros(B, H, 3, 1, dtype=torch.int64), "query_block": 2, "key_block": 4}
        return BlockIndex(**{**options, **changes})
    zeros = torch.zeros
    refused("expected index to be a BlockIndex; found Tensor", q, k, v, good.blocks)
    refused("expected query_block > 0 and key_block > 0; found 0 and 4", q, k, v, index(query_block=0))
    refused("expected blocks (B or 1, index heads that divide the query heads, Q, K) int64; found Int", q, k, v,
            index(blocks=zeros(B, H, 3, 1, dtype=torch.int32)))
    refused("expected blocks (B or 1, index heads", q, k, v, index(blocks=zeros(B, 3, 3, 1, dtype=torch.int64)))
    refused("expected blocks with 3 rows, one a query block (or queries); found Long of shape [2, 4, 4, 1]", q, k, v,
            index(blocks=zeros(B, H, 4, 1, dtype=torch.int64)))
    refused("expected blocks in [0, 2), or -1 for none; found 2", q, k, v,
            index(blocks=torch.full((B, H, 3, 1), 2)))
    refused("expected blocks in [0, 2), or -1 for none; found -2", q, k, v,
            index(blocks=torch.full((B, H, 3, 1), -2)))
    refused("expected blocks, each at most once a row; found 1 twice", q, k, v,
            index(blocks=torch.ones(B, H, 3, 2, dtype=torch.int64)))
    refused("expected full, bool, of the shape of blocks", q, k, v, index(full=zeros(B, H, 3, 1)))
    refused("expected queries int64 of the shape of blocks without its last dimension", q, k, v,
            index(queries=zeros(B, H, 2, dtype=torch.int64)))
    refused("expected queries in [0, 3), or -1 for none; found 3", q, k, v, index(queries=torch.full((B, H, 3), 3)))
    refused("expected queries, each at most once a row; found 0 twice", q, k, v,
            index(queries=zeros(B, H, 3, dtype=torch.int64)))
    refused("expected queries beside otherwise", q, k, v, index(otherwise=zeros(1)))
    spec = regard.Spec(normalizer="sigmoid")
    refused("expected the normalizer softmax (its parts merge); found sigmoid", q, k, v, good, spec=spec)
    refused("expected a spec without dropout", q, k, v, good, spec=regard.Spec(dropout=0.5))


MEMORY = """
import resource, torch, regard
torch.manual_seed(0)
N, block, kept = 16384, 64, 4
q, k, v = (torch.randn(1, 2, N, 32, requires_grad=True) for _ in range(3))
blocks = torch.rand(1, 2, N, N // block).topk(kept).indices
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
regard.attention_blocks(q, k, v, regard.BlockIndex(blocks, 1, block)).square().sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
"""


def test_memory_follows_what_is_kept():
    """M N floats would be 2 GiB; kept pairs are 1/64 of that, each with a few tensors of that size."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 500, f"{done.stdout} MiB"
