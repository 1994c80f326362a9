"""Forged packets, sent from another port of the switch while a sensor's connection lives: its stream stays
what it was, bit for bit, and the connection is not reset."""

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, IPOption_Timestamp
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from tests.lab.mortal import Before, equal, sha256, streaming
from tests.lab.triangle import (
    HARDWORKER,
    PINS,
    PORT,
    SENSOR,
    TOS,
    collect,
    counted,
    counters,
    logged,
    wait_until,
)

from midstream.ebpf import libbpf, pins
from midstream.ebpf.records import CONNECTION
from midstream.hardworker import Hardworker
from midstream.lab import Lab

SIZE = 1000
LAB = {"data": {"size": SIZE}}
UNKNOWN = "10.83.0.99"
SOURCE = 45_000  # the sensor's port, and up: each test has another
NONE, ONE_SENSOR = -1, 0  # whose counters


@dataclass(frozen=True)
class Live:
    """A connection as the hardworker's program knows it: what only somebody who sees the packets can know."""

    port: int
    next: int
    acknowledged: int


@dataclass(frozen=True)
class Leg:
    """Makes frames as the sensor would send them; what is named differs."""

    lab: Lab
    live: Live
    random: Random

    def frame(
        self, *, payload: bytes = b"", mac: str = "", ip: dict[str, Any] | None = None, **tcp: Any
    ) -> Packet:
        sensor, hardworker = self.lab.host("sensor"), self.lab.host("hardworker")
        fields: dict[str, Any] = {
            "sport": self.live.port,
            "dport": PORT,
            "seq": self.live.next,
            "flags": "A",
        } | tcp
        fields.setdefault("ack", self.live.acknowledged)
        fields |= {number: fields[number] % 2**32 for number in ("seq", "ack")}
        marked: dict[str, Any] = {"src": SENSOR, "dst": HARDWORKER, "tos": TOS} | (ip or {})
        return Ether(src=mac or sensor.mac, dst=hardworker.mac) / IP(**marked) / TCP(**fields) / Raw(payload)

    def blind(self, **fields: Any) -> Packet:
        """Of somebody who knows addresses and ports, and guesses the numbers."""
        numbers = {"seq": self.random.getrandbits(32), "ack": self.random.getrandbits(32)}
        return self.frame(**(numbers | fields))


LIE = b"lie" * 200
FORGED: dict[str, tuple[str, int, Callable[[Leg], Packet]]] = {
    # what it is: the outcome that counts it, whose, how it is made
    "wrong MAC": ("forged", NONE, lambda w: w.blind(mac=w.lab.host("sensor-2").mac, payload=LIE)),
    "wrong MAC, RST": ("forged", NONE, lambda w: w.frame(mac=w.lab.host("sensor-2").mac, flags="R")),
    "wrong MAC, new connection": (
        "forged",
        NONE,
        lambda w: w.blind(mac=w.lab.host("sensor-2").mac, flags="S", sport=w.random.randint(1024, 40_000)),
    ),
    "wrong IP": ("stranger", NONE, lambda w: w.frame(ip={"src": UNKNOWN}, payload=LIE)),
    "wrong IP, SYN": ("stranger", NONE, lambda w: w.blind(ip={"src": UNKNOWN}, flags="S")),
    "another sensor's IP": ("forged", NONE, lambda w: w.blind(ip={"src": "10.83.0.12"}, flags="S")),
    "blind SYN": ("syn_ignored", ONE_SENSOR, lambda w: w.blind(flags="S")),
    "blind RST": ("reset_ignored", ONE_SENSOR, lambda w: w.blind(flags="R")),
    "blind data": ("bad_ack", ONE_SENSOR, lambda w: w.blind(flags="PA", payload=LIE)),
    "blind FIN": ("bad_ack", ONE_SENSOR, lambda w: w.blind(flags="FA")),
    "data that acknowledges nonsense": (
        "bad_ack",
        ONE_SENSOR,
        lambda w: w.frame(ack=w.live.acknowledged + 2**31, payload=LIE),
    ),
    "no ACK flag": ("no_ack", ONE_SENSOR, lambda w: w.frame(flags="P", payload=LIE)),
    "bad TCP checksum": ("bad_checksum", ONE_SENSOR, lambda w: ahead(w, chksum=0xBAD)),
    "bad IP checksum": ("bad_checksum", ONE_SENSOR, lambda w: ahead(w, ip={"chksum": 0xBAD})),
    "first fragment": ("fragment", NONE, lambda w: w.frame(ip={"flags": "MF"}, payload=LIE)),
    "IP options": (
        "ip_options",
        NONE,
        lambda w: w.frame(ip={"options": [IPOption_Timestamp()]}, payload=LIE),
    ),
    "longer than the frame": ("bad_length", NONE, lambda w: w.frame(ip={"len": 1400}, payload=LIE)),
    "shorter than its header": ("bad_length", NONE, lambda w: w.frame(ip={"len": 30}, payload=LIE)),
    "TCP header too short": ("bad_length", NONE, lambda w: w.frame(dataofs=4, payload=LIE)),
    "SYN with data": ("syn_data", NONE, lambda w: w.blind(flags="S", payload=LIE)),
    "SYN and FIN": ("bad_flags", NONE, lambda w: w.blind(flags="SF")),
    "far ahead": ("out_of_window", ONE_SENSOR, lambda w: w.frame(seq=w.live.next + 2**24, payload=LIE)),
}


