"""Bad input: one sentence that names the function, the argument, what was expected and what was found."""

import pytest
import regard
import torch


def tensors(**changes):
    shapes = {"q": (2, 4, 5, 8), "k": (2, 2, 7, 8), "v": (2, 2, 7, 6), **changes}
    return [torch.randn(*shape) if isinstance(shape, tuple) else shape for shape in shapes.values()]


def refused(call, *parts):
    with pytest.raises(ValueError) as error:
        call()
    text = str(error.value).splitlines()[0]
    assert text.startswith("[") and "] expected " in text and "; found " in text, text
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize("changes, parts", [
    ({"q": 3}, ["[attention] expected q to be a tensor; found int"]),
    ({"k": None}, ["[attention] expected k to be a tensor; found NoneType"]),
    ({"q": (4, 5, 8)}, ["[attention]", "q", "[4, 5, 8]"]),
    ({"k": (2, 7, 8)}, ["[attention]", "k", "[2, 7, 8]"]),
    ({"v": (2, 7, 8)}, ["[attention]", "v", "[2, 7, 8]"]),
    ({"k": (2, 2, 7, 9)}, ["[attention]", "k", "8", "9"]),
    ({"v": (2, 2, 6, 6)}, ["[attention]", "v", "7", "6"]),
    ({"k": (3, 2, 7, 8)}, ["[attention]", "k", "[3, 2, 7, 8]"]),
    ({"k": (2, 3, 7, 8), "v": (2, 3, 7, 6)}, ["[attention]", "4", "3"]),
    ({"v": (2, 1, 7, 6)}, ["[attention]", "v", "[2, 1, 7, 6]"]),
    ({"k": torch.randn(2, 2, 7, 8, dtype=torch.float64)}, ["[attention]", "k", "Double"]),
    ({"q": torch.ones(2, 4, 5, 8, dtype=torch.int64)}, ["[attention]", "q", "Long"]),
    ({"v": torch.randn(2, 2, 7, 6, device="meta")}, ["[attention]", "v", "meta"]),
])
def test_tensors(changes, parts):
    refused(lambda: regard.attention(*tensors(**changes)), *parts)


@pytest.mark.parametrize("arguments, parts", [
    ({"path": "fusd"}, ["[attention] expected path among auto, fused, stripe, composite; found 'fusd'; did you mean 'fused'?"]),
    ({"path": "fused", "normalizer": {"kind": "signed_softmax", "epsilon": 0.5}},
     ["[attention] expected a call that the fused path runs", "normalizer signed_softmax with an epsilon"]),
    ({"scale": "1"}, ["[attention] expected scale to be a number", "found str"]),
    ({"dropout": -0.1}, ["[attention] expected dropout in [0, 1); found -0.1"]),
    ({"seed": torch.tensor(1)}, ["[attention] expected no seed without dropout; found seed"]),
    ({"sinks": 1.0}, ["[attention] expected sinks to be a tensor; found float"]),
    ({"sinks": torch.ones(3)}, ["[attention]", "sinks", "[3]"]),
    ({"sinks": torch.ones(4), "normalizer": "relu"}, ["sinks"]),
    ({"captures": {"c0": torch.ones(3)}}, ["[attention] expected captures only beside spec"]),
    ({"operands": {"x": (torch.ones(1), torch.ones(1))}}, ["[attention] expected operands named nothing", "found x"]),
    ({"spec": "{}", "is_causal": True}, ["[attention] expected either spec or the arguments that make one; found spec and is_causal"]),
    ({"spec": 3}, ["[Spec] expected a JSON text or a dict; found int"]),
    ({"spec": {"scor": 1}}, ["scor", "did you mean 'score'?"]),
    ({"spec": {"nodes": [["dott"]], "score": 0}}, ["dott", "did you mean 'dot'?"]),
    ({"normalizer": "softmx"}, ["[attention] expected normalizer among", "did you mean 'softmax'?"]),
    ({"normalizer": 3}, ["[attention] expected normalizer to be a name or a dict; found 3"]),
    ({"mask": torch.ones(5, 7)}, ["[attention] expected mask to be a function; found Tensor of shape (5, 7)"]),
    ({"score": 2.0}, ["[attention] expected score to be a function; found float"]),
])
def test_arguments(arguments, parts):
    refused(lambda: regard.attention(*tensors(), **arguments), *parts)


def test_captures():
    spec = regard.Spec(score=lambda s, b, h, i, j: s + torch.ones(4)[h])
    for captures, part in (({}, "none named c0"), ({"c0": 3}, "captures['c0'] to be a tensor; found int"),
                           ({"c0": torch.ones(4), "c1": torch.ones(4)}, "found 'c1'; did you mean 'c0'?"),
                           ([torch.ones(4)], "captures to be a dict of tensors by name; found list"),
                           ({"c0": torch.ones(4, 4)}, "c0"), ({"c0": torch.ones(4, dtype=torch.int32)}, "c0")):
        refused(lambda: regard.attention(*tensors(), spec=spec, captures=captures), part)


@pytest.mark.parametrize("path", ["fused", "stripe", "composite"])
def test_an_index_out_of_range_is_an_error_only_where_kept(path):
    bias = torch.randn(4, 5, 5)  # as many rows as queries, too few columns for the keys
    score = lambda s, b, h, i, j: s + bias[h, i, j]  # noqa: E731
    refused(lambda: regard.attention(*tensors(), score=score, path=path), "dimension 2" if path != "fused" else "index 2", "'c0' in [0, 5) where")
    o = regard.attention(*tensors(), score=score, mask=lambda b, h, i, j: j < 5, path=path)
    assert torch.isfinite(o).all()


