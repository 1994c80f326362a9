"""The lab's bad wire, frame by frame: what is hit, how often, what leaves, and what is counted.

A test run's packets arrive on `lo`, so `lo` is both ends of the leg here; copies really leave by it.
"""

import itertools
import mmap
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.program.bench import TOPOLOGY

from midstream import packet
from midstream.ebpf import compiler, libbpf
from midstream.lab.faults import COUNTERS, LEG, generator_key
from midstream.lab.hold import Hold
from midstream.lab.impairment import LabLeg
from midstream.packet import Packet

TC_ACT_UNSPEC, TC_ACT_SHOT = 0xFFFFFFFF, 2
LOOPBACK = 1
CERTAIN = 1 << 32
WORD = (1 << 64) - 1
MILLISECOND = 1_000_000
DROP, DUPLICATE, REORDER, CORRUPT, PLACE = range(5)  # enum draw
FRAME = packet.craft(TOPOLOGY, payload=bytes(range(100)))
BARE = packet.craft(TOPOLOGY)


class Wire:
    """The program with one leg, from lo to lo, and the ring of held frames."""

    def __init__(self, *, ring_size: int = 1 << 20) -> None:
        self._program = libbpf.Object(compiler.compile_program("impair", TOPOLOGY))
        self._program.set_max_entries("held", ring_size)
        self._program.load()
        number = LOOPBACK.to_bytes(4, "little")
        self.legs, self._leg = self._program.map_fd("legs"), number + number
        self.ring = self._program.map_fd("held")
        self._fd = self._program.program_fd("midstream_impair")
        libbpf.update(self._program.map_fd("ports"), TOPOLOGY.hardworker.mac_bytes, number)

    def close(self) -> None:
        self._program.close()

    def impair(self, **fields: int) -> None:
        """Set the leg anew; probabilities in units of 2^-32, times in nanoseconds."""
        value = np.zeros(1, LEG)
        for name, number in fields.items():
            value[name] = number
        libbpf.update(self.legs, self._leg, value.tobytes())

    def run(self, frame: bytes) -> tuple[int, bytes]:
        verdict, output, _ = libbpf.prog_test_run(self._fd, frame)
        return verdict, output

    def counters(self) -> dict[str, int]:
        value = libbpf.lookup(self.legs, self._leg, LEG.itemsize)
        assert value is not None
        (leg,) = np.frombuffer(value, LEG)
        return {name: int(leg[name]) for name in COUNTERS}

    def take_held(self) -> list[tuple[int, bytes]]:
        """Port and frame of all that is held, in the order in which it is due."""
        found: list[tuple[int, bytes]] = []
        hold = Hold(self.ring, lambda port, frame: found.append((port, frame)))
        hold.flush()
        hold.close()
        return found


