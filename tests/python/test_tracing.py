"""Ordinary functions become expressions: the table computes what the function computes on index tensors."""

import functools
import itertools
import json
import math

import pytest
import reference
import torch
import torch.nn.attention.flex_attention as flex
from regard.expr import dot, keys, queries
from regard.trace import PairOutput, trace

B, H, M, N = 2, 3, 5, 7
SLOPES = torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64)
BIAS = torch.linspace(-1, 1, H * M * N, dtype=torch.float64).reshape(H, M, N)
TABLE = torch.linspace(-2, 2, 4, dtype=torch.float64)
BUCKET = (torch.arange(M)[:, None] * 3 + torch.arange(N)) % 4
DOCUMENT = torch.tensor([[0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, 2, 2]], dtype=torch.int32)
RELATIVE = torch.linspace(-1, 1, M + N - 1, dtype=torch.float64)
FLAGS = torch.tensor([True, False, True, True, False, True, True])
CAP = torch.tensor(1.5, dtype=torch.float64)

SCORES = {
    "alibi": lambda s, b, h, i, j: s - SLOPES[h] * (i - j),
    "alibi of head number": lambda s, b, h, i, j: s + (j - i) * 2 ** (-8 * (h + 1) / H),
    "softcap": lambda s, b, h, i, j: CAP * torch.tanh(s / CAP),
    "softcap by method": lambda s, b, h, i, j: 2.0 * (s / 2.0).tanh(),
    "bias": lambda s, b, h, i, j: s + BIAS[h, i, j],
    "bias in steps": lambda s, b, h, i, j: BIAS[h][i][j] * s,
    "bias read twice": lambda s, b, h, i, j: s + BIAS[h, i, j] * BIAS[h, 0, j],
    "bias by tuple": lambda s, b, h, i, j: s + BIAS[h][i, j],
    "constant index": lambda s, b, h, i, j: s + BIAS[-1, i, j] + SLOPES[1],
    "table of buckets": lambda s, b, h, i, j: s + TABLE[BUCKET[i, j]],
    "relative": lambda s, b, h, i, j: s + RELATIVE[i - j + N - 1],
    "masked": lambda s, b, h, i, j: torch.where(i >= j, s, -float("inf")),
    "masked by method": lambda s, b, h, i, j: s.where(i >= j, -math.inf),
    "where of numbers": lambda s, b, h, i, j: s * torch.where((i - j).abs() < 2, 1.0, 0.5),
    "clamp": lambda s, b, h, i, j: s.clamp(-0.5, 0.5) + torch.clamp(i - j, min=-1, max=2),
    "clamp one side": lambda s, b, h, i, j: torch.clamp(s, min=0) + s.clamp_max(0.25),
    "minimum maximum": lambda s, b, h, i, j: torch.minimum(s, BIAS[h, i, j]) + torch.maximum(s, s * 2),
    "min max of two": lambda s, b, h, i, j: torch.min(s, s * s) + torch.max(s, -s),
    "transcendental": lambda s, b, h, i, j: s.exp() + torch.sigmoid(s) + torch.cos(s) * torch.sin(i.to(s.dtype)),
    "roots": lambda s, b, h, i, j: torch.sqrt(s.abs() + 1) + (s.abs() + 1).log() + torch.rsqrt(1 + s**2),
    "powers": lambda s, b, h, i, j: s**2 + s**3 + (s.abs() + 1) ** 0.5 + torch.pow(s.abs() + 1, -1.5) + 2**s,
    "integer powers": lambda s, b, h, i, j: s + i**2 - 2**h,
    "floor and friends": lambda s, b, h, i, j: torch.floor(s * 3) + torch.ceil(s * 3) + torch.trunc(s * 3),
    "python math": lambda s, b, h, i, j: s + math.floor(s * 3) - math.ceil(s),
    "sign relu": lambda s, b, h, i, j: torch.sign(s) * torch.relu(s) + torch.nn.functional.silu(s),
    "square reciprocal": lambda s, b, h, i, j: torch.square(s) + torch.reciprocal(s.abs() + 2) + 1 / (s.abs() + 1),
    "integer division": lambda s, b, h, i, j: s + i // 2 - j % 3 + (i / 2) + (i - j) // 2 + (i - j) % 3,
    "division by mode": lambda s, b, h, i, j: s + torch.div(i - j, 2, rounding_mode="floor")
    + torch.div(i - j, 2, rounding_mode="trunc"),
    "reversed": lambda s, b, h, i, j: 2 - s + 3 * s - (1 + i) / (2 + j),
    "tensor first": lambda s, b, h, i, j: CAP - s + CAP * i + CAP / (1 + j),
    "casts": lambda s, b, h, i, j: s + (i > j).to(torch.float32) + (s * 4).int() + (i == j).to(s.dtype),
    "booleans as numbers": lambda s, b, h, i, j: s + (i > j) * 2 + (i < j),
    "shifts": lambda s, b, h, i, j: s + (i >> 1) + (j << 2),
    "out of order": lambda s, b, h, i, j: -s if M == 5 else s,
    "neg abs": lambda s, b, h, i, j: -abs(s) + +s,
    "add alpha": lambda s, b, h, i, j: torch.add(s, SLOPES[h], alpha=0.5) - torch.sub(s, i, alpha=2),
    "a number": lambda s, b, h, i, j: 0.0,
    "a scalar": lambda s, b, h, i, j: CAP,
    "an integer": lambda s, b, h, i, j: i - j,
    "a boolean": lambda s, b, h, i, j: i > j,
    "exponentials of other bases": lambda s, b, h, i, j: torch.exp2(s) + torch.log2(s.abs() + 1) + torch.tan(s / 4),
    "xor": lambda s, b, h, i, j: s * ((i > j) ^ (j > 2)),
}

