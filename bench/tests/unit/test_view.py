"""What is seen of a campaign while it runs."""

from pathlib import Path

import pytest
from bench.tests.unit.runs import ABSENT, BUSY, HANDLER, OURS, run

from midstream_bench.campaign import Settings
from midstream_bench.host import FIELDS
from midstream_bench.statistics import Value
from midstream_bench.view import Lines, Table, clock, describe, print_comparison

SETTINGS = Settings((OURS, HANDLER, ABSENT), (BUSY,), 2, 1.0, Path("unused"))


def test_a_table_shows_the_medians_so_far(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    with Table(SETTINGS) as table:
        table.begin(6, [run(OURS, cpu=10.0)])
        table.starting(HANDLER, BUSY, 1, 65.0)
        table.ended(run(HANDLER, cpu=40.0, disturbed=("somebody else",)))
        table.starting(ABSENT, BUSY, 1, 60.0)
        table.ended(run(ABSENT, problems=("not installed: absent",), figures={}))
        table.starting(OURS, BUSY, 2, 55.0)
    shown = capsys.readouterr().err
    assert "16 × 100 Hz × 1 KiB" in shown and "repetition 2 of 2" in shown
    lines = {line.split("  ")[1].strip(): line for line in shown.splitlines() if line.startswith("  ")}
    assert " 10 " in lines["midstream, NumPy"] and " 40 " in lines["C, epoll"]
    assert "somebody else" in lines["C, epoll"] and "not installed: absent" in lines["Absent"]
    assert "4 of 6, 0:55 left: midstream, NumPy" in shown


def test_or_a_line_for_each_run(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.begin(2, [])
    lines.starting(OURS, BUSY, 1, 3700.0)
    lines.ended(run(OURS, cpu=10.0))
    assert capsys.readouterr().err.splitlines() == [
        "bench: 2 runs, 0 are there already",
        "bench: 16x100x1024 ours 1, 1:01:40 left: 10 µs of CPU a message",
    ]


def test_a_run_in_words() -> None:
    assert describe(run(OURS, problems=("lost 3",))) == "lost 3"
    assert describe(run(OURS, disturbed=("qemu",))) == "10 µs of CPU a message; disturbed: qemu"
    assert [clock(seconds) for seconds in (-1, 5, 65, 3605)] == ["0:00", "0:05", "1:05", "1:00:05"]


def test_hosts_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    row = {name: Value(1.5, 1.0, 2.0, 7) for name in FIELDS}
    print_comparison({"midstream": row, "sockets": row})
    shown = capsys.readouterr().out
    assert "midstream (7 samples)" in shown and "1.5 (1–2)" in shown and "cores in use" in shown
