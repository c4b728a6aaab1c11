"""relational-attention and symbol-retrieval: the properties of the paper's heads, caches, packing, refusals."""

import json

import pytest
import torch
from safetensors.torch import save_file

import regard  # noqa: F401  (loads the library)

ID = "relational-attention"
BASE = {"width": 12, "self_heads": 1, "relational_heads": 2, "relations": 4, "symbol_heads": 2, "symbol_count": 5}


def setup(config, id=ID, seed=0):
    torch.manual_seed(seed)
    text = json.dumps(config)
    names = [w["name"] for w in json.loads(torch.ops.regard.declare(id, text))["weights"]]
    weights = dict(zip(names, torch.ops.regard.initialize(id, text, torch.float64)))
    return {name: torch.randn_like(w) * 0.5 for name, w in weights.items()}


def run(config, weights, x, id=ID, inputs=None, outputs=(), **more):
    inputs = inputs or {}
    return torch.ops.regard.mechanism(id, json.dumps(config), list(weights.values()), x,
                                      input_names=list(inputs), inputs=list(inputs.values()), outputs=list(outputs),
                                      **more)


def x_of(batch=2, tokens=6, width=12, seed=1):
    torch.manual_seed(seed)
    return torch.randn(batch, tokens, width, dtype=torch.float64)


def test_without_relations_it_is_attention_to_symbols():
    config = {"width": 8, "relational_heads": 2, "symbols": "positional", "max_length": 10}
    weights = setup(config)
    weights["relational_attention.wr"].zero_()
    x = x_of(width=8)
    rca = {**config, "form": "rca", "activation": "softmax"}
    other = {n.replace("wq_attn", "wq").replace("wk_attn", "wk"): w for n, w in weights.items()
             if not n.endswith(("wr", "wq_rel.weight", "wk_rel.weight"))}
    torch.testing.assert_close(run(config, weights, x)[0], run(rca, other, x)[0], rtol=0, atol=1e-12)


def test_symmetric_relations_and_what_they_average():
    config = {**BASE, "symmetric": True}
    weights, x = setup(config), x_of()
    _, relations, attn = run(config, weights, x, outputs=["relations", "rel_attn"])
    torch.testing.assert_close(relations, relations.transpose(1, 2), rtol=0, atol=1e-12)
    torch.testing.assert_close(attn.sum(-1), torch.ones_like(attn.sum(-1)))
    assert relations.shape == (2, 6, 6, 4) and attn.shape == (2, 2, 6, 6)


@pytest.mark.parametrize("activation", ["identity", "relu", "sigmoid", "tanh", "gelu", "silu", "softmax"])
def test_the_formula_written_down(activation):
    """Relations averaged in the pass equal the (N, N, R) tensor projected first, then averaged."""
    config = {"width": 8, "relational_heads": 2, "relations": 4, "activation": activation, "symbol_count": 3}
    weights, x = setup(config), x_of(width=8)
    y, relations, attn, symbols = run(config, weights, x, outputs=["relations", "rel_attn", "symbols"])
    w = {n.removeprefix("relational_attention."): t for n, t in weights.items()}
    q, k = (torch.stack((x @ w[n].T).split(2, -1), 1) for n in ("wq_rel.weight", "wk_rel.weight"))
    s = q @ k.transpose(-2, -1) / 2 ** 0.5
    act = {"identity": lambda t: t, "relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh,
           "gelu": lambda t: torch.nn.functional.gelu(t, approximate="tanh"), "silu": torch.nn.functional.silu,
           "softmax": lambda t: t.softmax(-1)}[activation]
    torch.testing.assert_close(relations, act(s).permute(0, 2, 3, 1))
    v = torch.stack((symbols @ w["wv.weight"].T).split(4, -1), 1)
    messages = v.unsqueeze(2) + torch.einsum("bijr,hdr->bhijd", relations, w["wr"])
    o = torch.einsum("bhij,bhijd->bihd", attn, messages).flatten(2)
    torch.testing.assert_close(y, o @ w["wo.weight"].T, rtol=0, atol=1e-12)


def test_relative_symbols_equal_the_tensor_of_pairs():
    config = {"width": 8, "relational_heads": 2, "kv_heads": 1, "symbols": "relative", "max_distance": 2, "causal": True}
    weights, x = setup(config), x_of(width=8)
    y, relations, attn = run(config, weights, x, outputs=["relations", "rel_attn"])
    w = {n.removeprefix("relational_attention."): t for n, t in weights.items()}
    i = torch.arange(6)
    s = weights["symbols.rel_pos_enc.rel_pos_embeddings"][(i[None] - i[:, None]).clamp(-2, 2) + 2] @ w["wv.weight"].T
    o = torch.einsum("bhij,ijd->bihd", attn, s) + torch.einsum("bhij,bijr,hdr->bihd", attn, relations, w["wr"])
    torch.testing.assert_close(y, o.flatten(2) @ w["wo.weight"].T, rtol=0, atol=1e-12)


def test_grouped_heads_equal_repeated_ones():
    config = {"width": 8, "relational_heads": 2, "kv_heads": 1, "symbol_count": 3}
    weights, x = setup(config), x_of(width=8)
    whole = {n: w.repeat(2, 1) if n.endswith(("wk_attn.weight", "wv.weight")) else w for n, w in weights.items()}
    torch.testing.assert_close(run(config, weights, x)[0], run({**config, "kv_heads": 2}, whole, x)[0])


