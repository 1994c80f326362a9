"""Plots as SVG, drawn by hand: bars of CPU time, and where latencies lie on a logarithmic scale."""

import math
from collections.abc import Sequence
from html import escape

from midstream_bench.receiver import Family, Receiver
from midstream_bench.report.results import full_title, mark, show
from midstream_bench.statistics import Cell

WIDTH, LABEL, RIGHT, ROW, TOP, FOOT = 1080, 480, 90, 24, 8, 40
COLOURS = {
    Family.FLOOR: "#7a7f87",
    Family.MIDSTREAM: "#0b7285",
    Family.HANDLER: "#c2571a",
    Family.MIDDLEWARE: "#6741a8",
}
Rows = Sequence[tuple[Receiver, Cell]]


def bars(rows: Rows) -> str:
    """CPU time a message: the NAPI thread (dark), the application (light), and how far it varied."""
    rows = [row for row in rows if "cpu_us" in row[1].values]
    top = max((cell.values["cpu_us"].high for _, cell in rows), default=1.0)
    ticks = _ticks(top)
    scale = (WIDTH - LABEL - RIGHT) / max(top, ticks[-1])
    parts = [
        _grid([(LABEL + tick * scale, f"{tick:g}") for tick in ticks], len(rows), "CPU time, µs a message")
    ]
    for number, (receiver, cell) in enumerate(rows):
        y = TOP + number * ROW
        colour, value = COLOURS[receiver.family], cell.values["cpu_us"]
        napi = min(cell.median("napi_us") or 0.0, value.typical)
        parts.append(_label(receiver, cell, y))
        parts.append(_rect(LABEL, y + 4, napi * scale, ROW - 9, colour, 1))
        parts.append(
            _rect(LABEL + napi * scale, y + 4, (value.typical - napi) * scale, ROW - 9, colour, 0.55)
        )
        low, high, middle = LABEL + value.low * scale, LABEL + value.high * scale, y + ROW / 2
        parts.append(f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}"/>')
        end = LABEL + max(value.high, value.typical) * scale
        parts.append(_text(end + 6, middle, show("cpu_us", value.typical), "start", "value"))
    return _svg(parts, len(rows), "CPU time a message")


def latencies(rows: Rows) -> str:
    """Delivery latency on a logarithmic scale: median, 99 % and 99.9 %."""
    rows = [row for row in rows if "p50_us" in row[1].values]
    shown = ("p50_us", "p99_us", "p999_us")
    found = [max(1.0, cell.median(name) or 1.0) for _, cell in rows for name in shown] or [1.0, 10.0]
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)) + 1e-9)
    high = max(high, low + 1)
    step = (WIDTH - LABEL - RIGHT) / (high - low)

    def place(value: float) -> float:
        return LABEL + (math.log10(max(1.0, value)) - low) * step

    ticks = [(place(10.0**power), f"{10**power:,g}") for power in range(low, high + 1)]
    parts = [_grid(ticks, len(rows), "latency, µs: median ●, 99 % ◆, 99.9 % |")]
    for number, (receiver, cell) in enumerate(rows):
        y, colour = TOP + number * ROW + ROW / 2, COLOURS[receiver.family]
        p50, p99, p999 = (place(cell.median(name) or 1.0) for name in shown)
        parts.append(_label(receiver, cell, TOP + number * ROW))
        parts.append(
            f'<path d="M{p50:.1f} {y:.1f}H{p999:.1f}" stroke="{colour}" stroke-width="2" opacity=".4"/>'
        )
        parts.append(f'<circle cx="{p50:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        parts.append(f'<path d="M{p99 - 6:.1f} {y:.1f}l6 -6l6 6l-6 6z" fill="{colour}" opacity=".75"/>')
        parts.append(f'<path d="M{p999:.1f} {y - 6:.1f}v12" stroke="{colour}" stroke-width="2"/>')
    return _svg(parts, len(rows), "Delivery latency")


def _ticks(top: float) -> list[float]:
    """Up to seven round numbers from 0 to a little above `top`."""
    raw = top / 5
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    return [step * number for number in range(math.ceil(top / step) + 1)]


def _grid(ticks: list[tuple[float, str]], rows: int, title: str) -> str:
    bottom = TOP + rows * ROW
    lines = "".join(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>' for x, _ in ticks)
    numbers = "".join(_text(x, bottom + 12, text, "middle", "tick") for x, text in ticks)
    return lines + numbers + _text((LABEL + WIDTH - RIGHT) / 2, bottom + 30, title, "middle", "tick")


def _label(receiver: Receiver, cell: Cell, y: float) -> str:
    return _text(LABEL - 8, y + ROW / 2, full_title(receiver) + mark(cell), "end", "label")


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" dominant-baseline="central" '
        f'class="{kind}">{escape(text)}</text>'
    )


def _rect(x: float, y: float, width: float, height: float, colour: str, opacity: float) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height}" '
        f'fill="{colour}" opacity="{opacity}"/>'
    )


def _svg(parts: list[str], rows: int, title: str) -> str:
    height = TOP + rows * ROW + FOOT
    return (
        f'<svg width="{WIDTH}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