class Copies:
    """The frames that leave by lo for the hardworker's MAC address."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self._socket.bind(("lo", 3))
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def take(self) -> list[bytes]:
        found: list[bytes] = []
        while True:
            try:
                frame, (_, _, kind, *_) = self._socket.recvfrom(1 << 16)
            except BlockingIOError:
                return found
            if kind == socket.PACKET_OUTGOING and frame[:6] == TOPOLOGY.hardworker.mac_bytes:
                found.append(frame)


@pytest.fixture(scope="module")
def session_wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


@pytest.fixture
def wire(session_wire: Wire) -> Iterator[Wire]:
    yield session_wire
    session_wire.take_held()


@pytest.fixture
def copies() -> Iterator[Copies]:
    found = Copies()
    yield found
    found.close()


# what is hit


@pytest.mark.parametrize("frame", [FRAME, BARE, packet.craft(TOPOLOGY, tos=0, port=22, peer_port=1)])
def test_every_tcp_frame_of_the_leg_is_hit(wire: Wire, frame: bytes) -> None:
    wire.impair(drop=CERTAIN)
    assert wire.run(frame)[0] == TC_ACT_SHOT
    assert wire.counters() == counted(frames=1, dropped=1)


def with_ip(**fields: Any) -> bytes:
    parsed = Packet.parse(FRAME)
    return replace(parsed, ip=replace(parsed.ip, **fields)).with_checksums().pack()


@pytest.mark.parametrize(
    "frame",
    [
        FRAME[:12] + b"\x08\x06" + FRAME[14:],
        FRAME[:12] + b"\x86\xdd" + FRAME[14:],
        FRAME[:12] + b"\x81\x00\x00\x07" + FRAME[12:],
        with_ip(protocol=1),
        with_ip(protocol=17),
        packet.craft(TOPOLOGY, leg=packet.Leg.RELAYED, payload=b"to another host"),
        b"\xff" * 6 + FRAME[6:],
        FRAME[:50],
    ],
    ids=["ARP", "IPv6", "VLAN", "ICMP", "UDP", "another host", "broadcast", "cut"],
)
def test_nothing_else_is_hit(wire: Wire, frame: bytes) -> None:
    wire.impair(drop=CERTAIN, duplicate=CERTAIN, corrupt=CERTAIN, delay=1)
    assert wire.run(frame) == (TC_ACT_UNSPEC, frame)
    assert wire.counters() == counted()


def test_a_good_leg_is_left_alone(wire: Wire, copies: Copies) -> None:
    wire.impair()
    for _ in range(1000):
        assert wire.run(FRAME) == (TC_ACT_UNSPEC, FRAME)
    assert wire.counters() == counted(frames=1000)
    assert (copies.take(), wire.take_held()) == ([], [])


def test_a_leg_that_is_not_impaired_is_left_alone(wire: Wire) -> None:
    wire.impair(drop=CERTAIN)
    libbpf.delete(wire.legs, LOOPBACK.to_bytes(4, "little") * 2)
    assert wire.run(FRAME) == (TC_ACT_UNSPEC, FRAME)


# which frames are hit


def test_each_frame_meets_what_the_model_says(wire: Wire, copies: Copies) -> None:
    """Verdict, bytes, copies, held frames and counters of 5,000 frames with all faults at once."""
    some = {name: round(p * CERTAIN) for name, p in ODDS.items()}
    wire.impair(key=KEY, hold=MILLISECOND, **some)
    expected: Counter[str] = Counter()
    twice, later = [], []
    for number in range(5000):
        frame = packet.craft(TOPOLOGY, seq=number, payload=number.to_bytes(4, "big") * (number % 7))
        faults = {name for name, p in some.items() if draw(KEY, number, PURPOSE[name]) % CERTAIN < p}
        verdict, output = wire.run(frame)
        expected["frames"] += 1
        if "drop" in faults:
            expected["dropped"] += 1
            assert (verdict, output) == (TC_ACT_SHOT, frame)
            continue
        left = corrupted(frame, draw(KEY, number, PLACE)) if "corrupt" in faults else frame
        assert (verdict, output) == (TC_ACT_SHOT if "reorder" in faults else TC_ACT_UNSPEC, left)
        expected["duplicated"] += "duplicate" in faults
        expected["corrupted"] += "corrupt" in faults
        expected["reordered"] += "reorder" in faults
        twice += [frame] if "duplicate" in faults else []
        later += [(LOOPBACK, left)] if "reorder" in faults else []
    assert wire.counters() == counted(**expected)
    assert copies.take() == twice
    assert wire.take_held() == later
    assert min(expected.values()) > 100


def test_the_same_key_hits_the_same_frames_again(wire: Wire) -> None:
    """Other frames, but the same numbers: setting the leg starts at 0 again."""
    runs = []
    for frame in (FRAME, BARE):
        wire.impair(key=KEY, drop=CERTAIN // 3)
        runs.append([wire.run(frame)[0] for _ in range(500)])
    assert runs[0] == runs[1]


@pytest.mark.slow
@pytest.mark.parametrize("probability", [0.001, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("fault", ["drop", "reorder", "corrupt"])
def test_rates(wire: Wire, fault: str, probability: float) -> None:
    """As often as a fair die would, within five standard deviations: one wrong alarm in a million."""
    total = 20_000
    wire.impair(key=KEY, hold=0, **{fault: round(probability * CERTAIN)})
    for _ in range(total):
        wire.run(FRAME)
    hit = wire.counters()[{"drop": "dropped", "reorder": "reordered", "corrupt": "corrupted"}[fault]]
    assert abs(hit - total * probability) < 5 * sqrt(total * probability * (1 - probability))


def test_faults_seeds_and_legs_are_independent() -> None:
    """Any two streams of draws agree on a fair coin half of the times, and each coin is fair."""
    legs = [LabLeg("sensor", "hardworker"), LabLeg("hardworker", "sensor"), LabLeg("sensor", "logger")]
    keys = [generator_key(leg, seed) for leg in legs for seed in (0, 1, 2, 1 << 63)]
    streams = [
        np.array([draw(key, number, purpose) % CERTAIN < CERTAIN // 2 for number in range(4000)])
        for key in keys
        for purpose in (DROP, DUPLICATE, REORDER, CORRUPT)
    ]
    assert len(set(keys)) == len(keys)
    bound = 5.5 * sqrt(4000) / 2
    assert all(abs(stream.sum() - 2000) < bound for stream in streams)
    for one, other in itertools.combinations(streams, 2):
        assert abs((one == other).sum() - 2000) < bound


# corruption


@pytest.mark.slow
def test_a_corrupt_frame_has_one_wrong_byte_and_a_wrong_checksum(wire: Wire) -> None:
    """Half of the times in the TCP header, else in the payload; every byte of both is hit."""
    wire.impair(key=KEY, corrupt=CERTAIN)
    places: Counter[int] = Counter()
    for _ in range(20_000):
        verdict, output = wire.run(FRAME)
        assert verdict == TC_ACT_UNSPEC
        (place,) = [i for i, (a, b) in enumerate(zip(FRAME, output, strict=True)) if a != b]
        places[place] += 1
        if place != 34 + 12:  # the data offset: then the frame is no TCP segment at all
            parsed = Packet.parse(output)
            assert not parsed.tcp.is_intact(parsed.ip, parsed.payload)
    assert set(places) == set(range(34, len(FRAME)))
    header = sum(places[place] for place in range(34, 54))
    assert abs(header - 10_000) < 5 * sqrt(20_000) / 2


def test_without_payload_the_header_is_hit(wire: Wire) -> None:
    wire.impair(key=KEY, corrupt=CERTAIN)
    places = set()
    for _ in range(1000):
        output = wire.run(BARE)[1]
        places |= {i for i, (a, b) in enumerate(zip(BARE, output, strict=True)) if a != b}
    assert places == set(range(34, 54))


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ip_options=st.integers(0, 10),
    tcp_options=st.integers(0, 10),
    payload=st.binary(max_size=60),
    trailer=st.binary(max_size=8),
    offset=st.none() | st.integers(0, 15),
    length=st.none() | st.integers(0, 65535),
)
def test_corruption_stays_in_the_segment(
    wire: Wire,
    ip_options: int,
    tcp_options: int,
    payload: bytes,
    trailer: bytes,
    offset: int | None,
    length: int | None,
) -> None:
    """Also where the header's lengths are nonsense: one byte, within the segment, or none."""
    frame = packet.craft(
        TOPOLOGY, payload=payload, ip_options=b"\x01" * 4 * ip_options, tcp_options=b"\x01" * 4 * tcp_options
    )
    changed = bytearray(frame + trailer)
    start, end = 34 + 4 * ip_options, len(frame)
    if offset is not None:
        changed[start + 12] = offset << 4
    if length is not None:
        changed[16:18] = length.to_bytes(2, "big")
        end = min(14 + length, len(changed))
    wire.impair(key=KEY, corrupt=CERTAIN)
    for _ in range(5):
        _, output = wire.run(bytes(changed))
        places = [i for i, (a, b) in enumerate(zip(changed, output, strict=True)) if a != b]
        assert len(places) == (start < end)
        assert all(start <= place < end for place in places)
    assert wire.counters()["corrupted"] == (5 if start < end else 0)


