"""Judging a run, and what the runs of a receiver come to."""

import json
from typing import Any

import pytest
from bench.tests.unit.runs import ALONE, BUSY, FULL, HANDLER, OURS, observation, run

from midstream_bench.run import FIGURES, Run, judge
from midstream_bench.statistics import best, cells, summarize


def test_figures_are_those_of_one_message() -> None:
    judged = judge(HANDLER, BUSY, 3, observation())
    assert judged.counts and not judged.disturbed
    assert (judged.receiver, judged.scenario, judged.repetition) == ("handler", "16x100x1024", 3)
    assert judged.figures == {
        "cpu_us": 20.0,
        "napi_us": 5.0,
        "application_us": 15.0,
        "busy_us": 30.0,
        "busy": 0.048,
        "interrupts": 2.0,
        "switches": 1.1,
        "involuntary": 0.1,
        "wakeups": 0.5,
        "rss_mib": 2.0,
        "p50_us": 100.0,
        "p99_us": 200.0,
        "p999_us": 300.0,
        "max_us": 400.0,
        "rate": 1600.0,
        "late_p99_us": 50.0,
    }
    assert judged.figures.keys() == FIGURES.keys()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sent": 7_900}, "missed its rate: 7900 messages sent in the window, 8000 due"),
        ({"received": {"messages": 10_559}}, "1 of 10560 messages missing at the hardworker"),
        ({"received": {"messages": 10_561}}, "-1 of 10560 messages missing at the hardworker"),
        ({"received": {"errors": 2}}, "2 messages wrong at the hardworker"),
        (
            {"received": {"window_messages": 7_500}},
            "did not keep up: 7500 of 8000 messages of the window were delivered in it",
        ),
        ({"received": {"verified": 0}}, "no message was verified"),
        ({"logged": 10_000}, "560 of 10560 messages missing at the logger"),
        ({"logged_wrong": 1}, "1 messages wrong at the logger"),
    ],
)
def test_a_run_with_a_fault_is_no_figure(changed: dict[str, Any], says: str) -> None:
    judged = judge(HANDLER, BUSY, 1, observation(**changed))
    assert judged.problems == (says,) and not judged.counts


def test_who_only_receives_owes_the_logger_nothing() -> None:
    assert judge(ALONE, BUSY, 1, observation(logged=0)).counts


def test_a_flood_has_no_rate_to_miss() -> None:
    assert judge(OURS, FULL, 1, observation(due=0)).counts


def test_the_floor_has_no_program() -> None:
    seen = observation()
    judged = judge(HANDLER, BUSY, 1, type(seen)(**{**vars(seen), "received": None, "memory": {}}))
    assert judged.counts and judged.figures["cpu_us"] == 20.0
    assert "p50_us" not in judged.figures and "rss_mib" not in judged.figures


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"foreign": {"qemu": 300_000_000, "make": 100_000_000}},
            "8.0% of the hardworker's core went to qemu, make",
        ),
        ({"forks": 21}, "the machine started 21 processes"),
    ],
)
def test_disturbances_are_noticed(changed: dict[str, Any], says: str) -> None:
    judged = judge(HANDLER, BUSY, 1, observation(**changed))
    assert judged.disturbed == (says,) and judged.counts
    assert not judge(HANDLER, BUSY, 1, observation(foreign={"init": 40_000_000}, forks=20)).disturbed


def test_a_record_is_the_run_again() -> None:
    judged = judge(HANDLER, BUSY, 2, observation(forks=99))
    assert Run.from_json(json.loads(json.dumps(judged.as_json()))) == judged


def test_a_cell_is_the_median_of_its_repetitions() -> None:
    found = cells([run(OURS, repetition=n, cpu=cpu) for n, cpu in enumerate((9.0, 30.0, 10.0))])
    value = found["16x100x1024", "ours"].values["cpu_us"]
    assert (value.typical, value.low, value.high, value.count) == (10.0, 9.0, 30.0, 3)
    assert value.spread == pytest.approx(2.1)
    assert summarize([1.0, 3.0]).typical == 2.0


def test_the_undisturbed_attempt_counts() -> None:
    failed = run(OURS, cpu=1.0, problems=("lost",))
    disturbed = run(OURS, cpu=2.0, disturbed=("qemu",))
    fine = run(OURS, cpu=3.0)
    assert best([fine, disturbed, failed]) is fine
    assert best([disturbed, failed]) is disturbed
    assert best([failed]) is failed
    (cell,) = cells([disturbed, fine, failed]).values()
    assert cell.median("cpu_us") == 3.0 and not cell.doubts and not cell.problems


def test_what_failed_is_told() -> None:
    (cell,) = cells([run(OURS), run(OURS, repetition=2, problems=("lost 3",))]).values()
    assert cell.values["cpu_us"].count == 1
    assert cell.doubts == ("1 of 2 repetitions failed: lost 3",)
    (cell,) = cells([run(OURS, problems=("lost 3",))]).values()
    assert not cell.values and cell.problems == ("lost 3",)
    (cell,) = cells([run(OURS, disturbed=("qemu",))]).values()
    assert cell.values and cell.doubts == ("qemu",)
