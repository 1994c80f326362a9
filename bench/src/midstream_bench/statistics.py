"""From runs to cells: the median of the repetitions that count, and how far they lie apart."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from midstream_bench.run import FIGURES, Run


@dataclass(frozen=True)
class Value:
    """What is typical of some values (the median of repetitions), the smallest and the largest."""

    typical: float
    low: float
    high: float
    count: int

    @property
    def spread(self) -> float:
        """Largest minus smallest, as a share of what is typical."""
        return (self.high - self.low) / self.typical if self.typical else 0.0


@dataclass(frozen=True)
class Cell:
    """A receiver in a scenario. problems: why there is no figure; doubts: what speaks against a figure."""

    receiver: str
    scenario: str
    values: dict[str, Value] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def median(self, figure: str) -> float | None:
        """The figure of that name, None if it was not measured."""
        found = self.values.get(figure)
        return found.typical if found else None


def summarize(values: Sequence[float]) -> Value:
    """At least one value."""
    return Value(median(values), min(values), max(values), len(values))


def cells(runs: Iterable[Run]) -> dict[tuple[str, str], Cell]:
    """For each scenario and receiver (their names) what its runs say."""
    grouped: dict[tuple[str, str], dict[int, list[Run]]] = {}
    for run in runs:
        grouped.setdefault((run.scenario, run.receiver), {}).setdefault(run.repetition, []).append(run)
    return {key: _cell(key, list(map(best, attempts.values()))) for key, attempts in grouped.items()}


def best(attempts: Sequence[Run]) -> Run:
    """Of the attempts at a repetition the last undisturbed one, else the last that counts, else the last."""
    good = [run for run in attempts if run.counts]
    undisturbed = [run for run in good if not run.disturbed]
    return (undisturbed or good or list(attempts))[-1]


def _cell(key: tuple[str, str], repetitions: Sequence[Run]) -> Cell:
    scenario, receiver = key
    good = [run for run in repetitions if run.counts]
    values = {
        name: summarize(found)
        for name in FIGURES
        if (found := [run.figures[name] for run in good if name in run.figures])
    }
    problems = dict.fromkeys(problem for run in repetitions for problem in run.problems)
    doubts = list(dict.fromkeys(doubt for run in good for doubt in run.disturbed))
    if good and (failed := len(repetitions) - len(good)):
        doubts.insert(0, f"{failed} of {len(repetitions)} repetitions failed: {next(iter(problems))}")
    return Cell(receiver, scenario, values, () if good else tuple(problems), tuple(doubts))
