"""The theorems, held against a mechanism, a specification or somebody's Python file.

The suite is C++ (regard/check); it asks tracing.py for the two theorems about torch's tracers, `compile` and `export`.
"""

from __future__ import annotations

import json
import sys

import torch

from .errors import fail, suggestion


def check(id: str, **options) -> dict:
    """The report of `regard check ID`: every theorem with the error found and the path that ran.

    Args:
        id: a registered mechanism.
        theorems: names of the theorems to run (default all).
        executors, golden, seed: see regard/check/check.h.
    """
    return json.loads(torch.ops.regard.check(id, json.dumps(options)))


def check_file(path: str, theorems=None, seed: int = 0, **description) -> dict:
    """The report of `regard check FILE.py`; `description` goes before the file's dict `regard` (see adapter.py)."""
    from . import adapter

    adapted = adapter.adapt(adapter.load(path), **description)
    options = {"golden": "", "seed": seed} | ({"theorems": list(theorems)} if theorems else {})
    return check(adapted.id, **options)


# ---- the command -----------------------------------------------------------------------------------------------------

_USAGE = """usage: regard check FILE.py [--object NAME] [--x NAME[,NAME]] [--memory NAME[,NAME]] [--padding NAME]
                            [--padding-true ignore|attend] [--lengths NAME] [--mask NAME]
                            [--mask-true ignore|attend] [--causal [NAME]] [--cache NAME] [--width D]
                            [--theorems NAMES] [--seed N] [--json FILE]

Holds a torch.nn.Module (an instance or a class) or a function of a Python file against the theorems. The file may say
the same in a dict: regard = dict(x="query", padding="key_padding_mask", causal=True, ...).

  --object NAME     which object of the file; default: the only one, or `module` or `attention`
  --x NAME          the argument that takes the tokens (B, N, D); several for the same tokens: query,key,value
  --memory NAMES    arguments that take another sequence in cross-attention
  --padding NAME    a boolean (B, N); true says which tokens to ignore (--padding-true attend: to attend)
  --lengths NAME    lengths (B) in place of a mask
  --mask NAME       a boolean (M, N), true likewise
  --causal [NAME]   the module is causal; or, with a name, is where this flag is true
  --cache NAME      the argument that takes the cache; the module then returns (y, cache)
  --width D         width of the tokens; default: found out

Ends with 1 when a theorem fails, and prints the smallest counterexample found; with 2 for wrong input."""
_VALUES = ("object", "x", "memory", "padding", "padding-true", "lengths", "mask", "mask-true", "cache", "width",
           "theorems", "seed", "json")


def main(arguments: list[str]) -> int:
    """`regard check` for arguments that name a Python file."""
    if "--help" in arguments or "-h" in arguments:
        print(_USAGE)
        return 0
    try:
        return _main(*_parse(arguments))
    except ValueError as error:
        print(f"regard: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        return 2


def _parse(arguments: list[str]) -> tuple[list[str], dict]:
    files, options, rest = [], {}, list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            files.append(word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        if name == "causal":
            named = not equals and rest and not rest[0].startswith("-") and not rest[0].endswith(".py")
            options[name] = value if equals else rest.pop(0) if named else True
        elif name in _VALUES:
            if not equals and not rest:
                fail("check", f"a value after --{name}", "none")
            options[name] = value if equals else rest.pop(0)
        else:
            fail("check", "options of `regard check FILE.py`", f"'{word}'{suggestion(name, (*_VALUES, 'causal'))}")
    return files, options


def _integer(name: str, text: str) -> int:
    if not text.isdigit():
        fail("check", f"--{name} to be an integer of at least 0", f"'{text}'")
    return int(text)


def _main(files: list[str], options: dict) -> int:
    if len(files) != 1 or not files[0].endswith(".py"):
        fail("check", "one Python file at a time, by itself", ", ".join(files))
    output = options.pop("json", None)
    if output is not None:
        _writable(output)
    theorems = [name for name in options.pop("theorems", "").split(",") if name]
    seed = _integer("seed", options.pop("seed", "0"))
    if "width" in options:
        options["width"] = _integer("width", options["width"])
    for name in ("x", "memory"):
        if name in options:
            options[name] = tuple(options[name].split(","))
    description = {name.replace("-", "_"): value for name, value in options.items()}
    report = check_file(files[0], theorems, seed, **description)
    if output != "-":
        print(torch.ops.regard.check_table(json.dumps(report)), end="", flush=True)
    if output is not None:
        text = json.dumps(report, indent=2) + "\n"
        if output == "-":
            sys.stdout.write(text)
        else:
            with open(output, "w", encoding="utf-8") as file:
                file.write(text)
    return 0 if report["passed"] else 1


def _writable(path: str) -> None:
    """Learned before the run, not after it."""
    if path == "-":
        return
    try:
        with open(path, "a", encoding="utf-8"):
            pass
    except OSError as error:
        fail("check", "--json FILE that can be written", f"'{path}': {error.strerror}")
