"""What a report tells, before it is put into Markdown or HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from midstream_bench.machine.counted import Counted
from midstream_bench.receiver import Family, Job, Receiver
from midstream_bench.run import Run
from midstream_bench.scenario import Scenario
from midstream_bench.statistics import Cell, cells

NOISE = 0.1  # differences below are none: the lab does not repeat itself better than that

COLUMNS = {
    "cpu_us": "CPU µs",
    "busy_us": "core busy µs",
    "busy": "core busy",
    "interrupts": "interrupts",
    "switches": "switches",
    "wakeups": "wake-ups",
    "rss_mib": "memory MiB",
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
    "p999_us": "p99.9 µs",
    "rate": "messages/s",
}
"""The figures of a table, in their order; all but the last four and memory are those of one message."""

REFERENCE = "midstream-deferred-numpy"
"""What the others are compared with, Python or not; without a figure of it midstream's cheapest in Python."""

_COMPARED = {
    "cpu_us": "CPU time",
    "busy_us": "the core's busy time",
    "p50_us": "median latency",
    "p99_us": "p99 latency",
    "p999_us": "p99.9 latency",
    "rss_mib": "memory",
}
_ORDER = (Family.FLOOR, Family.MIDSTREAM, Family.HANDLER, Family.MIDDLEWARE)


@dataclass(frozen=True)
class Results:
    """All runs, and what they were runs of. machine: what a virtual machine counted, by the names of scenario
    and receiver."""

    runs: Sequence[Run]
    receivers: Sequence[Receiver]
    scenarios: Sequence[Scenario]
    environment: Mapping[str, Any]
    machine: Mapping[str, Mapping[str, Counted]] = field(default_factory=dict)
    cells: Mapping[tuple[str, str], Cell] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", cells(self.runs))

    def measured(self) -> list[Scenario]:
        """The scenarios of which there is a run, or something counted."""
        names = {run.scenario for run in self.runs} | self.machine.keys()
        return [scenario for scenario in self.scenarios if scenario.name in names]

    def rows(self, scenario: Scenario) -> list[tuple[Receiver, Cell]]:
        """Every receiver of a scenario: by family, the cheapest first, those without figures last."""
        found = [
            (receiver, cell)
            for receiver in self.receivers
            if (cell := self.cells.get((scenario.name, receiver.name)))
        ]
        return sorted(found, key=lambda row: (_ORDER.index(row[0].family), row[1].median("cpu_us") or 1e9))

    def counts(self, scenario: Scenario) -> list[tuple[Receiver, Counted]]:
        """What a virtual machine counted: by family, the fewest instructions first, no figures last."""
        row = self.machine.get(scenario.name, {})
        found = [(receiver, row[receiver.name]) for receiver in self.receivers if receiver.name in row]
        return sorted(
            found,
            key=lambda one: (
                _ORDER.index(one[0].family),
                bool(one[1].problems),
                one[1].instructions,
            ),
        )

    def instructions(self, scenario: Scenario, receiver: Receiver) -> float | None:
        """Thousand instructions of the whole hardworker a message."""
        one = self.machine.get(scenario.name, {}).get(receiver.name)
        return one.instructions / 1e3 if one and not one.problems else None

    def counted_reference(self, scenario: Scenario) -> Counted | None:
        """What the others' instructions are compared with."""
        found = [one for receiver, one in self.counts(scenario) if _is_ours(receiver) and not one.problems]
        return min(found, key=lambda one: one.receiver != REFERENCE, default=None)

    def repetitions(self) -> int:
        """The most of one cell."""
        return max((run.repetition for run in self.runs), default=0)

    def reference(self, scenario: Scenario) -> tuple[Receiver, Cell] | None:
        """What the others are compared with."""
        found = [row for row in self.rows(scenario) if _is_ours(row[0]) and row[1].values]
        return min(found, key=lambda row: row[0].name != REFERENCE, default=None)

    def ratio(self, scenario: Scenario, cell: Cell, figure: str = "cpu_us") -> float | None:
        """A receiver's figure as a multiple of the reference's."""
        reference = self.reference(scenario)
        own, base = cell.median(figure), reference and reference[1].median(figure)
        return own / base if own is not None and base else None

    def not_better(self, scenario: Scenario) -> list[str]:
        """A sentence for each figure in which the reference is beaten or equalled, and by whom."""
        if (reference := self.reference(scenario)) is None:
            return []
        found = []
        for figure, name in _COMPARED.items():
            base = reference[1].median(figure)
            if not base or (scenario.is_saturation and figure.startswith("p")):
                continue
            less, equal = [], []
            for receiver, cell in self.rows(scenario):
                own = cell.median(figure)
                if receiver.family is Family.FLOOR or receiver.name == reference[0].name or own is None:
                    continue
                if own < base * (1 - NOISE):
                    less.append(f"{full_title(receiver)} ({_number(own)})")
                elif own < base * (1 + NOISE) and receiver.family is not Family.MIDSTREAM:
                    equal.append(f"{full_title(receiver)} ({_number(own)})")
            parts = [f"less with {', '.join(less)}"] if less else []
            parts += [f"within {NOISE:.0%} of it {', '.join(equal)}"] if equal else []
            if parts:
                found.append(f"{name} ({_number(base)}{_unit(figure)}): {'; '.join(parts)}")
        return found

    def capacity(self, cell: Cell) -> float | None:
        """Messages a second that the hardworker's core could take: those it took, by its busy share."""
        rate, busy = cell.median("rate"), cell.median("busy")
        return rate / busy if rate and busy else None


def _is_ours(receiver: Receiver) -> bool:
    return receiver.family is Family.MIDSTREAM and receiver.job is Job.RELAY and receiver.language == "Python"


def job(receiver: Receiver) -> str:
    """What the hardworker does, in a word or two."""
    return {
        Job.FORWARD: "forwards only",
        Job.RECEIVE: "receives only",
        Job.RELAY: "whole job",
        Job.STORE: "receives and stores",
    }[receiver.job]


def full_title(receiver: Receiver) -> str:
    """Its title, with the job where there is one of the same title that does more."""
    alone = receiver.family is Family.HANDLER and receiver.job is Job.RECEIVE
    return f"{receiver.title} (receives only)" if alone else receiver.title


def mark(cell: Cell) -> str:
    """An asterisk where a figure is doubtful; the notes say why."""
    return " *" if cell.doubts else ""


def show(figure: str, value: float | None) -> str:
    """A figure for a reader; an en dash where there is none."""
    if value is None:
        return "–"
    if figure == "busy":
        return f"{value:.1%}"
    return _number(value)


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _unit(figure: str) -> str:
    return " MiB" if figure == "rss_mib" else " µs"
