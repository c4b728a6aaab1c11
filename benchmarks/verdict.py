"""Bars held against figures: what a case reached, by how much it falls short, and the exit status."""

from __future__ import annotations

from .cases import Bar


def judge(bar: Bar, value: float | None, peer: str = "", reason: str = "") -> dict:
    """The record of one bar. `value` None (`reason` says why) is a shortfall: what is not measured is not met."""
    record = {"kind": bar.kind, "ours": bar.ours, "peer": peer or " or ".join(bar.peers), "value": value,
              "must": bar.must, "aim": bar.aim, "at_least": bar.at_least}
    if value is None:
        return {**record, "met": False, "aim_met": False, "margin": -1.0, "reason": reason}
    return {**record, "met": _reaches(bar, value, bar.must), "margin": margin(bar, value),
            "aim_met": _reaches(bar, value, bar.aim) if bar.aim is not None else None}


def _reaches(bar: Bar, value: float, line: float) -> bool:
    return value >= line if bar.at_least else value <= line


def margin(bar: Bar, value: float) -> float:
    """How far beyond the bar, as a share of it: 0.1 is 10% better than asked, -0.1 a shortfall of 10%."""
    return value / bar.must - 1 if bar.at_least else bar.must / value - 1


def applies(bar: Bar, host: str) -> bool:
    return bar.host in ("any", host)


def all_bars(cases: list[dict]) -> list[tuple[str, dict]]:
    return [(case["name"], record) for case in cases for record in case["bars"]]


def worst(cases: list[dict]) -> tuple[str, dict] | None:
    """(case, record) of the smallest margin."""
    return min(all_bars(cases), key=lambda pair: pair[1]["margin"], default=None)


def exit_status(cases: list[dict]) -> int:
    """1 when a bar is not met, 2 when there was none to hold anything against, else 0."""
    bars = all_bars(cases)
    if not bars:
        return 2
    return int(any(not record["met"] for _, record in bars))