MASKS = {
    "causal": lambda b, h, i, j: i >= j,
    "window": lambda b, h, i, j: (i - j <= 2) & (j - i <= 1),
    "documents": lambda b, h, i, j: DOCUMENT[b, i] == DOCUMENT[b, j],
    "causal documents": lambda b, h, i, j: (i >= j) & (DOCUMENT[b, i] == DOCUMENT[b, j]),
    "flags": lambda b, h, i, j: FLAGS[j],
    "negated flags": lambda b, h, i, j: ~FLAGS[j] | (i == j),
    "prefix": lambda b, h, i, j: (j < 3) | (i >= j),
    "dilated": lambda b, h, i, j: ((i - j).abs() <= 4) & ((i - j) % 2 == 0),
    "heads differ": lambda b, h, i, j: torch.where(h < 1, i >= j, i <= j),
    "logical functions": lambda b, h, i, j: torch.logical_or(torch.logical_and(i >= j, j > 1), torch.logical_not(h)),
    "nothing": lambda b, h, i, j: False,
    "everything": lambda b, h, i, j: True,
    "flex and": flex.and_masks(lambda b, h, i, j: i >= j, lambda b, h, i, j: i - j < 3),
    "flex or": flex.or_masks(lambda b, h, i, j: i >= j, lambda b, h, i, j: j < 2),
    "flex no mask": flex.noop_mask,
    "natten": lambda b, h, i, j: ((i // 3).clamp(1, 1) - j // 3).abs() <= 1,
    "reversed compare": lambda b, h, i, j: (3 > j) & (1 <= i) | (b == 1) & (h != 0),
    "float compare": lambda b, h, i, j: SLOPES[h] * (i - j) < 0.75,
}


@pytest.fixture
def s():
    return torch.randn(B, H, M, N, dtype=torch.float64)


def called(function, s):
    """The function called on every pair with scalar tensors, as FlexAttention calls it."""
    torch.set_default_dtype(torch.float64)
    try:
        flat = [torch.as_tensor(function(*([s[n]] if s is not None else []), *map(torch.tensor, n)))
                for n in itertools.product(range(B), range(H), range(M), range(N))]
    finally:
        torch.set_default_dtype(torch.float32)
    return torch.stack(flat).reshape(B, H, M, N)


def evaluated(traced, root, s):
    table = json.loads(traced.json)
    values = reference.evaluate(table, traced.captures, s)
    return reference.full(values[table[root]], s.shape)


@pytest.mark.parametrize("name", SCORES)
def test_score(name, s):
    score = SCORES[name]
    actual = evaluated(trace(score=score), "score", s)
    assert actual.is_floating_point()
    torch.testing.assert_close(actual, called(score, s).to(s.dtype), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MASKS)
def test_mask(name, s):
    mask = MASKS[name]
    actual = evaluated(trace(mask=mask), "keep", s)
    assert actual.dtype == torch.bool and torch.equal(actual, called(mask, None))


@pytest.mark.parametrize("name", ["clamp", "clamp one side", "sign relu", "minimum maximum", "min max of two", "neg abs"])
def test_derivative_on_ties_is_torchs(name):
    """At s = 0 and on the bounds of a clamp the composed functions have torch's derivatives."""
    def gradient(f):
        s = torch.tensor([-0.5, 0.0, 0.25, 0.5], dtype=torch.float64).repeat(B, H, M, 1).requires_grad_()
        f(s).sum().backward()
        return s.grad

    score = SCORES[name]
    pair = reference.positions(B, H, M, 4)
    expected = gradient(lambda s: score(s, *pair))
    actual = gradient(lambda s: evaluated(trace(score=score), "score", s))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_captures_are_named_by_first_use_and_shared():
    traced = trace(score=lambda s, b, h, i, j: s * CAP + SLOPES[h] * SLOPES[h] + BIAS[h, i, j],
                   mask=lambda b, h, i, j: SLOPES[h] < BIAS[h, 0, j])
    assert list(traced.captures) == ["c0", "c1", "c2"]
    assert traced.captures["c0"] is CAP and traced.captures["c1"] is SLOPES and traced.captures["c2"] is BIAS


def test_captures_are_sorted_as_the_op_wants_them():
    tensors = [torch.full((H,), float(n)) for n in range(12)]
    traced = trace(score=lambda s, b, h, i, j: sum((t[h] for t in tensors), s))
    assert list(traced.captures) == sorted(f"c{n}" for n in range(12))
    assert traced.captures["c11"] is tensors[11]


def test_unused_reads_are_dropped():
    def score(s, b, h, i, j):
        BIAS[h, i, j] * 2
        return s

    assert trace(score=score).captures == {}
    assert len(json.loads(trace(score=score).json)["nodes"]) == 3  # scale, dot and their product


def test_common_parts_are_recorded_once():
    table = json.loads(trace(mask=lambda b, h, i, j: (i - j < 3) & (i - j > 0)).json)
    assert sum(node[0] == "sub" for node in table["nodes"]) == 1


def test_constants_keep_sign_and_type():
    table = json.loads(trace(score=lambda s, b, h, i, j: s * -0.0 + s * 0.0 + s * 1 + s * 1.0).json)
    constants = [node[1:] for node in table["nodes"] if node[0] == "constant"]
    assert [[repr(n), t] for n, t in constants] == [["-0.0", "float"], ["0.0", "float"], ["1", "int"], ["1.0", "float"]]


def test_default_spec_is_empty():
    assert json.loads(trace().json) == {}


def test_settings():
    table = json.loads(trace(scale=0.5, dropout=0.25, normalizer={"kind": "relu", "divisor": "keys"}).json)
    assert table == {"scale": 0.5, "dropout": 0.25, "normalizer": {"kind": "relu", "divisor": "keys"}}
    assert json.loads(trace(sinks=True).json) == {"normalizer": {"kind": "softmax", "sinks": True}}


def test_pair_outputs():
    table = json.loads(trace(pair_outputs=[
        lambda s, b, h, i, j: s,
        lambda b, h, i, j: (i - j).abs(),
        PairOutput(lambda b, h, i, j: 1.0, lambda b, h, i, j: j % 3, 3),
    ]).json)
    nodes, outputs = table["nodes"], table["pair_outputs"]
    assert nodes[outputs[0]["value"]][0] == "mul"
    assert nodes[outputs[1]["value"]][0] == "cast"
    assert nodes[outputs[2]["bucket"]][0] == "mod" and outputs[2]["buckets"] == 3


def test_weight_takes_four_or_five_arguments():
    four = json.loads(trace(weight=lambda b, h, i, j: 1.0 / (1 + i)).json)
    five = json.loads(trace(weight=lambda s, b, h, i, j: torch.sigmoid(s)).json)
    assert four["nodes"][four["weight"]][0] == "div" and five["nodes"][five["weight"]][0] == "sigmoid"


def test_leaves():
    table = json.loads(trace(score=lambda s, b, h, i, j: dot("rope") + dot(begin=0, end=4) * queries() / keys()).json)
    assert ["dot", "rope"] in table["nodes"] and ["dot", "", 0, 4] in table["nodes"]
    assert ["queries"] in table["nodes"] and ["keys"] in table["nodes"]
    with pytest.raises(ValueError, match=r"\[keys\] expected to be called inside a traced"):
        keys()


@pytest.mark.parametrize("make", [
    lambda: functools.partial(lambda c, s, b, h, i, j: s * c, 2.0),
    lambda: type("Scale", (), {"__call__": lambda self, s, b, h, i, j: s * 2.0})(),
    lambda: type("Scale", (), {"run": lambda self, s, b, h, i, j: s * 2.0})().run,
    lambda: lambda *args: args[0] * 2.0,
    lambda: lambda s, b, h, i, j, factor=2.0: s * factor,
])
def test_any_callable(make, s):
    torch.testing.assert_close(evaluated(trace(score=make()), "score", s), s * 2)


def test_dtypes_of_captures():
    for dtype, kind in ((torch.bfloat16, "float"), (torch.float16, "float"), (torch.int16, "int"), (torch.bool, "bool")):
        tensor = torch.ones(H, dtype=dtype)
        table = json.loads(trace(score=lambda s, b, h, i, j: s * tensor[h]).json)
        assert ["capture", "c0", kind, 0] in table["nodes"] or any(
            node[:3] == ["capture", "c0", kind] for node in table["nodes"])


def test_a_parameter_is_captured_as_itself():
    slope = torch.nn.Parameter(torch.ones(H))
    assert trace(score=lambda s, b, h, i, j: s * slope[h]).captures["c0"] is slope
    derived = trace(score=lambda s, b, h, i, j: s * torch.exp(slope)[h]).captures["c0"]
    assert derived.requires_grad and not derived.is_leaf


# ---- what cannot be traced ---------------------------------------------------------------------------------------


def branch(s, b, h, i, j):
    if s > 0:
        return s
    return -s


def loop(s, b, h, i, j):
    for _ in range(i):
        s = s + 1
    return s


def helper(s):
    return math.exp(s)


def through_helper(s, b, h, i, j):
    return helper(s)


def raises(s, b, h, i, j):
    return s.shape[3]


REFUSED = {
    "if": (branch, "torch.where(condition, a, b) for `if`", "if s > 0:"),
    "conditional": (lambda s, b, h, i, j: s if i > j else 0.0, "torch.where(condition, a, b)", "s if i > j"),
    "and": (lambda s, b, h, i, j: s * (i > j and j > 2), "`a & b` for `a and b`", "i > j and j > 2"),
    "or": (lambda s, b, h, i, j: s * (i > j or j > 2), "`a | b` for `a or b`", "i > j or j > 2"),
    "not": (lambda s, b, h, i, j: s * (not i), "`~a` for `not a`", "not i"),
    "chain": (lambda s, b, h, i, j: s * (0 < i < j), "`(a < b) & (b < c)` for `a < b < c`", "0 < i < j"),
    "max": (lambda s, b, h, i, j: max(s, 0.0), "torch.maximum / torch.minimum for max / min", "max(s, 0.0)"),
    "math": (lambda s, b, h, i, j: math.exp(s), "torch.exp(s), not math.exp(s)", "math.exp(s)"),
    "float": (lambda s, b, h, i, j: float(s), "s.float(), not float(s)", "float(s)"),
    "int": (lambda s, b, h, i, j: s * int(i), "i.int(), or i.to(torch.int32), in place of int(i)", "int(i)"),
    "helper": (through_helper, "torch.exp(s), not math.exp(s)", "return math.exp(s)"),
    "len": (lambda s, b, h, i, j: len(s), "scalars", "len(s)"),
    "loop": (loop, "no range() over one", "for _ in range(i):"),
    "iteration": (lambda s, b, h, i, j: sum(s), "scalars", "sum(s)"),
    "list": (lambda s, b, h, i, j: s * [1, 2, 3][h], "a captured torch.Tensor where a traced value is the index", "[h]"),
    "dict": (lambda s, b, h, i, j: s * {0: 1.0}[h], "a captured tensor indexed by the value", "{0: 1.0}[h]"),
    "round": (lambda s, b, h, i, j: round(s), "torch.floor(x + 0.5)", "round(s)"),
    "item": (lambda s, b, h, i, j: s.item(), "the value itself in place of .item()", "s.item()"),
    "detach": (lambda s, b, h, i, j: s.detach(), "differentiated whole", "s.detach()"),
    "unknown function": (lambda s, b, h, i, j: torch.erf(s), "operations that an expression knows", "torch.erf(s)"),
    "reduction": (lambda s, b, h, i, j: torch.softmax(s, -1), "found torch function softmax", "torch.softmax"),
    "stack": (lambda s, b, h, i, j: torch.stack([s, s]), "found torch function stack", "torch.stack"),
    "unknown method": (lambda s, b, h, i, j: s.sigmoyd(), "did you mean 'sigmoid'?", "s.sigmoyd()"),
    "bad argument": (lambda s, b, h, i, j: torch.clamp(s, low=0), "arguments that clamp takes", "low=0"),
    "no index": (lambda s, b, h, i, j: s * SLOPES, "captured tensors indexed by b, h, i or j", "s * SLOPES"),
    "partial index": (lambda s, b, h, i, j: s * BIAS[h, i], "3 indices, one an axis", "BIAS[h, i]"),
    "partial torch": (lambda s, b, h, i, j: torch.exp(BIAS[h]), "3 indices, one an axis", "torch.exp(BIAS[h])"),
    "too many": (lambda s, b, h, i, j: s * SLOPES[h, i], "at most 1 indices into a tensor of shape (3,)", "SLOPES[h, i]"),
    "slice": (lambda s, b, h, i, j: s * BIAS[h, :, j], "one integer index an axis", "BIAS[h, :, j]"),
    "float index": (lambda s, b, h, i, j: s * SLOPES[s], "integer indices", "an index of type float"),
    "bool index": (lambda s, b, h, i, j: s * SLOPES[i > j], "integer indices", "an index of type bool"),
    "out of range": (lambda s, b, h, i, j: s * SLOPES[3], "", ""),
    "constant out of range": (lambda s, b, h, i, j: s * BIAS[h, 9, j], "an index in [-5, 5) on axis 1", "BIAS[h, 9, j]"),
    "bits": (lambda s, b, h, i, j: s * (i & 1), "i % 2 for i & 1", "i & 1"),
    "big": (lambda s, b, h, i, j: s * (i + 2**40), "integer constants of 32 bits", "2**40"),
    "nan": (lambda s, b, h, i, j: s * math.nan, "a number that is not NaN", "s * math.nan"),
    "complex": (lambda s, b, h, i, j: s * 1j, "a traced value, a number or a captured tensor", "s * 1j"),
    "complex tensor": (lambda s, b, h, i, j: s * torch.ones(2, dtype=torch.complex64)[h], "captured tensors of a real",
                       "complex64"),
    "string": (lambda s, b, h, i, j: "x", "score to return a traced value", "found str"),
    "nothing returned": (lambda s, b, h, i, j: None, "score to return a traced value", "found NoneType"),
    "a tensor returned": (lambda s, b, h, i, j: SLOPES, "score to return one number", "shape (3,)"),
    "in place": (lambda s, b, h, i, j: torch.ones(3).__setitem__(0, s), "functions that write nothing", "__setitem__"),
    "the user's own error": (raises, "score to run on traced values", "return s.shape[3]"),
    "sub of booleans": (lambda s, b, h, i, j: s * ((i > j) - (j > 1)), "`a & ~b` or `a ^ b` on booleans", "(i > j) - "),
    "four arguments": (lambda b, h, i, j: i, "score to take 5 arguments (score, batch, head, query, key)", "found 4"),
    "where condition": (lambda s, b, h, i, j: torch.where(s, s, 0.0), "a boolean condition of torch.where", "type float"),
}


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "out of range"])
def test_refused_with_the_line(name):
    score, expected, found = REFUSED[name]
    with pytest.raises(ValueError) as error:
        trace(score=score)
    text = str(error.value)
    assert text.startswith("[attention] expected ") and "; found " in text
    assert expected in text and found in text, text
    assert __file__ in text, text


