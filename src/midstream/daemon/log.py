"""The daemon's log: an event and its facts on one line, for people or for programs."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, TextIO

Level = Literal["info", "warning", "error"]


class EventLog:
    """log("repaired", …) writes a line. as_json: JSON Lines, else key=value."""

    def __init__(self, *, as_json: bool = False, output: TextIO | None = None) -> None:
        self._as_json = as_json
        self._output = output or sys.stderr

    def __call__(self, event: str, *, level: Level = "info", **facts: object) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        if self._as_json:
            line = json.dumps({"time": time, "level": level, "event": event, **facts}, default=str)
        else:
            line = " ".join(
                [time, level, event, *(f"{name}={_quoted(value)}" for name, value in facts.items())]
            )
        print(line, file=self._output, flush=True)


class Seldom:
    """Lets something be said at most every `interval` seconds, and counts what was not."""

    def __init__(self, interval: float, clock: Callable[[], float]) -> None:
        self._interval, self._clock = interval, clock
        self._next, self._unsaid = 0.0, 0

    def admit(self) -> int | None:
        """None: not now. Else how many were not said since the last time."""
        if (now := self._clock()) < self._next:
            self._unsaid += 1
            return None
        self._next = now + self._interval
        unsaid, self._unsaid = self._unsaid, 0
        return unsaid


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' "=\n\t') else text
