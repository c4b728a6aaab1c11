"""This machine: what it is, its peaks (machine.cpp), and a probe that runs between two timings."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILD = pathlib.Path(os.environ.get("REGARD_BUILD_DIR", ROOT / "build" / "release"))


def probe_program() -> pathlib.Path:
    """The compiled machine.cpp: CMake's target regard_machine, or compiled here when the build tree has none."""
    source = ROOT / "benchmarks" / "machine.cpp"
    program = BUILD / "bin" / "regard_machine"
    if program.exists() and program.stat().st_mtime >= source.stat().st_mtime:
        return program
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError(f"[benchmarks] expected {program} or a C++ compiler; found neither")
    program.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([compiler, "-std=c++20", "-O2", "-ffp-contract=fast", "-pthread", str(source), "-o", str(program)],
                   check=True)
    return program


def cores() -> int:
    return len(os.sched_getaffinity(0))


def has_amx() -> bool:
    try:
        return " amx_bf16" in pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def processor() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def last_level_cache() -> int:
    """Bytes of the largest cache that core 0 reports; 32 MiB where it reports none."""
    sizes = [32 << 20] if not list(_cache_files()) else []
    for file in _cache_files():
        text = file.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1)
        sizes.append(int(text.rstrip("KM")) * unit)
    return max(sizes)


def _cache_files():
    return pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")


def free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE")


def host_class(threads: int) -> str:
    """Whose bars apply: "server" is the AMX host of 16 cores (8 or more count as such), "small" all others."""
    return "server" if threads >= 8 and has_amx() else "small"


def peaks(threads: int, seconds: float = 0.5) -> dict:
    """The JSON that regard_machine prints, one core and all."""
    command = [str(probe_program()), "--threads", str(threads), "--seconds", str(seconds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


class Probe:
    """regard_machine --serve: the FMA rate, or the rate of a read-only sum, at this very moment."""

    def __init__(self, threads: int):
        self._process = subprocess.Popen([str(probe_program()), "--serve", "--threads", str(threads)], text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _ask(self, line: str) -> float:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def fma_gflops(self, seconds: float = 0.03) -> float:
        return self._ask(f"fma {seconds}")

    def read_gbps(self, count: int) -> float:
        return self._ask(f"read {count}")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
