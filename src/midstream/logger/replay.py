"""The replay's process: reads the database for hardworkers that ask, and never writes.

`python -m midstream.logger.replay` with its settings as JSON on standard input, whose end is its own end: so
it lives as long as the logger. It is another process than the worker, whom it does not hold up.
"""

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, func, select

from midstream import key
from midstream.config import Config
from midstream.errors import NetworkError
from midstream.logger.schema import connections, messages
from midstream.replay import Line

PAGE_MESSAGES = 1000
PAGE_BYTES = 1 << 20
QUIET = 0.3  # seconds without a new row, more than a commit takes, after which all of it is stored
LONGEST = 10.0  # seconds to wait for that


class Replay:
    """Answers one question on each connection."""

    def __init__(self, config: Config) -> None:
        self._engine: Engine = create_engine(config.database_url)
        self._key = key.read(config.key_path)
        self._quiet = max(QUIET, 2 * config.logger.batch_interval)

    def serve(self, listener: socket.socket) -> None:
        while True:
            accepted, _ = listener.accept()
            threading.Thread(target=self._answer, args=(accepted,), daemon=True).start()

    def _answer(self, accepted: socket.socket) -> None:
        with accepted:
            try:
                line = Line(accepted, self._key, asks=False)
                while "clock" in (question := line.receive()[0]):
                    line.send({"now": time.time_ns()})
                until = question["until"]
                self._settle(until)
                for row in self._connections(question["from"], until):
                    self._send(line, row, question["since"])
                line.send({"end": True})
            except (NetworkError, KeyError, ValueError):
                return  # it is gone, or was none of ours

    def _settle(self, until: int) -> None:
        """Return when nothing of those connections is still being stored."""
        give_up = time.monotonic() + LONGEST
        count = select(func.count()).select_from(messages).join(connections)
        recent = count.where(
            connections.c.opened_ns < until, messages.c.received_ns > time.time_ns() - int(60e9)
        )
        before, since = -1, time.monotonic()
        while time.monotonic() < min(since + self._quiet, give_up):
            with self._engine.connect() as database:
                found = database.execute(recent).scalar_one()
            if found != before:
                before, since = found, time.monotonic()
            time.sleep(self._quiet / 4)

    def _connections(self, sensors: list[str], until: int) -> list[Any]:
        known = select(connections.c.id, connections.c.sensor, connections.c.port, connections.c.opened_ns)
        chosen = known.where(connections.c.opened_ns < until, connections.c.sensor.in_(sensors))
        with self._engine.connect() as database:
            return list(database.execute(chosen.order_by(connections.c.opened_ns, connections.c.id)))

    def _send(self, line: Line, row: Any, since: int) -> None:
        for page in self._pages(row.id, since):
            head = {"connection": row.id, "sensor": row.sensor, "port": row.port, "opened_ns": row.opened_ns}
            head["messages"] = [[found.sequence, found.received_ns, len(found.payload)] for found in page]
            line.send(head, [found.payload for found in page])

    def _pages(self, connection: int, since: int) -> Iterator[list[Any]]:
        """A page is a query of its own: no transaction stays open while the hardworker takes its time."""
        following = -1
        while True:
            query = (
                select(messages.c.sequence, messages.c.received_ns, messages.c.payload)
                .where(messages.c.connection_id == connection, messages.c.sequence > following)
                .where(messages.c.received_ns >= since)
                .order_by(messages.c.sequence)
                .limit(PAGE_MESSAGES)
            )
            page: list[Any] = []
            size = 0
            with self._engine.connect() as database:
                for found in database.execute(query):
                    page.append(found)
                    size += len(found.payload)
                    if size >= PAGE_BYTES:
                        break
            if not page:
                return
            yield page
            following = page[-1].sequence


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    config = Config.from_json(settings["config"], Path(settings["path"]))
    replay = Replay(config)
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        threading.Thread(target=replay.serve, args=(listener,), daemon=True).start()
        sys.stdin.read()  # its end is ours: threads are daemons


if __name__ == "__main__":
    main()
