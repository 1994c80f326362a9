"""Show a campaign while it runs: a table on a terminal, or a line for each run."""

import sys
from collections.abc import Mapping, Sequence
from typing import Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid
from rich.text import Text

from midstream.closing import Closing
from midstream_bench.campaign import Settings
from midstream_bench.host import FIELDS
from midstream_bench.receiver import Receiver
from midstream_bench.report.results import COLUMNS, full_title, show
from midstream_bench.run import Run
from midstream_bench.scenario import Scenario
from midstream_bench.statistics import Value, cells

_SHOWN = ("cpu_us", "busy_us", "interrupts", "switches", "p50_us", "p99_us", "rss_mib")


class Silent:
    """Shows nothing."""

    def begin(self, planned: int, done: Sequence[Run]) -> None: ...
    def starting(self, receiver: Receiver, scenario: Scenario, repetition: int, left: float) -> None: ...
    def ended(self, run: Run) -> None: ...


class Lines:
    """A line on standard error for each run."""

    def begin(self, planned: int, done: Sequence[Run]) -> None:
        print(f"bench: {planned} runs, {len(done)} are there already", file=sys.stderr, flush=True)

    def starting(self, receiver: Receiver, scenario: Scenario, repetition: int, left: float) -> None:
        what = f"{scenario.name} {receiver.name} {repetition}"
        print(f"bench: {what}, {clock(left)} left: ", end="", file=sys.stderr, flush=True)

    def ended(self, run: Run) -> None:
        print(describe(run), file=sys.stderr, flush=True)


class Table(Closing):
    """The medians so far of the scenario that is being measured, redrawn in place."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runs: list[Run] = []
        self._planned = self._begun = 0
        # No thread and no redirection: the lab forks, and a child must not wait for a lock of theirs.
        self._live = Live(
            console=Console(stderr=True), auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def close(self) -> None:
        self._live.stop()

    def begin(self, planned: int, done: Sequence[Run]) -> None:
        self._planned, self._runs = planned, list(done)
        self._begun = len({(run.repetition, run.scenario, run.receiver) for run in done})

    def starting(self, receiver: Receiver, scenario: Scenario, repetition: int, left: float) -> None:
        self._begun += 1
        title = Text.assemble(
            (scenario.title, "bold"), f"   repetition {repetition} of {self._settings.repetitions}"
        )
        foot = Grid.grid(padding=(0, 1))
        foot.add_row(
            ProgressBar(total=self._planned, completed=self._begun - 1, width=36, complete_style="cyan"),
            f"{self._begun} of {self._planned}, {clock(left)} left: {full_title(receiver)}",
        )
        self._live.update(Group("", title, self._table(scenario), foot), refresh=True)

    def ended(self, run: Run) -> None:
        self._runs.append(run)

    def _table(self, scenario: Scenario) -> Grid:
        found = cells(run for run in self._runs if run.scenario == scenario.name)
        table = Grid(box=box.SIMPLE)
        table.add_column("receiver")
        for figure in _SHOWN:
            table.add_column(COLUMNS[figure], justify="right")
        table.add_column("")
        for receiver in self._settings.receivers:
            cell = found.get((scenario.name, receiver.name))
            if cell is None:
                table.add_row(Text(full_title(receiver), style="dim"))
                continue
            remark = "; ".join(cell.problems[:1] or cell.doubts[:1])
            table.add_row(
                full_title(receiver),
                *(show(figure, cell.median(figure)) for figure in _SHOWN),
                Text(remark, style="yellow", overflow="ellipsis", no_wrap=True),
            )
        return table


def print_comparison(found: Mapping[str, Mapping[str, Value]]) -> None:
    """The samples of real hosts, a column for each label: the mean, in brackets where 90 % of them lie."""
    table = Grid(box=box.SIMPLE)
    table.add_column("")
    for label, row in found.items():
        table.add_column(f"{label} ({row['busy'].count} samples)", justify="right")
    for name, meaning in FIELDS.items():
        values = (row[name] for row in found.values())
        table.add_row(meaning, *(f"{v.typical:.4g} ({v.low:.4g}–{v.high:.4g})" for v in values))
    Console(highlight=False).print(table)


def describe(run: Run) -> str:
    """A run in a line."""
    words = [f"{show('cpu_us', run.figures.get('cpu_us'))} µs of CPU a message"] if run.counts else []
    words += list(run.problems)
    words += [f"disturbed: {what}" for what in run.disturbed]
    return "; ".join(words)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
