"""How events look, and what is said seldom."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import IPv4Address

import pytest

from midstream.daemon.log import EventFormatter, Level, Seldom, log, write_events


@contextmanager
def written(*, as_json: bool = False) -> Iterator[io.StringIO]:
    """What is logged meanwhile, as a daemon writes it."""
    logger, output = logging.getLogger("midstream"), io.StringIO()
    before = logger.handlers[:]
    write_events(as_json=as_json, output=output)
    try:
        yield output
    finally:
        logger.handlers[:] = before


def test_a_line_for_people_and_one_for_programs() -> None:
    with written() as output:
        log("repaired", level="warning", what="neighbour 192.0.2.3: missing", count=3, empty="")
    assert output.getvalue().split(" ", 1)[1] == (
        'warning repaired what="neighbour 192.0.2.3: missing" count=3 empty=""\n'
    )
    with written(as_json=True) as output:
        log("heard", ip=IPv4Address("192.0.2.3"), name="arm")
    found = json.loads(output.getvalue())
    assert (found.pop("time")[-6:], list(found.items())) == (
        "+00:00",
        [("level", "info"), ("event", "heard"), ("ip", "192.0.2.3"), ("name", "arm")],
    )


@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_each_level_is_written(level: Level) -> None:
    with written() as output:
        log("in force", level=level)
    assert output.getvalue().split(" ", 1)[1] == f"{level} in force\n"


def test_the_time_is_when_it_happened() -> None:
    record = logging.makeLogRecord({"levelname": "INFO", "msg": "stopped", "created": 1767225600.25})
    text = datetime.fromtimestamp(1767225600.25, UTC).isoformat(timespec="milliseconds")
    assert EventFormatter().format(record) == f"{text} info stopped"
    assert text == "2026-01-01T00:00:00.250+00:00"


def test_what_other_parts_log_has_the_same_form() -> None:
    with written(as_json=True) as output:
        logging.getLogger("midstream.logger").warning("logger: %d files", 3)
    found = json.loads(output.getvalue())
    assert (found["level"], found["event"]) == ("warning", "logger: 3 files")


def test_what_is_said_seldom_is_counted() -> None:
    now = [100.0]
    seldom = Seldom(10.0, lambda: now[0])
    assert [seldom.admit() for _ in range(4)] == [0, None, None, None]
    now[0] += 10
    assert (seldom.admit(), seldom.admit()) == (3, None)