# copies and held frames


def test_the_copy_is_sound_though_the_frame_is_not(wire: Wire, copies: Copies) -> None:
    wire.impair(key=KEY, duplicate=CERTAIN, corrupt=CERTAIN)
    verdict, output = wire.run(FRAME)
    assert verdict == TC_ACT_UNSPEC
    assert output != FRAME
    assert copies.take() == [FRAME]


def test_a_delayed_frame_and_its_copy_are_both_held(wire: Wire, copies: Copies) -> None:
    wire.impair(key=KEY, duplicate=CERTAIN, delay=MILLISECOND)
    assert wire.run(FRAME)[0] == TC_ACT_SHOT
    assert wire.take_held() == [(LOOPBACK, FRAME)] * 2
    assert copies.take() == []
    assert wire.counters() == counted(frames=1, duplicated=1)


@pytest.mark.parametrize("size", [0, 1, 1459, 1460])
def test_held_frames_of_every_size_are_whole(wire: Wire, size: int) -> None:
    frame = packet.craft(TOPOLOGY, payload=random.Random(size).randbytes(size))
    wire.impair(delay=MILLISECOND)
    wire.run(frame)
    assert wire.take_held() == [(LOOPBACK, frame)]


def test_held_frames_are_sent_when_they_are_due(wire: Wire) -> None:
    sent: list[tuple[float, bytes]] = []
    hold = Hold(wire.ring, lambda _, frame: sent.append((time.monotonic(), frame)))
    stop, stopped = socket.socketpair()
    with stop, stopped:
        runner = threading.Thread(target=hold.run, args=(stop.fileno(),))
        runner.start()
        wire.impair(delay=200 * MILLISECOND)
        slow = time.monotonic()
        wire.run(FRAME)
        wire.impair(reorder=CERTAIN, delay=30 * MILLISECOND, hold=20 * MILLISECOND)
        quick = time.monotonic()
        wire.run(BARE)
        time.sleep(0.4)
        stopped.send(b"x")
        runner.join()
        hold.close()
    assert [frame for _, frame in sent] == [BARE, FRAME]
    assert 0.05 <= sent[0][0] - quick < 0.15
    assert 0.2 <= sent[1][0] - slow < 0.3


