"""What a capture file holds: pcap, pcapng, gzip; damage is told, and no byte string is a traceback."""

import struct
from collections.abc import Callable, Iterator
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.captures import (
    COOKED,
    COOKED_2,
    ETHERNET,
    IPV4_ALONE,
    LOOP,
    NULL,
    RAW,
    SECOND,
    START,
    Frame,
    framed,
    packed,
    pcap,
    pcapng,
    tcp,
)

from midstream.errors import ConfigError
from midstream.packet import Captured, carried, read_capture, read_frames

orders = st.sampled_from("<>")
frames = st.lists(
    st.builds(Frame, st.binary(max_size=90), st.integers(0, 10**6 * SECOND), st.none()), max_size=5
)


def read(data: bytes) -> list[Captured]:
    return list(read_capture(BytesIO(data), "x"))


@settings(max_examples=50)
@given(
    frames, orders, st.booleans(), st.sampled_from([0, 2, 4]), st.sampled_from([10, 1 << 16]), st.booleans()
)
def test_pcap(frames: list[Frame], order: str, nano: bool, check: int, snap: int, is_packed: bool) -> None:
    data = pcap(frames, 113, order=order, nano=nano, check=check, snap=snap)
    unit = 1 if nano else 1000
    assert read(packed(data) if is_packed else data) == [
        Captured(frame.data[:snap], len(frame.data), frame.time // unit * unit, 113) for frame in frames
    ]


@settings(max_examples=50)
@given(
    frames,
    orders,
    st.sampled_from([9, 6, 12, 3, 0x80 | 30, 0x80 | 10]),
    st.sampled_from([0, -7200, 1_700_000_000]),
    st.sampled_from([0, 4]),
    st.sampled_from([0, 10]),
    st.sampled_from([6, 2]),
)
def test_pcapng(
    frames: list[Frame], order: str, resolution: int, offset: int, check: int, snap: int, kind: int
) -> None:
    base = 2 if resolution & 0x80 else 10
    tick = -(-SECOND // base ** (resolution & 0x7F))
    frames = [Frame(f.data, f.time + max(offset, 0) * SECOND, None, n % 2) for n, f in enumerate(frames)]
    data = pcapng(
        frames,
        (ETHERNET, RAW),
        order=order,
        resolution=resolution,
        offset=offset,
        check=check,
        snap=snap,
        kind=kind,
    )
    found = read(data)
    assert [(c.data, c.length, c.link, c.interface) for c in found] == [
        (f.data[: snap or None], len(f.data), (ETHERNET, RAW)[f.interface], f.interface) for f in frames
    ]
    for captured, frame in zip(found, frames, strict=True):
        assert captured.time is not None
        assert 0 <= captured.time - frame.time < tick + (tick > 1)


def _read_all(reader: Callable[[BytesIO, str], Iterator[Captured]], data: bytes) -> tuple[list[bytes], str]:
    """What is there before the end or an error, and the error."""
    whole = []
    try:
        for captured in reader(BytesIO(data), "x"):
            assert len(captured.data) <= captured.length
            carried(captured.link, captured.data)
            whole.append(captured.data)
    except ConfigError as error:
        return whole, str(error)
    return whole, ""


def test_simple_packets_have_no_time() -> None:
    assert read(pcapng([Frame(b"abc")], kind=3)) == [Captured(b"abc", 3, None)]
    assert read(pcapng([Frame(b"abcdefgh")], kind=3, snap=5)) == [Captured(b"abcde", 8, None)]


def test_a_second_section_has_its_own_order_and_interfaces() -> None:
    first = pcapng([Frame(b"a", interface=1)], (ETHERNET, RAW))
    second = pcapng([Frame(b"b")], (COOKED,), order=">")
    assert [(c.data, c.link, c.interface) for c in read(first + second)] == [
        (b"a", RAW, 1),
        (b"b", COOKED, 2),
    ]


@pytest.mark.parametrize(
    "data", [pcap([Frame(b"abcd"), Frame(b"efgh")]), pcapng([Frame(b"abcd"), Frame(b"efgh")])]
)
def test_a_file_that_ends_too_soon(data: bytes) -> None:
    """All whole frames, then an error; without one only between two packets, where nobody can tell."""
    silent = 0
    for end in range(len(data)):
        whole, complaint = _read_all(read_capture, data[:end])
        assert whole == [b"abcd", b"efgh"][: len(whole)]
        assert complaint == "" or complaint.startswith("x: ")
        silent += not complaint
    assert 2 <= silent <= 6


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "no pcap or pcapng file"),
        (b"what", "no pcap or pcapng file"),
        (pcap([Frame(b"abc")])[:10], "ends within its header"),
        (
            pcap([Frame(b"abc")])[:-1],
            r"ends within packet 1; was its capture interrupted\? .*tcpdump -r x -w NEW",
        ),
        (pcap([]) + b"\xff" * 16, "damaged at packet 1: a length of 4294967295 bytes"),
        (pcapng([Frame(b"abc")], ()), "damaged at packet 1: a packet of an interface that was not described"),
        (pcapng([])[:-4] + bytes(4), "damaged at packet 1: a block whose two lengths differ"),
        (pcapng([]) + struct.pack("<II", 6, 13), "damaged at packet 1: a block of 13 bytes"),
        (pcapng([]) + struct.pack("<III", 6, 12, 12), "damaged at packet 1: .* too short for its kind"),
        (packed(pcap([Frame(b"abc")]))[:-9], "gzip"),
        (b"\x1f\x8b" + bytes(20), "gzip"),
    ],
)
def test_damage_is_told(data: bytes, complaint: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)^x: .*{complaint}"):
        read(data)


