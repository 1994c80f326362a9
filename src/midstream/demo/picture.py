"""The triangle, drawn with characters: 80 columns, 15 lines."""

from rich.text import Text

from midstream.demo.observer import View
from midstream.demo.run import Settings
from midstream.demo.words import count, plural

Cell = tuple[str, str]
"""A text and its style."""

NUMBER = "bold cyan"
QUIET = "bright_black"

_FRAME = "green"
_TOP, _SIDE, _BETWEEN = 28, 20, 28  # inner widths of the boxes above and below; what is between those below
_RING = 14  # characters of a full ring


def triangle(settings: Settings, view: View | None) -> Text:
    """The three hosts, and what happens between them; without figures if there is nothing to see yet."""
    direct = settings.receiver == "ebpf"
    left, right = _edge("╭", _SIDE, "╮"), _edge("╰", _SIDE, "╯")
    gap = (" " * _BETWEEN, "")
    base = _way_back(view) if direct else [gap]
    lines = [
        *([(" " * 25, ""), *line] for line in _hardworker(view)),
        *_sides(view),
        [*_indented(left), gap, left],
        [
            *_indented(*_row([(plural(settings.sensors, "sensor"), "bold")], _SIDE)),
            *base,
            *_row([("logger", "bold")], _SIDE),
        ],
        [
            *_indented(*_row([("ordinary TCP", QUIET)], _SIDE)),
            gap,
            *_row([("TCP, database", QUIET)], _SIDE),
        ],
        [*_indented(right), gap, right],
    ]
    return Text("\n").join(Text.assemble(*line) for line in lines)


def _hardworker(view: View | None) -> list[list[Cell]]:
    if view is None:
        rows: list[list[Cell]] = [[], [], []]
    else:
        rows = [
            [(count(view.rates.messages), NUMBER), (" messages/s", "")],
            _number(view.connections, "connection"),
            _number(view.sockets, "own TCP socket") if view.ring is None else _ring(view.ring),
        ]
    return [
        [_edge("╭", _TOP, "╮")],
        *(_row(row, _TOP) for row in ([("hardworker", "bold")], *rows)),
        [_edge("╰", _TOP, "╯")],
    ]


def _ring(fill: float) -> list[Cell]:
    full = min(_RING, -int(-fill * _RING // 1))
    return [("ring ", ""), ("█" * full, "cyan"), ("·" * (_RING - full), QUIET), (f" {fill:4.0%}", NUMBER)]


def _number(number: int, noun: str) -> list[Cell]:
    figure, _, what = plural(number, noun).partition(" ")
    return [(figure, NUMBER), (f" {what}", "")]


def _sides(view: View | None) -> list[list[Cell]]:
    """The way up to the hardworker and down to the logger."""
    up = f"{count(view.rates.to_hardworker)} packets/s" if view else ""
    down = f"{count(view.rates.to_logger)} packets/s" if view else ""
    lines: list[list[Cell]] = []
    for step, (rising, falling) in enumerate((("↗", "╲"), ("╱", "╲"), ("╱", "↘"))):
        before, after = (up, down) if step == 1 else ("", "")
        lines.append(
            [
                (f"{before:>{23 - step}} ", NUMBER),
                (rising, QUIET),
                (" " * (30 + 2 * step), ""),
                (falling, QUIET),
                (f" {after}", NUMBER),
            ]
        )
    return lines


def _way_back(view: View | None) -> list[Cell]:
    """From the logger straight to the sensors."""
    label = f" {count(view.rates.from_logger)} packets/s " if view else ""
    room = _BETWEEN - 2 - len(label)
    return [
        (" ◀" + "─" * (room // 2), QUIET),
        (label, NUMBER),
        ("─" * (room - room // 2 - 1) + " ", QUIET),
    ]


def _edge(left: str, width: int, right: str) -> Cell:
    return left + "─" * width + right, _FRAME


def _row(content: list[Cell], width: int) -> list[Cell]:
    """Content in the middle between two sides of a box."""
    space = width - sum(len(text) for text, _ in content)
    side = ("│", _FRAME)
    return [side, (" " * (space // 2), ""), *content, (" " * (space - space // 2), ""), side]


def _indented(*cells: Cell) -> list[Cell]:
    return [("    ", ""), *cells]
