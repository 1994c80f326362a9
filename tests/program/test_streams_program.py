"""Several streams: each packet gets to the program of its port, and to no other."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.program.bench import TOPOLOGY, XDP_PASS, Bench, load, sent_on
from tests.program.ring import Record

from midstream import packet
from midstream.ebpf import libbpf
from midstream.network import SensorStream, Topology
from midstream.packet import Flags, Leg

STREAMS = (
    SensorStream("imu", 12345, "fixed", 64),
    SensorStream("camera", 65535, "length", 1 << 20),
    SensorStream("gps", 1, "line", 200),
)
SEVERAL = replace(TOPOLOGY, streams=STREAMS)


class Streams:
    """The programs of three streams, behind the one that the interface gets."""

    def __init__(self) -> None:
        self.benches = [Bench(SEVERAL.only(stream)) for stream in STREAMS]
        self.program = load("streams", SEVERAL)
        self._fd = self.program.program_fd("midstream_streams")
        for bench in self.benches:
            fd = bench.program.program_fd("midstream_hardworker")
            port = bench.topology.port.to_bytes(2, "big") + bytes(2)
            libbpf.update(self.program.map_fd("ports"), port, fd.to_bytes(4, "little"))

    def close(self) -> None:
        self.program.close()
        for bench in self.benches:
            bench.close()

    def run(self, frame: bytes) -> tuple[int, bytes]:
        verdict, output, _ = libbpf.prog_test_run(self._fd, frame)
        return verdict, output

    def stored(self) -> list[list[Record]]:
        return [bench.ring.take() for bench in self.benches]


@pytest.fixture(scope="module")
def streams() -> Iterator[Streams]:
    with closing(Streams()) as loaded:
        yield loaded


def frame(topology: Topology, flags: Flags, seq: int, payload: bytes = b"", port: int = 40000) -> bytes:
    return packet.craft(topology, 0, flags, seq, 20, payload, peer_port=port)


def test_each_stream_has_its_connections(streams: Streams) -> None:
    """Of one sensor and from one port: the marked port alone tells them apart."""
    for place, bench in enumerate(streams.benches):
        opening, data = frame(bench.topology, Flags.SYN, 9), frame(bench.topology, Flags.ACK, 10, b"x" * 64)
        for each in (opening, data):
            assert streams.run(each) == sent_on(each, bench.topology, 0)
        found = streams.stored()
        assert [len(records) for records in found] == [2 * (place == other) for other in range(3)]
        assert [len(record.payload) for record in found[place]] == [0, 64]
    assert [bench.open_connections() for bench in streams.benches] == [1, 1, 1]


def test_another_port_passes(streams: Streams) -> None:
    for port in (12344, 12346, 0, 2):
        other = frame(replace(SEVERAL, port=port), Flags.SYN, 9)
        assert streams.run(other) == (XDP_PASS, other)


@pytest.mark.parametrize("length", range(14, 54))
def test_what_is_cut_passes(streams: Streams, length: int) -> None:
    cut = frame(SEVERAL.only(STREAMS[0]), Flags.SYN, 9)[:length]
    assert streams.run(cut) == (XDP_PASS, cut)


def test_options_are_seen_through(streams: Streams) -> None:
    """The port lies behind them; the stream's program refuses them, and counts that."""
    whole = frame(SEVERAL.only(STREAMS[0]), Flags.SYN, 9)
    options = whole[:14] + b"\x46" + whole[15:34] + b"\x01" * 4 + whole[34:]
    before = streams.benches[0].counters()
    verdict, _ = streams.run(options)
    (row,) = streams.benches[0].counters() - before
    assert (verdict, row[1]) == (1, "ip_options")


@settings(max_examples=300, deadline=None)
@given(noise=st.binary(min_size=14, max_size=200), place=st.integers(0, 2))
def test_as_the_streams_own_program_decides(streams: Streams, noise: bytes, place: int) -> None:
    """Whatever the frame is: what comes out is what the program of its port makes of it alone."""
    bench = streams.benches[place]
    whole = bytearray(frame(bench.topology, Flags.PSH, 1, b"y" * 20))
    whole[14 : 14 + len(noise) % 30] = noise[: len(noise) % 30]
    for each in (bytes(whole), noise.ljust(60, b"\0")):
        ihl = (each[14] & 15) * 4
        port = int.from_bytes(each[14 + ihl + 2 : 14 + ihl + 4])
        mine = next((other for other in streams.benches if other.topology.port == port), None)
        assert streams.run(each) == (mine.run(each) if mine else (XDP_PASS, each))
    streams.stored()


def test_thirty_two_streams_are_loaded() -> None:
    most = replace(SEVERAL, streams=tuple(replace(STREAMS[0], name=f"s{n}", port=100 + n) for n in range(32)))
    for name in ("streams", "logger", "sensor"):
        with closing(load(name, most)) as program:
            assert all(program.program_fd(entry) >= 0 for entry in program.program_names())


def test_a_logger_knows_all_ports() -> None:
    with closing(load("logger", SEVERAL)) as program:
        ingress, egress = (program.program_fd(f"midstream_logger_{way}") for way in ("ingress", "egress"))
        for stream in STREAMS:
            one = SEVERAL.only(stream)
            reply = packet.craft(one, 0, Flags.ACK, 20, 10, leg=Leg.REPLY, peer_port=40000)
            assert libbpf.prog_test_run(egress, reply)[1] == reply, "another stream's connection is another"
            came = packet.craft(one, 0, Flags.ACK, 10, 20, leg=Leg.RELAYED, peer_port=40000)
            libbpf.prog_test_run(ingress, came)
            assert libbpf.prog_test_run(egress, reply)[1] == packet.restore(reply, one)
        other = packet.craft(replace(SEVERAL, port=2), 0, Flags.ACK, 20, 10, leg=Leg.REPLY, peer_port=40000)
        assert libbpf.prog_test_run(egress, other)[1] == other
