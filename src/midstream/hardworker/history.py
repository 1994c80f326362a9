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

MARGIN = 0.05
"""Seconds before the ring began from which no connection is asked for. Nothing passes the hardworker while no
program is attached, which takes longer; right after it a connection may open, before the question arrives."""


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
        age = int((time.time() - began + MARGIN) * 1e9)  # of the ring: the logger's clock may be another
        line.send({"from": list(sensors), "since": start, "until": -age})
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
