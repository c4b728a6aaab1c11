"""Landmark attention: the two-level softmax, its two forms, cache, fetched blocks."""

import json

import pytest
import torch
from mechanisms import call, gradcheck, main, refuses, tokens, weights_of

import regard

ID = "landmark"


def configured(**options):
    return {"width": 16, "heads": 4, "mem_freq": 3, **options}


def regular(n, freq=3, batch=2):
    return (torch.arange(n) % (freq + 1) == freq).expand(batch, n)


def grouped_softmax(logits, is_mem):
    """Row by row, group by group."""
    out = torch.zeros_like(logits)
    B, H, M, N = logits.shape
    for b in range(B):
        section = (is_mem[b].cumsum(0) - is_mem[b].long()).tolist()
        for t in range(M):
            blocks, landmarks, here = {}, {}, []
            for s in range(t + N - M + 1):
                if section[s] == section[t + N - M]:
                    here += [] if is_mem[b, s] else [s]
                elif is_mem[b, s]:
                    landmarks[section[s]] = s
                else:
                    blocks.setdefault(section[s], []).append(s)
            top = [*landmarks.values(), *here]
            if not top:
                continue
            share = torch.softmax(logits[b, :, t, top], -1)
            for i, s in enumerate(here):
                out[b, :, t, s] = share[:, len(landmarks) + i]
            for i, group in enumerate(landmarks):
                if group in blocks:
                    out[b, :, t, blocks[group]] = share[:, i:i + 1] * torch.softmax(logits[b, :, t, blocks[group]], -1)
    return out


IRREGULAR = torch.tensor([[0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0], [1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0]], dtype=torch.bool)


@pytest.mark.parametrize("is_mem", [IRREGULAR, regular(11), torch.zeros(2, 11, dtype=torch.bool)])
@pytest.mark.parametrize("rows", [11, 4])
def test_the_op_equals_the_definition(is_mem, rows):
    logits = 3 * torch.randn(2, 3, rows, 11, dtype=torch.float64)
    torch.testing.assert_close(torch.ops.regard.landmark_softmax(logits, is_mem), grouped_softmax(logits, is_mem))
    with pytest.raises(ValueError, match=r"\[landmark_softmax\] expected logits \(B, H, M, N\) of a floating type"):
        torch.ops.regard.landmark_softmax(logits, is_mem[:, :5])


def test_weights_sum_to_one_and_landmarks_get_none():
    config, x = configured(), tokens({"width": 16}, length=10)
    attn = call(ID, config, weights_of(ID, config), x, outputs=["attn"])[1]
    torch.testing.assert_close(attn.sum(-1), torch.ones_like(attn.sum(-1)))
    assert (attn[..., regular(10)[0]] == 0).all()


def test_without_past_landmarks_it_is_causal_softmax():
    config = configured(rope=False)
    weights, x = weights_of(ID, config), tokens(config, length=3)
    plain = {"width": 16, "heads": 4, "qkv_bias": False, "out_bias": False, "causal": True}
    torch.testing.assert_close(main(ID, config, weights, x), main("softmax-attention", plain, weights, x))


def test_blocks_of_one_token_weigh_as_their_landmarks():
    logits, is_mem = torch.randn(1, 1, 8, 8, dtype=torch.float64), regular(8, 1, 1)
    weights = torch.ops.regard.landmark_softmax(logits, is_mem)[0, 0, 6]
    torch.testing.assert_close(weights[[0, 2, 4, 6]], torch.softmax(logits[0, 0, 6, [1, 3, 5, 6]], -1))


def test_landmarks_that_hold_their_blocks_sum_give_softmax():
    """If a landmark's logit is the log of its block's sum, the two levels are one."""
    logits, is_mem = torch.randn(2, 3, 11, 11, dtype=torch.float64), regular(11)
    for end in (3, 7):
        logits[..., end] = logits[..., end - 3:end].logsumexp(-1)
    hidden = ~torch.ones(11, 11).tril().bool() | is_mem[0]
    expected = torch.softmax(logits.masked_fill(hidden, -torch.inf), -1)
    torch.testing.assert_close(torch.ops.regard.landmark_softmax(logits, is_mem), expected)


