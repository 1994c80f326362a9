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

from midstream import key
from midstream.config import Config
from midstream.errors import NetworkError, StoreError
from midstream.logger.databases import open_log
from midstream.logger.stored import Log, StoredConnection, StoredMessage
from midstream.replay import Line

PAGE_BYTES = 1 << 20
QUIET = 0.3  # seconds without a new row, more than a commit takes, after which all of it is stored
LONGEST = 10.0  # seconds to wait for that


class Replay:
    """Answers one question on each connection."""

    def __init__(self, config: Config) -> None:
        self._url = config.database_url
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
                with open_log(self._url) as log:
                    self._settle(log, until)
                    known, last = log.connections(), log.last_sequences()
                    for connection in known:
                        wanted = connection.sensor in question["from"] and connection.opened_ns < until
                        if wanted and connection.id in last:
                            _send(line, log, connection, last[connection.id], question["since"])
                line.send({"end": True})
            except (NetworkError, KeyError, ValueError):
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


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    config = Config.from_json(settings["config"], Path(settings["path"]))
    replay = Replay(config)
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        threading.Thread(target=replay.serve, args=(listener,), daemon=True).start()
        sys.stdin.read()  # its end is ours: threads are daemons


if __name__ == "__main__":
    main()
