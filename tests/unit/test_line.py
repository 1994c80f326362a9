"""The line between two hosts: only with the key, and only what was said, in its order."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream import page
from midstream.errors import NetworkError
from midstream.line import Line
from midstream.page import Row

KEY = b"k" * 32


class Pair:
    """Two ends of a line, with somebody in the middle who may change what passes, and sees it."""

    def __init__(self) -> None:
        self.client, self._inner = socket.socketpair()
        self._outer, self.server = socket.socketpair()
        self.change: Callable[[bytes], bytes] = bytes
        self.seen = self.asked = b""  # of both directions, and of the asking one
        ways = ((self._inner, self._outer), (self._outer, self._inner))
        self._threads = [threading.Thread(target=self._pass, args=way) for way in ways]
        for thread in self._threads:
            thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.seen += data
                self.asked += data if source is self._inner else b""
                sink.sendall(self.change(data))
            sink.shutdown(socket.SHUT_WR)

    def lines(self, other: bytes = KEY) -> tuple[Line, Line]:
        made: list[Line] = []

        def answer() -> None:
            with suppress(NetworkError):
                made.append(Line(self.server, other, asks=False))

        answering = threading.Thread(target=answer)
        answering.start()
        try:
            asking = Line(self.client, KEY, asks=True)
        finally:
            answering.join(10)
        return asking, made[0]

    def close(self) -> None:
        for end in (self.client, self.server):
            end.close()
        for thread in self._threads:
            thread.join(5)
        for end in (self._inner, self._outer):
            end.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def test_what_is_said_arrives(pair: Pair) -> None:
    asking, answering = pair.lines()
    for number in range(3):
        asking.send({"number": number}, [b"a", b"bc"])
        assert answering.receive() == ({"number": number}, memoryview(b"abc"))
        answering.send({"answer": number})
        assert asking.receive()[0] == {"answer": number}


def test_nobody_in_the_middle_can_read(pair: Pair) -> None:
    asking, answering = pair.lines()
    asking.send({"secret": "abracadabra"}, [b"open sesame"])
    assert answering.receive()[0] == {"secret": "abracadabra"}
    assert b"abracadabra" not in pair.seen
    assert b"sesame" not in pair.seen


def test_the_same_is_never_sealed_to_the_same(pair: Pair) -> None:
    asking, answering = pair.lines()
    sealed = set()
    for line, other in ((asking, answering), (answering, asking)) * 3:
        before = len(pair.seen)
        line.send({"same": 1})
        assert other.receive()[0] == {"same": 1}
        sealed.add(pair.seen[before:])
    assert len(sealed) == 6


def test_another_key_gets_nothing(pair: Pair) -> None:
    with pytest.raises(NetworkError, match="key"):
        pair.lines(b"x" * 32)


@pytest.mark.parametrize("place", [0, 3, 4, 20, -1])
def test_a_changed_bit_is_noticed(pair: Pair, place: int) -> None:
    """In the length as well, which is said in clear: the receiver waits for nothing then."""
    asking, answering = pair.lines()

    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[place] ^= 1
        return bytes(changed)

    pair.change = flip
    asking.send({"number": 1}, [bytes(100)])
    answering.until = time.monotonic() + 0.2
    with pytest.raises(NetworkError, match=r"changed on its way|lost: timed out"):
        answering.receive()


def test_a_repeated_message_is_noticed(pair: Pair) -> None:
    asking, answering = pair.lines()
    pair.change = lambda data: data + data
    asking.send({"number": 1})
    assert answering.receive()[0] == {"number": 1}
    with pytest.raises(NetworkError, match="changed on its way"):
        answering.receive()


def test_an_answer_is_not_taken_for_a_question(pair: Pair) -> None:
    """Who sends back what it was sent has not the key."""

    def reflect() -> None:
        with suppress(OSError):
            while data := pair.server.recv(1 << 16):
                pair.server.sendall(data)

    mirror = threading.Thread(target=reflect)
    mirror.start()
    with pytest.raises(NetworkError, match="another key"):
        Line(pair.client, KEY, asks=True)
    pair.client.close()
    mirror.join(5)


def test_what_was_recorded_opens_no_later_line() -> None:
    first = Pair()
    asking, answering = first.lines()
    asking.send({"number": 1})
    assert answering.receive()[0] == {"number": 1}
    first.close()
    ours, theirs = socket.socketpair()
    theirs.sendall(first.asked)
    with ours, theirs, pytest.raises(NetworkError, match="another key"):
        Line(ours, KEY, asks=False)


def test_a_message_that_is_longer_than_allowed_is_not_read(pair: Pair) -> None:
    asking, answering = pair.lines()
    asking.send({}, [bytes(2000)])
    with pytest.raises(NetworkError, match="does not speak this protocol"):
        answering.receive(1000)


@pytest.mark.parametrize("head", [[1], "text", None])
def test_what_is_no_object_is_no_message(pair: Pair, head: object) -> None:
    asking, answering = pair.lines()
    text = json.dumps(head).encode()
    asking._seal(len(text).to_bytes(4) + text)
    with pytest.raises(NetworkError, match="does not speak this protocol"):
        answering.receive()


def test_a_client_has_a_time_limit_as_a_whole() -> None:
    """However often it says something."""
    ours, theirs = socket.socketpair()

    def trickle() -> None:
        with suppress(OSError):
            for _ in range(200):
                theirs.sendall(b"x")
                time.sleep(0.02)

    thread = threading.Thread(target=trickle)
    thread.start()
    began = time.monotonic()
    with ours, pytest.raises(NetworkError, match="timed out"):
        Line(ours, KEY, asks=False, until=began + 0.2)
    assert time.monotonic() - began < 1
    theirs.close()
    thread.join()


ROWS = st.builds(
    Row,
    st.integers(0, 2**62),
    st.none() | st.integers(0, 2**62),
    st.integers(0, 2**62),
    st.none() | st.integers(0, 2**32 - 1),
    st.binary(max_size=50),
)


@given(st.lists(ROWS))
def test_a_page_is_unpacked_as_it_was_packed(rows: list[Row]) -> None:
    assert page.unpack(len(rows), memoryview(b"".join(page.pack(rows)))) == rows


@given(st.lists(ROWS), st.integers(-2, 1000), st.binary(max_size=60))
def test_a_page_that_is_none_is_refused(rows: list[Row], more: int, rest: bytes) -> None:
    data = b"".join(page.pack(rows)) + rest
    with suppress(NetworkError):
        assert sum(len(row.payload) for row in page.unpack(len(rows) + more, memoryview(data))) <= len(data)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_stranger_may_say_anything(first: bytes, second: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, closing(theirs):
        theirs.sendall(first + os.urandom(32) + second)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(NetworkError):
            Line(ours, KEY, asks=False)