def test_an_index_outside_of_a_tensor_is_torchs_error_with_the_line():
    """SLOPES[3] holds no traced value: torch raises, and the line is named."""
    with pytest.raises(ValueError, match=r"IndexError: .*test_tracing.py"):
        trace(score=REFUSED["out of range"][0])


@pytest.mark.parametrize("mask, expected", [
    (lambda s, b, h, i, j: i > j, "mask to take 4 arguments (batch, head, query, key); found 5"),
    (lambda b, h, i, j: i - j, "mask to return a boolean (write a comparison); found a value of type int"),
    (lambda b, h, i, j: i >= j and j > 2, "`a & b` for `a and b`"),
    (torch.ones(M, N), "mask to be a function; found Tensor of shape (5, 7) (index it: lambda b, h, i, j: mask[i, j])"),
    (flex.create_block_mask(lambda b, h, i, j: i >= j, None, None, 4, 4, device="cpu"),
     "mask to be a function; found BlockMask (give its mask_mod)"),
])
def test_refused_masks(mask, expected):
    with pytest.raises(ValueError) as error:
        trace(mask=mask)
    assert expected in str(error.value)


def test_captures_on_another_device_are_refused():
    slopes = torch.ones(H, device="meta")
    with pytest.raises(ValueError, match="captured tensors on cpu, the device of q in score; found a tensor of shape"):
        trace(score=lambda s, b, h, i, j: s * slopes[h], device=torch.device("cpu"))


