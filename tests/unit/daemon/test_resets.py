"""The resets that a daemon sends."""

from ipaddress import IPv4Address

import pytest

from midstream.daemon.resets import segment
from midstream.ebpf.control import Open
from midstream.packet.headers import Flags, IPv4, Tcp


@pytest.mark.parametrize(
    ("acknowledged", "sequence", "acknowledgement", "flags"),
    [(77, 77, 0, Flags.RST), (None, 0, 1001, Flags.RST | Flags.ACK)],
)
def test_a_reset_bears_the_numbers_that_are_believed(
    acknowledged: int | None, sequence: int, acknowledgement: int, flags: Flags
) -> None:
    one = Open(
        IPv4Address("192.0.2.11"),
        4000,
        first=1001,
        acknowledged=acknowledged,
        next=0,
        number=1,
        sensor=0,
        destination=0,
        opened_ns=0,
        seen_ns=0,
    )
    found = segment(one, IPv4Address("192.0.2.2"), 12345)
    tcp = Tcp.parse(found)
    assert (tcp.source_port, tcp.destination_port, tcp.flags) == (12345, 4000, flags)
    assert (tcp.sequence, tcp.acknowledgment) == (sequence, acknowledgement)
    assert tcp.is_intact(IPv4(IPv4Address("192.0.2.2"), one.ip, 40), b"")
