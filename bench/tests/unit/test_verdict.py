"""A window in the virtual hardworker is a figure only if all that was due was done, at the right pace."""

from dataclasses import replace
from typing import Any

import pytest
from bench.tests.unit.runs import ALONE, BUSY, FLOOR, HANDLER

from midstream_bench.machine.counted import Counted
from midstream_bench.machine.verdict import TOO_MUCH, Seen, judge
from midstream_bench.receiver import Receiver

TOLD = {"messages": 4_160, "window_messages": 2_400, "errors": 0, "verified": 600}
TAKEN = {
    "now": 1.5e9,
    "asked": 1.5e9,
    "instructions": 25_000_000,
    "interrupts": 4_800,
    "softirqs": 2_400,
    "switches": 1_200,
}
SEEN = Seen(slow=8, taken=TAKEN, sent=2_400, total=4_160, logged=4_160, wrong=0, told=TOLD)


def verdict(receiver: Receiver = HANDLER, **changed: Any) -> Counted:
    return judge(receiver, BUSY, 1.5, replace(SEEN, **changed), background=1_000_000)


def test_a_run_without_fault() -> None:
    found = verdict()
    assert not found.problems and found.kept_up
    assert (found.instructions, found.messages, found.due, found.slow) == (10_000, 2_400, 2_400, 8)
    assert (found.interrupts, found.softirqs, found.switches) == (2, 1, 0.5)
    assert found.busy == pytest.approx(1 / 30)  # 25 million × 2 ns of 1.5 s
    assert Counted.from_json(found.as_json()) == found


def test_a_floor_has_no_program() -> None:
    found = verdict(FLOOR, told=None)
    assert not found.problems and found.messages == 2_400


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (
            {"taken": TAKEN | {"now": 1.4e9}},
            "fell behind: 93.3% of the time that it should have had, 8 times",
        ),
        ({"taken": TAKEN | {"instructions": 740_000_000}}, TOO_MUCH),
        ({"told": TOLD | {"window_messages": 2_300}}, "2300 messages in the window, 2400 were due"),
        ({"told": TOLD | {"messages": 4_159}}, "4159 of 4160 delivered"),
        ({"told": TOLD | {"errors": 1}}, "1 messages wrong or out of order"),
        ({"told": TOLD | {"verified": 0}}, "no message was verified"),
        ({"logged": 4_159}, "4159 of 4160 arrived at the logger"),
        ({"wrong": 2}, "2 messages wrong at the logger"),
    ],
)
def test_what_is_wrong_is_told(changed: dict[str, Any], problem: str) -> None:
    (told,) = verdict(**changed).problems
    assert told.startswith(problem)


def test_who_sends_nothing_on_owes_the_logger_nothing() -> None:
    assert not verdict(ALONE, logged=0).problems