def test_what_nobody_takes_is_dropped_and_counted() -> None:
    wire, frames = Wire(ring_size=2 * mmap.PAGESIZE), mmap.PAGESIZE // 200
    wire.impair(delay=1)
    for _ in range(frames):
        assert wire.run(FRAME)[0] == TC_ACT_SHOT
    held = len(wire.take_held())
    assert 0 < held < frames
    assert wire.counters() == counted(frames=frames, overflowed=frames - held)
    wire.close()


def test_a_frame_longer_than_the_mtu_cannot_be_held(wire: Wire) -> None:
    frame = packet.craft(TOPOLOGY, payload=bytes(TOPOLOGY.mtu - 40 + 1))
    wire.impair(delay=1)
    assert wire.run(frame)[0] == TC_ACT_SHOT
    assert wire.take_held() == []
    assert wire.counters() == counted(frames=1, overflowed=1)


# the model


KEY = generator_key(LabLeg("sensor", "hardworker"), 7)
ODDS = {"drop": 0.1, "duplicate": 0.1, "reorder": 0.1, "corrupt": 0.1}
PURPOSE = {"drop": DROP, "duplicate": DUPLICATE, "reorder": REORDER, "corrupt": CORRUPT}


def draw(key: int, number: int, purpose: int) -> int:
    """SplitMix64's output for one frame and purpose."""
    x = (key + (number * 5 + purpose) * 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def corrupted(frame: bytes, random: int) -> bytes:
    """The frame, without options, with the byte changed that this draw chooses."""
    start, end = 34, len(frame)
    if end > 54:
        start, end = (54, end) if random & 1 else (34, 54)
    place = start + (random >> 32) % (end - start)
    mask = 1 + (random >> 16) % (1 << 16) % 255
    return frame[:place] + bytes([frame[place] ^ mask]) + frame[place + 1 :]


def counted(**some: int) -> dict[str, int]:
    return dict.fromkeys(COUNTERS, 0) | some