def ahead(wire: Leg, **fields: Any) -> Packet:
    """Numbers that fit, as of data behind a hole, also when the stream has gone on for up to a second."""
    return wire.frame(seq=wire.live.next + 500_000, payload=LIE, **fields)


def test_some_of_every_kind(triangle: Lab, tmp_path: Path) -> None:
    """The short form of what follows."""
    count = 20
    with unharmed(triangle, tmp_path, SOURCE + 98) as wire:
        for outcome, whose, make in FORGED.values():
            before, live = counters(), find(wire.live.port)
            assert live
            now = replace(wire, live=live)
            triangle.call("sensor-2", send_raw, [bytes(make(now)) for _ in range(count)])
            wait_until(partial(is_counted, before, whose, outcome, int(0.9 * count)), 5)


@pytest.mark.slow
@pytest.mark.parametrize("what", FORGED)
def test_forged(triangle: Lab, tmp_path: Path, what: str) -> None:
    outcome, whose, make = FORGED[what]
    count, before = 3000 if what.startswith("blind") else 200, counters()
    with unharmed(triangle, tmp_path, SOURCE + list(FORGED).index(what)) as wire:
        triangle.call("sensor-2", send_raw, [bytes(make(wire)) for _ in range(count)])
        wait_until(partial(is_counted, before, whose, outcome, int(0.9 * count)), 5)
    assert counted(before)[0]["opened"] == 1


@pytest.mark.slow
def test_forged_with_the_right_numbers_but_the_wrong_mac(triangle: Lab, tmp_path: Path) -> None:
    """Of somebody who sees the sensor's packets."""
    with unharmed(triangle, tmp_path, SOURCE + 99) as wire:
        mac = triangle.host("sensor-2").mac
        triangle.call("sensor-2", send_raw, [bytes(wire.frame(mac=mac, payload=LIE))])


@pytest.mark.slow
def test_later_fragments_meet_the_stack(triangle: Lab, tmp_path: Path) -> None:
    """They bear no ports, so nobody can say that they are midstream's; nothing puts them together."""
    with unharmed(triangle, tmp_path, SOURCE + 100) as wire:
        frames = [bytes(wire.frame(ip={"frag": 100}, payload=LIE)) for _ in range(200)]
        triangle.call("sensor-2", send_raw, frames)


@pytest.mark.slow
@pytest.mark.parametrize("count", [20_000, 500_000])
def test_mutated_packets(triangle: Lab, tmp_path: Path, count: int) -> None:
    """A packet of the sensor's with a few bytes of headers or payload changed, often cut or prolonged too."""
    before = counters()
    with unharmed(triangle, tmp_path, SOURCE + 101) as wire:
        template = bytes(wire.frame(flags="PA", payload=LIE))
        sent = triangle.call("sensor-2", send_mutated, template, count)
        wait_until(lambda: sum(sum(row.values()) for row in counted(before)) > 0.1 * sent)


