"""A bar chart of GFLOP/s by case, ours beside the peers, as SVG text."""

from __future__ import annotations

from xml.sax.saxutils import escape

COLORS = {"ours": "#1b6ca8", "sdpa": "#e07b39", "eager": "#9a9a9a", "compiled": "#5d9b5d", "flex": "#8e6bbf",
          "onnx": "#c8a415"}
BAR, GAP, LABEL, WIDTH, TOP = 9, 8, 300, 620, 70


def _rows(cases: list[dict]) -> list[tuple[str, dict[str, float]]]:
    """Cases of arithmetic (those bound by memory traffic have a chart of GB/s to themselves: the table)."""
    rows = []
    for case in cases:
        rates = {name: figure["gflops"] for name, figure in case.get("candidates", {}).items()
                 if name in COLORS and "gflops" in figure}
        if rates and case["group"] not in ("few queries", "grid"):
            rows.append((case["name"] + (" (AMX hidden)" if case.get("hidden_amx") else ""), rates))
    return rows


def chart(cases: list[dict], host: dict) -> str:
    rows = _rows(cases)
    most = max((rate for _, rates in rows for rate in rates.values()), default=1.0)
    peak = host.get("peaks", {}).get("fma_gflops") or 0
    scale = WIDTH / max(most, peak, 1.0)
    parts, y = [], TOP
    for name, rates in rows:
        parts.append(f'<text x="{LABEL - 8}" y="{y + BAR * len(rates) / 2 + 3:.1f}" text-anchor="end">{escape(name)}'
                     "</text>")
        for peer, rate in rates.items():
            parts.append(f'<rect x="{LABEL}" y="{y}" width="{rate * scale:.1f}" height="{BAR - 1}" '
                         f'fill="{COLORS[peer]}"><title>{escape(name)}: {peer} {rate:.1f} GFLOP/s</title></rect>')
            parts.append(f'<text x="{LABEL + rate * scale + 3:.1f}" y="{y + BAR - 2}" font-size="8">{rate:.0f}</text>')
            y += BAR
        y += GAP
    if peak:
        x = LABEL + peak * scale
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{y}" stroke="#444" stroke-dasharray="3 3"/>')
        parts.append(f'<text x="{x:.1f}" y="{TOP - 10}" text-anchor="middle">float32 FMA peak {peak:.0f}</text>')
    title = (f"{host.get('processor', '')}, {host.get('threads', '')} threads, {host.get('isa', '')}, torch "
             f"{host.get('torch', '')}: GFLOP/s (pairs that exist)")
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL + WIDTH + 60}" height="{y + 20}" '
                      'font-family="sans-serif" font-size="11">', '<rect width="100%" height="100%" fill="#fff"/>',
                      f'<text x="10" y="18" font-size="13">{escape(title)}</text>', *_legend(rows), *parts, "</svg>",
                      ""])


def _legend(rows) -> list[str]:
    parts, x = [], 10
    for peer in [p for p in COLORS if any(p in rates for _, rates in rows)]:
        parts.append(f'<rect x="{x}" y="28" width="10" height="10" fill="{COLORS[peer]}"/>')
        parts.append(f'<text x="{x + 14}" y="37">{peer}</text>')
        x += 34 + 7 * len(peer)
    return parts