@settings(max_examples=50)
@given(st.sampled_from([b"", pcap([]), pcapng([]), b"\x1f\x8b\x08"]), st.binary(max_size=80), st.data())
def test_any_bytes_are_frames_or_an_error(start: bytes, data: bytes, draw: st.DataObject) -> None:
    whole = bytearray(draw.draw(st.sampled_from([pcap([Frame(b"abcd")]), pcapng([Frame(b"abcd")])])))
    whole[draw.draw(st.integers(0, len(whole) - 1))] ^= draw.draw(st.integers(1, 255))
    for damaged in (start + data, bytes(whole)):
        for reader in (read_capture, read_frames):
            _, complaint = _read_all(reader, damaged)
            assert complaint == "" or complaint.startswith("x: ")


@pytest.mark.parametrize("link", [ETHERNET, NULL, LOOP, COOKED, COOKED_2, RAW, 12, 14, IPV4_ALONE])
@pytest.mark.parametrize("order", ["<", ">"])
def test_what_every_link_type_carries(link: int, order: str) -> None:
    packet = tcp(1, b"data")
    for tags in range(3 if link in (ETHERNET, COOKED, COOKED_2) else 1):
        frame = framed(packet, link, tags=tags, order=order)
        found = carried(link, frame)
        assert found is not None and found.protocol == 0x0800 and frame[found.start :] == packet
        for end in range(len(frame) - len(packet)):
            short = carried(link, frame[:end])
            assert short is not None and (short.protocol == 0 or link == IPV4_ALONE)
    six = tcp(1, b"data", hosts=("fe80::1", "fe80::2"))
    if link != IPV4_ALONE:
        found = carried(link, framed(six, link, order=order))
        assert found is not None and found.protocol == 0x86DD
    assert carried(127, packet) is None


def test_times_are_exact() -> None:
    """A float of today's seconds is off by up to 128 ns."""
    times = [START + 1000 * n for n in range(50)]
    for data in (pcap([Frame(b"", t) for t in times]), pcapng([Frame(b"", t) for t in times])):
        assert [captured.time for captured in read(data)] == times
