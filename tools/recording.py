"""Record `midstream demo` as it looks on a terminal: docs/demo.svg, which the README shows.

    .venv/bin/python tools/recording.py [FILE [ARGUMENT...]]      as root; arguments are the demonstration's

The demonstration runs for real, in a pseudo-terminal, and the picture moves as fast as that did. It is one
file that fetches nothing: no font, no script. Where nothing moves (a reader who wants no motion, a program
that knows no animation) it shows how the recording ends.
"""

import errno
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.style import Style
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/demo.svg"
COLUMNS, ROWS = 100, 40  # of the terminal; the picture is as high as what was written
SETTLED = 0.03  # seconds without output: what was being drawn is drawn
HOLD = 8.0  # seconds that the end is shown, before it begins again

_CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])")
_WIDTH, _HEIGHT, _SIZE, _MARGIN = 8.4, 16.4, 14, 14.0  # of a character, of its font, around all; pixels
_INK, _PAPER = "#d7dce2", "#15181d"
_COLOURS = {  # by their numbers in a terminal
    1: "#f47067",
    2: "#57ab5a",
    3: "#c69026",
    4: "#539bf5",
    5: "#b083f0",
    6: "#39c5cf",
    7: _INK,
    8: "#7d8590",
    237: "#3a3f47",
    10: "#6bc46d",
}
_STYLE = f"""
text {{ font: {_SIZE}px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
       white-space: pre; fill: {_INK} }}
.b {{ font-weight: bold }}
@media (prefers-reduced-motion: reduce) {{ g {{ animation: none !important }} }}
"""


class Frame(NamedTuple):
    """What a terminal showed from a moment on: seconds since the begin, and lines as they were written."""

    time: float
    lines: tuple[str, ...]


class Screen:
    """A terminal for a program that writes whole lines, and erases whole lines, as rich does."""

    def __init__(self, *lines: str) -> None:
        self._lines = [*lines, ""]
        self._row = len(lines)
        self._replaces = False

    @property
    def lines(self) -> tuple[str, ...]:
        """From the top, with what sets colours."""
        return tuple(self._lines)

    def feed(self, text: str) -> None:
        """Do what the text says. Raises ValueError if it says what this terminal cannot."""
        place = 0
        for found in _CONTROL.finditer(text):
            self._write(text[place : found.start()])
            place = found.end()
            self._obey(found)
        self._write(text[place:])

    def _write(self, text: str) -> None:
        if "\x1b" in text:
            raise ValueError(f"not understood: {text!r}")
        if text:
            self._lines[self._row] = text if self._replaces else self._lines[self._row] + text
            self._replaces = False

    def _obey(self, found: re.Match[str]) -> None:
        numbers, letter, moved = found.groups()
        if moved == "\r":
            self._replaces = True
        elif moved == "\n":
            self._row += 1
            self._replaces = True
            if self._row == len(self._lines):
                self._lines.append("")
        elif letter == "m":
            self._write_style(found[0])
        elif letter == "A":
            self._row = max(0, self._row - int(numbers or 1))
        elif (letter, numbers) == ("K", "2"):
            self._lines[self._row] = ""
        elif numbers[:1] != "?":  # those hide and show the cursor
            raise ValueError(f"not understood: {found[0]!r}")

    def _write_style(self, code: str) -> None:
        self._lines[self._row] = code if self._replaces else self._lines[self._row] + code
        self._replaces = False


