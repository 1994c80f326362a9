"""The replay's process: reads the database for hardworkers that ask, and never writes.

`python -m midstream.logger.replay` with its settings as JSON on standard input, whose end is its own end: so
it lives as long as the logger. It is another process than the worker, whom it does not hold up. Whoever may
reach the port may connect, so what a client without the key can have is bounded: a thread and a descriptor
of a few, and seconds. What ends the process, the logger notices, and starts another.
"""

import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from midstream import key
from midstream.config import Config
from midstream.errors import NetworkError, StoreError
from midstream.logger.admission import Admission, Client
from midstream.logger.databases import open_log
from midstream.logger.stored import Log, StoredConnection, StoredMessage
from midstream.replay import Line

PAGE_BYTES = 1 << 20
QUIET = 0.3  # seconds without a new row, more than a commit takes, after which all of it is stored
LONGEST = 10.0  # seconds to wait for that
REQUEST = 10.0  # seconds for a client's whole request, from its connection to its last byte
REQUEST_BYTES = 1 << 20  # of a question: it names at most 4096 sensors
ANSWERS = 4  # at a time: a connection to the database each


class Question(NamedTuple):
    sensors: frozenset[str]
    since: int
    until: int

    @classmethod
    def read(cls, line: Line) -> Self:
        """The question, after answering what time it is. Raises NetworkError or ValueError."""
        while "clock" in (asked := line.receive(REQUEST_BYTES)[0]):
            line.send({"now": time.time_ns()})
        sensors, since, until = (asked.get(name) for name in ("from", "since", "until"))
        if not (isinstance(sensors, list) and isinstance(since, int) and isinstance(until, int)):
            raise ValueError("no question of a replay")
        return cls(frozenset(map(str, sensors)), since, until)


class Replay:
    """Answers one question on each connection."""

    def __init__(self, config: Config) -> None:
        self._url = config.database_url
        self._key = key.read(config.key_path)
        self._quiet = max(QUIET, 2 * config.logger.batch_interval)
        self._answering = threading.Semaphore(ANSWERS)

    def serve(self, listener: socket.socket) -> None:
        """For ever. What it raises ends the process."""
        Admission(listener, self._answer).run()

    def _answer(self, client: Client) -> None:
        try:
            line = Line(client.socket, self._key, asks=False, until=client.since + REQUEST)
            client.known = True
            question = Question.read(line)
            line.until = math.inf
            with self._answering, open_log(self._url) as log:
                self._settle(log, question.until)
                known, last = log.connections(), log.last_sequences()
                for connection in known:
                    wanted = connection.sensor in question.sensors and connection.opened_ns < question.until
                    if wanted and connection.id in last:
                        _send(line, log, connection, last[connection.id], question.since)
            line.send({"end": True})
        except (NetworkError, ValueError):
            return  # it is gone, or was none of ours
        except StoreError as error:
            print(f"logger: a replay is broken off: {error}", file=sys.stderr, flush=True)

    def _settle(self, log: Log, until: int) -> None:
        """Return when nothing of those connections is still being stored."""
        give_up = time.monotonic() + LONGEST
        before: dict[int, int] | None = None
        since = time.monotonic()
        while time.monotonic() < min(since + self._quiet, give_up):
            asked = {connection.id for connection in log.connections() if connection.opened_ns < until}
            found = {key: last for key, last in log.last_sequences().items() if key in asked}
            if found != before:
                before, since = found, time.monotonic()
            time.sleep(self._quiet / 4)


def _send(line: Line, log: Log, connection: StoredConnection, last: int, since: int) -> None:
    for page in _pages(log, connection, last, since):
        head = {
            "connection": connection.id,
            "sensor": connection.sensor,
            "port": connection.port,
            "opened_ns": connection.opened_ns,
            "messages": [[found.sequence, found.received_ns, len(found.payload)] for found in page],
        }
        line.send(head, [found.payload for found in page])


def _pages(log: Log, connection: StoredConnection, last: int, since: int) -> Iterator[list[StoredMessage]]:
    """A page is read at once: nothing stays open in the database while the hardworker takes its time."""
    following = log.first_since(connection, since)
    while following <= last:
        found, following = log.piece(connection, following, last + 1, PAGE_BYTES)
        if page := [message for message in found if message.received_ns >= since]:
            yield page


def _end_with_the_logger() -> None:
    sys.stdin.read()
    os._exit(0)  # whatever the threads are doing


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    config = Config.from_json(settings["config"], Path(settings["path"]))
    replay = Replay(config)
    threading.Thread(target=_end_with_the_logger, daemon=True).start()
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        replay.serve(listener)


if __name__ == "__main__":
    main()
