"""The `regard` command: the program inside of the library."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading

import torch

from . import _library, checking

assert _library.PATH


def main(arguments: list[str] | None = None) -> int:
    """Runs the program on the given arguments (default: those of the process) and returns its exit status."""
    sys.stdout.flush()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["check"] and any(word.endswith(".py") for word in arguments):
        return checking.main(arguments[1:])
    with _default_interrupt():
        return int(torch.ops.regard.cli(arguments))


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
