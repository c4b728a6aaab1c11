"""Errors of the Python side: the same sentence as the C++ side, plus the user's line."""

from __future__ import annotations

import difflib
import linecache
import os
import sys

import torch

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LONGEST = 120  # characters of the user's line that a message quotes
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep


class TraceError(ValueError):
    """A user's function cannot become an expression; the text names its file and line."""


class TraceAttributeError(TraceError, AttributeError):
    """The same, raised by attribute access, so that `hasattr` keeps working."""


def fail(function: str, expected: str, found: str) -> None:
    """Raises ValueError("[function] expected ...; found ...")."""
    raise ValueError(f"[{function}] expected {expected}; found {found}")


def suggestion(name: str, known) -> str:
    """"; did you mean 'x'?" for the nearest known name, or ""."""
    # Short names such as c0 and c1 differ by half of their letters.
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7 if len(name) > 3 else 0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def user_line() -> tuple[str, str]:
    """("file:line", source text) of the innermost frame that is neither Regard's nor torch's."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_PACKAGE, _TORCH)):
            return _describe(name, frame.f_lineno)
        frame = frame.f_back
    return "<unknown>", ""


def line_of(error: BaseException, function) -> tuple[str, str]:
    """The same for the innermost user frame of an exception; else where `function` is defined."""
    found = None
    step = error.__traceback__
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        if not name.startswith((_PACKAGE, _TORCH)):
            found = (name, step.tb_lineno)
        step = step.tb_next
    return _describe(*found) if found else definition(function)


def definition(function) -> tuple[str, str]:
    """("file:line", source text) of a function's first line."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None:
        code = getattr(getattr(type(function), "__call__", None), "__code__", None)
    return _describe(code.co_filename, code.co_firstlineno) if code else (repr(function), "")


def _describe(filename: str, line: int) -> tuple[str, str]:
    return f"{filename}:{line}", linecache.getline(filename, line).strip()


def trace_error(function: str, expected: str, found: str, place: tuple[str, str] | None = None,
                kind: type[TraceError] = TraceError) -> TraceError:
    """The exception for something at a user's line: "[f] expected ...; found ... at file:line: `source`"."""
    where, source = place or user_line()
    source = source if len(source) <= _LONGEST else source[:_LONGEST] + " ..."
    text = f": `{source}`" if source else ""
    return kind(f"[{function}] expected {expected}; found {found} at {where}{text}")
