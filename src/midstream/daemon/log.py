"""The daemon's log: an event and its facts on one line, for people or for programs."""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, TextIO

Level = Literal["info", "warning", "error"]

_LOGGER = logging.getLogger("midstream.daemon")


def log(event: str, *, level: Level = "info", **facts: object) -> None:
    """log("repaired", …) writes a line."""
    _LOGGER.log(logging.getLevelNamesMapping()[level.upper()], event, extra={"facts": facts})


def write_events(*, as_json: bool = False, output: TextIO | None = None) -> None:
    """Write what midstream logs in this process from now on to `output`, or to standard error."""
    handler = logging.StreamHandler(output)
    handler.setFormatter(EventFormatter(as_json=as_json))
    logger = logging.getLogger("midstream")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)


class EventFormatter(logging.Formatter):
    """A line for each event. as_json: JSON Lines, else key=value."""

    def __init__(self, *, as_json: bool = False) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        level, event = record.levelname.lower(), record.getMessage()
        facts: dict[str, object] = getattr(record, "facts", {})
        if self._as_json:
            return json.dumps({"time": time, "level": level, "event": event, **facts}, default=str)
        return " ".join([time, level, event, *(f"{name}={_quoted(value)}" for name, value in facts.items())])


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
