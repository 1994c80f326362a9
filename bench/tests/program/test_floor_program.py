"""The floor of the benchmark: every marked packet goes on as the hardworker's program would send it."""

from collections.abc import Iterator

import pytest
from tests.program.bench import TOPOLOGY, XDP_PASS, XDP_TX, assert_valid_as_before

from midstream import packet
from midstream.ebpf import libbpf
from midstream.packet import Flags
from midstream_bench.ebpf import compile_program


@pytest.fixture(scope="module")
def floor() -> Iterator[int]:
    with libbpf.Object(compile_program("floor", TOPOLOGY)) as program:
        program.load()
        yield program.program_fd("midstream_floor")


@pytest.mark.parametrize("flags", [Flags.SYN, Flags.ACK, Flags.ACK | Flags.FIN, Flags.RST])
@pytest.mark.parametrize("payload", [b"", b"x", bytes(1400)])
def test_a_marked_packet_is_sent_on(floor: int, flags: Flags, payload: bytes) -> None:
    frame = packet.craft(TOPOLOGY, 0, flags, 1000, payload=payload)
    verdict, output, _ = libbpf.prog_test_run(floor, frame)
    assert (verdict, output) == (XDP_TX, packet.rewrite(frame, TOPOLOGY))
    assert_valid_as_before(frame, output)


@pytest.mark.parametrize("field", ["tos", "protocol", "port", "destination"])
def test_any_other_passes_untouched(floor: int, field: str) -> None:
    frame = bytearray(packet.craft(TOPOLOGY, 0, Flags.ACK, 1000, payload=b"x"))
    frame[{"tos": 15, "protocol": 23, "port": 37, "destination": 33}[field]] ^= 0x10
    verdict, output, _ = libbpf.prog_test_run(floor, bytes(frame))
    assert (verdict, output) == (XDP_PASS, bytes(frame))