def test_operands():
    score = lambda s, b, h, i, j: s + regard.expr.dot("x")  # noqa: E731
    refused(lambda: regard.attention(*tensors(), score=score), "[attention] expected operands named x", "found none")
    refused(lambda: regard.attention(*tensors(), score=score, operands={"x": torch.ones(1)}),
            "operands['x'] to be a pair (q_x, k_x); found Tensor")
    refused(lambda: regard.attention(*tensors(), score=score, operands={"x": (torch.ones(2, 2, 5, 3), torch.ones(2, 2, 6, 3))}),
            "x", "6")


def test_merge():
    o, lse = torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3)
    refused(lambda: regard.merge(o, lse, o, torch.ones(1, 2, 4)), "[merge]", "o2", "lse2")
    refused(lambda: regard.merge(o, lse, torch.ones(1, 2, 3, 5), lse), "[merge]", "o1 and o2 of one shape")
    refused(lambda: regard.merge(o, None, o, lse), "[merge] expected lse1 to be a tensor; found NoneType")


def test_drop_in():
    q, k, v = tensors(k=(2, 4, 7, 8), v=(2, 4, 7, 6))
    name = "[scaled_dot_product_attention] expected "
    refused(lambda: regard.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(5, 7), is_causal=True),
            name + "attn_mask or is_causal, not both; found both")
    refused(lambda: regard.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(5, 6)),
            name + "attn_mask that broadcasts to (2, 4, 5, 7); found shape (5, 6)")
    refused(lambda: regard.scaled_dot_product_attention(*tensors()),
            name + "as many key heads as query heads (or enable_gqa=True); found 2 and 4")
    refused(lambda: regard.scaled_dot_product_attention(q, k[0], v), name + "query, key and value of one rank")


def test_map():
    q, k, _ = tensors()
    refused(lambda: regard.AttentionMap(q, 3), "[AttentionMap] expected k to be a tensor; found int")
    refused(lambda: regard.AttentionMap(q, k, spec=regard.Spec(dropout=0.5)), "[AttentionMap] expected a spec without dropout")


def test_errors_of_ops_are_value_errors():
    """Also those that C++ raises, straight from torch.ops."""
    with pytest.raises(ValueError, match=r"\[attention\] expected "):
        torch.ops.regard.attention(*tensors(k=(2, 2, 7, 9)), "{}", [], [])


def test_missing_library(tmp_path):
    import os
    import subprocess
    import sys

    environment = {**os.environ, "REGARD_LIBRARY": str(tmp_path / "libregard.so")}
    result = subprocess.run([sys.executable, "-c", "import regard"], env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert f"ImportError: [regard] expected libregard.so; found none at {tmp_path}" in result.stderr


@pytest.mark.parametrize("arguments, expected", [
    ({"query_offset": 1.5}, "query_offset to be an integer; found 1.5"),
    ({"query_offset": None}, "query_offset to be an integer; found None"),
    ({"query_offset": "a"}, "query_offset to be an integer; found 'a'"),
    ({"query_offset": True}, "query_offset to be an integer; found True"),
    ({"query_offset": torch.ones(2).long()}, "query_offset to be an integer; found Tensor"),
    ({"pair_outputs": 3}, "pair_outputs to be a list of PairOutputs or functions; found int"),
    ({"dropout": 0.5, "seed": 1.5}, "seed to be an int64 scalar tensor; found 1.5"),
])
def test_types_of_arguments(arguments, expected):
    refused(lambda: regard.attention(*tensors(), **arguments), f"[attention] expected {expected}")
    if "query_offset" in arguments:
        q, k, _ = tensors()
        refused(lambda: regard.AttentionMap(q, k, **arguments), f"[AttentionMap] expected {expected}")


def test_integers_of_every_kind_are_offsets():
    q, k, v = tensors()
    expected = regard.attention(q, k, v, query_offset=2, is_causal=True)
    for offset in (torch.tensor(2), torch.arange(3).numpy()[2]):
        assert torch.equal(regard.attention(q, k, v, query_offset=offset, is_causal=True), expected)


def test_a_library_built_for_another_torch_is_refused():
    from regard import _library

    built = torch.ops.regard.built_with_torch()
    _library.check_built_for(built, torch.__version__, _library.PATH)
    with pytest.raises(ImportError, match=r"expected a library built against torch 2\.99\.0; found .*libregard\.so, "
                                          rf"built against torch {built}: build it again with this torch"):
        _library.check_built_for(built, "2.99.0", _library.PATH)


@pytest.mark.parametrize("theta", [0, -10000.0])
@pytest.mark.parametrize("id", ["cog-attention", "gated-attention", "mixture-of-head", "moba", "relational-attention",
                                "softmax-attention"])
def test_rotary_frequencies_without_a_base_are_refused(id, theta):
    """A power of it would be NaN in every output."""
    config = {"relational_heads": 2} if id == "relational-attention" else {"heads": 2}
    if id != "gated-attention":
        config["rope"] = True
    with pytest.raises(ValueError, match=rf"\[{id}\] expected rope_theta > 0; found {theta}"):
        regard.nn.create(id, width=8, rope_theta=theta, **config)
