"""What a logger has committed, as its kernel tells it: real sockets, and a kernel that is made up."""

import json
import os
import socket
import struct
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest

from midstream.daemon.heartbeat import Told
from midstream.daemon.seal import Key
from midstream.daemon.sockets import FIND, LISTEN, MOST, NOTHING, LoggerWord, Seen, SocketDiag, Sockets
from midstream.logger.door import Door

HOME = "127.0.0.1"
ESTABLISHED = 1


@dataclass
class Connected:
    """A listener, and a connection to it."""

    listener: socket.socket
    client: socket.socket
    accepted: socket.socket

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def send(self, size: int) -> None:
        self.client.sendall(bytes(size))
        arrives(self.accepted, size)


@pytest.fixture
def connected() -> Iterator[Connected]:
    with socket.create_server((HOME, 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        with client, accepted:
            yield Connected(listener, client, accepted)


def arrives(accepted: socket.socket, size: int) -> None:
    deadline = time.monotonic() + 5
    while len(accepted.recv(size, socket.MSG_PEEK)) < size:
        assert time.monotonic() < deadline


def committed(sockets: Sockets) -> list[int]:
    return [each.committed for each in sockets.look().sockets]


def test_what_is_peeked_at_is_not_committed(connected: Connected) -> None:
    sockets = Sockets({connected.port})
    assert committed(sockets) == [0]
    connected.send(5000)
    assert committed(sockets) == [0]
    connected.accepted.recv_into(bytearray(3000), 3000, socket.MSG_TRUNC)
    assert committed(sockets) == [3000]
    (found,) = sockets.look().sockets
    assert (found.ip, found.port) == (IPv4Address(HOME), connected.client.getsockname()[1])


def test_the_end_of_a_stream_is_at_most_a_byte(connected: Connected) -> None:
    sockets = Sockets({connected.port})
    connected.send(100)
    connected.client.shutdown(socket.SHUT_WR)
    time.sleep(0.05)
    assert committed(sockets) == [0]
    connected.accepted.recv(100)
    assert committed(sockets)[0] in (100, 101), "a FIN counts, where it is behind all that was taken"


def test_before_it_is_accepted_it_is_there(connected: Connected) -> None:
    with socket.create_connection((HOME, connected.port)) as other:
        other.sendall(b"some")
        assert committed(Sockets({connected.port})) == [0, 0]


def test_a_run_ends_with_its_listener(connected: Connected) -> None:
    sockets = Sockets({connected.port})
    run = sockets.look().run
    assert run == sockets.look().run != ""
    connected.listener.close()
    assert sockets.look() == NOTHING
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind((HOME, connected.client.getpeername()[1]))
        again.listen()
        other = Sockets({connected.client.getpeername()[1]}).look()
        assert other.run not in (run, "")


def test_a_run_is_that_of_its_first_door() -> None:
    """A logger opens its doors one after the other, and closes them so: it is no other run meanwhile."""
    kernel = Made(0)
    kernel.sockets = {9: seen(9, LISTEN)}
    sockets = Sockets([12345, 12346], kernel, iter(range(10)).__next__)
    run = sockets.look().run
    kernel.sockets[3] = seen(3, LISTEN, port=12346)  # another CPU's keys
    assert sockets.look().run == run != ""
    del kernel.sockets[9]
    assert sockets.look() == NOTHING


def test_of_another_port_nothing_is_told(connected: Connected) -> None:
    with socket.create_server((HOME, 0)) as other:
        word = Sockets({other.getsockname()[1]}).look()
        assert (word.count, word.sockets) == (0, ())


class Made(SocketDiag):
    """Its sockets, and how they change between two looks."""

    def __init__(self, count: int) -> None:
        self.sockets = {0: seen(0, LISTEN)} | {key: seen(key, ESTABLISHED) for key in range(1, count + 1)}
        self.looks = 0

    def find(self, ports: Collection[int]) -> list[Seen]:
        return list(self.sockets.values())

    def look(self, names: Collection[bytes]) -> list[Seen]:
        self.looks += 1
        return [each for each in self.sockets.values() if each.name in names]


def seen(key: int, state: int, queued: int = 0, received: int = 0, room: int = 9, port: int = 12345) -> Seen:
    ip = IPv4Address(0x0A000000 + key).packed
    name = struct.pack("!HH16x4s12x4x", port, 40000 + key, ip) + struct.pack("=Q", key)
    return Seen(state, name, queued, received, room)


def test_what_arrives_between_two_counts_is_not_committed() -> None:
    """The kernel tells of a queue first, and of what has arrived later: here 100 bytes more."""
    kernel = Made(1)
    kernel.sockets[1] = seen(1, ESTABLISHED, queued=0, received=100)
    sockets = Sockets({12345}, kernel)
    look = kernel.look

    def later(names: Collection[bytes]) -> list[Seen]:
        kernel.sockets[1] = seen(1, ESTABLISHED, queued=100, received=200)
        return look(names)

    kernel.look = later  # type: ignore[method-assign]
    assert committed(sockets) == [0]


def test_of_many_all_are_told_in_turn() -> None:
    sockets = Sockets({12345}, Made(2 * MOST + 1))
    words = [sockets.look() for _ in range(4)]
    assert [len(word.sockets) for word in words] == [MOST, MOST, 1, MOST]
    assert {each.key for word in words[:3] for each in word.sockets} == set(range(1, 2 * MOST + 2))
    assert {word.count for word in words} == {2 * MOST + 1}


def test_new_ones_are_searched_for_now_and_then() -> None:
    now, kernel = [0.0], Made(1)
    sockets = Sockets({12345}, kernel, lambda: now[0])
    assert sockets.look().count == 1
    kernel.sockets[2] = seen(2, ESTABLISHED)
    assert sockets.look().count == 1
    now[0] = FIND
    assert sockets.look().count == 2


def test_a_door_that_lets_nobody_in() -> None:
    """The kernel tells it of a real one; the time is that of a made one."""
    door = Door((HOME, 0), 0, "this host", lambda _: True)
    door.open()
    with socket.socket(fileno=os.dup(door.fileno())) as same:
        sockets = Sockets({same.getsockname()[1]})
    sockets.look()
    assert sockets.deaf == 0
    door.rest()
    sockets.look()
    assert sockets.deaf > 0
    assert door.lets_in(0)
    sockets.look()
    assert sockets.deaf == 0
    door.close()
    sockets.look()
    assert sockets.deaf == 0, "nobody is there"
    now, kernel = [0.0], Made(0)
    sockets = Sockets({12345}, kernel, lambda: now[0])
    kernel.sockets[0] = seen(0, LISTEN, room=0)
    for now[0] in (1.0, 2.0):
        sockets.look()
        assert sockets.deaf == now[0]


def test_a_word_fits_into_a_packet() -> None:
    kernel = Made(MOST)
    for key in range(1, MOST + 1):
        kernel.sockets[key] = seen(key, ESTABLISHED, received=1 << 62)
    told = Told(True, 1.5, Sockets({12345}, kernel).look())
    answer = {"number": "f" * 16, "from": "255.255.255.255", "to": "255.255.255.255", **told.described()}
    assert len(Key(bytes(32)).seal("answer", json.dumps(answer).encode())) <= 1500 - 28
    assert Told.parse(json.loads(json.dumps(answer))) == told


def test_a_word_is_read_as_it_was_written() -> None:
    word = Sockets({12345}, Made(MOST)).look()
    assert LoggerWord.unpack(word.run, word.count, word.packed(), word.marked) == word
    (before, *_) = LoggerWord.unpack(word.run, word.count, word.packed()).sockets
    assert before == word.sockets[0]._replace(marked=0), "as a version says it that knows one port only"
    with pytest.raises(ValueError, match="whole number"):
        LoggerWord.unpack("", 1, word.packed()[1:])
