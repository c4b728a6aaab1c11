"""A case run: candidates made, timed in turn, path counters asserted, bars judged."""

from __future__ import annotations

import dataclasses
import gc
import json

import torch

import regard

from . import candidates, inputs as case_inputs, machine, measure, verdict
from .cases import Bar, Case


@dataclasses.dataclass
class Settings:
    threads: int
    host: str = "small"
    must: bool = False  # only the candidates that bars name
    quick: bool = False
    budget: float = 2.0  # seconds a case, within the least number of rounds
    rounds: tuple[int, int] = (5, 15)
    inner: float = measure.INNER_SECONDS

    @classmethod
    def make(cls, threads: int, host: str, must: bool = False, quick: bool = False) -> "Settings":
        if quick:
            return cls(threads, host, must, True, 0.2, (3, 5), 0.01)
        return cls(threads, host, must)


LEFT_OUT = "left out by --quick"
QUICK_FLOPS = 6e10  # --quick leaves larger cases out


def is_large(case: Case) -> bool:
    """Whether --quick leaves the case out; causal and sparse ones are counted whole."""
    return case_inputs.flops(case, case.M * case.N) > QUICK_FLOPS


def run(case: Case, settings: Settings, probe: machine.Probe) -> dict:
    """The record of a case: what ran, its figures and its bars."""
    torch.manual_seed(0)
    made = case_inputs.make(case)
    operations = case_inputs.flops(case, made.pairs)
    record = {"name": case.name, "group": case.group, "mode": case.mode, "dtype": case.dtype,
              "expression": case.expression, "hidden_amx": case.hide_amx, "flops": operations,
              "bytes": case_inputs.bytes_read(case),
              "key_value_bytes": case_inputs.key_value_bytes(case), "buffers": len(made.sets),
              "kept_blocks": made.kept_blocks,
              "shape": {axis: getattr(case, axis) for axis in ("B", "H", "Hk", "M", "N", "Dh", "Dv", "causal")}}
    runnable, absent = _candidates(case, made, settings, probe)
    _reset_counts()
    result = measure.alternate(runnable, settings.threads, *_effort(case, settings, operations))
    record["paths"], record["routes"] = _check_paths(case, runnable)
    record["absent"] = absent
    record.update(rounds=len(result.rounds["ours"]), clean_rounds=len(result.clean), noisy=result.noisy)
    record["candidates"] = {c.name: _figures(c, result, operations, record["bytes"]) for c in runnable}
    record["ratios"] = {c.name: _speedup(result, c.name, "ours") for c in runnable
                        if c.name not in ("ours", "op") and c.rate is None}
    record["bars"] = [_judge(bar, result, record, candidates.plain_share(made)) for bar in case.bars
                      if verdict.applies(bar, settings.host) and not _left_out(bar, absent)]
    del runnable, made
    gc.collect()
    return record


def _effort(case: Case, settings: Settings, operations: float) -> tuple[tuple[int, int], float, float]:
    """(least and most rounds, budget, seconds of a timed loop): what ten minutes on two cores allow."""
    if case.group == "grid":
        return (settings.rounds[0], 9), 0.5, 0.01
    least = 3 if operations > 1.5e11 * settings.threads else settings.rounds[0]  # calls of a second
    return (least, settings.rounds[1]), settings.budget, settings.inner


def _candidates(case: Case, made, settings: Settings, probe):
    runnable, absent = [], {}
    for name in case.candidates(all_peers=not settings.must):
        if settings.quick and name in ("compiled", "flex"):
            absent[name] = LEFT_OUT
            continue
        try:
            candidate = candidates.make(name, case, made, probe)
            if candidate.call:
                candidate.call()
            runnable.append(candidate)
        except candidates.Absent as reason:
            absent[name] = str(reason)
        except Exception as error:  # a peer that fails is reported, ours may not
            if name in ("ours", "op", "plain", "fma_peak", "read_peak"):
                raise
            absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return runnable, absent


def _reset_counts() -> None:
    regard.reset_path_counts()
    if hasattr(torch.ops.regard, "reset_route_counts"):
        torch.ops.regard.reset_route_counts()


def _check_paths(case: Case, runnable) -> tuple[dict, dict]:
    """The counters since the reset: everything of ours ran fused, or it is an error."""
    paths = regard.path_counts()
    counts = {op: {path: n for path, n in row.items() if n} for op, row in paths.items()}
    wanted = {"attention": {"fused"}} | ({"attention_backward": {"fused"}} if case.mode == "both" else {})
    for op, expected in wanted.items():
        found = set(counts.get(op, {}))
        if found != expected and not (op == "attention_backward" and op not in counts):
            raise RuntimeError(f"[benchmarks] expected {case.name} to run {op} fused; found {counts}")
    if any(set(row) - {"fused"} for row in counts.values()):
        raise RuntimeError(f"[benchmarks] expected {case.name} to run fused; found {counts}")
    routes = {}
    if hasattr(torch.ops.regard, "route_counts"):
        routes = {name: n for name, n in json.loads(torch.ops.regard.route_counts()).items() if n}
    return counts, routes


def _figures(candidate, result, operations: float, count: int) -> dict:
    name = candidate.name
    if candidate.rate is not None:
        return {"rate": result.median(name), "unit": "GFLOP/s" if name == "fma_peak" else "GB/s",
                "spread": result.spread(name)}
    seconds = result.median(name)
    return {"seconds": seconds, "spread": result.spread(name), "gflops": operations / seconds * 1e-9,
            "gbps": count / seconds * 1e-9, "cpu": max(s.cpu for s in result.rounds[name])}


def _speedup(result, peer: str, ours: str) -> float:
    return measure.snapped(result.ratio(peer, ours), result.ratio_spread(peer, ours))


def _left_out(bar: Bar, absent: dict) -> bool:
    """Whether --quick left out all peers of the bar. (A peer that is absent for another reason is a shortfall.)"""
    return all(absent.get(peer) == LEFT_OUT for peer in bar.peers)


def _judge(bar: Bar, result, record: dict, share: float) -> dict:
    present = [p for p in bar.peers if p in result.rounds]
    if not present:
        reasons = [f"{peer}: {record['absent'].get(peer, 'absent')}" for peer in bar.peers]
        return verdict.judge(bar, None, reason="; ".join(reasons))
    if bar.kind == "speedup":
        value, peer = min((_speedup(result, p, bar.ours), p) for p in present)
        return verdict.judge(bar, value, peer)
    if bar.kind == "cost":
        return verdict.judge(bar, _speedup(result, bar.ours, present[0]) / share, present[0])
    # A share of a peak: work / (time * peak), round by round.
    amount = record["flops"] if bar.kind == "fma share" else record["key_value_bytes"]
    shares = [amount / seconds * 1e-9 / rate
              for seconds, rate in zip(result.values(bar.ours), result.values(present[0]))]
    return verdict.judge(bar, sorted(shares)[len(shares) // 2], present[0])
