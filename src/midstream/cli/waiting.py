"""A command that a service manager has started waits for what it lacks, instead of ending again and again."""

import time
from collections.abc import Callable
from typing import TypeVar

import typer

from midstream.cli.options import say
from midstream.daemon.notify import is_supervised, notify
from midstream.errors import MidstreamError

T = TypeVar("T")

_PAUSE = 1.0  # seconds between two tries
_LOOK = 0.1  # seconds between two looks at `stop`


def patiently(attempt: Callable[[], T], stop: Callable[[], bool], *, then: str) -> T:
    """What `attempt` gives; then: the status once it has.

    As a service: an error of midstream is said once, is the service's status, and the attempt is repeated. So
    files, hosts and other services may come in any order. Anywhere else it is raised.
    """
    said = ""
    while True:
        try:
            result = attempt()
        except MidstreamError as error:
            if not is_supervised():
                raise
            if said != (said := str(error)):
                say(f"waiting: {said}")
            _pause(said, stop)
            continue
        if said:
            say(then)
        notify(f"STATUS={then}")
        return result


def _pause(reason: str, stop: Callable[[], bool]) -> None:
    notify("READY=1", f"STATUS=waiting: {reason}", "WATCHDOG=1")
    deadline = time.monotonic() + _PAUSE
    while time.monotonic() < deadline:
        if stop():
            raise typer.Exit
        time.sleep(_LOOK)
