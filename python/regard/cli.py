"""The `regard` command: the program inside of the library."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

import torch

from . import _library

assert _library.PATH


def main(arguments: list[str] | None = None) -> int:
    """Runs the program on the given arguments (default: those of the process) and returns its exit status."""
    sys.stdout.flush()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    files = [word for word in arguments if word.endswith(".py") and not word.startswith("-")]
    if files and "check" in arguments:
        return _refuse_file(files[0])
    with _default_interrupt():
        return int(torch.ops.regard.cli(arguments))


def _refuse_file(path: str) -> int:
    """`regard check FILE.py`: one clear line."""
    found = f"'{path}'" if os.path.isfile(path) else f"'{path}', and no such file exists"
    print(f"regard: [check] expected the id of a mechanism (this version does not check Python files); found {found}",
          file=sys.stderr, flush=True)
    return 2


@contextlib.contextmanager
def _default_interrupt():
    """Ctrl-C ends the process, as it ends the C++ program: Python would act on it only after the call has returned.

    A command that has something to keep (the arena) handles it itself.
    """
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
