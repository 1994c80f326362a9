"""A report is made from a folder's data alone: the one in the documentation from what bench/results keeps."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from bench.tests.unit.runs import BUSY, run
from typer.testing import CliRunner

from midstream.errors import ConfigError
from midstream_bench import campaign
from midstream_bench.command import app
from midstream_bench.instructions import MACHINE
from midstream_bench.machine import counted
from midstream_bench.machine.counted import Counted
from midstream_bench.receiver import Receiver
from midstream_bench.receivers import RECEIVERS
from midstream_bench.report import folder as reports
from midstream_bench.report import markdown

BENCH = Path(__file__).parents[2]
KEPT = BENCH / "results"
WINDOW = Counted("", 4321.0, 2400, 2400, 1.5, 1.5, 0.02, 4, 0.3, 0.3, 0.1)


def by_name(name: str) -> Receiver:
    return next(receiver for receiver in RECEIVERS if receiver.name == name)


FLOOR, OURS = by_name("floor"), by_name("midstream-deferred-numpy")
COUNTED = {BUSY.name: {one.name: replace(WINDOW, receiver=one.name) for one in (FLOOR, OURS)}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with everything that a campaign keeps."""
    campaign.claim(tmp_path, seconds=2.0)
    environment = {**campaign.read_environment(tmp_path), "date": "2001-02-03 04:05 UTC", "kernel": "6.0"}
    (tmp_path / campaign.ENVIRONMENT).write_text(json.dumps(environment))
    runs = [run(receiver, repetition=number) for number in (1, 2) for receiver in (FLOOR, OURS)]
    (tmp_path / campaign.RUNS).write_text("".join(json.dumps(one.as_json()) + "\n" for one in runs))
    counted.write(tmp_path / MACHINE, COUNTED)
    return tmp_path


def report(folder: Path) -> str:
    ended = CliRunner().invoke(app, ["--report", "--output", str(folder)])
    assert ended.exit_code == 0, ended.output
    return (folder / reports.REPORT).read_text()


def test_a_report_tells_nothing_of_the_machine_that_makes_it(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere() -> dict[str, object]:
        raise AssertionError("it looked at this machine")

    monkeypatch.setattr("midstream_bench.environment.describe", elsewhere)
    text = report(data)
    assert "- 2001-02-03 04:05 UTC, Linux 6.0, " in text and "windows of 2.0 s, up to 2 repetitions" in text
    assert f"| {OURS.title} | whole job | 10 (10–10) |" in text and "| 4.32 | 1.00 |" in text
    assert report(data) == text
    (data / campaign.ENVIRONMENT).unlink()
    assert "- ?, Linux ?, " in report(data)


def test_what_was_only_counted_has_a_report(data: Path) -> None:
    (data / campaign.RUNS).unlink()
    text = report(data)
    assert "| 4.32 | 1.00 |" in text and "windows of" not in text


def test_a_folder_without_data_has_no_report(tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["--report", "--output", str(tmp_path)])
    assert isinstance(ended.exception, ConfigError) and "has no runs" in str(ended.exception)
    assert not list(tmp_path.iterdir())


def test_each_window_is_a_line(data: Path) -> None:
    lines = (data / MACHINE).read_text().splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "{",
        f'"{BUSY.name}"',
        f'"{FLOOR.name}"',
        f'"{OURS.name}"',
        "}",
        "}",
    ]
    assert counted.read(data / MACHINE) == COUNTED
    counted.write(data / MACHINE, {})
    assert counted.read(data / MACHINE) == {}


def test_the_report_in_the_documentation_is_that_of_the_kept_data() -> None:
    same = markdown(reports.read(KEPT)) == (BENCH / "docs/benchmark-run.md").read_text()
    assert same, "midstream bench --report --output bench/results makes another: copy its bench.md"


def test_the_kept_data_names_no_folder_of_the_machine_that_measured() -> None:
    texts = [(KEPT / name).read_text() for name in (campaign.RUNS, campaign.ENVIRONMENT, MACHINE)]
    assert not re.findall(
        rf"{re.escape(str(BENCH.parent))}\S*|/(?:home|root|tmp|var/tmp)/\S*", "".join(texts)
    )
