"""Candidates timed in turn: rounds, their cleanliness, medians, and the spread of two identical runs.

A round times every candidate once; what disturbs the machine disturbs neighbors alike. Before a candidate is timed it
is called once untimed: the OpenMP workers of the one before spin for a while after its last call and would take a core.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from typing import Callable

INNER_SECONDS = 0.03  # a timed loop: long against the clock's grain and a scheduler's slice of disturbance
# After another thread pool ran: its workers have stopped spinning by then (measured: 5 ms torch, 50 ms ONNX Runtime).
SETTLE_SECONDS = {"torch": 0.02, "onnx": 0.06, "probe": 0.0}
LONG_CALL = 0.2  # calls longer than this are not called untimed: spinning workers are below 2% of them
LARGEST_SPREAD = 0.05  # of identical runs on an undisturbed machine; 0.03 is common
BUSY = 0.95  # of all threads: CPU time over wall time of an undisturbed threaded call


@dataclasses.dataclass
class Candidate:
    """Something to time. `rate` is set for a probe: it returns a rate itself, and `call` is not used."""

    name: str
    call: Callable | None = None
    rate: Callable | None = None
    pool: str = "torch"  # whose threads run it


@dataclasses.dataclass
class Sample:
    value: float  # seconds a call, or a probe's rate
    cpu: float  # CPU time over wall time; 0 for a probe


@dataclasses.dataclass
class Result:
    """rounds[name] lists the samples, one a round; clean the numbers of the undisturbed rounds."""

    rounds: dict[str, list[Sample]]
    clean: list[int]
    noisy: bool  # too few clean rounds: all rounds were used

    def values(self, name: str) -> list[float]:
        return [self.rounds[name][r].value for r in self.clean]

    def median(self, name: str) -> float:
        return statistics.median(self.values(name))

    def spread(self, name: str) -> float:
        """|a / b - 1| of the medians of two runs, the even and the odd rounds."""
        return _difference_of_halves(self.values(name))

    def ratio(self, above: str, below: str) -> float:
        """The median over rounds of value(above) / value(below)."""
        return statistics.median(self._ratios(above, below))

    def ratio_spread(self, above: str, below: str) -> float:
        return _difference_of_halves(self._ratios(above, below))

    def _ratios(self, above: str, below: str) -> list[float]:
        return [a / b for a, b in zip(self.values(above), self.values(below))]


def _difference_of_halves(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    return abs(statistics.median(values[::2]) / statistics.median(values[1::2]) - 1)


def snapped(ratio: float, spread: float) -> float:
    """A ratio whose distance from 1 is within the spread of two identical runs is 1.

    Spreads beyond LARGEST_SPREAD are a disturbed machine: they excuse no more than that.
    """
    return 1.0 if abs(ratio - 1) <= min(spread, LARGEST_SPREAD) else ratio


def alternate(candidates: list[Candidate], threads: int, rounds: tuple[int, int] = (5, 15), budget: float = 5.0,
              inner: float = INNER_SECONDS) -> Result:
    """Times all candidates in turn, rounds[0] to rounds[1] times, until `budget` seconds are used up.

    While fewer than rounds[0] rounds are clean it goes on, up to two budgets.
    """
    repeats = {c.name: _repeats(c, inner) for c in candidates}
    samples: dict[str, list[Sample]] = {c.name: [] for c in candidates}
    foreign: list[float] = []
    start, pool = time.perf_counter(), None
    for number in range(3 * rounds[1]):
        clean = _clean(samples, foreign, threads)
        used = time.perf_counter() - start
        if number >= rounds[0] and (len(clean) >= rounds[1] or used > 2 * budget or
                                    (used > budget and len(clean) >= rounds[0])):
            break
        before, own, probing = _system_busy(), time.process_time(), 0.0
        begun = time.perf_counter()
        turn = number % len(candidates)  # the first of one round is not always the first
        for candidate in candidates[turn:] + candidates[:turn]:
            if pool not in (None, candidate.pool):
                time.sleep(SETTLE_SECONDS[pool])
            pool, since = candidate.pool, time.perf_counter()
            samples[candidate.name].append(_sample(candidate, repeats[candidate.name]))
            probing += time.perf_counter() - since if candidate.rate else 0.0
        foreign.append(_foreign(before, own, time.perf_counter() - begun, probing, threads))
    clean = _clean(samples, foreign, threads)
    few = len(clean) < min(3, rounds[0])
    return Result(samples, list(range(len(foreign))) if few else clean, few)


def _repeats(candidate: Candidate, inner: float) -> tuple[int, bool]:
    """(calls in a timed loop, whether one untimed call goes before)."""
    if candidate.rate is not None:
        return 1, False
    for _ in range(2):  # the first may allocate and compile; a long call is not repeated for that
        start = time.perf_counter()
        candidate.call()
        once = time.perf_counter() - start
        if once > LONG_CALL:
            break
    return max(1, round(inner / max(once, 1e-7))), once < LONG_CALL


def _sample(candidate: Candidate, repeats: tuple[int, bool]) -> Sample:
    if candidate.rate is not None:
        return Sample(candidate.rate(), 0.0)
    count, warm = repeats
    if warm:
        candidate.call()
    call, cpu, start = candidate.call, time.process_time(), time.perf_counter()
    for _ in range(count):
        call()
    wall = time.perf_counter() - start
    return Sample(wall / count, (time.process_time() - cpu) / wall)


def _clean(samples: dict[str, list[Sample]], foreign: list[float], threads: int) -> list[int]:
    """Rounds in which every threaded candidate had all its threads, and nobody else the machine.

    A candidate that never reaches that much CPU time runs on fewer threads by design, and is held against the most
    that it did reach.
    """
    rounds = range(len(foreign))
    most = {name: max((s.cpu for s in row), default=0.0) for name, row in samples.items()}
    return [r for r in rounds if foreign[r] < 0.06 and
            all(row[r].cpu >= BUSY * min(threads, most[name]) for name, row in samples.items())]


def _system_busy() -> float | None:
    """Seconds that all cores of the machine were busy since its start; None where nobody counts them."""
    try:
        words = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(word) for word in words[:8])
    return (user + nice + system + irq + softirq + steal) / 100


def _foreign(before: float | None, own: float, wall: float, probing: float, threads: int) -> float:
    """The share of the threads' time that went to other processes than this one and its probe (`probing` seconds on
    all threads), but for the clock's grain (0.01 s a core)."""
    after = _system_busy()
    if before is None or after is None:
        return 0.0
    others = after - before - (time.process_time() - own) - (probing + 0.02) * threads
    return max(0.0, others / (wall * threads))
