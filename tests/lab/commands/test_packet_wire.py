"""Raw frames on a real pair of interfaces: what is sent is what is seen, and what cannot be is explained."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
from pyroute2 import IPRoute, netns  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream import packet
from midstream.errors import NetworkError
from midstream.packet import Listener, Sighting

T = TypeVar("T")
NAMESPACE = f"ms-test-packet-{os.getpid()}"
# Ethernet with an EtherType for experiments (IEEE 802): no stack answers it.
FRAME = bytes.fromhex("02000000000b02000000000a88b5") + bytes(range(50))


def _inside(function: Callable[[], T]) -> T:
    """`function()` by a thread in the test's network namespace; its sockets stay there."""

    def enter() -> T:
        netns.setns(NAMESPACE)
        return function()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(enter).result()


@pytest.fixture(autouse=True)
def pair() -> Iterator[None]:
    """Interfaces `one` and `two`, joined and up; `down` is not."""

    def build() -> None:
        with IPRoute() as ip:
            ip.link("add", ifname="one", kind="veth", peer={"ifname": "two"})
            ip.link("add", ifname="down", kind="veth", peer={"ifname": "down-peer"})
            for name in ("one", "two"):
                ip.link("set", index=ip.link_lookup(ifname=name)[0], state="up")

    netns.create(NAMESPACE)
    try:
        _inside(build)
        yield
    finally:
        netns.remove(NAMESPACE)


def _watch(listener: Listener, frame: bytes) -> Sighting:
    """The sighting of `frame`; the kernel's own IPv6 chatter is passed over."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        sighting = listener.next(0.5)
        if sighting and sighting.frame == frame:
            return sighting
    raise AssertionError("the frame was not seen")


def test_a_frame_is_seen_at_both_ends_unchanged() -> None:
    with _inside(lambda: Listener("one")) as one, _inside(lambda: Listener("two")) as two:
        before = time.time_ns()
        _inside(lambda: packet.send("one", FRAME))
        sent, received = _watch(one, FRAME), _watch(two, FRAME)
    assert (sent.direction, received.direction) == ("out", "in")
    assert before < received.time < time.time_ns()
    assert not received.checksum_pending


def test_a_vlan_tag_is_seen_as_it_was_sent() -> None:
    tagged = FRAME[:12] + b"\x81\x00\x00\x07" + FRAME[12:]
    with _inside(lambda: Listener("two")) as two:
        _inside(lambda: packet.send("one", tagged))
        assert _watch(two, tagged).frame == tagged


def test_a_checksum_left_to_the_card_is_told() -> None:
    """The kernel's own TCP leaves the checksum of what it sends to the (virtual) card."""

    def connect() -> None:
        with IPRoute() as ip:
            one = ip.link_lookup(ifname="one")[0]
            ip.addr("add", index=one, address="192.0.2.1", prefixlen=24)
            ip.neigh("add", index=one, dst="192.0.2.2", lladdr="02:00:00:00:00:02", state="permanent")
        with socket.socket() as client:
            client.setblocking(False)
            client.connect_ex(("192.0.2.2", 12345))

    with _inside(lambda: Listener("one")) as one:
        _inside(connect)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            sighting = one.next(0.5)
            if sighting and sighting.frame[12:14] == b"\x08\x00":
                break
        else:
            raise AssertionError("no SYN was seen")
    assert sighting.checksum_pending


def test_silence_ends_with_the_timeout() -> None:
    with _inside(lambda: Listener("two")) as two:
        while two.next(0.2):
            pass
        start = time.monotonic()
        while two.next(0.2):
            start = time.monotonic()
        assert 0.1 < time.monotonic() - start < 2
        assert two.next(0) is None


@pytest.mark.parametrize(
    ("interface", "frame", "advice"),
    [
        ("none", FRAME, "no such network interface"),
        ("down", FRAME, "ip link set dev down up"),
        ("one", FRAME + bytes(2000), "MTU"),
    ],
    ids=["missing", "down", "too long"],
)
def test_what_cannot_be_sent_is_explained(interface: str, frame: bytes, advice: str) -> None:
    with pytest.raises(NetworkError, match=advice):
        _inside(lambda: packet.send(interface, frame))


def test_nothing_is_left_open() -> None:
    descriptors = _open_files()
    with _inside(lambda: Listener("one")):
        pass
    with pytest.raises(NetworkError):
        _inside(lambda: Listener("none"))
    assert _open_files() == descriptors


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
