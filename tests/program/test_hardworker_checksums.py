"""A wrong checksum, of IP or of TCP, changes nothing: a record's bytes are those that the sensor sent.

The ring is small, so every record lies where others lay before: what they left behind must not count.
"""

import mmap
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Literal

import pytest
from tests.program.bench import TOPOLOGY, Bench, Sensor

from midstream import packet
from midstream.ebpf import records
from midstream.packet import Flags, Packet

ACK, FIN, SYN, RST = Flags.ACK, Flags.FIN, Flags.SYN, Flags.RST
NOP = b"\x01"
LONGEST = TOPOLOGY.mtu - 40
LENGTHS = [
    1,
    2,
    3,
    4,
    5,
    31,
    32,
    33,
    63,
    64,
    65,
    127,
    128,
    129,
    511,
    512,
    513,
    1023,
    1024,
    1025,
    LONGEST - 1,
    LONGEST,
]
LAYERS: tuple[Literal["ip", "tcp"], ...] = ("ip", "tcp")

IP, TCP, OPTIONS = 14, 34, 54
# Header fields of which a wrong one changes nothing but the checksum: by their bytes in the frame.
UNREAD = {IP + 4, IP + 5, IP + 8, IP + 10, IP + 11, *range(TCP + 14, TCP + 20)}


@pytest.fixture(scope="module")
def small_bench() -> Iterator[Bench]:
    with closing(Bench(ring_size=mmap.PAGESIZE)) as bench:
        yield bench


@pytest.fixture
def sensor(small_bench: Bench) -> Sensor:
    connected = Sensor(small_bench, isn=2**32 - 3000)
    connected.open()
    return connected


def flipped(frame: bytes, position: int, bits: int) -> bytes:
    changed = bytearray(frame)
    changed[position] ^= bits
    return bytes(changed)


@pytest.mark.parametrize("bits", [0x01, 0x80, 0xFF])
@pytest.mark.parametrize("words", [0, 1, 3, 10])
def test_every_byte(sensor: Sensor, words: int, bits: int) -> None:
    """Whatever byte of a packet is hit: it is not stored, and where it is still ours, it is dropped."""
    sensor.store(0, b"in order")
    options = random.Random(words).randbytes(4 * words)
    frame = sensor.frame(ACK, 8, b"odd length!", tcp_options=options)
    for position in range(len(frame)):
        hit = flipped(frame, position, bits)
        if position in UNREAD or position >= OPTIONS:
            sensor.refused(hit, "bad_checksum")
            continue
        before = sensor.state
        sensor.bench.run(hit)
        assert not sensor.bench.ring.take(), position
        assert sensor.state == before, position
    sensor.store(8, b"odd length!", tcp_options=options)