@pytest.mark.parametrize("options", [{}, {"rope": False, "bias": True}, {"mem_freq": 1, "scale": 0.7}])
@pytest.mark.parametrize("block", [0, 3])
def test_flash_form_equals_mask_form(options, block):
    results = []
    config = configured(**options, block_rows=block)
    weights, x, g = weights_of(ID, config), tokens(config, length=14), torch.randn(2, 14, 16, dtype=torch.float64)
    for form in ("flash", "mask"):
        leaves = [t.clone().requires_grad_() for t in (x, *weights)]
        y = main(ID, {**config, "form": form}, leaves[1:], leaves[0])
        results.append([y, *torch.autograd.grad(y, leaves, g)])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_both_forms_drop_the_same_groups():
    config = configured(group_dropout=0.5)
    weights, x, seed = weights_of(ID, config), tokens(config, length=14), torch.tensor(3)
    y = [main(ID, {**config, "form": form, "block_rows": block}, weights, x, training=True, seed=seed)
         for form in ("flash", "mask") for block in (0, 4)]
    for other in y[1:]:
        torch.testing.assert_close(other, y[0])
    still = main(ID, config, weights, x)
    torch.testing.assert_close(y[0][:, :4], still[:, :4])  # no past block: the big group is exempt
    assert not torch.allclose(y[0], still)


@pytest.mark.parametrize("form", ["auto", "flash", "mask"])
@pytest.mark.parametrize("chunks", [[1] * 11, [5, 6], [2, 1, 8]])
def test_decoding_equals_one_call(form, chunks):
    module = regard.nn.create(ID, **configured(form=form), dtype=torch.float64)
    x, cache, parts = torch.randn(2, 11, 16, dtype=torch.float64), None, []
    for part in x.split(chunks, 1):
        y, cache = module.decode(part, cache)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), module(x))


def test_decoding_remembers_irregular_landmarks():
    module = regard.nn.create(ID, **configured(), dtype=torch.float64)
    x, cache, parts = torch.randn(2, 11, 16, dtype=torch.float64), None, []
    for part, is_mem in zip(x.split([4, 1, 6], 1), IRREGULAR.split([4, 1, 6], 1)):
        y, cache = module.decode(part, cache, is_mem=is_mem)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), module(x, is_mem=IRREGULAR))


def test_packed_equals_apart_and_padding_equals_cut():
    config = configured(block_rows=4)
    weights, parts = weights_of(ID, config), [torch.randn(1, n, 16, dtype=torch.float64) for n in (5, 1, 9)]
    packed = main(ID, config, weights, torch.cat(parts, 1), {"cu_seqlens": torch.tensor([0, 5, 6, 15])})
    torch.testing.assert_close(packed, torch.cat([main(ID, config, weights, p) for p in parts], 1))
    x = tokens(config, length=8)
    y = main(ID, config, weights, x, {"lengths": torch.tensor([8, 5])})
    torch.testing.assert_close(y[1, :5], main(ID, config, weights, x[1:, :5])[0])
    assert (y[1, 5:] == 0).all()


# ---- fetched blocks --------------------------------------------------------------------------------------------------


