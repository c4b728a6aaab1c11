"""Tables of what was measured: by case and peer, and the bars with the worst shortfall last."""

from __future__ import annotations

from . import verdict


def table(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    """Aligned columns; the first `left` to the left, the others to the right."""
    widths = [max(len(row[c]) for row in [head, *rows]) for c in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(cell.ljust(w) if c < left else cell.rjust(w)
                               for c, (cell, w) in enumerate(zip(line, widths))).rstrip() for line in lines)


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def host_lines(host: dict) -> str:
    peaks = host["peaks"]
    lines = [f"{host['processor']}, {host['threads']} threads of {host['cores']} cores, {host['isa']}; bars of the "
             f"{host['host']} host", f"regard {host['regard']} on {host['library_isa']}, torch {host['torch']} "
             f"({host['torch_isa']})" + "".join(f", {name} {v}" for name, v in host["packages"].items())]
    if peaks:
        lines.append("peak, all threads / one: float32 FMA {fma_gflops:.0f} / {fma_gflops_one:.0f} GFLOP/s, bfloat16 "
                     "dot {bf16_dot_gflops:.0f} / {bf16_dot_gflops_one:.0f}, AMX {bf16_amx_gflops:.0f} / "
                     "{bf16_amx_gflops_one:.0f}, read {read_gbps:.1f} / {read_gbps_one:.1f} GB/s".format(**peaks))
    return "\n".join(lines)


def figures(cases: list[dict], peaks: dict) -> str:
    """One table a group: time, rate and spread of ours, its and SDPA's share of the float32 FMA peak (few queries: of
    the read-only sum), the ratio of every peer's time to ours."""
    peak = {"GFLOP/s": peaks.get("fma_gflops", 0.0), "GB/s": peaks.get("read_gbps", 0.0)}
    for case in cases:  # a probe beside a case may have met a quieter moment
        for figure in case.get("candidates", {}).values():
            if "rate" in figure:
                peak[figure["unit"]] = max(peak[figure["unit"]], figure["rate"])
    parts = []
    for group in dict.fromkeys(case["group"] for case in cases):
        rows = [case for case in cases if case["group"] == group and "candidates" in case]
        if rows:
            parts.append(f"{group}\n{_group(rows, peak)}")
    return "\n\n".join(parts)


def _share(row: dict, name: str, peak: dict) -> str:
    """What of the machine a candidate used. bfloat16 has another peak, and is left out."""
    unit, key = ("GB/s", "gbps") if row["group"] == "few queries" else ("GFLOP/s", "gflops")
    rate = row["candidates"].get(name, {}).get(key)
    return f"{100 * rate / peak[unit]:.0f}%" if rate and peak[unit] and row["dtype"] == "float32" else ""


def _group(rows: list[dict], peak: dict) -> str:
    peers = list(dict.fromkeys(p for row in rows for p in [*row["ratios"], *row["absent"]]))
    head = ["case", "dtype", "ours", "GFLOP/s", "spread", "route", "of peak", "sdpa of peak",
            *[f"{p}/ours" for p in peers]]
    lines, notes = [], {}
    for row in rows:
        ours = row["candidates"]["ours"]
        cells = [f"{row['ratios'][p]:.2f}" if p in row["ratios"] else "-" for p in peers]
        lines.append([row["name"] + (" *" if row["noisy"] else ""), row["dtype"], duration(ours["seconds"]),
                      f"{ours['gflops']:.0f}" if "gflops" in ours else "", f"{100 * ours['spread']:.1f}%",
                      "+".join(row["routes"]) or "fused", _share(row, "ours", peak), _share(row, "sdpa", peak), *cells])
        for peer, reason in row["absent"].items():
            notes[f"{peer}: {reason}"] = None
    text = table(head, lines)
    if any(row["noisy"] for row in rows):
        text += "\n* fewer than 3 undisturbed rounds"
    return text + "".join(f"\n- {note}" for note in notes)


def bars(cases: list[dict]) -> str:
    """(case, ours, peer, ratio, bar, verdict), the worst margin last."""
    noisy = {case["name"] for case in cases if case.get("noisy")}
    by_name = {case["name"]: case for case in cases}
    rows = [_bar_row(by_name[name], record, name in noisy) for name, record in verdict.all_bars(cases)]
    text = table(["case", "measure", "ours", "peer", "value", "bar", "aim", "verdict"], rows, left=2)
    return f"{text}\n\n{conclusion(cases)}"


def _bar_row(case: dict, record: dict, noisy: bool) -> list[str]:
    sign = ">=" if record["at_least"] else "<="
    ours, peer = (_shown(case, name) for name in (record["ours"], record["peer"]))
    value = "-" if record["value"] is None else f"{record['value']:.3f}"
    aim = "" if record["aim"] is None else f"{sign} {record['aim']:.2f}" + (" met" if record["aim_met"] else "")
    word = "ok" if record["met"] else "SHORT" if record["value"] is not None else "NOT MEASURED"
    measure = record["kind"] + ("" if record["ours"] == "ours" else f" of {record['ours']}")
    return [case["name"], measure, ours, f"{record['peer']} {peer}".strip(), value, f"{sign} {record['must']:.2f}", aim,
            word + (" *" if noisy else "")]


def _shown(case: dict, name: str) -> str:
    if name in case.get("errors", {}):
        return f"{case['errors'][name]:.2e}"
    figure = case.get("candidates", {}).get(name)
    if figure is None:
        return f"{case['bytes'] / 2**20:.0f} MiB" if case["group"] == "memory" and name == "ours" else ""
    return duration(figure["seconds"]) if "seconds" in figure else f"{figure['rate']:.4g} {figure['unit']}"


def conclusion(cases: list[dict]) -> str:
    """How many bars are met and, last, the worst: a shortfall if there is one."""
    records = verdict.all_bars(cases)
    if not records:
        return "no bar applies to what was measured"
    met = sum(record["met"] for _, record in records)
    aims = [record["aim_met"] for _, record in records if record["aim_met"] is not None]
    name, record = verdict.worst(cases)
    where = f"{name}, {record['kind']} against {record['peer']}"
    if record["value"] is None:
        last = f"worst shortfall: {where}: not measured ({record['reason']})"
    else:
        what = "worst shortfall" if record["margin"] < 0 else "no shortfall; the closest"
        last = f"{what}: {where}: {record['value']:.3f}, bar {record['must']:.2f} ({100 * record['margin']:+.1f}%)"
    return f"{met} of {len(records)} bars met, {sum(aims)} of {len(aims)} aims\n{last}"
