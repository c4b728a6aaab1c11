"""Edits of the attentions inside a module, for one call: against the edited map in plain torch."""

import gc

import pytest
import regard
import torch


@pytest.fixture
def module():
    return regard.nn.SoftmaxAttention(width=16, heads=4, kv_heads=2, causal=True, dtype=torch.float64)


@pytest.fixture
def x():
    return torch.randn(2, 6, 16, dtype=torch.float64, requires_grad=True)


def plain(module, x, score=lambda s: s, keep=None, after=lambda w: w):
    """The module's output with changed scores, pairs and weights, written out."""
    q, k, v = torch.nn.functional.linear(x, module.in_proj_weight, module.in_proj_bias).split((16, 8, 8), -1)
    q, k, v = (t.unflatten(-1, (-1, 4)).transpose(1, 2) for t in (q, k, v))
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    kept = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    kept = kept if keep is None else kept & keep
    w = torch.softmax(score(q @ k.mT / 2).masked_fill(~kept, -torch.inf), -1).nan_to_num(0)
    return torch.nn.functional.linear((after(w) @ v).transpose(1, 2).flatten(2), module.out_proj.weight,
                                      module.out_proj.bias)


def same(module, x, found, expected, *more):
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    w = torch.randn_like(expected)
    tensors = [x, module.in_proj_weight, *more]
    for a, b in zip(torch.autograd.grad((found * w).sum(), tensors), torch.autograd.grad((expected * w).sum(), tensors)):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_no_edit_is_the_module(module, x):
    same(module, x, module(x), plain(module, x))


def test_score(module, x):
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    edit = regard.Edit(score=lambda s, b, h, i, j: s * 0.5 + bias[h] * (i - j))
    apart = torch.arange(6)[:, None] - torch.arange(6)
    same(module, x, module(x, edits=[edit]),
         plain(module, x, lambda s: s * 0.5 + bias[:, None, None] * apart), bias)
    same(module, x, module(x), plain(module, x))


def test_mask(module, x):
    hidden = torch.tensor([False, True, False, False, True, False])
    edit = regard.Edit(mask=lambda b, h, i, j: ~hidden[j])
    same(module, x, module(x, edits=edit), plain(module, x, keep=~hidden))


def test_weight_and_head_scale(module, x):
    gate = torch.rand(4, dtype=torch.float64, requires_grad=True)
    edits = [regard.Edit(weight=lambda s, b, h, i, j: torch.sigmoid(s)), regard.Edit(head_scale=gate)]

    def expected(x):
        q, k, _ = torch.nn.functional.linear(x, module.in_proj_weight, module.in_proj_bias).split((16, 8, 8), -1)
        q, k = (t.unflatten(-1, (-1, 4)).transpose(1, 2) for t in (q, k))
        s = q @ k.repeat_interleave(2, 1).mT / 2
        return plain(module, x, after=lambda w: w * torch.sigmoid(s) * gate[:, None, None])

    same(module, x, module(x, edits=edits), expected(x), gate)
    off = module(x, edits=[regard.Edit(head_scale=[1, 0, 1, 1])])
    same(module, x, off, plain(module, x, after=lambda w: w * torch.tensor([1., 0, 1, 1])[:, None, None]))
    per_row = torch.rand(2, 4)
    torch.testing.assert_close(module(x, edits=[regard.Edit(head_scale=per_row)]),
                               plain(module, x, after=lambda w: w * per_row[:, :, None, None]))


def test_edits_of_one_kind_act_in_their_order(module, x):
    edits = [regard.Edit(score=lambda s, b, h, i, j: s + 1.0 * h), regard.Edit(score=lambda s, b, h, i, j: s * s)]
    same(module, x, module(x, edits=edits), plain(module, x, lambda s: (s + torch.arange(4.)[:, None, None]) ** 2))