@pytest.mark.slow
def test_a_silent_connection_and_blind_syns(triangle: Lab, tmp_path: Path, application: Hardworker) -> None:
    """The sensor says nothing for longer than SILENCE of the program; a SYN comes meanwhile whose
    number lies so that what the sensor sends next could belong to it."""
    before, first, second = Before(triangle), os.urandom(10 * SIZE), os.urandom(10 * SIZE)
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(triangle.call, "sensor", send_with_a_break, SOURCE + 102, first, second, 12.0)
        wait_until(lambda: (live := find(SOURCE + 102)) is not None and live.acknowledged != 0)
        time.sleep(11)
        live = find(SOURCE + 102)
        assert live
        wire = Leg(triangle, live, Random(1))
        syn = bytes(wire.frame(flags="S", seq=live.next - 2**20, ack=0))  # the lucky one of 256
        triangle.call("sensor-2", send_raw, [syn])
        assert collect(application, 1) == {(SENSOR, SOURCE + 102): first + second}
        sent.result()
    before.assert_no_connection_ended()


# helpers


@contextmanager
def unharmed(lab: Lab, folder: Path, port: int) -> Iterator[Leg]:
    """A sensor's connection from this port that sends a message every 2 ms meanwhile, and is judged then."""
    before = Before(lab)
    with Hardworker(lab.config) as leftovers:  # of a test that failed: they would fill the ring
        while len(leftovers.read()):
            pass
    with Hardworker(lab.config) as application, ThreadPoolExecutor(1) as pool:
        pieces = [lambda stop: equal(stop, port, SIZE)]
        collected = pool.submit(collect, application, 1)
        with streaming(lab, folder, *pieces, rate=500 * SIZE, source=port) as (sent,):
            # An acknowledgement is known since there was data: the connection lives.
            wait_until(lambda: (live := find(port)) is not None and live.acknowledged != 0)
            live = find(port)
            assert live
            yield Leg(lab, live, Random(port))
            time.sleep(0.1)
        found = collected.result()
    assert {peer: sha256(data) for peer, data in found.items()} == {(SENSOR, port): sent.result().digest}
    assert sha256(logged(lab.run_dir / "midstream.db", (SENSOR, port))) == sent.result().digest
    before.assert_no_connection_ended()


def is_counted(before: list[dict[str, int]], whose: int, outcome: str, count: int) -> bool:
    return counted(before)[whose].get(outcome, 0) >= count


def find(port: int) -> Live | None:
    """The open connection of the sensor from this port."""
    key = socket.inet_aton(SENSOR) + port.to_bytes(2, "big") + bytes(2)
    fd = pins.open_map(PINS / "hardworker", "connections", value_size=CONNECTION.itemsize)
    try:
        value = libbpf.lookup(fd, key, CONNECTION.itemsize)
    finally:
        os.close(fd)
    if value is None:
        return None
    held, first, acknowledged = struct.unpack_from("<Q16xII", value, 8)
    return Live(port, (first + held) % 2**32, acknowledged)


def send_raw(frames: list[bytes]) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        for number, frame in enumerate(frames):
            raw.send(frame)
            if number % 32 == 31:  # a veth end queues 256 frames, and what does not fit is lost
                time.sleep(0.002)


def send_mutated(template: bytes, count: int) -> int:
    """Up to 8 bytes behind the Ethernet header are changed; addresses and marks often survive.

    Of half a million frames some keep their checksums, and no TCP could tell them from the sensor's. They are
    left out.
    """
    random = Random(count)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        for _ in range(count):
            frame = bytearray(template)
            for _ in range(random.randint(1, 8)):
                frame[random.randrange(14, 60)] = random.getrandbits(8)
            if looks_intact(template, frame):
                continue
            if random.random() < 0.5:
                frame = (frame + random.randbytes(800))[: random.randint(14, 1500)]
            raw.send(frame)
    return count


def looks_intact(template: bytes, frame: bytearray) -> bool:
    """May both checksums still be right? Sums modulo 2^16 - 1 (RFC 1071) of IP's header and of the rest."""
    ip, rest = (
        sum((frame[i] - template[i]) << 8 * (i % 2 == 0) for i in part) % 0xFFFF
        for part in (range(14, 34), range(34, 60))
    )
    return not ip and (not rest or frame[14:34] != template[14:34])


def send_with_a_break(source: int, first: bytes, second: bytes, seconds: float) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("", source))
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
        client.connect((HARDWORKER, PORT))
        client.sendall(first)
        time.sleep(seconds)
        client.sendall(second)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
