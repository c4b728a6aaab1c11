"""`Explanation`: what a call of attention does and costs."""

from __future__ import annotations

import json

import torch

__all__ = ["Explanation"]


class Explanation:
    """The report of one call; `print` it for tables.

    Attributes: ``report``, a dict: spec, cascade, shape, dtype, path, kernel {forward, backward}, kernels (a list of
    {name, forward, backward}: "runs" or why not), pairs {kept, exact, all}, work {forward, backward} of {flops, bytes,
    intensity, bound, roofline_ms, measured_ms, gflops, runs}, machine (its measured peaks).
    """

    def __init__(self, text: str):
        self._text = text
        self.report = json.loads(text)

    def __getitem__(self, key: str):
        return self.report[key]

    def __str__(self) -> str:
        return torch.ops.regard.explain_text(self._text)

    __repr__ = __str__