def test_after(module, x):
    gate = torch.rand(6, dtype=torch.float64, requires_grad=True)

    def renormalized(weights, rows, gate):
        assert rows.dtype == torch.int64 and rows.shape[0] == weights.shape[2]
        scaled = weights * gate
        return scaled / scaled.sum(-1, keepdim=True)

    edit = regard.Edit(after=renormalized, tensors={"gate": gate})
    same(module, x, module(x, edits=[edit]),
         plain(module, x, after=lambda w: w * gate / (w * gate).sum(-1, keepdim=True)), gate)
    twice = [edit, regard.Edit(after=lambda w, rows: w * w)]
    same(module, x, module(x, edits=twice),
         plain(module, x, after=lambda w: (w * gate / (w * gate).sum(-1, keepdim=True)) ** 2), gate)


def test_after_across_heads_and_by_rows(module, x):
    def mixed(weights, rows):
        return torch.where((rows >= 3)[:, None], weights.mean(1, keepdim=True), weights)

    late = (torch.arange(6) >= 3)[:, None]
    same(module, x, module(x, edits=[regard.Edit(after=mixed)]),
         plain(module, x, after=lambda w: torch.where(late, w.mean(1, keepdim=True), w)))


def test_operands(module, x):
    direction = torch.randn(4, dtype=torch.float64, requires_grad=True)
    edit = regard.Edit(operands=lambda q, k, v, direction: (q + direction, k, v), tensors={"direction": direction})
    y = module(x, edits=[edit])
    (grad,) = torch.autograd.grad(y.sum(), [direction])
    assert grad.abs().sum() > 0 and not torch.allclose(y, module(x))
    with pytest.raises(ValueError, match=r"\[Edit\] expected operands to return \(q, k, v\); found Tensor"):
        module(x, edits=[regard.Edit(operands=lambda q, k, v: q)])


def test_a_graph_keeps_the_functions_of_its_edits(module, x):
    from regard.edit import _functions

    gc.collect()
    before = set(_functions)
    y = module(x, edits=[regard.Edit(after=lambda w, rows: w * w)])
    gc.collect()
    assert len(_functions) == len(before) + 1
    expected = plain(module, x, after=lambda w: w * w)
    same(module, x, y, expected)
    del y, expected
    gc.collect()
    assert set(_functions) == before


def test_a_tensor_that_after_hides_is_refused(module, x):
    gate = torch.rand(6, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError,
                       match=r"\[edit\] expected every tensor that needs a gradient among the edit's tensors"):
        module(x, edits=[regard.Edit(after=lambda w, rows: w * gate)])


def test_taps_and_maps_see_the_edited_weights(module, x):
    edit = regard.Edit(after=lambda w, rows: w * w)
    _, found = module(x, edits=[edit], outputs=["attn", "tap.max", "tap.mass", "tap.column_sums", "tap.rows:1",
                                                "tap.entropy", "significance"])
    _, before = module(x, outputs="attn")
    squares = before["attn"] ** 2
    torch.testing.assert_close(found["attn"], squares)
    torch.testing.assert_close(found["tap.max"], squares.amax(-1))
    torch.testing.assert_close(found["tap.mass"], squares.sum(-1))
    torch.testing.assert_close(found["tap.column_sums"], squares.sum(-2))
    torch.testing.assert_close(found["tap.rows:1"], squares[:, :, 1:2])
    torch.testing.assert_close(found["significance"], squares.sum((1, 2)))


def test_edits_in_a_decode_know_positions(module, x):
    edit = regard.Edit(score=lambda s, b, h, i, j: s + 0.3 * (i - j) * (i > 3))
    whole = module(x, edits=[edit])
    y, cache = module.decode(x[:, :4], edits=[edit])
    z, _ = module.decode(x[:, 4:], cache, edits=[edit])
    torch.testing.assert_close(torch.cat([y, z], 1), whole)


