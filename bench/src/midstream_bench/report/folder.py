"""The reports of a campaign's folder. All that they tell is from its files: nothing is from this machine."""

from pathlib import Path

from midstream_bench import campaign
from midstream_bench.instructions import MACHINE
from midstream_bench.machine import counted
from midstream_bench.middlewares import MIDDLEWARES
from midstream_bench.receivers import RECEIVERS
from midstream_bench.report.html import html
from midstream_bench.report.markdown import markdown
from midstream_bench.report.results import Results
from midstream_bench.scenario import SCENARIOS, find

REPORT, PAGE, TABLE = "bench.md", "bench.html", "runs.csv"


def read(folder: Path) -> Results:
    """What the folder holds, which may be nothing. Raises ConfigError."""
    runs, machine = campaign.read_runs(folder), counted.read(folder / MACHINE)
    usual = {scenario.name for scenario in SCENARIOS}
    others = sorted(({run.scenario for run in runs} | machine.keys()) - usual)
    return Results(
        runs,
        (*RECEIVERS, *MIDDLEWARES),
        (*SCENARIOS, *find(others)),
        campaign.read_environment(folder),
        machine,
    )


def write(results: Results, folder: Path) -> None:
    """The reports, beside the data."""
    (folder / REPORT).write_text(markdown(results))
    (folder / PAGE).write_text(html(results))
    campaign.export(results.runs, folder / TABLE)
