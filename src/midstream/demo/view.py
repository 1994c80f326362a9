"""Show the demonstration while it runs: the triangle on a terminal, or a line now and then."""

import sys
import time
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from midstream.closing import Closing
from midstream.demo.observer import View
from midstream.demo.picture import NUMBER, QUIET, triangle
from midstream.demo.run import Settings
from midstream.demo.words import count, plural

REFRESH = 0.25  # seconds; faster than that, figures cannot be read
LINE_EVERY = 2.0  # seconds between two lines where there is no terminal


class Silent:
    """Shows nothing but notes."""

    def note(self, text: str) -> None:
        print(f"demo: {text}", file=sys.stderr, flush=True)

    def stage(self, text: str) -> None: ...

    def watch(self, view: View) -> None: ...


class Lines:
    """A line on standard error now and then."""

    def __init__(self, settings: Settings) -> None:
        self._total = settings.total
        self._next = time.monotonic() + LINE_EVERY

    def note(self, text: str) -> None:
        print(f"demo: {text}", file=sys.stderr, flush=True)

    stage = note

    def watch(self, view: View) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_EVERY
            ring = "" if view.ring is None else f", ring {view.ring:.0%} full"
            self.stage(
                f"{count(view.totals.messages)} of {count(self._total)} messages, "
                f"{count(view.rates.messages)} a second, {plural(view.connections, 'connection')}{ring}"
            )


class Picture(Closing):
    """The triangle on a terminal, redrawn in place and gone at the end."""

    def __init__(self, console: Console, settings: Settings) -> None:
        self._settings = settings
        self._total = settings.total
        self._stage = ""
        self._view: View | None = None
        self._next = 0.0
        # No thread and no redirection: the lab forks, and a child must not wait for a lock of theirs.
        self._live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def close(self) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        self._live.console.print(f"demo: {text}")  # above the picture

    def stage(self, text: str) -> None:
        self._stage = text
        self._draw()

    def watch(self, view: View) -> None:
        if self._view is None:
            self._stage = ""
        self._view = view
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + REFRESH
            self._draw()

    def _draw(self) -> None:
        self._live.update(
            Group("", _title(self._settings), "", triangle(self._settings, self._view), "", self._foot()),
            refresh=True,
        )

    def _foot(self) -> Table | Text:
        if self._view is None or self._stage:
            return Text.assemble("    ", (f"{self._stage} …", QUIET))
        done = self._view.totals.messages
        # The plan, where there is one, makes a calmer clock than the measured rate.
        rate = self._settings.total_rate or self._view.rates.messages
        left = (self._total - done) / rate if rate else 0.0
        foot = Table.grid(padding=(0, 1))
        foot.add_row(
            "   ",
            ProgressBar(total=self._total, completed=done, width=36, complete_style="cyan"),
            Text.assemble((count(done), NUMBER), f" of {count(self._total)} messages, {_clock(left)} left"),
        )
        return foot


def _title(settings: Settings) -> Text:
    rate = f"{settings.rate:g} messages/s" if settings.rate else "as fast as TCP takes them"
    each = (
        f"{count(len(settings.mix.streams))} streams ({settings.mix.name})"
        if settings.mix
        else (f"{rate} × {count(settings.size)} bytes")
    )
    return Text.assemble(
        "    ",
        ("midstream demo", "bold"),
        (f"   {plural(settings.sensors, 'sensor')}{', ' if settings.mix else ' × '}{each}", QUIET),
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
