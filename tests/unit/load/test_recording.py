"""A capture's messages and gaps: those that went in come out, or an error says why not."""

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.captures import (
    ACK,
    COOKED,
    COOKED_2,
    ETHERNET,
    FIN,
    LOOP,
    NULL,
    PSH,
    RAW,
    RST,
    SECOND,
    START,
    SYN,
    Frame,
    framed,
    packed,
    pcap,
    pcapng,
    tcp,
)

from midstream.errors import ConfigError
from midstream.load import Timing, read_timing

PORT = 12345
UDP = struct.pack("!BBHHHBBH8s", 0x45, 0, 28, 0, 0, 64, 17, 0, bytes(8)) + bytes(8)
ARP = bytes(12) + b"\x08\x06" + bytes(28)


@dataclass(frozen=True)
class Sent:
    """An IP packet on the wire, at a time. message: the flow and number of the one that it is of."""

    packet: bytes
    at: int
    message: tuple[str, int] | None = None


class Sensor:
    """A TCP sender: connections that come again, messages, and all that a wire does to them."""

    def __init__(self, number: int, random: random.Random, *, six: bool, zero_length: bool) -> None:
        self.random = random
        hosts = (f"fe80::{number + 1}", "fe80::99") if six else (f"10.0.0.{number + 1}", "10.0.0.99")
        self.port = 4000 + number
        self.hosts = hosts
        ends = [f"[{host}]" if six else host for host in hosts]
        self.flow = f"{ends[0]}:{self.port}>{ends[1]}:{PORT}"
        self.zero_length = zero_length
        self.sent: list[Sent] = []
        self.messages = 0
        self.at = START + random.randrange(SECOND)
        self.sequence = 0
        self.old: list[Sent] = []

    def _put(self, payload: bytes = b"", flags: int = ACK, back: int = 0, **more: bool) -> bytes:
        return tcp(self.sequence - back, payload, flags, ports=(self.port, PORT), hosts=self.hosts, **more)

    def _emit(self, packet: bytes, message: tuple[str, int] | None = None) -> None:
        self.at += self.random.randrange(1, 3_000_000)
        self.sent.append(Sent(packet, self.at, message))

    def open(self, *, with_syn: bool) -> None:
        self.sequence, self.old = self.random.randrange(1 << 32), []
        if with_syn:
            for _ in range(self.random.choice([1, 1, 2])):
                self._emit(self._put(flags=SYN))
        self.sequence += with_syn

    def close(self) -> None:
        if how := self.random.choice([0, FIN, RST]):
            self._emit(self._put(flags=how | ACK))
            self.sequence += how == FIN
            self._emit(self._put())  # the last acknowledgement

    def send(self) -> None:
        """A message, in segments, and what comes between them."""
        size, most = self.random.randrange(1, 5000), self.random.choice([100, 1448, 1 << 16])
        number = self.messages
        self.messages += 1
        segments = []
        for start in range(0, size, most):
            piece = bytes(min(most, size - start))
            is_last = start + most >= size
            zero = self.zero_length and most == 1 << 16
            packet = self._put(piece, ACK | (PSH if is_last else 0), zero_length=zero)
            segments.append(packet)
            self.sequence += len(piece)
        if self.random.random() < 0.3:
            self.random.shuffle(segments)
        for packet in segments:
            self._emit(packet, (self.flow, number))
            self.old.append(self.sent[-1])
            self._disturb()

    def _disturb(self) -> None:
        what = self.random.randrange(12)
        if what == 0:  # sent again
            self._emit(self.random.choice(self.old).packet)
        elif what == 1:  # captured twice
            self.sent.append(self.sent[-1])
        elif what == 2:
            self._emit(self._put())
        elif what == 3 and self.old:
            self._emit(tcp(1, ports=(PORT, self.port), hosts=self.hosts[::-1], flags=ACK))
        elif what == 4:
            self._emit(UDP)


def keepalive(sensor: Sensor, size: int) -> None:
    sensor._emit(sensor._put(bytes(size), back=1))


def sensors(seed: int, *, six: bool = False, zero_length: bool = False) -> list[Sensor]:
    chance = random.Random(seed)
    made = [Sensor(n, chance, six=six, zero_length=zero_length) for n in range(chance.randrange(1, 4))]
    for sensor in made:
        for turn in range(chance.randrange(1, 4)):
            sensor.open(with_syn=turn > 0 or chance.random() < 0.7)
            for _ in range(chance.randrange(1, 8)):
                sensor.send()
                if chance.random() < 0.2:
                    keepalive(sensor, chance.choice([0, 1]))
            sensor.close()
    return made


def on_wire(made: Sequence[Sensor]) -> list[Sent]:
    return sorted((sent for sensor in made for sent in sensor.sent), key=lambda sent: sent.at)


