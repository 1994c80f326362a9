"""The table of what a virtual machine counted, before it is put into Markdown or HTML."""

from midstream_bench.machine.counted import Counted
from midstream_bench.receiver import Receiver
from midstream_bench.report.results import Results, full_title, job
from midstream_bench.scenario import Scenario

HEADING = "Instructions of the whole hardworker, a message, counted in a virtual machine:"
COLUMNS = (
    "receiver",
    "job",
    "thousand instructions",
    "×",
    "interrupts",
    "switches",
    "messages of due",
    "guest s of asked",
    "times slower",
    "core busy",
)


def table(results: Results, scenario: Scenario) -> list[tuple[Receiver, list[str]]]:
    """The receivers of which something was counted, and their fields; figures that are none are left out."""
    least = results.counted_reference(scenario)
    return [
        (receiver, _fields(receiver, one, least)) for receiver, one in results.counts(scenario) if one.due
    ]


def without(results: Results, scenario: Scenario) -> list[str]:
    """A sentence for each reason why there is no figure, and whom it is about."""
    rows = results.counts(scenario)
    about: dict[str, list[str]] = {}
    for receiver, one in rows:
        if one.problems:
            about.setdefault("; ".join(one.problems), []).append(full_title(receiver))
    return [
        f"{'every receiver' if len(titles) == len(rows) > 1 else ', '.join(titles)}: {reason}"
        for reason, titles in about.items()
    ]


def _fields(receiver: Receiver, one: Counted, least: Counted | None) -> list[str]:
    figures = ["–"] * 4
    if not one.problems:
        ratio = f"{one.instructions / least.instructions:.2f}" if least else "–"
        figures = [f"{one.instructions / 1e3:.2f}", ratio, f"{one.interrupts:.2f}", f"{one.switches:.2f}"]
    return [
        full_title(receiver),
        job(receiver),
        *figures,
        f"{one.messages} / {one.due}",
        f"{one.seconds:.2f} / {one.asked:.2f}",
        str(one.slow),
        f"{one.busy:.0%}",
    ]
