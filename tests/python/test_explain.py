"""regard explain: what a call does, which kernel runs it, and what it costs, held against counts made by hand."""

import json

import pytest
import torch

import regard


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """The peaks of the machine are kept in the user's cache folder; tests have one of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def kernels(explanation):
    return {kernel["name"]: kernel for kernel in explanation["kernels"]}


def test_counts_of_a_causal_call():
    q, k, v = torch.randn(2, 4, 50, 8), torch.randn(2, 2, 70, 8), torch.randn(2, 2, 70, 6)
    found = regard.attention(q, k, v, is_causal=True, explain=True)
    pairs = 2 * 4 * sum(min(i + 1, 70) for i in range(50))
    assert found["pairs"] == {"kept": pairs, "exact": True, "all": 2 * 4 * 50 * 70}
    forward, backward = found["work"]["forward"], found["work"]["backward"]
    assert forward["flops"] == 2 * pairs * (8 + 6) and backward["flops"] == 2 * pairs * (3 * 8 + 2 * 6)
    inputs, output, lse = 4 * (q.numel() + k.numel() + v.numel()), 4 * 2 * 4 * 50 * 6, 4 * 2 * 4 * 50
    assert forward["bytes"] == inputs + output + lse
    assert backward["bytes"] >= 2 * inputs + 2 * output + lse
    assert forward["intensity"] == pytest.approx(forward["flops"] / forward["bytes"])
    assert min(forward["measured_ms"], backward["measured_ms"], forward["roofline_ms"]) > 0
    assert found["shape"] == {"B": 2, "H": 4, "Hk": 2, "M": 50, "N": 70, "Dh": 8, "Dv": 6}


@pytest.mark.parametrize("mask", [
    lambda b, h, i, j: (i - j).abs() <= 3,
    lambda b, h, i, j: (i + 2 * j) % 5 == h,
    lambda b, h, i, j: TABLE[i, j],
], ids=["window", "by head", "table"])
def test_kept_pairs_are_counted_exactly(mask):
    q = torch.randn(1, 3, 33, 4)
    expected = torch.stack([torch.tensor([[bool(mask(0, torch.tensor(h), torch.tensor(i), torch.tensor(j)))
                                           for j in range(33)] for i in range(33)]) for h in range(3)]).sum().item()
    assert regard.attention(q, q, q, mask=mask, explain=True)["pairs"] == {
        "kept": expected, "exact": True, "all": 3 * 33 * 33}


TABLE = torch.rand(33, 33, generator=torch.Generator().manual_seed(1)) < 0.3


def test_the_kernel_named_is_the_one_that_runs():
    for M, N, dtype in ((1, 300, torch.float32), (64, 64, torch.float32), (64, 64, torch.bfloat16)):
        q, k = torch.randn(1, 2, M, 32, dtype=dtype), torch.randn(1, 2, N, 32, dtype=dtype)
        found = regard.attention(q, k, k, explain=True)
        regard.reset_route_counts()
        regard.attention(q, k, k)
        ran = [name for name, count in regard.route_counts().items() if count]
        assert ran == [found["kernel"]["forward"]]
        assert [name for name, kernel in kernels(found).items() if kernel["forward"] == "runs"] == ran
        assert found["path"] == "fused"


def test_every_kernel_that_does_not_run_says_why():
    q, k = torch.randn(1, 8, 16, 32), torch.randn(1, 2, 300, 32)
    found = kernels(regard.attention(q, k, k, explain=True))
    assert found["few_queries"]["forward"].startswith("64 query rows a key head (H / Hk x M), more than ")
    assert found["amx"]["forward"] == "not bfloat16 but float32"
    found = kernels(regard.attention(q[:, :, :1], q[:, :2], q[:, :2], explain=True))
    assert found["few_queries"]["forward"].startswith("16 keys, fewer than ")
    found = kernels(regard.attention(q, q, q, normalizer="sigmoid", explain=True))
    assert found["few_queries"]["forward"] == "normalizer sigmoid" and found["tile"]["forward"] == "runs"
    found = regard.attention(q, q, q, dropout=0.5, explain=True)
    assert found["path"] == "stripe" and found["kernel"] == {"forward": "", "backward": ""}
    assert {k: v["forward"] for k, v in kernels(found).items()} | {"amx": ""} == {
        "few_queries": "dropout", "amx": "", "tile": "dropout", "stripe": "runs",
        "composite": "only when asked for"}


def test_the_text():
    q = torch.randn(1, 2, 40, 8)
    slopes = torch.rand(2)
    text = str(regard.attention(q, q, q, score=lambda s, b, h, i, j: s - slopes[h] * (i - j), is_causal=True,
                                explain=True))
    for part in ("c0[h]", "max_j s", "= sum_j w v[b,h/g,j,e]", "where i >= j", "call: B 1 H 2 Hk 2 M 40 N 40 Dh 8 Dv 8",
                 "path or kernel", "FLOPs/byte", "roofline", "measured", "machine:"):
        assert part in text
    assert "pairs: 1.64 k of 3.2 k" in text


def test_a_spec_of_every_kind_is_explained_on_random_inputs():
    table, ids = torch.randn(99), torch.zeros(2, 50, dtype=torch.int64)
    for spec in (regard.Spec(score=lambda s, b, h, i, j: s + table[i - j + 49]),
                 regard.Spec(mask=lambda b, h, i, j: ids[b, i] == ids[b, j]),
                 regard.Spec(sinks=True), regard.Spec(dropout=0.5),
                 regard.Spec(score=lambda s, b, h, i, j: s + regard.expr.dot("x")),
                 regard.Spec(pair_outputs=[lambda b, h, i, j: (i - j) * 1.0]),
                 *(regard.Spec(normalizer=n) for n in ("signed_softmax", "sum", "relu", "identity", "z_score"))):
        found = spec.explain((2, 2, 50, 50, 8, 4, 1))
        assert found["work"]["backward"]["measured_ms"] > 0 and "= sum_j w" in str(found)


def test_machine_is_measured_once(tmp_path):
    torch.set_num_threads(torch.get_num_threads())
    first = json.loads(torch.ops.regard.machine())
    assert set(first) == {"isa", "threads", "cores", "fma_gflops", "fma_gflops_one", "amx_gflops", "amx_gflops_one",
                          "read_gbps", "read_gbps_one"}
    assert first["threads"] == torch.get_num_threads()
    assert first["fma_gflops"] > 0 and first["read_gbps"] > 0
    assert json.loads(torch.ops.regard.machine()) == first
    kept = list((tmp_path / "regard" / "machine").glob(f"*-{first['isa']}-{first['threads']}.json"))
    assert len(kept) == 1 and json.loads(kept[0].read_text()) == first


def test_command_line(capfd, tmp_path):
    spec, out = tmp_path / "spec.json", tmp_path / "report.json"
    spec.write_text(regard.Spec(is_causal=True).json)
    assert torch.ops.regard.cli(["explain", str(spec), "--shape", "1,4,20,20,8,4,2", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["shape"] == {"B": 1, "H": 4, "Hk": 2, "M": 20, "N": 20, "Dh": 8, "Dv": 4}
    assert report["pairs"]["kept"] == 4 * 210
    assert torch.ops.regard.cli(["explain", str(spec), "--shape", "1,4,20,20,8"]) == 0
    assert "path or kernel" in capfd.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["--shape", "1,2,3"], "[explain] expected --shape B,H,M,N,D[,Dv[,Hk]], 5 to 7 positive integers; found '1,2,3'"),
    (["--shape", "1,2,3,4,x"], "5 to 7 positive integers; found '1,2,3,4,x'"),
    (["--shape", "1,2,3,0,8"], "5 to 7 positive integers; found '1,2,3,0,8'"),
    (["--shape", "1,4,3,3,8,8,3"], "[explain] expected --shape with Hk that divides H; found 3 and 4"),
    (["--shape", "1,4,3,3,8", "--dtype", "float"], "[explain] expected --dtype among"),
    (["--json", "-"], "[explain] expected --json together with --shape; found --json alone"),
])
def test_wrong_arguments(capfd, tmp_path, arguments, message):
    spec = tmp_path / "spec.json"
    spec.write_text("{}")
    assert torch.ops.regard.cli(["explain", str(spec), *arguments]) == 2
    assert message in capfd.readouterr().err


def test_wrong_calls():
    q = torch.randn(1, 2, 4, 4)
    with pytest.raises(ValueError, match=r"\[attention\] expected explain without packed sequences; found cu_seqlens"):
        regard.attention(q, q, q, cu_seqlens=torch.tensor([0, 4]), explain=True)
    with pytest.raises(ValueError, match=r"\[Spec.explain\] expected shape to be"):
        regard.Spec().explain(5)
    with pytest.raises(ValueError, match=r"\[explain\] expected k of size 4 in dimension 3"):
        regard.attention(q, torch.randn(1, 2, 4, 5), q, explain=True)