def test_given_symbols():
    config = {"width": 8, "relational_heads": 2, "symbols": "input"}
    alone = {"width": 8, "symbol_count": 4}
    x, weights, library = x_of(width=8), setup(config), setup(alone, "symbol-retrieval", 5)
    symbols = run(alone, library, x, "symbol-retrieval")[0]
    inside = {**config, "symbols": "symbolic", "symbol_count": 4}
    both = {**weights, **{f"symbols.{n}": w for n, w in library.items()}}
    torch.testing.assert_close(run(config, weights, x, inputs={"symbols": symbols})[0], run(inside, both, x)[0])


CAUSAL = [{**BASE, "causal": True, "rope": True},
          {"width": 12, "relational_heads": 2, "symbols": "relative", "max_distance": 2, "causal": True},
          {"width": 12, "relational_heads": 2, "self_heads": 2, "share_attention": True, "symbols": "relational",
           "neighbors": 3, "causal": True},
          {"width": 12, "relational_heads": 2, "form": "disrca", "kv_heads": 1, "symbols": "positional", "causal": True}]


@pytest.mark.parametrize("config", CAUSAL)
def test_decode_in_chunks_equals_the_whole(config):
    weights, x = setup(config), x_of(tokens=7)
    whole = run(config, weights, x)[0]
    streams = [c["name"] for c in json.loads(torch.ops.regard.declare(ID, json.dumps(config)))["caches"]]
    names, cache, pieces = [f"cache.{s}" for s in streams], {}, []
    for piece in x.split([3, 1, 1, 2], 1):
        out = run(config, weights, piece, inputs=cache, outputs=names)
        pieces.append(out[0])
        cache = dict(zip(names, out[1:]))
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", CAUSAL + [{"width": 12, "relational_heads": 2, "symbols": "relational",
                                              "causal_neighbors": False, "include_self": True},
                                             {"width": 12, "relational_heads": 2, "activation": "softmax"}])
def test_packed_equals_separate(config):
    weights, x = setup(config), x_of(batch=1, tokens=9)
    bounds = torch.tensor([0, 4, 5, 9])
    packed = run(config, weights, x, inputs={"cu_seqlens": bounds})[0]
    apart = [run(config, weights, x[:, a:b])[0] for a, b in zip(bounds, bounds[1:])]
    torch.testing.assert_close(packed, torch.cat(apart, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("change, message", [
    ({"self_heads": 0, "relational_heads": 0}, "self_heads \\+ relational_heads >= 1"),
    ({"relations": 3, "relation_width": 3}, "relations \\* relation_width"),
    ({"activation": "softmax", "causal": True}, "later ones too"),
    ({"activation": "cube"}, "activation among 'identity'"),
    ({"symbols": "none"}, "symbols among 'symbolic'"),
    ({"share_attention": True}, "as many self_heads as relational_heads"),
    ({"form": "rca", "symmetric": True, "relations": 0}, "only with form 'relational'"),
    ({"symbols": "relational", "causal": True, "causal_neighbors": False}, "causal_neighbors with causal"),
])
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        torch.ops.regard.declare(ID, json.dumps({**BASE, **change}))


def test_symbols_of_another_shape_are_refused():
    config = {"width": 8, "relational_heads": 2, "symbols": "input"}
    with pytest.raises(ValueError, match="input symbols of the shape of x"):
        run(config, setup(config), x_of(width=8))
    with pytest.raises(ValueError, match="at most max_length = 4"):
        short = {**config, "symbols": "positional", "max_length": 4}
        run(short, setup(short), x_of(width=8))


@pytest.mark.parametrize("nested", [False, True])
def test_golden_cases_of_two_parts_read_options_of_each_part(tmp_path, nested):
    """{"rsa": {"nbhd_delta": 2}} is {"nbhd_delta": 2}: the numbers are ours, the names the official code's."""
    heads = {"width": 12, "relational_heads": 2, "relations": 4, "symbols": "relative", "max_distance": 2}
    near = {"width": 12, "symbols": "relational", "neighbors": 2, "neighbor_heads": 3, "symbol_heads": 2, "symbol_count": 5}
    first, second, x = setup(heads), setup(near, "symbol-retrieval"), x_of()
    tensors = {"in.x": x, "out.out": run(heads, first, x)[0], "out.rel_symbols": run(near, second, x, "symbol-retrieval")[0]}
    tensors |= {"w.out": torch.randn_like(x), "w.rel_symbols": torch.randn_like(x)}
    for name, weight in first.items():
        tensors["param." + name.replace("relational_attention.", "ra.").replace("symbols.", "pos.")] = weight
    tensors |= {f"param.rsa.{name}": weight for name, weight in second.items()}
    parts = {"ra": {"n_heads": 2, "n_relations": 4}, "pos": {"max_rel_pos": 2},
             "rsa": {"nbhd_delta": 2, "rel_n_heads": 3, "symbolic_attn_n_heads": 2, "n_symbols": 5}}
    options = parts if nested else {name: value for part in parts.values() for name, value in part.items()}
    (tmp_path / ID).mkdir()
    save_file(tensors, tmp_path / ID / "b.safetensors", {"config": json.dumps({"d_model": 12, **options})})
    report = json.loads(torch.ops.regard.golden(ID, str(tmp_path)))
    assert report["passed"] and report["claims"] >= 2, report["files"][0]["reason"]