def record(command: Sequence[str], prompt: str) -> tuple[list[Frame], int]:
    """What a command shows on a terminal of its own, below a line with the prompt, and its status."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    screen, pending, began = Screen(prompt), b"", time.monotonic()
    frames = [Frame(0.0, screen.lines)]
    with subprocess.Popen(
        command,
        stdin=its,
        stdout=its,
        stderr=its,
        env=environment | {"TERM": "xterm-256color"},
        start_new_session=True,
    ) as program:
        os.close(its)
        for chunk in _read(ours):
            pending += chunk
            if not chunk and pending:
                screen.feed(pending.decode())
                pending = b""
                frames.append(Frame(time.monotonic() - began, screen.lines))
    os.close(ours)
    return frames, program.returncode


def picture(frames: Sequence[Frame], title: str) -> str:
    """The recording as SVG."""
    end = frames[-1].time + HOLD
    shown: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for frame, until in zip(frames, [*(after.time for after in frames[1:]), end], strict=True):
        for row, line in enumerate(frame.lines):
            times = shown.setdefault((row, line), [])
            if times and times[-1][1] == frame.time:
                times[-1] = (times[-1][0], until)
            else:
                times.append((frame.time, until))
    drawn = {(row, line): markup for row, line in shown if (markup := "".join(_texts(row, line)))}
    rows = 1 + max(row for row, _ in drawn)
    width, height = COLUMNS * _WIDTH + 2 * _MARGIN, rows * _HEIGHT + 2 * _MARGIN
    styles: dict[str, str] = {}
    groups = []
    for place, markup in drawn.items():
        times = shown[place]
        if times == [(0.0, end)]:
            groups.append(markup)
            continue
        name = styles.setdefault(_moments(times, end), f"k{len(styles)}")
        hidden = "" if times[-1][1] == end else ' visibility="hidden"'
        groups.append(f'<g class="{name}"{hidden}>{markup}</g>')
    moving = "\n".join(
        f"@keyframes {name} {{ {moments} }} .{name} {{ animation: {name} {end:.2f}s step-end infinite }}"
        for moments, name in styles.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">\n'
        f"<title>{escape(title)}</title>\n<style>{moving}{_STYLE}</style>\n"
        f'<rect width="100%" height="100%" rx="8" fill="{_PAPER}"/>\n' + "\n".join(groups) + "\n</svg>\n"
    )


def _read(descriptor: int) -> Iterator[bytes]:
    """What comes, and nothing each time when it pauses, until the other end is closed."""
    while True:
        ready, _, _ = select.select([descriptor], [], [], SETTLED)
        try:
            chunk = os.read(descriptor, 1 << 16) if ready else b""
        except OSError as error:
            if error.errno != errno.EIO:  # Linux: nobody has the terminal open any more
                raise
            break
        yield chunk
    yield b""


def _texts(row: int, line: str) -> Iterator[str]:
    """The characters of a line, as wide as a terminal makes them, whatever font there is."""
    column, y = 0, _MARGIN + row * _HEIGHT + _SIZE
    for text, style, _ in Text.from_ansi(line).render(Console(color_system="standard")):
        for found in re.finditer(r"\S+(?: \S+)*", text):
            x, length = _MARGIN + (column + found.start()) * _WIDTH, len(found[0]) * _WIDTH
            yield (
                f'<text x="{x:.1f}" y="{y:.0f}" textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs"'
                f"{_look(style)}>{escape(found[0], quote=False)}</text>"
            )
        column += len(text)


def _look(style: Style | None) -> str:
    """Colour and weight."""
    if style is None:
        return ""
    colour = _COLOURS.get(style.color.number or 0, _INK) if style.color else _INK
    return (' class="b"' if style.bold else "") + (f' style="fill:{colour}"' if colour != _INK else "")


def _moments(times: Sequence[tuple[float, float]], end: float) -> str:
    """Key frames: visible then, and hidden otherwise."""
    steps = {0.0: "hidden"}
    for since, until in times:
        steps[since] = "visible"
        if until < end:
            steps[until] = "hidden"
    return " ".join(f"{100 * at / end:.3f}% {{ visibility: {seen} }}" for at, seen in steps.items())


def main(arguments: Sequence[str]) -> int:
    path, *options = arguments or [str(PICTURE)]
    frames, status = record(
        [sys.executable, "-P", "-m", "midstream", "demo", *options], " ".join(["# midstream demo", *options])
    )
    if status:
        print("\n".join(frames[-1].lines), file=sys.stderr)
        return status
    Path(path).write_text(picture(frames, "midstream demo, recorded on a terminal"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
