"""The logger's process that speaks with hardworkers, over lines of line.py.

`python -m midstream.logger.exchange` with its settings as JSON on standard input, whose end is its own end:
so it lives as long as the logger. It is another process than the worker, whom it does not hold up. Who may
reach the port may connect, so what a client without the key can have is bounded: a thread and a descriptor
of a few, and seconds. What ends the process, the logger notices, and starts another.
"""

import json
import math
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from midstream import key
from midstream.config import Config
from midstream.errors import MidstreamError, NetworkError
from midstream.line import Head, Line
from midstream.logger.admission import Admission, Client
from midstream.logger.backfilling import Backfilling
from midstream.logger.holding import Holding
from midstream.logger.replaying import REQUEST_BYTES, Replaying
from midstream.storage.formats import Formats, parse
from midstream.storage.store import Unavailable

REQUEST = 10.0  # seconds until a client has said what it wants, from its connection on

Handler = Callable[[Line, Head], None]
"""Has the line, and what was said first on it, for as long as it needs. A MidstreamError or Unavailable is
told to the client, and ends its line."""


def handlers(config: Config, streams: Formats) -> dict[str, Handler]:
    """Who answers what kind of request."""
    return {
        "replay": Replaying(config).answer,
        "backfill": Backfilling(config, streams).answer,
        "held": Holding(config, streams).answer,
    }


class Exchange:
    """Has each client's request answered, in a thread of its own."""

    def __init__(self, secret: bytes, answers: dict[str, Handler]) -> None:
        self._key, self._answers = secret, answers

    def serve(self, listener: socket.socket) -> None:
        """For ever. What it raises ends the process."""
        Admission(listener, self._serve).run()

    def _serve(self, client: Client) -> None:
        try:
            line = Line(client.socket, self._key, asks=False, until=client.since + REQUEST)
            client.known = True
            asked, _ = line.receive(REQUEST_BYTES)
            line.until = math.inf
            try:
                self._handler(asked)(line, asked)
            except NetworkError:
                raise
            except (MidstreamError, Unavailable) as error:
                line.send({"failed": str(error)})
        except NetworkError:
            return  # it is gone, or was none of ours

    def _handler(self, asked: Head) -> Handler:
        kind = asked.get("kind")
        if not isinstance(kind, str) or kind not in self._answers:
            raise MidstreamError(
                f"this logger does not know the request {kind!r}. What to do: install the same midstream on "
                "all hosts"
            )
        return self._answers[kind]


def _end_with_the_logger() -> None:
    sys.stdin.read()
    os._exit(0)  # whatever the threads are doing


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    config = Config.from_json(settings["config"], Path(settings["path"]))
    exchange = Exchange(key.read(config.key_path), handlers(config, parse(settings["streams"])))
    threading.Thread(target=_end_with_the_logger, daemon=True).start()
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        exchange.serve(listener)


if __name__ == "__main__":
    main()
