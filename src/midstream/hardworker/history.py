"""What the logger stored before this hardworker's ring began."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime

from midstream import key
from midstream.config import Config
from midstream.errors import ConfigError, NetworkError
from midstream.hardworker.messages import Message
from midstream.hardworker.source import Beginning
from midstream.line import Head, call
from midstream.network import Topology
from midstream.page import unpack


def history(
    config: Config,
    topology: Topology,
    since: datetime | None,
    beginnings: Callable[[], Sequence[Beginning]],
    numbers: Iterator[int],
) -> Iterator[Message]:
    """The stored messages of a stream, of all connections of the sensors that were not in its ring.

    In the order in which the connections opened, each whole, as far as received at or after `since`.
    beginnings: of a Source; those of other streams do not count. numbers: of connections.
    Raises ConfigError, or NetworkError if the logger does not answer or has another key.
    """
    stream = config.stream_name
    sensors = [str(host.ip) for host in topology.sensors]
    port = config.logger.replay_port
    if not port:
        raise ConfigError(
            f"{config.path}: logger.replay_port = 0: there is no replay; set it to a free port of the "
            "logger, here and there"
        )

    def named() -> Mapping[str, list[tuple[int, int, int]]]:
        found: dict[str, list[tuple[int, int, int]]] = {sensor: [] for sensor in sensors}
        for begun in beginnings():
            if begun.stream == stream:
                found[sensors[begun.sensor]].append((begun.port, begun.first, begun.opened_ns))
        return found

    with call(str(topology.logger.ip), key.read(config.key_path), port) as line:
        start = 0 if since is None else int(since.timestamp() * 1e9)
        line.send({"kind": "replay", "since": start, "stream": stream, "beginnings": named()})
        _told(line.receive()[0])
        line.send({"beginnings": named()})
        connections: dict[int, int] = {}  # the logger's numbers, and ours
        while True:
            head, data = line.receive()
            if "end" in _told(head):
                return
            theirs = head["connection"]
            if theirs not in connections:
                connections[theirs] = next(numbers)
            for row in unpack(head["messages"], data):
                yield Message(
                    head["sensor"], connections[theirs], row.sequence, row.received_ns, row.payload, stream
                )


def _told(head: Head) -> Head:
    """What the logger says, unless it has failed."""
    if "failed" in head:
        raise NetworkError(f"the logger cannot replay: {head['failed']}")
    return head
