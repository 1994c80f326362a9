"""All scenarios in one table for each of the most important figures, before it becomes Markdown or HTML."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from midstream_bench.receiver import Receiver
from midstream_bench.report.results import Results, full_title, job, show
from midstream_bench.scenario import Scenario

_LAB = {
    "cpu_us": "CPU time in the lab, µs a message",
    "p99_us": "Latency in the lab, p99 in µs",
}


@dataclass(frozen=True)
class Overview:
    """A table: heading, the names of its columns, and a row for each receiver."""

    heading: str
    columns: list[str]
    rows: list[tuple[Receiver, list[str]]]


def overviews(results: Results) -> Iterator[Overview]:
    """The tables, of figures that there are in more than one scenario."""
    heading = "Thousand instructions of the whole hardworker, a message"
    yield from _overview(results, heading, results.instructions)
    for figure, heading in _LAB.items():

        def measured(scenario: Scenario, receiver: Receiver, figure: str = figure) -> float | None:
            if scenario.is_saturation and figure != "cpu_us":
                return None
            cell = results.cells.get((scenario.name, receiver.name))
            return cell.median(figure) if cell else None

        yield from _overview(results, heading, measured)


def _overview(
    results: Results, heading: str, value: Callable[[Scenario, Receiver], float | None]
) -> Iterator[Overview]:
    scenarios = [
        scenario
        for scenario in results.measured()
        if any(value(scenario, receiver) is not None for receiver in results.receivers)
    ]
    if len(scenarios) < 2:
        return
    rows = []
    for receiver in results.receivers:
        values = [value(scenario, receiver) for scenario in scenarios]
        if any(one is not None for one in values):
            rows.append((receiver, [full_title(receiver), job(receiver), *(show("", one) for one in values)]))
    yield Overview(heading, ["receiver", "job", *(scenario.title for scenario in scenarios)], rows)