def test_a_value_of_another_call_is_refused():
    kept = []
    trace(score=lambda s, b, h, i, j: kept.append(s) or s)
    with pytest.raises(ValueError, match="values of this call in score; found a value kept from another traced call"):
        trace(score=lambda s, b, h, i, j: s + kept[0])


@pytest.mark.parametrize("arguments, expected", [
    ({"scale": torch.tensor(1.0)}, "scale to be a number (multiply by a tensor inside of score); found Tensor"),
    ({"scale": math.inf}, "a finite scale; found inf"),
    ({"dropout": 1.0}, "dropout in [0, 1); found 1.0"),
    ({"normalizer": "sofmax"}, "found 'sofmax'; did you mean 'softmax'?"),
    ({"normalizer": {"kind": "relu", "divisr": "keys"}}, "found 'divisr'; did you mean 'divisor'?"),
    ({"pair_outputs": [PairOutput(lambda b, h, i, j: 1.0, None, 3)]}, "a bucket function exactly when buckets > 1"),
    ({"pair_outputs": [PairOutput(lambda b, h, i, j: 1.0, lambda b, h, i, j: 0.5, 3)]}, "to return an integer"),
    ({"weight": lambda i, j: 1.0}, "weight to take 4 arguments (batch, head, query, key) or 5 arguments"),
])
def test_refused_settings(arguments, expected):
    with pytest.raises(ValueError) as error:
        trace(**arguments)
    assert expected in str(error.value)
