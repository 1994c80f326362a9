"""The hardworker's program, frame by frame: what is ours, what is refused, what passes.

Each case changes one thing of a data packet that is next in its stream, so that it would be stored if the
change went unnoticed. What a connection makes of a sequence of sound packets is in test_hardworker_streams.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from tests.program.bench import TOPOLOGY, UNMARKED, Bench, Sensor

from midstream import packet
from midstream.ebpf import records
from midstream.packet import Flags, Packet

ACK, FIN, SYN, RST, PSH, URG = Flags.ACK, Flags.FIN, Flags.SYN, Flags.RST, Flags.PSH, Flags.URG
ECE, CWR = Flags.ECE, Flags.CWR
PAYLOAD = bytes(range(100))
LONGEST = TOPOLOGY.mtu - 40


def ethernet(**fields: Any) -> Callable[[Packet], bytes]:
    return lambda p: replace(p, ethernet=replace(p.ethernet, **fields)).pack()


def ip(**fields: Any) -> Callable[[Packet], bytes]:
    return lambda p: replace(p, ip=replace(p.ip, **fields)).with_checksums().pack()


def tcp(**fields: Any) -> Callable[[Packet], bytes]:
    return lambda p: replace(p, tcp=replace(p.tcp, **fields)).with_checksums().pack()


def options(
    ip_options: bytes = b"", tcp_options: bytes = b"", **tcp_fields: Any
) -> Callable[[Packet], bytes]:
    """The packet with options, and longer by them."""

    def change(p: Packet) -> bytes:
        length = p.ip.length + len(ip_options) + len(tcp_options)
        changed = replace(
            p,
            ip=replace(p.ip, length=length, options=ip_options),
            tcp=replace(p.tcp, options=tcp_options, **tcp_fields),
        )
        return changed.with_checksums().pack()

    return change


def payload(size: int, flags: Flags = ACK) -> Callable[[Packet], bytes]:
    """The packet with another payload."""

    def change(p: Packet) -> bytes:
        changed = replace(
            p, payload=bytes(size), ip=replace(p.ip, length=40 + size), tcp=replace(p.tcp, flags=flags)
        )
        return changed.with_checksums().pack()

    return change


def without_most(p: Packet) -> Packet:
    """With a byte less than the longest TCP header would take."""
    return Packet.parse(payload(39)(p))


def byte(position: int, value: int) -> Callable[[Packet], bytes]:
    """One byte of the frame, whatever becomes of the checksums."""
    return lambda p: p.pack()[:position] + bytes([value]) + p.pack()[position + 1 :]


def cut(length: int) -> Callable[[Packet], bytes]:
    return lambda p: p.pack()[:length]


def inserted(position: int, extra: bytes) -> Callable[[Packet], bytes]:
    return lambda p: p.pack()[:position] + extra + p.pack()[position:]


def fragment(offset: int, more: bool, ip_options: bytes = b"") -> Callable[[Packet], bytes]:
    return lambda p: ip(
        dont_fragment=False,
        more_fragments=more,
        fragment_offset=offset,
        options=ip_options,
        length=p.ip.length + len(ip_options),
    )(p)


def arp(p: Packet) -> bytes:
    """Who has the hardworker's address? (RFC 826)"""
    ips = p.ip.source.packed, p.ip.destination.packed
    body = bytes.fromhex("0001080006040001") + p.ethernet.source + ips[0] + bytes(6) + ips[1]
    return b"\xff" * 6 + p.ethernet.source + b"\x08\x06" + body + bytes(18)


def ipv6(p: Packet) -> bytes:
    """The same segment over IPv6 (RFC 8200)."""
    segment = p.tcp.pack() + p.payload
    head = bytes.fromhex("6a000000") + len(segment).to_bytes(2) + bytes([6, 64])
    addresses = bytes.fromhex("fd00" + "00" * 13 + "11") + bytes.fromhex("fd00" + "00" * 13 + "02")
    return p.ethernet.pack()[:12] + b"\x86\xdd" + head + addresses + segment


NOP = b"\x01"
HARDWORKER_MAC = TOPOLOGY.hardworker.mac_bytes
OTHER_MAC = bytes.fromhex("0200000000ee")