def stepped(config, x, chunks):
    module = regard.nn.create(ID, **config, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cache, parts = None, []
    for part in x.split(chunks, 1):
        y, cache = module.decode(part, cache)
        parts.append(y)
    return module, torch.cat(parts, 1)


@pytest.mark.parametrize("selection", ["per_token_and_head", "max_over_tokens", "max_over_heads"])
def test_all_blocks_fetched_is_dense_where_positions_agree(selection):
    x = torch.randn(2, 17, 16, dtype=torch.float64)
    module, y = stepped(configured(rope=False, topk=9, selection=selection, block_rows=2), x, [4, 7, 1, 5])
    torch.testing.assert_close(y, module(x))


@pytest.mark.parametrize("selection", ["per_token_and_head", "max_over_tokens", "max_over_heads"])
@pytest.mark.parametrize("rope", [True, False])
def test_fetched_blocks_by_hand(selection, rope):
    """Every query and head alone: choose, place, turn, attend."""
    config = configured(topk=2, selection=selection, rope=rope)
    b, k, past, chunk, H, Dh = 4, 2, 18, 3, 4, 4
    x = torch.randn(1, past + chunk, 16, dtype=torch.float64)
    module, y = stepped(config, x, [past, chunk])
    q, key, v = ((t.unflatten(-1, (H, Dh)).transpose(1, 2)[0]) for t in module._weights()[0].matmul(x.mT).mT.split(16, -1))

    def turn(t, position):
        if not rope:
            return t
        angle = torch.as_tensor(position, dtype=torch.float64)[..., None] * 10000.0 ** (-torch.arange(0, Dh, 2).double() / Dh)
        return torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous())
                                  * torch.polar(torch.ones_like(angle), angle)).flatten(-2)

    blocks, start = past // b, 3 * b                     # 4 blocks stored, 2 fetched: the chunk starts at place 3
    slots = torch.tensor([0, 0, 1, 2])
    queries = turn(q[:, past:], start + past % b + torch.arange(chunk))
    share = torch.softmax(queries @ turn(key[:, b - 1:blocks * b:b], slots * b + b - 1).mT * Dh ** -0.5, -1)
    if selection == "max_over_tokens":
        share = share.amax(1, True).expand_as(share)
    if selection == "max_over_heads":
        share = share.amax(0, True).expand_as(share)
    local = turn(key[:, blocks * b:], start + torch.arange(past % b + chunk))
    o = torch.zeros(chunk, H, Dh, dtype=torch.float64)
    for t in range(chunk):
        for h in range(H):
            chosen = share[h, t].topk(k).indices.sort().values.tolist()
            tokens_of = [j * b + i for j in chosen for i in range(b)]
            places = torch.tensor([r * b + (b if slots[j] > 0 else 0) + i for r, j in enumerate(chosen) for i in range(b)])
            seen = past % b + t + 1
            keys = torch.cat([turn(key[h, tokens_of], places), local[h, :seen]])
            values = torch.cat([v[h, tokens_of], v[h, blocks * b:blocks * b + seen]])
            is_mem = (torch.arange(len(keys)) % b == b - 1)[None]
            w = grouped_softmax((keys @ queries[h, t] * Dh ** -0.5)[None, None, None], is_mem)
            o[t, h] = w[0, 0, 0] @ values
    torch.testing.assert_close(y[0, past:], (o.flatten(1) @ module._weights()[1].mT).detach())


def test_gradcheck():
    for form in ("mask", "flash"):
        config = {"width": 4, "heads": 2, "mem_freq": 2, "form": form, "block_rows": 3}
        weights, x = weights_of(ID, config), torch.randn(1, 7, 4, dtype=torch.float64)
        assert gradcheck(lambda x, *w: main(ID, config, w, x), x, *weights)


def test_refused():
    config = {"width": 8, "heads": 2, "mem_freq": 2}
    refuses(f"[{ID}] expected causal true (a landmark closes the block before it); found false", ID,
            {**config, "causal": False})
    refuses(f"[{ID}] expected width to be a multiple of heads; found width 8, heads 3", ID, {"width": 8, "heads": 3})
    refuses(f"[{ID}] expected mem_freq >= 1; found 0", ID, {**config, "mem_freq": 0})
    refuses(f"[{ID}] expected form 'mask' with attn_drop (states hold no weights); found 'flash'", ID,
            {**config, "form": "flash", "attn_drop": 0.1})
    refuses(f"[{ID}] expected is_mem (B, N) bool of the tokens of x (2, 6, 8) float32; found (2, 5) bool", ID, config,
            inputs={"is_mem": torch.zeros(2, 5, dtype=torch.bool)})
    refuses(f"[{ID}] expected regular landmarks in one sequence, without attn_drop, with form 'flash'; found another call",
            ID, {**config, "form": "flash"}, inputs={"is_mem": torch.zeros(2, 6, dtype=torch.bool)})
    module = regard.nn.create(ID, **config, topk=1)
    with pytest.raises(ValueError, match="expected regular landmarks with topk, whose blocks are of one size; found is_mem"):
        module.decode(torch.randn(2, 6, 8), is_mem=torch.zeros(2, 6, dtype=torch.bool))