def test_layers_of_a_host():
    model = regard.models.ViT(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=8, depth=3, num_heads=2)
    image = torch.randn(2, 1, 8, 8)
    names = [f"blocks.{i}.attn.tap.entropy" for i in range(3)]
    _, before = model(image, outputs=names)
    uniform = regard.Edit(score=lambda s, b, h, i, j: 0 * s, layer="blocks.1.attn")
    _, after = model(image, outputs=names, edits=[uniform])
    torch.testing.assert_close(after[names[1]], torch.full((2, 2, 5), 5.0).log())
    assert torch.equal(after[names[0]], before[names[0]]) and not torch.equal(after[names[2]], before[names[2]])
    _, every = model(image, outputs=names, edits=[regard.Edit(score=lambda s, b, h, i, j: 0 * s, layer="blocks.*.attn")])
    assert all(torch.allclose(every[name], torch.tensor(5.0).log()) for name in names)
    pooled = regard.models.ViT(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=8, depth=1, num_heads=2,
                               global_pool="map", class_token=False)
    flat = regard.Edit(score=lambda s, b, h, i, j: 0 * s, layer="attn_pool")
    _, found = pooled(image, outputs="attn_pool.tap.effective_keys", edits=[flat])
    torch.testing.assert_close(found["attn_pool.tap.effective_keys"], torch.full((2, 2, 1), 4.0))
    with pytest.raises(ValueError,
                       match=r"\[vit\] expected edits of attentions that it runs; found one of layer 'blocks.9"):
        model(image, edits=[regard.Edit(head_scale=[1, 1], layer="blocks.9.attn")])


@pytest.mark.parametrize("arguments, message", [
    ({}, r"\[Edit\] expected at least one of score, mask"),
    ({"score": 3}, r"\[Edit\] expected score to be a function; found int"),
    ({"head_scale": "x"}, r"\[Edit\] expected head_scale"),
    ({"after": lambda w, r: w, "attention": -2}, r"\[Edit\] expected attention to be the number of one"),
    ({"score": lambda s, b, h, i, j: s, "tensors": {"a": torch.zeros(1)}}, r"\[Edit\] expected tensors beside operands"),
    ({"after": lambda w, r: w, "tensors": {"a": 1}}, r"\[Edit\] expected tensors\['a'\] to be a tensor; found int"),
])
def test_bad_edits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        regard.Edit(**arguments)


ONE = torch.ones(1, dtype=torch.float64)


@pytest.mark.parametrize("edit, message", [
    (regard.Edit(head_scale=[1.0, 2.0]), r"\[edit\] expected head_scale \(H\) or \(B, H\) .*; found \(2,\)"),
    (regard.Edit(head_scale=[1.0] * 4, attention=1),
     r"expected edits of attentions that it runs; found one of every layer, attention 1"),
    (regard.Edit(score=lambda s, b, h, i, j: s * ONE[i * 0], after=lambda w, rows, c0: w * c0, tensors={"c0": ONE[0]}),
     r"expected names of an edit's tensors other than those of its captures; found 'c0'"),
    (regard.Edit(after=lambda w, rows: w[..., :2]), r"\[edit\] expected weights like those given"),
    (regard.Edit(after=lambda w, rows: None), r"\[Edit\] expected after to return the weights; found NoneType"),
    (regard.Edit(score=lambda s, b, h, i, j: "x"), r"\[Edit\] expected score to return a traced value"),
])
def test_edits_that_do_not_fit_are_refused(module, x, edit, message):
    with pytest.raises(ValueError, match=message):
        module(x, edits=[edit])


def test_a_list_of_edits_is_asked_for(module, x):
    message = r"\[softmax-attention\] expected edits to be a list of regard.Edit; found an entry of type int"
    with pytest.raises(ValueError, match=message):
        module(x, edits=[3])


def test_under_transforms_and_compile(module, x):
    bias = torch.randn(4, dtype=torch.float64)
    x = x.detach()

    def scored(x):
        return module(x, edits=[regard.Edit(score=lambda s, b, h, i, j: s + bias[h] * (i - j))])

    def squared(x):
        return module(x, edits=[regard.Edit(after=lambda w, rows: w * w),
                                regard.Edit(operands=lambda q, k, v: (q * 2, k, v))])

    torch.testing.assert_close(torch.compile(scored, backend="aot_eager", fullgraph=True)(x), scored(x))
    torch.testing.assert_close(torch.compile(squared, backend="aot_eager")(x), squared(x))
    for f in (scored, squared):
        torch.testing.assert_close(torch.func.vmap(lambda row: f(row[None])[0])(x), f(x))
        y, tangent = torch.func.jvp(f, (x,), (torch.ones_like(x),))
        step = 1e-6 * torch.ones_like(x)
        torch.testing.assert_close(tangent, (f(x + step) - f(x - step)) / 2e-6, atol=1e-6, rtol=1e-5)