# What is left alone: description, change.
PASSES = {
    "another port": tcp(destination_port=12346),
    "the marked port as source": tcp(source_port=12345, destination_port=80),
    "the port with its bytes exchanged": tcp(destination_port=0x3930),
    "TOS 0": ip(tos=0),
    "TOS of another class": ip(tos=108),
    "TOS with a higher bit": ip(tos=104 | 0x80),
    "UDP": ip(protocol=17),
    "ICMP": ip(protocol=1),
    "to another IP": ip(destination=TOPOLOGY.logger.ip),
    "to a neighbouring IP": ip(destination=TOPOLOGY.hardworker.ip + 1),
    "to another MAC": ethernet(destination=OTHER_MAC),
    "to a MAC that differs in its first byte": ethernet(destination=b"\x06" + HARDWORKER_MAC[1:]),
    "to a MAC that differs in its fourth byte": ethernet(destination=HARDWORKER_MAC[:3] + b"\1\0\2"),
    "to a MAC that differs in its last byte": ethernet(destination=HARDWORKER_MAC[:5] + b"\x03"),
    "to every MAC": ethernet(destination=b"\xff" * 6),
    "IPv6": ipv6,
    "IPv4 under IPv6's EtherType": ethernet(ethertype=0x86DD),
    "ARP": arp,
    "an 802.3 length instead of an EtherType": ethernet(ethertype=0x0100),
    "a VLAN tag": inserted(12, bytes.fromhex("81000005")),
    "two VLAN tags": inserted(12, bytes.fromhex("88a8000581000006")),
    "IP version 6 under IPv4's EtherType": byte(14, 0x65),
    "an IP header of 16 bytes": byte(14, 0x44),
    "an IP header of 0 bytes": byte(14, 0x40),
    "options, another port": options(NOP * 4, destination_port=12346),
    "options, TCP's header cut off": lambda p: options(NOP * 40)(p)[: 14 + 60 + 19],
    "the last fragment": fragment(2, more=False),
    "a fragment between others": fragment(1, more=True),
    "the last fragment, at the highest offset": fragment(0x1FFF, more=False),
    "a later fragment with options": fragment(5, more=False, ip_options=NOP * 4),
}  # fmt: skip

# What is refused: description → change, outcome.
REFUSED = {
    "options": (options(NOP * 4), "ip_options"),
    "most options": (options(NOP * 40), "ip_options"),
    "options, the header just whole": (lambda p: options(NOP * 40)(p)[: 14 + 60 + 20], "ip_options"),
    "a source route": (options(bytes.fromhex("830b040a5300030a53000b01")), "ip_options"),
    "options in a first fragment": (fragment(0, more=True, ip_options=NOP * 8), "ip_options"),
    "the first fragment": (fragment(0, more=True), "fragment"),
    "TCP header of 16 bytes": (byte(46, 0x40), "bad_length"),
    "TCP header of 0 bytes": (byte(46, 0x00), "bad_length"),
    "TCP header longer than the packet": (lambda p: byte(46, 0xF0)(without_most(p)), "bad_length"),
    "total length of 0": (ip(length=0), "bad_length"),
    "total length without TCP's header": (ip(length=39), "bad_length"),
    "total length a byte more than the frame": (cut(14 + 139), "bad_length"),
    "total length far more than the frame": (ip(length=65535), "bad_length"),
    "a byte more than the MTU admits": (payload(LONGEST + 1), "oversized"),
    "two segments merged (LRO)": (payload(2 * 1024), "oversized"),
    "no flags": (tcp(flags=Flags(0)), "no_ack"),
    "data without ACK": (tcp(flags=PSH), "no_ack"),
    "data and FIN without ACK": (tcp(flags=PSH | FIN), "no_ack"),
    "FIN without ACK": (payload(0, FIN), "no_ack"),
    "SYN with data": (tcp(flags=SYN), "syn_data"),
    "SYN and ACK with data": (tcp(flags=SYN | ACK), "syn_data"),
    "SYN and FIN with data": (tcp(flags=SYN | FIN), "syn_data"),
    "SYN with one byte": (payload(1, SYN), "syn_data"),
    "SYN and ACK": (payload(0, SYN | ACK), "bad_flags"),
    "SYN and FIN": (payload(0, SYN | FIN), "bad_flags"),
    "SYN and RST": (payload(0, SYN | RST), "bad_flags"),
    "all flags": (payload(0, Flags(0xFF)), "bad_flags"),
    "from no sensor's IP": (ip(source=IPv4Address("10.83.0.12")), "stranger"),
    "from the IP between two sensors": (ip(source=IPv4Address("10.83.0.16")), "stranger"),
    "from the lowest IP": (ip(source=IPv4Address("0.0.0.1")), "stranger"),
    "from the highest IP": (ip(source=IPv4Address("255.255.255.254")), "stranger"),
    "from the hardworker's own IP": (ip(source=TOPOLOGY.hardworker.ip), "stranger"),
    "from no sensor's MAC": (ethernet(source=OTHER_MAC), "forged"),
    "from another sensor's MAC": (ethernet(source=TOPOLOGY.sensors[1].mac_bytes), "forged"),
    "from a MAC that differs in its last byte": (ethernet(source=bytes.fromhex("020000000020")), "forged"),
}  # fmt: skip

