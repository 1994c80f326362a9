"""The self-test's program, which turns a ping's reply into another ping, and the one that does nothing."""

import struct
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.program.bench import TOPOLOGY, XDP_PASS, XDP_TX

from midstream.ebpf import compiler, libbpf, selftest
from midstream.packet import Ethernet, IPv4, checksum

IDENTIFIER = 0xBEAD
HARDWORKER, LOGGER = TOPOLOGY.hardworker, TOPOLOGY.logger
REPLY, REQUEST, ICMP = 0, 8, 1


@pytest.fixture(scope="module")
def program() -> Iterator[int]:
    with closing(selftest.program(TOPOLOGY, IDENTIFIER)) as loaded:
        yield loaded.program_fd("midstream_selftest")


def ping(
    kind: int = REPLY,
    sequence: int = 1,
    identifier: int = IDENTIFIER,
    *,
    data: bytes = b"",
    back: bool = False,
    protocol: int = ICMP,
    ethertype: int = 0x0800,
    options: bytes = b"",
    ttl: int = 64,
) -> bytes:
    """A ping from the logger to the hardworker, or back."""
    sender, receiver = (HARDWORKER, LOGGER) if back else (LOGGER, HARDWORKER)
    body = struct.pack("!HH", identifier, sequence) + data
    check = checksum(struct.pack("!BBH", kind, 0, 0) + body)
    length = 20 + len(options) + 4 + len(body)
    ip = IPv4(sender.ip, receiver.ip, length, protocol=protocol, options=options, ttl=ttl)
    head = struct.pack("!BBH", kind, 0, check)
    ethernet = Ethernet(receiver.mac_bytes, sender.mac_bytes, ethertype)
    header = bytearray(ip.pack())
    header[10:12] = ip.computed_checksum().to_bytes(2)
    return ethernet.pack() + bytes(header) + head + body


def test_a_reply_becomes_a_request(program: int) -> None:
    verdict, output, _ = libbpf.prog_test_run(program, ping())
    assert (verdict, output) == (XDP_TX, ping(REQUEST, 2, back=True))


@settings(max_examples=200)
@given(data=st.binary(max_size=64), ttl=st.integers(1, 255))
def test_checksums(program: int, data: bytes, ttl: int) -> None:
    """The reflected ping is the one that its peer would compute from scratch."""
    verdict, output, _ = libbpf.prog_test_run(program, ping(data=data, ttl=ttl))
    assert (verdict, output) == (XDP_TX, ping(REQUEST, 2, data=data, ttl=ttl, back=True))


def test_every_identifier() -> None:
    for identifier in (0, 1, 0xFF00, 0x00FF, 0xFFFF):
        with closing(selftest.program(TOPOLOGY, identifier)) as loaded:
            fd = loaded.program_fd("midstream_selftest")
            assert libbpf.prog_test_run(fd, ping(identifier=identifier))[0] == XDP_TX
            assert libbpf.prog_test_run(fd, ping(identifier=identifier ^ 0x0100))[0] == XDP_PASS


@pytest.mark.parametrize(
    "frame",
    [
        ping(REQUEST),
        ping(3),
        ping(sequence=0),
        ping(sequence=2),
        ping(sequence=0x0100),
        ping(identifier=0xADBE),
        ping(identifier=IDENTIFIER + 1),
        ping(protocol=6),
        ping(protocol=17),
        ping(ethertype=0x86DD),
        ping(options=b"\x01" * 4),
        *(ping()[:length] for length in range(14, 42)),
    ],
)
def test_everything_else_passes(program: int, frame: bytes) -> None:
    verdict, output, _ = libbpf.prog_test_run(program, frame)
    assert (verdict, output) == (XDP_PASS, frame)


def test_the_program_that_does_nothing() -> None:
    with libbpf.Object(compiler.compile_program("pass", TOPOLOGY)) as loaded:
        loaded.load()
        fd = loaded.program_fd("midstream_pass")
        for frame in (bytes(14), ping(), b"\xff" * 1514):
            verdict, output, _ = libbpf.prog_test_run(fd, frame)
            assert (verdict, output) == (XDP_PASS, frame)
