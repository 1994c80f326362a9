"""The report as Markdown."""

from collections.abc import Iterator, Mapping
from typing import Any

from midstream_bench.receiver import Receiver
from midstream_bench.report import counts
from midstream_bench.report.overview import overviews
from midstream_bench.report.results import COLUMNS, Results, full_title, job, mark, show
from midstream_bench.scenario import Scenario
from midstream_bench.statistics import Cell


def markdown(results: Results) -> str:
    """The whole report."""
    return "\n".join(_document(results)) + "\n"


def conditions(environment: Mapping[str, Any]) -> list[str]:
    """Lines that tell on what it was measured."""
    versions = {**environment.get("packages", {}), **environment.get("programs", {})}
    settings = environment.get("settings", {})
    return [
        f"{environment.get('date', '?')}, Linux {environment.get('kernel', '?')}, "
        f"{environment.get('cores', '?')} cores of {environment.get('cpu', '?')}"
        + (" (virtual machine)" if environment.get("virtual") else ""),
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        ", ".join(f"{name}: {value}" for name, value in settings.items()),
    ]


def remarks(receiver: Receiver, cell: Cell) -> Iterator[str]:
    """What a reader has to know of a receiver's figures, or of their absence."""
    if receiver.note and cell.values:
        yield receiver.note
    if not cell.values:
        yield f"no figure: {'; '.join(cell.problems) or 'not run'}"
    for doubt in cell.doubts:
        yield f"doubtful: {doubt}"


def windows(results: Results) -> str:
    """How it was measured, in a line."""
    return (
        f"windows of {results.environment.get('seconds', '?')} s, up to {results.repetitions()} repetitions, "
        "interleaved; a figure is the median, in brackets smallest and largest; *: doubtful, see the notes"
    )


def _document(results: Results) -> Iterator[str]:
    yield "# midstream: what a message costs the hardworker"
    yield ""
    for line in conditions(results.environment):
        yield f"- {line}"
    if results.runs:
        yield f"- {windows(results)}"
    for table in overviews(results):
        yield ""
        yield f"## {table.heading}"
        yield ""
        yield f"| {' | '.join(table.columns)} |"
        yield f"|{'---|' * 2}{'---:|' * (len(table.columns) - 2)}"
        yield from (f"| {' | '.join(fields)} |" for _, fields in table.rows)
    for scenario in results.measured():
        yield ""
        yield f"## {scenario.title}"
        yield ""
        if results.rows(scenario):
            yield from _table(results, scenario)
            yield from _notes(results, scenario)
            yield from _not_better(results, scenario)
            yield ""
        yield from _counts(results, scenario)


def _table(results: Results, scenario: Scenario) -> Iterator[str]:
    names = ["receiver", "job", *COLUMNS.values(), "CPU ×"]
    counted = results.counts(scenario)
    if counted:
        names.append("whole machine, thousand instructions")
    if scenario.is_saturation:
        names.append("a whole core")
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * 2}{'---:|' * (len(names) - 2)}"
    for receiver, cell in results.rows(scenario):
        if not cell.values:
            continue
        fields = [receiver.title + mark(cell), job(receiver), *(_field(cell, figure) for figure in COLUMNS)]
        ratio = results.ratio(scenario, cell)
        fields.append("–" if ratio is None else f"{ratio:.2f}")
        if counted:
            fields.append(show("", results.instructions(scenario, receiver)))
        if scenario.is_saturation:
            fields.append(show("rate", results.capacity(cell)))
        yield f"| {' | '.join(fields)} |"


def _counts(results: Results, scenario: Scenario) -> Iterator[str]:
    """What a virtual machine counted."""
    if not results.counts(scenario):
        return
    yield counts.HEADING
    yield ""
    if rows := counts.table(results, scenario):
        yield f"| {' | '.join(counts.COLUMNS)} |"
        yield f"|{'---|' * 2}{'---:|' * (len(counts.COLUMNS) - 2)}"
        yield from (f"| {' | '.join(fields)} |" for _, fields in rows)
        yield ""
    yield from (f"- {sentence}" for sentence in counts.without(results, scenario))


def _field(cell: Cell, figure: str) -> str:
    value = cell.values.get(figure)
    if value is None:
        return "–"
    text = show(figure, value.typical)
    if figure == "cpu_us" and value.count > 1:
        text += f" ({show(figure, value.low)}–{show(figure, value.high)})"
    return text


def _notes(results: Results, scenario: Scenario) -> Iterator[str]:
    rows = results.rows(scenario)
    notes = [
        f"- {full_title(receiver)}: {text}" for receiver, cell in rows for text in remarks(receiver, cell)
    ]
    if notes:
        yield ""
        yield from notes


def _not_better(results: Results, scenario: Scenario) -> Iterator[str]:
    reference = results.reference(scenario)
    if reference is None:
        return
    yield ""
    found = results.not_better(scenario)
    if found:
        yield f"Where {reference[0].title} is not better:"
        yield ""
        yield from (f"- {sentence}" for sentence in found)
    else:
        yield f"Nothing measured here was better than {reference[0].title} in any of these figures."