# What is stored all the same.
STORED = {
    "as it is": lambda p: p.pack(),
    "padded to Ethernet's least": lambda p: payload(5)(p) + bytes(1),
    "padded far beyond": lambda p: p.pack() + b"\xee" * 500,
    "congestion notification 01": ip(tos=104 | 1),
    "congestion notification 10": ip(tos=104 | 2),
    "congestion notification 11": ip(tos=104 | 3),
    "may be fragmented, but is not": ip(dont_fragment=False),
    "the reserved bit of IP": ip(reserved=True),
    "TTL 1": ip(ttl=1),
    "identification": ip(identification=0xBEEF),
    "flags PSH, URG, ECE and CWR": tcp(flags=ACK | PSH | URG | ECE | CWR, urgent=3),
    "TCP's reserved bits": tcp(reserved=0xF),
    "window 0": tcp(window=0),
    "timestamps": options(tcp_options=bytes.fromhex("0101080a0000000100000002")),
    "most TCP options": options(tcp_options=NOP * 40),
    "the longest payload": payload(LONGEST),
    "the longest payload, padded": lambda p: payload(LONGEST)(p) + bytes(4),
}  # fmt: skip


@pytest.fixture
def sensor(bench: Bench) -> Sensor:
    connected = Sensor(bench)
    connected.open()
    return connected


def goes_on(sensor: Sensor) -> None:
    """The connection is where it was: the next byte is still its first."""
    frame = sensor.frame(ACK, 0, PAYLOAD)
    sensor.expect(frame, "stored", sensor.record(0, PAYLOAD))


@pytest.mark.parametrize("change", PASSES.values(), ids=PASSES)
def test_passes(sensor: Sensor, change: Callable[[Packet], bytes]) -> None:
    frame = change(Packet.parse(sensor.frame(ACK, 0, PAYLOAD)))
    assert packet.judge(frame, TOPOLOGY).action == "pass"
    sensor.expect(frame, UNMARKED)
    goes_on(sensor)


@pytest.mark.parametrize(("change", "outcome"), REFUSED.values(), ids=REFUSED)
def test_refused(sensor: Sensor, change: Callable[[Packet], bytes], outcome: str) -> None:
    frame = change(Packet.parse(sensor.frame(ACK, 0, PAYLOAD)))
    assert packet.judge(frame, TOPOLOGY).action == ("drop" if outcome in records.DROPPED else "pass")
    sensor.expect(frame, outcome)
    goes_on(sensor)


@pytest.mark.parametrize("change", STORED.values(), ids=STORED)
def test_stored(sensor: Sensor, change: Callable[[Packet], bytes]) -> None:
    frame = change(Packet.parse(sensor.frame(ACK, 0, PAYLOAD)))
    assert packet.judge(frame, TOPOLOGY).action == "relay"
    sensor.expect(frame, "stored", sensor.record(0, Packet.parse(frame).payload))


@pytest.mark.parametrize("length", range(14, 61))  # the kernel runs no frame without an Ethernet header
def test_truncated(sensor: Sensor, length: int) -> None:
    """Below 54 bytes nothing shows whose the frame is; from there on its lengths give it away."""
    whole = sensor.frame(ACK, 0, PAYLOAD)
    assert packet.judge(whole[:length], TOPOLOGY).action == ("pass" if length < 54 else "drop")
    sensor.expect(whole[:length], UNMARKED if length < 54 else "bad_length")
    with_options = options(NOP * 8)(Packet.parse(whole))
    sensor.expect(with_options[:length], UNMARKED)
    goes_on(sensor)