@pytest.mark.parametrize("words", range(11))
def test_options_and_lengths(sensor: Sensor, words: int) -> None:
    """Right checksums are found right, and wrong ones wrong, in every class of records."""
    numbers = random.Random(words)
    position = 0
    for length in LENGTHS:
        payload, options = numbers.randbytes(length), numbers.randbytes(4 * words)
        frame = sensor.frame(ACK, position, payload, tcp_options=options)
        start = len(frame) - length
        places = {TCP + 16, start, start + length // 2, len(frame) - 1, numbers.randrange(start, len(frame))}
        if words:
            places |= {OPTIONS, start - 1, numbers.randrange(OPTIONS, start)}
        for place in places:
            sensor.refused(flipped(frame, place, 1 << numbers.randrange(8)), "bad_checksum")
        for layer in LAYERS:
            sensor.refused(packet.corrupt(frame, layer), "bad_checksum")
        sensor.expect(frame + numbers.randbytes(length % 7), "stored", sensor.record(position, payload))
        position += length


@pytest.mark.parametrize(
    "payload", [bytes(1460), b"\xff" * 1460, b"\xff" * 1459, b"\xff\x00" * 32, b"\x00\xff" * 256]
)
def test_sums_that_carry(sensor: Sensor, payload: bytes) -> None:
    for words in (0, 10):
        frame = sensor.frame(ACK, 0, payload, tcp_options=b"\xff" * 4 * words, window=0xFFFF)
        for layer in LAYERS:
            sensor.refused(packet.corrupt(frame, layer), "bad_checksum")
    sensor.expect(frame, "stored", sensor.record(0, payload))


@pytest.mark.parametrize("size", [1, 7, 8, 65, 100, 255, 512, 1021, LONGEST])
def test_messages_of_every_size(size: int) -> None:
    """Payloads of the size that const.toml tells are copied by code that is made for them."""
    numbers = random.Random(size)
    with closing(Bench(replace(TOPOLOGY, size=size), ring_size=mmap.PAGESIZE)) as bench:
        sensor = Sensor(bench, isn=2**32 - 3000)
        sensor.open()
        for turn, payload in enumerate((b"\xff" * size, bytes(size), *map(numbers.randbytes, [size] * 8))):
            options = numbers.randbytes(4 * (turn % 11))
            frame = sensor.frame(ACK, turn * size, payload, tcp_options=options)
            for place in {0, size // 2, *range(max(0, size - 9), size)}:
                hit = flipped(frame, len(frame) - size + place, 1 << numbers.randrange(8))
                sensor.refused(hit, "bad_checksum")
            sensor.expect(frame + b"padding", "stored", sensor.record(turn * size, payload))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("form", [0x0000, 0xFFFF])
def test_both_forms_of_zero(sensor: Sensor, layer: str, form: int) -> None:
    """A sum of ones' complements has two zeros (RFC 1071), and a receiver takes either."""
    p = Packet.parse(sensor.frame(ACK, 0, b"1234"))
    if layer == "ip":
        p = replace(p, ip=replace(p.ip, identification=fitting(p.ip.checksum, p.ip.identification)))
        assert p.with_checksums().ip.checksum == 0
        p = replace(p, ip=replace(p.ip, checksum=form))
    else:
        p = replace(p, tcp=replace(p.tcp, urgent=fitting(p.tcp.checksum, p.tcp.urgent)))
        assert p.with_checksums().tcp.checksum == 0
        p = replace(p, tcp=replace(p.tcp, checksum=form))
    for wrong in LAYERS:
        sensor.refused(packet.corrupt(p.pack(), wrong), "bad_checksum")
    sensor.expect(p.pack(), "stored", sensor.record(0, b"1234"))


def fitting(checksum: int, word: int) -> int:
    """The value of a 16-bit word with which the checksum becomes 0."""
    return ~packet.checksum(checksum.to_bytes(2) + word.to_bytes(2)) & 0xFFFF


@pytest.mark.parametrize("layer", LAYERS)
def test_what_has_no_data(sensor: Sensor, layer: Literal["ip", "tcp"]) -> None:
    """SYN, FIN, RST and acknowledgements with a wrong checksum move nothing."""
    sensor.store(0, b"data")
    sensor.change(seen=5)
    for flags, position, ack, outcome in (
        (ACK | FIN, 4, 77, "bad_checksum"),
        (ACK | FIN, 10, 77, "bad_checksum"),
        (ACK | FIN, 0, 77, "bad_checksum"),
        (RST, 4, 77, "reset_ignored"),
        (RST | ACK, 4, 77, "reset_ignored"),
        (SYN, 500, 0, "bad_checksum"),
        (SYN, -1, 0, "bad_checksum"),
        (ACK, 4, 78, "pure_ack"),
    ):
        sensor.refused(packet.corrupt(sensor.frame(flags, position, ack=ack), layer), outcome)
    sensor.expect(sensor.frame(RST, 4), "reset", sensor.record(4, b"", records.RESET))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_syn_opens_nothing(small_bench: Bench, layer: Literal["ip", "tcp"]) -> None:
    sensor = Sensor(small_bench)
    last, opened = small_bench.last_number(), small_bench.share(0)["open"]
    for words in range(11):
        syn = sensor.frame(SYN, -1, tcp_options=NOP * 4 * words)
        sensor.expect(packet.corrupt(syn, layer), "bad_checksum")
        for place in range(TCP + 20, len(syn)):
            sensor.expect(flipped(syn, place, 0x10), "bad_checksum")
    assert small_bench.connection(0, sensor.port) is None
    assert (small_bench.last_number(), small_bench.share(0)["open"]) == (last, opened)
    sensor.open()


@pytest.mark.parametrize("layer", LAYERS)
def test_what_brings_nothing_new_goes_on(sensor: Sensor, layer: Literal["ip", "tcp"]) -> None:
    """Nothing of it is stored, so it need not be verified; wrong it stays, and the logger refuses it."""
    sensor.store(0, b"data")
    sensor.refused(packet.corrupt(sensor.frame(ACK, 0, b"data"), layer), "duplicate")
    sensor.expect(sensor.frame(ACK | FIN, 4), "stored", sensor.record(4, b"", records.FIN))
    sensor.expect(packet.corrupt(sensor.frame(ACK | FIN, 0, b"data"), layer), "duplicate")


@pytest.mark.parametrize("layer", LAYERS)
def test_not_verified(layer: Literal["ip", "tcp"]) -> None:
    """config.toml may leave it to the network card: what comes is then believed."""
    with closing(Bench(check=False)) as bench:
        sensor = Sensor(bench)
        sensor.number = 1
        syn = packet.corrupt(sensor.frame(SYN, -1), layer)
        sensor.expect(syn, "opened", sensor.record(0, b"", records.OPEN))
        position = 0
        for length in LENGTHS:
            payload = random.Random(length).randbytes(length)
            frame = packet.corrupt(sensor.frame(ACK, position, payload, tcp_options=NOP * 8), layer)
            sensor.expect(frame, "stored", sensor.record(position, payload))
            position += length
        early = packet.corrupt(sensor.frame(ACK, position + 10, b"early"), layer)
        sensor.expect(early, "out_of_order", sensor.record(position + 10, b"early"))
        rst = packet.corrupt(sensor.frame(RST, position), layer)
        sensor.expect(rst, "reset", sensor.record(position, b"", records.RESET))
