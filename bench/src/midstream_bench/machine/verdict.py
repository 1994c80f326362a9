"""Whether a window in the virtual hardworker gives a figure: nothing lost or wrong, and all that was due."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from midstream_bench.machine.counted import BUSY, KEPT_UP, Counted
from midstream_bench.machine.hardworker import NANOSECONDS
from midstream_bench.receiver import Receiver
from midstream_bench.scenario import Scenario

TOO_MUCH = "did not keep up: the virtual core, of half a billion instructions a second, was never idle"

_TOLERANCE = 0.03  # of the messages due in the window


@dataclass(frozen=True)
class Seen:
    """A run: how many times slower it was; what the guest counted in the window; messages that were sent in
    it, and in all; those that the logger has, and how many of them are wrong; what the receiver said."""

    slow: int
    taken: Mapping[str, float]
    sent: int
    total: int
    logged: int
    wrong: int
    told: Mapping[str, Any] | None


def judge(receiver: Receiver, scenario: Scenario, seconds: float, seen: Seen, background: float) -> Counted:
    """The figures of a window of `seconds`, and why they are none. background: of an idle guest."""
    taken, told = seen.taken, seen.told
    messages = told["window_messages"] if told else seen.sent
    due = round(scenario.sensors * scenario.rate * seconds)
    busy = taken["instructions"] * NANOSECONDS / max(taken["now"], 1)
    missed = abs(messages - due) > max(2 * scenario.sensors, _TOLERANCE * due)
    problems = [
        (busy >= BUSY, TOO_MUCH),
        (taken["now"] < KEPT_UP * taken["asked"], behind(taken["now"], taken["asked"], seen.slow)),
        (missed, f"{messages} messages in the window, {due} were due"),
        (
            receiver.is_logged and seen.logged != seen.total,
            f"{seen.logged} of {seen.total} arrived at the logger",
        ),
        (bool(seen.wrong), f"{seen.wrong} messages wrong at the logger"),
    ]
    if told:
        problems += [
            (told["messages"] != seen.total, f"{told['messages']} of {seen.total} delivered"),
            (bool(told["errors"]), f"{told['errors']} messages wrong or out of order"),
            (not told["verified"], "no message was verified"),
        ]
    each = max(messages, 1)
    return Counted(
        receiver=receiver.name,
        instructions=(taken["instructions"] - background) / each,
        messages=messages,
        due=due,
        seconds=taken["now"] / 1e9,
        asked=taken["asked"] / 1e9,
        busy=busy,
        slow=seen.slow,
        interrupts=taken["interrupts"] / each,
        softirqs=taken["softirqs"] / each,
        switches=taken["switches"] / each,
        problems=tuple(problem for is_so, problem in problems if is_so),
        received=told,
    )


def behind(passed: float, asked: float, slow: int) -> str:
    """That the guest's clock went too slowly."""
    return f"fell behind: {passed / asked:.1%} of the time that it should have had, {slow} times slower"
