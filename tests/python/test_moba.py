"""moba: against a loop written from the paper, the official cases, its limits, packed, padded and step by step."""

import json
import os
import pathlib

import pytest
import regard
import torch
from mechanisms import call, gradcheck, main, refuses, weights_of
from safetensors import safe_open

ID = "moba"
DIRECTORY = pathlib.Path(os.environ.get("REGARD_GOLDEN", pathlib.Path(__file__).parents[1] / "golden"))
op = torch.ops.regard.moba


def qkv(T, H=4, kv_heads=2, D=6, dtype=torch.float64):
    return [torch.randn(T, h, D, dtype=dtype, requires_grad=True) for h in (H, kv_heads, kv_heads)]


def by_hand(q, k, v, bounds, chunk, topk):
    """One query at a time, as the paper says it."""
    H = q.shape[1]
    k, v = (t.repeat_interleave(H // t.shape[1], 1) for t in (k, v))
    rows = []
    for begin, end in zip(bounds[:-1], bounds[1:]):
        for t in range(begin, end):
            own = (t - begin) // chunk
            heads = []
            for h in range(H):
                past = [k[begin + j * chunk:begin + (j + 1) * chunk, h].detach().mean(0) @ q[t, h].detach()
                        for j in range(own)]
                chosen = sorted(range(own), key=lambda j: -past[j])[:topk - 1]
                places = [begin + j * chunk + i for j in chosen for i in range(chunk)]
                places += range(begin + own * chunk, t + 1)
                p = (k[places, h] @ q[t, h] / q.shape[2] ** 0.5).softmax(0)
                heads.append(p @ v[places, h])
            rows.append(torch.stack(heads))
    return torch.stack(rows)


def close(found, expected, tolerance=1e-11):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", ["blocks", "naive"])
@pytest.mark.parametrize("chunk, topk", [(4, 2), (3, 3), (1, 3), (5, 1), (2, 50), (64, 2)])
def test_is_what_the_paper_says(form, chunk, topk):
    bounds, tensors = [0, 11, 11, 20, 21], qkv(21)
    found = op(*tensors, torch.tensor(bounds), chunk, topk, form=form)
    expected = by_hand(*tensors, bounds, chunk, topk)
    close(found, expected)
    w = torch.randn_like(expected)
    for f, e in zip(torch.autograd.grad((found * w).sum(), tensors), torch.autograd.grad((expected * w).sum(), tensors)):
        close(f, e)


def causal(q, k, v):
    o = regard.attention(*(t.transpose(0, 1)[None] for t in (q, k, v)), is_causal=True)
    return o[0].transpose(0, 1)


def test_enough_blocks_or_one_block_are_full_attention():
    tensors = qkv(13)
    ends, full = torch.tensor([0, 13]), causal(*tensors)
    close(op(*tensors, ends, 4, 4), full)
    close(op(*tensors, ends, 13, 1), full)


def test_one_block_is_attention_inside_blocks():
    tensors = qkv(12)
    close(op(*tensors, torch.tensor([0, 12]), 4, 1), op(*tensors, torch.tensor([0, 4, 8, 12]), 4, 1))
    close(op(*tensors, torch.tensor([0, 12]), 4, 1)[4:8], causal(*(t[4:8] for t in tensors)))


def test_sequences_are_apart():
    tensors = qkv(17)
    packed = op(*tensors, torch.tensor([0, 7, 17], dtype=torch.int32), 3, 2)
    apart = [op(*(t[a:b] for t in tensors), torch.tensor([0, b - a]), 3, 2) for a, b in ((0, 7), (7, 17))]
    close(packed, torch.cat(apart))


def test_the_order_inside_a_past_block_does_not_matter():
    q, k, v = qkv(16)
    order = torch.tensor([2, 0, 3, 1, *range(4, 16)])
    ends = torch.tensor([0, 16])
    close(op(q, k[order], v[order], ends, 4, 2)[4:], op(q, k, v, ends, 4, 2)[4:])


@pytest.mark.golden
def test_golden():
    files = sorted((DIRECTORY / ID).glob("*.safetensors"))
    if not files:
        pytest.skip(f"no case of {ID} in {DIRECTORY}")
    for path in files:
        with safe_open(path, "pt") as file:
            config = json.loads(file.metadata()["config"])
            tolerance = float(file.metadata().get("tolerance", 1e-9))
            case = {name: file.get_tensor(name) for name in file.keys()}
        names = ["q", "k", "v"]
        for form in ("blocks", "naive"):
            leaves = [case[f"in.{n}"].clone().requires_grad_() for n in names]
            o = op(*leaves, case["in.cu_seqlens"], config["moba_chunk_size"], config["moba_topk"],
                   config.get("softmax_scale"), form, path="composite")
            assert (o - case["out.o"]).abs().max() <= tolerance * case["out.o"].abs().max()
            given = [n for n in names if f"grad.in.{n}" in case]
            found = torch.autograd.grad((o * case["w"]).sum(), [leaves[names.index(n)] for n in given]) if given else []
            for n, g in zip(given, found):
                expected = case[f"grad.in.{n}"]
                assert (g - expected).abs().max() <= tolerance * expected.abs().max(), (path.name, form, n)
        o = op(*(case[f"in.{n}"].float() for n in names), case["in.cu_seqlens"], config["moba_chunk_size"],
               config["moba_topk"], config.get("softmax_scale"))
        assert (o - case["out.o"]).abs().max() <= 1e-5 * case["out.o"].abs().max()


CONFIGS = [{"width": 8, "heads": 2, "chunk_size": 3, "topk": 2, "rope": True},
           {"width": 12, "heads": 4, "kv_heads": 2, "head_width": 4, "chunk_size": 2, "topk": 3, "scale": 0.7},
           {"width": 8, "heads": 2, "full": True}]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_forms_agree_and_the_map_is_theirs(config):
    w, x = weights_of(ID, config), torch.randn(2, 11, config["width"], dtype=torch.float64)
    y = main(ID, config, w, x)
    close(y, main(ID, {**config, "form": "naive"}, w, x))
    mapped, attn = call(ID, config, w, x, outputs=["attn"])
    close(mapped, y)
    close(attn.sum(-1), torch.ones_like(attn[..., 0]))
    if not config.get("full"):
        _, blocks = call(ID, config, w, x, outputs=["blocks"])
        assert (blocks[:, :, :, 0] == torch.arange(11) // config["chunk_size"]).all()
        number = torch.arange(11) // config["chunk_size"]
        kept = (blocks[..., None] == number).any(3)
        assert ((attn > 0) == (kept & torch.ones(11, 11, dtype=torch.bool).tril())).all()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("form", ["blocks", "naive"])
def test_step_by_step_equals_at_once(config, form):
    config = {**config, "form": form}
    w, x = weights_of(ID, config), torch.randn(2, 13, config["width"], dtype=torch.float64)
    names, cache, pieces = ["cache.k", "cache.v"], {}, []
    for begin, end in ((0, 5), (5, 6), (6, 7), (7, 13)):
        y, *streams = call(ID, config, w, x[:, begin:end], cache, outputs=names)
        cache = dict(zip(names, streams))
        pieces.append(y)
    close(torch.cat(pieces, 1), main(ID, config, w, x))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("form", ["blocks", "naive"])
def test_packed_and_padded_equal_separate(config, form):
    config = {**config, "form": form}
    w = weights_of(ID, config)
    parts = [torch.randn(1, n, config["width"], dtype=torch.float64) for n in (7, 1, 5)]
    apart = [main(ID, config, w, x) for x in parts]
    packed = main(ID, config, w, torch.cat(parts, 1), {"cu_seqlens": torch.tensor([0, 7, 8, 13])})
    close(packed, torch.cat(apart, 1))
    rows = torch.full((3, 7, config["width"]), torch.nan, dtype=torch.float64)
    for row, x in zip(rows, parts):
        row[:x.shape[1]] = x[0]
    padded = main(ID, config, w, rows, {"lengths": torch.tensor([7, 1, 5])})
    for row, y in zip(padded, apart):
        close(row[:y.shape[1]], y[0])
        assert (row[y.shape[1]:] == 0).all()


@pytest.mark.parametrize("config", CONFIGS[:2], ids=str)
def test_gradcheck(config):
    w, x = weights_of(ID, config), torch.randn(1, 7, config["width"], dtype=torch.float64)
    assert gradcheck(lambda x, *w: main(ID, config, w, x), x, *w)


def test_taps_run_the_map():
    config = CONFIGS[0]
    w, x = weights_of(ID, config), torch.randn(1, 7, 8, dtype=torch.float64)
    y, o = call(ID, config, w, x, outputs=["tap.o"])
    assert o.shape == (1, 2, 7, 4)
    close(y, main(ID, config, w, x))


def test_module_decodes():
    module = regard.create(ID, **CONFIGS[1]).double()
    x, cache, pieces = torch.randn(2, 5, 12, dtype=torch.float64), None, []
    for chunk in x.split([2, 1, 2], 1):
        y, cache = module.decode(chunk, cache)
        pieces.append(y)
    close(torch.cat(pieces, 1), module(x))


def test_bad_input_is_refused_by_name():
    refuses("[moba] expected width to be a multiple of heads, or head_width; found width 8, heads 3", ID,
            {"width": 8, "heads": 3})
    refuses("[moba] expected kv_heads to divide the 2 heads; found 3", ID, {"width": 8, "heads": 2, "kv_heads": 3})
    refuses("[moba] expected chunk_size > 0; found 0", ID, {"width": 8, "chunk_size": 0})
    refuses("[moba] expected topk > 0 (a query's own block counts); found 0", ID, {"width": 8, "topk": 0})
    refuses("[moba] expected form 'blocks' or 'naive'; found 'fast'", ID, {"width": 8, "form": "fast"})
    refuses("[moba] expected causal true (blocks are chosen among earlier ones); found false", ID,
            {"width": 8, "causal": False})
    refuses("[moba] expected an even head width with rope; found 3", ID, {"width": 6, "heads": 2, "rope": True})
    q, k, v = (t.detach() for t in qkv(6))
    ends = torch.tensor([0, 6])

    def refused(message, *arguments):
        with pytest.raises(ValueError) as error:
            op(*arguments)
        assert message in str(error.value)
    refused("[moba] expected chunk_size > 0 and topk > 0; found 0 and 1", q, k, v, ends, 0, 1)
    refused("[moba] expected q (T, H, Dh) of a floating type; found (1, 6, 4, 6) float64", q[None], k, v, ends, 2, 1)
    refused("[moba] expected k (T, Hk, Dh) with the tokens and width of q", q, k[:5], v, ends, 2, 1)
    refused("[moba] expected v (T, Hk, Dv) with the tokens and heads of k", q, k, v[:, :1], ends, 2, 1)
    refused("[moba] expected cu_seqlens (S + 1), integer; found (2,) float32", q, k, v, ends.float(), 2, 1)
    refused("[moba] expected cu_seqlens from 0 to the number of tokens, never falling", q, k, v, ends[:1], 2, 1)
