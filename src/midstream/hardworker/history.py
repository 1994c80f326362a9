"""What the logger stored before this hardworker's ring began."""

import socket
import time
from collections.abc import Iterator, Sequence
from datetime import datetime

from midstream import key
from midstream.config import Config
from midstream.errors import ConfigError, NetworkError
from midstream.hardworker.messages import Message
from midstream.replay import TIMEOUT, Line

TRIES = 5
"""How often the logger is asked for its time: the fastest answer places the ring's beginning best."""


def history(
    config: Config, logger: str, sensors: Sequence[str], since: datetime | None, began: float
) -> Iterator[Message]:
    """The stored messages of all connections of these sensors that opened before `began` (Unix time).

    In the order in which the connections opened, each whole, as far as received at or after `since`. Raises
    ConfigError, or NetworkError if the logger (an IP address) does not answer or has another key.
    """
    port = config.logger.replay_port
    if not port:
        raise ConfigError(
            f"{config.path}: logger.replay_port = 0: there is no replay; set it to a free port of the "
            "logger, here and there"
        )
    secret = key.read(config.key_path)
    try:
        connection = socket.create_connection((logger, port), timeout=TIMEOUT)
    except OSError as error:
        raise NetworkError(
            f"{logger} port {port}: no answer to the replay ({error.strerror or error}); see that `midstream "
            "logger` runs there with the same logger.replay_port"
        ) from error
    with connection:
        line = Line(connection, secret, asks=True)
        start = 0 if since is None else int(since.timestamp() * 1e9)
        line.send({"from": list(sensors), "since": start, "until": beginning(line, began)})
        numbers: dict[int, int] = {}
        while True:
            head, payloads = line.receive()
            if "end" in head:
                return
            number = numbers.setdefault(head["connection"], -len(numbers) - 1)
            position = 0
            for sequence, received, size in head["messages"]:
                payload = bytes(payloads[position : position + size])
                position += size
                yield Message(head["sensor"], number, sequence, received, payload)


def beginning(line: Line, began: float) -> int:
    """When `began` (Unix time here) was by the logger's clock, which may be another, in nanoseconds.

    Never later than it was, so what has opened since then is not asked for; earlier by at most the fastest of
    some round trips, which is less than it takes to load a program, and before that nothing passed.
    """
    found = []
    for _ in range(TRIES):
        line.send({"clock": True})
        now: int = line.receive()[0]["now"]
        found.append(now - (time.time_ns() - int(began * 1e9)))
    return max(found)
