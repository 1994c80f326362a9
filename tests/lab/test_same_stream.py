"""Whatever a TCP client does, the eBPF receiver, the socket receiver and the logger have the same bytes.

Scripted clients drive them all: the application and the logger behind each receiver, four streams for one
script. Messages are single bytes, so nothing is hidden in one that is not whole.
"""

import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.lab.ends import running
from tests.lab.triangle import HARDWORKER, PORT, TOS, wait_until
from tests.program import scripted

from midstream import network
from midstream.hardworker.recording import recorded_dtype
from midstream.lab import Lab, programs

pytestmark = pytest.mark.slow  # tests/program/test_same_stream.py is the short form

LAB = {"sensors": 2, "data": {"size": 1}}
SCRIPTED = 1  # the sensor that scripts speak for; the other has a stack
MAY_LOSE = "a reset behind data"
"""TCP need not deliver what a reset follows; whoever has any of it has the beginning."""


def send_urgent(data: bytes) -> bytes:
    """An ordinary client that marks every third byte as urgent."""
    with socket.socket() as client:
        client.settimeout(10)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
        client.connect((HARDWORKER, PORT))
        for position in range(len(data)):
            client.send(data[position : position + 1], 0 if position % 3 else socket.MSG_OOB)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    return data


ORDINARY: dict[str, Callable[[bytes], bytes]] = {"MSG_OOB": send_urgent}
"""Clients that have sockets of their own."""


@dataclass(frozen=True)
class Received:
    """By script: what was sent, and what the application and the logger got."""

    sent: dict[str, bytes]
    application: dict[str, bytes]
    logger: dict[str, bytes]


@pytest.fixture(scope="module")
def both(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Received, Received]:
    """Behind the socket receiver and behind the eBPF receiver."""
    topology = network.load(lab.const)
    lab.call("sensor-2", scripted.placed, str(topology.sensors[SCRIPTED].ip))
    found = [receive(lab, tmp_path_factory.mktemp("socket"), "socket")]
    programs.attach(lab)
    found.append(receive(lab, tmp_path_factory.mktemp("ebpf"), "ebpf"))
    return found[0], found[1]


def receive(lab: Lab, folder: Path, receiver: str) -> Received:
    topology, sent = network.load(lab.const), {}
    with running(lab, folder, hardworker={"receiver": receiver}) as ends:
        for number, name in enumerate(scripted.SCRIPTS):
            sent[name] = lab.call("sensor-2", scripted.play, name, topology, SCRIPTED, 41_000 + number)
        for name, send in ORDINARY.items():
            sent[name] = lab.call("sensor", send, name.encode() * 20)
        wait_until(lambda: ended(ends.database) == len(sent), 10)
        ends.end()
        return Received(sent, recorded(ends.record, sent), logged(ends.database, sent))


def ended(database: Path) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
        (count,) = store.execute("SELECT count(*) FROM connections WHERE closed_ns IS NOT NULL").fetchone()
    return int(count)


def recorded(path: Path, names: dict[str, bytes]) -> dict[str, bytes]:
    """By the order in which the connections opened."""
    messages = np.fromfile(path, recorded_dtype(1))["message"]
    first = int(messages["connection"].min())
    return {
        name: messages["payload"][messages["connection"] == number].tobytes()
        for number, name in enumerate(names, start=first)
    }


def logged(database: Path, names: dict[str, bytes]) -> dict[str, bytes]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
        numbers = [row[0] for row in store.execute("SELECT id FROM connections ORDER BY id")]
        query = "SELECT payload FROM messages WHERE connection_id=? ORDER BY sequence"
        streams = [b"".join(row[0] for row in store.execute(query, (number,))) for number in numbers]
    return dict(zip(names, streams, strict=True))


@pytest.mark.parametrize("name", [*scripted.SCRIPTS, *ORDINARY])
def test_the_same_stream(both: tuple[Received, Received], name: str) -> None:
    for received in both:
        sent = received.sent[name]
        found = [received.application[name], received.logger[name]]
        if "ontradictions" in name or name == "A before B":
            assert found[0] == found[1] and len(found[0]) == len(sent)
        elif name == MAY_LOSE:
            assert all(sent.startswith(one) and len(one) >= 200 for one in found)
        elif name.startswith("a reset"):
            assert found[0] == found[1] and sent.startswith(found[0]) and len(found[0]) >= 200
        else:
            assert found == [sent, sent]