@pytest.mark.parametrize("layer", ["ip", "tcp"])
def test_a_wrong_checksum_stays_wrong(sensor: Sensor, layer: Any) -> None:
    """Updated in place, and not computed anew: the logger must be able to see what happened on the way."""
    sensor.expect(packet.corrupt(sensor.frame(ACK, 0), layer), "pure_ack")


@dataclass(frozen=True)
class Unknown:
    """A packet of a connection that nobody opened."""

    flags: Flags
    size: int
    outcome: str


@pytest.mark.parametrize(
    "case",
    [
        Unknown(ACK, 0, "pure_ack"),
        Unknown(ACK | FIN, 0, "pure_ack"),
        Unknown(RST, 0, "pure_ack"),
        Unknown(RST | ACK, 0, "pure_ack"),
        Unknown(ACK, 1, "no_connection"),
        Unknown(ACK | PSH, LONGEST, "no_connection"),
        Unknown(ACK | FIN, 10, "no_connection"),
        Unknown(Flags(0), 10, "no_connection"),
        Unknown(RST, 10, "pure_ack"),
    ],
)
def test_unknown_connection(bench: Bench, case: Unknown) -> None:
    """Data is answered with a reset, which makes the sensor connect anew."""
    sensor = Sensor(bench)
    sensor.expect(sensor.frame(case.flags, 0, bytes(case.size)), case.outcome)
    assert bench.connection(0, sensor.port) is None


@pytest.mark.parametrize("flags", [SYN, SYN | ECE | CWR, SYN | PSH, SYN | URG])
@pytest.mark.parametrize("number", range(len(TOPOLOGY.sensors)))
def test_syn(bench: Bench, number: int, flags: Flags) -> None:
    sensor = Sensor(bench, sensor=number)
    sensor.number = bench.last_number() + 1
    syn = sensor.frame(flags, -1, tcp_options=bytes.fromhex("020405b40402080a000000010000000001030307"))
    assert packet.judge(syn, TOPOLOGY).action == "relay"
    sensor.expect(syn, "opened", sensor.record(0, b"", records.OPEN))
    goes_on(sensor)


def test_syn_from_strangers(bench: Bench) -> None:
    """Nothing is opened, and no number is spent."""
    sensor, last = Sensor(bench), bench.last_number()
    syn = Packet.parse(sensor.frame(SYN, -1))
    sensor.expect(ip(source=IPv4Address("10.83.0.12"))(syn), "stranger")
    for mac in (OTHER_MAC, TOPOLOGY.sensors[1].mac_bytes):
        sensor.expect(ethernet(source=mac)(syn), "forged")
    assert bench.last_number() == last
    sensor.open()


def test_a_connection_goes_on_with_another_network_card(bench: Bench) -> None:
    """It began with the old one's MAC address; the program now knows the new one's."""
    sensor = Sensor(bench)
    sensor.open()
    sensor.change(mac=OTHER_MAC)
    sensor.store(0, b"old and new")
    frame = sensor.frame(ACK, 11, b"the old one")
    sensor.expect(ethernet(source=OTHER_MAC)(Packet.parse(frame)), "forged")
    sensor.store(11, b"new")


def test_two_sensors_with_the_same_port(bench: Bench) -> None:
    """A connection is the sensor's address and port."""
    one = Sensor(bench, sensor=0, isn=5)
    two = Sensor(bench, sensor=1, isn=5, port=one.port)
    one.open()
    two.open()
    assert one.number != two.number
    for sensor in (two, one):
        sensor.expect(sensor.frame(ACK, 0, PAYLOAD), "stored", sensor.record(0, PAYLOAD))


@pytest.mark.parametrize("tos", [0, 3, 104, 108, 255])
def test_any_tos(tos: int) -> None:
    """A topology with tos = 0 marks by the port alone."""
    bench = Bench(replace(TOPOLOGY, tos=0))
    try:
        sensor = Sensor(bench)
        sensor.open()
        sensor.expect(sensor.frame(ACK, 0, PAYLOAD, tos=tos), "stored", sensor.record(0, PAYLOAD))
        sensor.expect(sensor.frame(ACK, 0, PAYLOAD, tos=tos, port=80), UNMARKED)
    finally:
        bench.close()