def oracle(sent: Sequence[Sent], unit: int) -> dict[str, list[int]]:
    """For each flow when each message began, in units of the capture's clock, from the first on."""
    begun: dict[tuple[str, int], int] = {}
    for one in sent:
        if one.message:
            begun.setdefault(one.message, one.at // unit * unit)
    first = min(begun.values())
    flows: dict[str, list[int]] = {}
    for (flow, _), at in begun.items():
        flows.setdefault(flow, []).append(at - first)
    return {flow: sorted(times) for flow, times in flows.items()}


def listed(timing: Timing) -> dict[str, list[int]]:
    return {flow: times.tolist() for flow, times in timing.flows.items()}


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "capture"
    path.write_bytes(data)
    return path


CHECKED = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
THOROUGH = settings(CHECKED, max_examples=2000)


def check_what_comes_out(
    tmp_path: Path,
    seed: int,
    link: int,
    tags: int,
    six: bool,
    zero: bool,
    cut: bool,
    write: Callable[..., bytes],
) -> None:
    sent = on_wire(sensors(seed, six=six, zero_length=zero))
    frames = []
    for one in sent:
        data = framed(one.packet, link, tags=tags if link in (ETHERNET, COOKED, COOKED_2) else 0)
        frames.append(Frame(data[: 96 if cut else None], one.at, len(data)))
    if link == ETHERNET:
        frames.insert(len(frames) // 2, Frame(ARP, frames[len(frames) // 2].time))
    timing = read_timing(written(tmp_path, write(frames, link)))
    assert listed(timing) == oracle(sent, 1000 if write is in_microseconds else 1)
    assert "bytes that the capture does not hold" not in timing.remarks


def in_microseconds(frames: Sequence[Frame], link: int) -> bytes:
    return pcap(frames, link, nano=False)


def in_big_endian(frames: Sequence[Frame], link: int) -> bytes:
    return packed(pcap(frames, link, order=">", check=0))


def in_pcapng(frames: Sequence[Frame], link: int) -> bytes:
    return pcapng(
        [replace(frame, interface=n % 2) for n, frame in enumerate(frames)], (link, link), offset=3600
    )


cases = (
    st.integers(0, 1 << 32),
    st.sampled_from([ETHERNET, COOKED, COOKED_2, RAW, NULL, LOOP]),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([in_microseconds, in_big_endian, in_pcapng]),
)


@CHECKED
@given(*cases)
def test_what_went_in_comes_out(
    tmp_path: Path,
    seed: int,
    link: int,
    tags: int,
    six: bool,
    zero: bool,
    cut: bool,
    write: Callable[..., bytes],
) -> None:
    check_what_comes_out(tmp_path, seed, link, tags, six, zero, cut, write)


@pytest.mark.slow
@THOROUGH
@given(*cases)
def test_what_went_in_comes_out_long(
    tmp_path: Path,
    seed: int,
    link: int,
    tags: int,
    six: bool,
    zero: bool,
    cut: bool,
    write: Callable[..., bytes],
) -> None:
    check_what_comes_out(tmp_path, seed, link, tags, six, zero, cut, write)


@CHECKED
@given(st.integers(0, 1 << 32), st.integers(10_000_001, 3600 * SECOND), st.data())
def test_a_clock_that_is_put_back_is_refused(
    tmp_path: Path, seed: int, step: int, draw: st.DataObject
) -> None:
    sent = on_wire(sensors(seed))
    at = draw.draw(st.integers(1, len(sent) - 1), label="packet")
    if step <= sent[at].at - sent[at - 1].at + 10_000_000:
        step += sent[at].at - sent[at - 1].at
    frames = [Frame(framed(s.packet, ETHERNET), s.at - step * (n >= at)) for n, s in enumerate(sent)]
    with pytest.raises(ConfigError, match=rf"packet {at + 1}: the clock was put back by .* NEW 1-{at}$"):
        read_timing(written(tmp_path, pcap(frames)))


def clocked(times: Sequence[int], ticks: Sequence[int]) -> bytes:
    """A connection whose sender's clock is in its segments (RFC 7323)."""
    frames = []
    for number, (time, tick) in enumerate(zip(times, ticks, strict=True)):
        packet = bytearray(tcp(1 + 3 * number, b"abc"))
        packet[40:52] = struct.pack("!BBBBII", 1, 1, 8, 10, tick % 2**32, 0)
        frames.append(Frame(framed(bytes(packet), ETHERNET), START + time))
    return pcap(frames)


@CHECKED
@given(
    st.sampled_from([100, 250, 1000]),
    st.integers(0, 2**32 - 1),
    st.integers(3 * SECOND, 60 * 366 * 86400 * SECOND),
    st.integers(15, 28),
)
def test_a_clock_that_is_put_forward_is_refused(
    tmp_path: Path, rate: int, first: int, step: int, at: int
) -> None:
    """As where a host without a battery learns the time: its peers' clocks did not move."""
    true = [n * SECOND // 10 for n in range(30)]
    ticks = [first + time * rate // SECOND for time in true]
    assert read_timing(written(tmp_path, clocked(true, ticks))).messages == 30
    moved = [time + step * (n >= at) for n, time in enumerate(true)]
    with pytest.raises(ConfigError, match=rf"packet {at + 1}: the clock was put forward by .* NEW 1-{at}$"):
        read_timing(written(tmp_path, clocked(moved, ticks)))


@CHECKED
@given(st.sampled_from([1, 100, 1000, 1_000_000]), st.integers(0, 2**32 - 1), st.integers(1, 86400))
def test_a_pause_is_a_pause(tmp_path: Path, rate: int, first: int, pause: int) -> None:
    true = [n * SECOND // 10 + (n >= 20) * pause * SECOND for n in range(30)]
    ticks = [first + time * rate // SECOND for time in true]
    assert read_timing(written(tmp_path, clocked(true, ticks))).messages == 30


@CHECKED
@given(st.integers(0, 1 << 32), st.data())
def test_what_the_capture_lost_is_counted(tmp_path: Path, seed: int, draw: st.DataObject) -> None:
    """A connection of whole messages; some were never captured. The others come out, the bytes are told."""
    chance = random.Random(seed)
    sizes = [chance.randrange(1, 1400) for _ in range(12)]
    lost = draw.draw(st.sets(st.integers(1, 10), max_size=8))
    frames, sequence = [Frame(framed(tcp(999, flags=SYN), ETHERNET), START)], 1000
    for number, size in enumerate(sizes):
        if number not in lost:
            frames.append(Frame(framed(tcp(sequence, bytes(size)), ETHERNET), START + number * SECOND))
        sequence += size
    timing = read_timing(written(tmp_path, pcap(frames)))
    assert listed(timing) == {
        "10.0.0.1:4000>10.0.0.2:12345": [n * SECOND for n in range(12) if n not in lost]
    }
    missing = sum(sizes[n] for n in lost)
    assert timing.remarks == ({"bytes that the capture does not hold": missing} if missing else {})


def simple(*packets: bytes, link: int = ETHERNET) -> bytes:
    return pcap([Frame(framed(packet, link), START + n * 1000) for n, packet in enumerate(packets)], link)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (
            simple(tcp(1, b"abc", ACK), tcp(4, b"abc", ACK)),
            "4000>10.0.0.2:12345: none of its 2 segments .* PSH",
        ),
        (simple(tcp(1, b"abc")[:-1] + b"d", link=127), "packet 1: link type 127, expected Ethernet"),
        (simple(tcp(1, b"abc"))[:-1], "ends within packet 1; was its capture interrupted"),
        (pcapng([Frame(framed(tcp(1, b"abc"), ETHERNET))], kind=3), "packet 1: no time"),
        (simple(UDP, tcp(1)), "no TCP segment with data .*; packets that are not TCP: 1$"),
        (
            simple(tcp(1, b"abc", ports=(1, 2))),
            "no TCP segment with data to TCP port 12345 .*; segments to other ports: 1$",
        ),
        (
            pcap([Frame(framed(tcp(1, b"abc"), ETHERNET)[:40], START, 69)]),
            "no TCP segment with data.* captured only in part, without their TCP header: 1$",
        ),
    ],
)
def test_what_cannot_be_replayed_says_why(tmp_path: Path, data: bytes, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_timing(written(tmp_path, data), PORT)


def test_fragments_and_contradictions_are_counted(tmp_path: Path) -> None:
    fragment = bytearray(tcp(1, b"abc"))
    fragment[6] = 0x20
    wrong = bytearray(tcp(4, b"abc"))
    wrong[2:4] = b"\x7f\xff"
    timing = read_timing(written(tmp_path, simple(bytes(fragment), bytes(wrong), tcp(1, b"abc", ACK))))
    assert timing.messages == 1
    assert timing.remarks == {
        "fragments of IP packets": 1,
        "packets whose lengths contradict each other": 1,
        "messages without their end": 1,
    }


def test_both_directions_are_flows_of_their_own(tmp_path: Path) -> None:
    back = tcp(70, b"reply", ports=(PORT, 4000), hosts=("10.0.0.2", "10.0.0.1"))
    timing = read_timing(written(tmp_path, simple(tcp(1, b"abc"), back, tcp(4, b"abc"), tcp(75, b"x"))))
    assert [len(times) for times in timing.flows.values()] == [3, 1]
    assert len(read_timing(tmp_path / "capture", PORT).flows) == 1


def test_cores_that_capture_together(tmp_path: Path) -> None:
    """Some microseconds back between packets are sorted, and told."""
    frames = [
        Frame(framed(tcp(n * 3, b"abc"), ETHERNET), START + n * 1000 - 4000 * (n % 5 == 4)) for n in range(10)
    ]
    timing = read_timing(written(tmp_path, pcap(frames)))
    assert timing.messages == 10
    assert timing.remarks == {"packets stamped before the one in front of them": 2}
