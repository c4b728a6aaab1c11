"""The `regard` command: the program inside of the library."""

from __future__ import annotations

import sys

import torch

from . import _library

assert _library.PATH


def main(arguments: list[str] | None = None) -> int:
    """Runs the program on the given arguments (default: those of the process) and returns its exit status."""
    sys.stdout.flush()
    return int(torch.ops.regard.cli(list(sys.argv[1:] if arguments is None else arguments)))
