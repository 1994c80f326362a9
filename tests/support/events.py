"""What the daemon's parts log, for a test to look at."""

import logging
from typing import Any


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        facts: dict[str, Any] = vars(record).get("facts", {})
        self.said.append({"level": record.levelname.lower(), "event": record.getMessage(), **facts})


_COLLECTOR = _Collector()


def collected() -> list[dict[str, Any]]:
    """The events from now on, until this is called again: each with its level and its facts."""
    logger = logging.getLogger("midstream.daemon")
    logger.setLevel(logging.INFO)
    logger.addHandler(_COLLECTOR)
    _COLLECTOR.said = []
    return _COLLECTOR.said
