"""The way back: what the logger says reaches the client under the hardworker's address, wherever it is
restored, and a connection made directly to the logger is left alone."""

import os
import select
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.lab.triangle import HARDWORKER, LOGGER, PORT, TOS, send

from midstream.lab import Lab
from midstream.packet import Listener, Packet

GOODBYE = b"reset me"

pytestmark = pytest.mark.parametrize(
    "lab",
    [
        pytest.param({"network": {"restore": place}}, id=f"restored on the {place}")
        for place in ("logger", "sensor")
    ],
    indirect=True,
)


@pytest.fixture
def echo(attached: Lab) -> Iterator[None]:
    """A server on the logger that is not ours: it sends back what it gets."""
    stop, stopping = os.pipe()
    with ThreadPoolExecutor(1) as pool:
        listening, listens = os.pipe()
        serving = pool.submit(attached.call, "logger", serve_echo, listens, stop)
        os.read(listening, 1)
        try:
            yield
        finally:
            os.write(stopping, b".")
            serving.result()
            for end in (stop, stopping, listening, listens):
                os.close(end)


@pytest.mark.parametrize("address", [HARDWORKER, LOGGER])
def test_a_reply_reaches_the_client(attached: Lab, echo: None, address: str) -> None:
    """Both ways at once, a megabyte each."""
    data = os.urandom(1_000_000)
    _, reply = attached.call("sensor", send, address, data)
    assert reply == data


def test_an_unmarked_connection_to_the_logger(attached: Lab, echo: None) -> None:
    _, reply = attached.call("sensor", send, LOGGER, b"unmarked", tos=0)
    assert reply == b"unmarked"


def test_a_direct_connection_is_not_rewritten(attached: Lab, echo: None) -> None:
    """On the sensor's wire, while connections through the hardworker are open at the same time."""
    replies, through, direct = attached.call("sensor", watch_both_kinds, 5)
    assert {port: replies[port] for port in through} == {port: {HARDWORKER} for port in through}
    assert {port: replies[port] for port in direct} == {port: {LOGGER} for port in direct}


def test_a_port_changes_its_way(attached: Lab, echo: None) -> None:
    """One port of the sensor through the hardworker and directly, in turn, while old connections linger."""
    started = time.monotonic()
    for address in (HARDWORKER, LOGGER, HARDWORKER, LOGGER, LOGGER, HARDWORKER, HARDWORKER):
        assert attached.call("sensor", send, address, b"hello", source=40100) == (40100, b"hello"), address
    assert time.monotonic() - started < 1, "a SYN was lost and sent again after a second"


@pytest.mark.parametrize("address", [HARDWORKER, LOGGER])
def test_a_reset_reaches_the_client(attached: Lab, echo: None, address: str) -> None:
    with pytest.raises(ConnectionResetError):
        attached.call("sensor", say_goodbye, address)


@pytest.mark.parametrize("address", [HARDWORKER, LOGGER])
def test_a_refusal_reaches_the_client(attached: Lab, address: str) -> None:
    """Nobody listens on the logger."""
    with pytest.raises(ConnectionRefusedError):
        attached.call("sensor", send, address, b"hello")


def serve_echo(listens: int, stop: int) -> None:
    """Send back what comes, until something comes on `stop`."""
    with socket.create_server((LOGGER, PORT), backlog=100) as server:
        os.write(listens, b".")
        while stop not in select.select([server.fileno(), stop], [], [])[0]:
            connection, _ = server.accept()
            threading.Thread(target=_echo, args=[connection], daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(1 << 16):
            if data == GOODBYE:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            connection.sendall(data)


def say_goodbye(address: str) -> None:
    with socket.socket() as client:
        client.settimeout(10)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
        client.connect((address, PORT))
        client.sendall(GOODBYE)
        client.recv(1)


def watch_both_kinds(number: int) -> tuple[dict[int, set[str]], list[int], list[int]]:
    """Connections of both kinds at once, in which something is said: the source addresses of what came, by
    the port that it came to, and the ports of the connections through the hardworker and of the others."""
    ready = threading.Barrier(2 * number)

    def talk(address: str) -> int:
        with socket.socket() as client:
            client.settimeout(10)
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
            client.connect((address, PORT))
            ready.wait(10)
            for word in (b"one", b"two", b"three"):
                client.sendall(word)
                assert client.recv(100) == word
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
            return int(client.getsockname()[1])

    with Listener("eth0") as listener:
        with ThreadPoolExecutor(2 * number) as pool:
            ports = [*pool.map(talk, [HARDWORKER, LOGGER] * number)]
        sources = defaultdict(set)
        while sighting := listener.next(0):
            if sighting.direction == "in":
                packet = Packet.parse(sighting.frame)
                sources[packet.tcp.destination_port].add(str(packet.ip.source))
    return dict(sources), ports[::2], ports[1::2]
