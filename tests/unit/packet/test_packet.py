"""Packets: checksum arithmetic, headers to the bit, the two rewritings, the verdicts; scapy is the oracle."""

import json
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils import wrpcap
from tests.support.captures import COOKED, COOKED_2, LOOP, NULL, RAW, Frame, framed, packed, pcap, pcapng
from typer.testing import CliRunner, Result

from midstream import network, packet
from midstream.cli.packet import app
from midstream.errors import ConfigError, KernelError, NetworkError
from midstream.network import Host, SensorStream, Topology
from midstream.packet import Ethernet, Flags, IPv4, Leg, Packet, Tcp

STREAM_PORTS = {"imu": 12345, "gps": 12349}
TOPOLOGY = Topology(
    sensors=(
        Host(IPv4Address("10.83.0.11"), "02:00:00:00:00:11"),
        Host(IPv4Address("10.83.0.12"), "02:00:00:00:00:12"),
    ),
    hardworker=Host(IPv4Address("10.83.0.2"), "02:00:00:00:00:02"),
    logger=Host(IPv4Address("10.83.0.3"), "02:00:00:00:00:03"),
    tos=104,
    port=12345,
    mtu=1500,
    size=1024,
)

macs = st.binary(min_size=6, max_size=6)
ips = st.integers(1, 2**32 - 2).map(IPv4Address)
words16 = st.integers(0, 2**16 - 1)
words32 = st.integers(0, 2**32 - 1)
option_bytes = st.integers(0, 10).flatmap(lambda words: st.binary(min_size=words * 4, max_size=words * 4))
# What Linux sends in every data packet (RFC 7323, appendix A); scapy would rewrite unknown options.
timestamps = st.just(b"") | st.binary(min_size=8, max_size=8).map(lambda times: b"\x01\x01\x08\x0a" + times)
payloads = st.binary(max_size=200)
some_flags = st.integers(0, 255).map(Flags)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    addresses = draw(st.lists(ips, min_size=3, max_size=3, unique=True))
    hosts = [Host(ip, draw(macs).hex(":")) for ip in addresses]
    return Topology((hosts[0],), hosts[1], hosts[2], tos=104, port=12345, mtu=1500, size=1024)


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    tcp = Tcp(
        draw(words16),
        draw(words16),
        draw(words32),
        draw(words32),
        draw(some_flags),
        draw(st.integers(0, 15)),
        draw(words16),
        draw(words16),
        draw(words16),
        draw(option_bytes),
    )
    payload, ip_options = draw(payloads), draw(option_bytes)
    ip = IPv4(
        source=draw(ips),
        destination=draw(ips),
        length=20 + len(ip_options) + tcp.header_length + len(payload),
        tos=draw(st.integers(0, 255)),
        identification=draw(words16),
        reserved=draw(st.booleans()),
        dont_fragment=draw(st.booleans()),
        ttl=draw(st.integers(0, 255)),
        checksum=draw(words16),
        options=ip_options,
    )
    trailer = draw(st.binary(max_size=20))
    return Packet(Ethernet(draw(macs), draw(macs)), ip, tcp, payload, trailer)


class TestChecksum:
    def test_example_of_rfc_1071(self) -> None:
        assert packet.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2

    def test_odd_length(self) -> None:
        assert packet.checksum(b"\x01\x02\x03") == packet.checksum(b"\x01\x02\x03\x00")

    @given(st.binary(max_size=64))
    def test_data_with_its_checksum_sums_to_zero(self, data: bytes) -> None:
        even = data + bytes(len(data) % 2)
        assert packet.checksum(even + packet.checksum(even).to_bytes(2)) == 0

    def test_example_of_rfc_1624(self) -> None:
        """Section 4: equation 3 yields 0x0000 where RFC 1141 yields 0xffff."""
        assert packet.update(0xDD2F, bytes.fromhex("5555"), bytes.fromhex("3285")) == 0x0000

    @given(st.binary(min_size=1, max_size=60), st.data())
    def test_update_equals_recomputation(self, data: bytes, draw: st.DataObject) -> None:
        start = draw.draw(st.integers(0, (len(data) - 1) // 2)) * 2
        end = draw.draw(st.integers(start, len(data)))
        new = draw.draw(st.binary(min_size=end - start, max_size=end - start))
        # As in every real header, something that does not change is not zero.
        before, after = b"\x45\x00" + data, b"\x45\x00" + data[:start] + new + data[end:]
        assert packet.update(packet.checksum(before), data[start:end], new) == packet.checksum(after)

    @given(st.sampled_from([0x0000, 0x0001, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF]), st.data())
    def test_update_at_the_edges(self, constant: int, draw: st.DataObject) -> None:
        edges = st.lists(st.sampled_from([0x0000, 0x0001, 0xFFFE, 0xFFFF]), min_size=2, max_size=2)
        old, new = (struct.pack("!2H", *draw.draw(edges)) for _ in range(2))
        head = b"\x45\x00" + constant.to_bytes(2)
        assert packet.update(packet.checksum(head + old), old, new) == packet.checksum(head + new)

    def test_all_zero_data_is_the_only_exception(self) -> None:
        assert packet.checksum(bytes(4)) == 0xFFFF
        assert packet.update(packet.checksum(b"\x00\x01\x00\x00"), b"\x00\x01", b"\x00\x00") == 0x0000

    @given(packets(), ips)
    def test_a_sender_may_write_ffff_for_zero(self, p: Packet, new: IPv4Address) -> None:
        """0xffff verifies as 0x0000 does; whatever it is updated to must verify too."""
        ip = replace(_zero_checksum(p).ip, checksum=0xFFFF)
        assert ip.is_intact
        updated = packet.update(0xFFFF, ip.destination.packed, new.packed)
        assert replace(ip, destination=new, checksum=updated).is_intact


class TestHeaders:
    @given(packets())
    def test_parse_undoes_pack(self, p: Packet) -> None:
        assert Packet.parse(p.pack()) == p

    @given(packets())
    def test_pack_undoes_parse(self, p: Packet) -> None:
        frame = p.pack()
        assert Packet.parse(frame).pack() == frame

    @given(packets())
    def test_scapy_reads_the_same(self, p: Packet) -> None:
        # Without options: scapy interprets them, we keep them.
        p = replace(
            p, ip=replace(p.ip, options=b"", length=40 + len(p.payload)), tcp=replace(p.tcp, options=b"")
        )
        scapy = Ether(p.pack())
        ip, tcp = scapy[IP], scapy[TCP]
        assert (ip.src, ip.dst, ip.tos, ip.id, ip.ttl, ip.len, ip.chksum) == (
            str(p.ip.source),
            str(p.ip.destination),
            p.ip.tos,
            p.ip.identification,
            p.ip.ttl,
            p.ip.length,
            p.ip.checksum,
        )
        assert (tcp.sport, tcp.dport, tcp.seq, tcp.ack, tcp.window, tcp.chksum, tcp.urgptr) == (
            p.tcp.source_port,
            p.tcp.destination_port,
            p.tcp.sequence,
            p.tcp.acknowledgment,
            p.tcp.window,
            p.tcp.checksum,
            p.tcp.urgent,
        )
        assert int(tcp.flags) & 0xFF == p.tcp.flags
        assert bytes(tcp.payload)[: len(p.payload)] == p.payload

    @given(st.binary(max_size=120))
    def test_any_bytes_are_parsed_or_refused(self, data: bytes) -> None:
        for frame in (data, data[:12] + b"\x08\x00\x45" + data[12:]):
            with suppress(ConfigError):
                assert Packet.parse(frame).pack() == frame

    @pytest.mark.parametrize("length", range(54))
    def test_every_truncation_is_refused(self, length: int) -> None:
        with pytest.raises(ConfigError):
            Packet.parse(packet.craft(TOPOLOGY)[:length])

    def test_options_must_fill_words(self) -> None:
        with pytest.raises(ConfigError, match="TCP options: 3 bytes"):
            packet.craft(TOPOLOGY, tcp_options=b"\x01\x01\x01")


class TestCraft:
    @pytest.mark.parametrize("sensor", [0, 1])
    def test_equals_scapys_packet(self, sensor: int) -> None:
        ours = packet.craft(
            TOPOLOGY, sensor, Flags.PSH | Flags.ACK, 1001, 77, b"hello", peer_port=5555, identification=9
        )
        host = TOPOLOGY.sensors[sensor]
        scapy = (
            Ether(src=host.mac, dst="02:00:00:00:00:02")
            / IP(src=str(host.ip), dst="10.83.0.2", tos=104, id=9, flags="DF", ttl=64)
            / TCP(sport=5555, dport=12345, seq=1001, ack=77, flags="PA", window=65535)
            / Raw(b"hello")
        )
        assert ours == bytes(scapy)

    @given(topologies(), some_flags, words32, words32, payloads, st.sampled_from(Leg), timestamps)
    def test_scapy_computes_the_same_checksums(
        self,
        topology: Topology,
        flags: Flags,
        seq: int,
        ack: int,
        payload: bytes,
        leg: Leg,
        options: bytes,
    ) -> None:
        frame = packet.craft(topology, 0, flags, seq, ack, payload, leg=leg, tcp_options=options)
        assert _recomputed(frame) == frame

    @pytest.mark.parametrize("leg", Leg)
    def test_each_leg_is_found_again(self, leg: Leg) -> None:
        assert packet.find_leg(packet.craft(TOPOLOGY, 1, Flags.ACK, leg=leg), TOPOLOGY) is leg

    @pytest.mark.parametrize("leg", Leg)
    def test_a_leg_of_any_logger_is_found(self, leg: Leg) -> None:
        standby = Host(IPv4Address("10.83.0.4"), "02:00:00:00:00:04")
        frame = packet.craft(replace(TOPOLOGY, logger=standby), 1, Flags.ACK, leg=leg)
        assert packet.find_leg(frame, replace(TOPOLOGY, standbys=(standby,))) is leg

    @pytest.mark.parametrize("leg", Leg)
    @pytest.mark.parametrize("peer_port", [40000, 12345])
    def test_a_leg_of_any_stream_is_found(self, leg: Leg, peer_port: int) -> None:
        streams = tuple(SensorStream(name, port, "fixed", 64) for name, port in STREAM_PORTS.items())
        several = replace(TOPOLOGY, streams=streams)
        frame = packet.craft(several, 1, Flags.ACK, leg=leg, port=STREAM_PORTS["gps"], peer_port=peer_port)
        assert packet.find_leg(frame, several) is leg
        assert packet.judge(frame, several).action == ("relay" if leg is Leg.REQUEST else "pass")
        (reason, *_) = packet.judge(packet.craft(several, port=80), several).reasons
        assert reason == "destination port is 80, the mark is 12345, 12349"

    def test_replies_come_from_the_service(self) -> None:
        tcp = Packet.parse(packet.craft(TOPOLOGY, leg=Leg.REPLY, peer_port=5555)).tcp
        assert (tcp.source_port, tcp.destination_port) == (12345, 5555)

    def test_sequence_wraps(self) -> None:
        assert Packet.parse(packet.craft(TOPOLOGY, seq=2**32 + 5)).tcp.sequence == 5

    @pytest.mark.parametrize(
        ("sensor", "peer_port", "payload", "complaint"),
        [
            (2, 1, b"", "const.toml has 2"),
            (-1, 1, b"", "const.toml has 2"),
            (0, 65536, b"", "port = 65536: allowed are 0 to 65535"),
            (0, 1, bytes(65536), "IP total length"),
        ],
    )
    def test_refuses_impossible_values(
        self, sensor: int, peer_port: int, payload: bytes, complaint: str
    ) -> None:
        with pytest.raises(ConfigError, match=complaint):
            packet.craft(TOPOLOGY, sensor, payload=payload, peer_port=peer_port)


class TestRewriting:
    def test_the_bytes_that_leave(self) -> None:
        """By hand: MACs and destination differ, and both checksums by the last byte of the address."""
        before = packet.craft(TOPOLOGY, 0, Flags.SYN, 1000)
        after = packet.rewrite(before, TOPOLOGY)
        differing = {i for i in range(len(before)) if before[i] != after[i]}
        # Ethernet destination and source (last byte each), IP checksum, IP destination, TCP checksum.
        assert differing == {5, 11, 25, 33, 51}
        assert (after[5], after[11], after[33]) == (0x03, 0x02, 3)
        assert after[25] == before[25] - 1
        assert after[51] == before[51] - 1

    @given(packets(), topologies())
    def test_equals_a_full_recomputation(self, p: Packet, topology: Topology) -> None:
        p = p.with_checksums()
        ethernet = Ethernet(topology.logger.mac_bytes, topology.hardworker.mac_bytes)
        rewritten = replace(p, ethernet=ethernet, ip=replace(p.ip, destination=topology.logger.ip))
        assert packet.rewrite(p.pack(), topology) == rewritten.with_checksums().pack()
        restored = replace(p, ip=replace(p.ip, source=topology.hardworker.ip))
        assert packet.restore(p.pack(), topology) == restored.with_checksums().pack()

    @given(topologies(), some_flags, words32, words32, payloads)
    def test_scapy_agrees(self, topology: Topology, flags: Flags, seq: int, ack: int, payload: bytes) -> None:
        request = packet.craft(topology, 0, flags, seq, ack, payload)
        relayed = packet.rewrite(request, topology)
        assert _recomputed(relayed) == relayed
        assert relayed == packet.craft(topology, 0, flags, seq, ack, payload, leg=Leg.RELAYED)
        reply = packet.craft(topology, 0, flags, seq, ack, payload, leg=Leg.REPLY)
        restored = packet.restore(reply, topology)
        assert _recomputed(restored) == restored
        assert restored == packet.craft(topology, 0, flags, seq, ack, payload, leg=Leg.RESTORED)

    @given(topologies(), payloads)
    def test_restore_undoes_rewrite_on_the_way_back(self, topology: Topology, payload: bytes) -> None:
        """Turn the relayed packet round, restore it: the same as the request turned round."""
        request = packet.craft(topology, 0, Flags.ACK, 1, 2, payload)
        reply = _turned(packet.rewrite(request, topology))
        expected = Packet.parse(_turned(request))
        assert Packet.parse(packet.restore(reply, topology)).ip == expected.ip
        assert Packet.parse(packet.restore(reply, topology)).tcp == expected.tcp

    @given(packets(), topologies())
    def test_nothing_else_changes(self, p: Packet, topology: Topology) -> None:
        after = Packet.parse(packet.rewrite(p.pack(), topology))
        same_ip = replace(after.ip, destination=p.ip.destination, checksum=p.ip.checksum)
        same_tcp = replace(after.tcp, checksum=p.tcp.checksum)
        assert replace(after, ethernet=p.ethernet, ip=same_ip, tcp=same_tcp) == p

    @pytest.mark.parametrize("layer", ["ip", "tcp"])
    def test_a_wrong_checksum_stays_wrong(self, layer: str) -> None:
        broken = packet.corrupt(packet.craft(TOPOLOGY), "ip" if layer == "ip" else "tcp")
        assert [text.split()[0] for text in packet.check(packet.rewrite(broken, TOPOLOGY), TOPOLOGY)] == [
            layer.upper()
        ]

    def test_refuses_what_is_not_tcp(self) -> None:
        with pytest.raises(ConfigError, match="VLAN"):
            packet.rewrite(_tagged(packet.craft(TOPOLOGY)), TOPOLOGY)


def _request(**changes: int | bytes) -> Packet:
    return Packet.parse(packet.craft(TOPOLOGY, 0, Flags.PSH | Flags.ACK, 1001, 1, b"hello", **changes))  # type: ignore[arg-type]  # keywords of several types


def _ip(**changes: object) -> bytes:
    p = _request()
    return replace(p, ip=replace(p.ip, **changes)).with_checksums().pack()  # type: ignore[arg-type]  # likewise


def _with(flags: Flags, payload: bytes = b"") -> bytes:
    return packet.craft(TOPOLOGY, 0, flags, 1001, 1, payload)


STRANGER_MAC = bytes.fromhex("020000000099")

# name: frame, what happens, a word of the reason
VERDICTS: dict[str, tuple[bytes, str, str]] = {
    "SYN": (_with(Flags.SYN), "relay", "opens a connection"),
    "SYN with ECN bits": (_with(Flags.SYN | Flags.ECE | Flags.CWR), "relay", "opens"),
    "data": (_request().pack(), "relay", "5 bytes of data"),
    "data of the largest size": (_with(Flags.ACK, bytes(1460)), "relay", "1460 bytes"),
    "pure ACK": (_with(Flags.ACK), "relay", "without data"),
    "FIN": (_with(Flags.FIN | Flags.ACK), "relay", "FIN is sent on"),
    "FIN with data": (_with(Flags.FIN | Flags.ACK, b"x"), "relay", "1 bytes of data"),
    "RST": (_with(Flags.RST), "relay", "RST is sent on"),
    "ECN in TOS": (packet.craft(TOPOLOGY, tos=104 | 3), "relay", "opens"),
    "TCP options": (packet.craft(TOPOLOGY, tcp_options=b"\x01" * 12), "relay", "opens"),
    "padding": (_with(Flags.ACK) + bytes(6), "relay", "without data"),
    "bad TCP checksum": (packet.corrupt(_with(Flags.ACK, b"x"), "tcp"), "drop", "TCP checksum"),
    "bad IP checksum": (packet.corrupt(_with(Flags.ACK, b"x"), "ip"), "drop", "IP checksum"),
    "bad checksum of a SYN": (packet.corrupt(_with(Flags.SYN), "tcp"), "drop", "TCP checksum"),
    "bad checksum of a FIN": (packet.corrupt(_with(Flags.FIN | Flags.ACK), "ip"), "drop", "IP checksum"),
    "bad checksum, no data": (packet.corrupt(_with(Flags.ACK), "tcp"), "relay", "TCP checksum"),
    "bad checksum of a RST": (packet.corrupt(_with(Flags.RST, b"x"), "ip"), "relay", "IP checksum"),
    "empty": (b"", "pass", "too short"),
    "one byte short": (_with(Flags.ACK)[:53], "pass", "too short"),
    "other EtherType": (_request().pack()[:12] + b"\x86\xdd" + _request().pack()[14:], "pass", "0x86dd"),
    "other IP version": (_request().pack()[:14] + b"\x65" + _request().pack()[15:], "pass", "version is 6"),
    "short IP header": (_request().pack()[:14] + b"\x44" + _request().pack()[15:], "pass", "16 bytes"),
    "other destination": (_ip(destination=IPv4Address("10.83.0.99")), "pass", "destination IP is 10.83.0.99"),
    "UDP": (_ip(protocol=17), "pass", "protocol is 17"),
    "other TOS": (packet.craft(TOPOLOGY, tos=0), "pass", "TOS is 0"),
    "other port": (packet.craft(TOPOLOGY, port=80), "pass", "destination port is 80"),
    "later fragment": (_ip(fragment_offset=100), "pass", "offset 800"),
    "stranger's IP": (_ip(source=IPv4Address("10.83.0.99")), "pass", "no sensor's"),
    "another sensor's MAC": (_ip(source=TOPOLOGY.sensors[1].ip), "drop", "source MAC"),
    "other destination MAC": (STRANGER_MAC + _request().pack()[6:], "pass", "destination MAC"),
    "first fragment": (_ip(more_fragments=True), "drop", "first fragment"),
    "IP options": (packet.craft(TOPOLOGY, ip_options=b"\x01" * 4), "drop", "IP options (4 bytes)"),
    "total length beyond the frame": (_ip(length=46), "drop", "lengths"),
    "total length within the headers": (_ip(length=39), "drop", "lengths"),
    "data offset too small": (_request().pack()[:46] + b"\x40" + _request().pack()[47:], "drop", "lengths"),
    "data offset too large": (_request().pack()[:46] + b"\xf0" + _request().pack()[47:], "drop", "lengths"),
    "merged segments": (_with(Flags.ACK, bytes(1461)), "drop", "1461 bytes of data exceed 1460"),
    "SYN with data": (_with(Flags.SYN, b"x"), "drop", "SYN with 1 bytes"),
    "SYN-ACK": (_with(Flags.SYN | Flags.ACK), "drop", "stands alone"),
    "data without ACK": (_with(Flags.PSH, b"x"), "drop", "without ACK"),
    "FIN without ACK": (_with(Flags.FIN), "drop", "without ACK"),
}


class TestInspection:
    @pytest.mark.parametrize("name", VERDICTS)
    def test_verdict(self, name: str) -> None:
        frame, action, word = VERDICTS[name]
        verdict = packet.judge(frame, TOPOLOGY)
        assert verdict.action == action
        assert any(word in reason for reason in verdict.reasons)
        assert bool(packet.check(frame, TOPOLOGY)) == (action != "relay" or name.startswith("bad "))

    def test_vlan(self) -> None:
        verdict = packet.judge(_tagged(_request().pack()), TOPOLOGY)
        assert (verdict.action, verdict.leg) == ("pass", Leg.REQUEST)
        assert "VLAN tag (EtherType 0x8100)" in verdict.reasons[0]

    def test_the_first_obstacle_decides_and_all_are_told(self) -> None:
        """As in the program: a stranger's SYN with data is dropped, an unmarked fragment passes."""
        p = Packet.parse(_with(Flags.SYN, b"x"))
        stranger = replace(p, ethernet=replace(p.ethernet, source=STRANGER_MAC)).pack()
        assert packet.judge(stranger, TOPOLOGY).action == "drop"
        assert len(packet.check(stranger, TOPOLOGY)) == 2
        unmarked = Packet.parse(packet.craft(TOPOLOGY, port=80))
        fragment = replace(unmarked, ip=replace(unmarked.ip, more_fragments=True)).with_checksums().pack()
        assert packet.judge(fragment, TOPOLOGY).action == "pass"

    def test_tos_zero_means_any(self) -> None:
        topology = replace(TOPOLOGY, tos=0)
        assert packet.judge(packet.craft(topology, tos=200), topology).action == "relay"

    @pytest.mark.parametrize("leg", [leg for leg in Leg if leg != Leg.REQUEST])
    def test_other_legs_are_sound_there(self, leg: Leg) -> None:
        frame = packet.craft(TOPOLOGY, 0, Flags.ACK, leg=leg)
        assert packet.check(frame, TOPOLOGY) == []
        assert packet.judge(frame, TOPOLOGY).action == "pass"
        assert packet.check(packet.corrupt(frame, "tcp"), TOPOLOGY) != []
        data = packet.craft(TOPOLOGY, 0, Flags.ACK, payload=b"x", leg=leg)
        assert packet.judge(packet.corrupt(data, "tcp"), TOPOLOGY).action == "pass"

    def test_ffff_in_place_of_zero_is_no_fault(self) -> None:
        p = _zero_checksum(_request())
        assert packet.check(replace(p, ip=replace(p.ip, checksum=0xFFFF)).pack(), TOPOLOGY) == []

    @given(st.binary(max_size=120))
    def test_any_bytes_get_a_verdict(self, data: bytes) -> None:
        packet.judge(data, TOPOLOGY)
        request = _request().pack()
        position = random.Random(data).randrange(len(request))
        packet.judge(request[:position] + data, TOPOLOGY)


def _pending(frame: bytes) -> bytes:
    """The frame with the sum of the pseudo-header alone as its TCP checksum, as it is before the card."""
    p = Packet.parse(frame, len(frame))
    length = len(frame) - 14 - p.ip.header_length
    total = sum(
        struct.unpack(
            "!6H", p.ip.source.packed + p.ip.destination.packed + struct.pack("!HH", 6, length % 65536)
        )
    )
    return replace(p, tcp=replace(p.tcp, checksum=(total + length // 65536) % 65535)).pack()


def _large(size: int, length: int | None = None, checksum: int | None = None) -> bytes:
    p = Packet.parse(_with(Flags.PSH | Flags.ACK, bytes(100)))
    p = replace(p, ip=replace(p.ip, length=20 + 20 + size), payload=bytes(size)).with_checksums()
    ip = p.ip if length is None else replace(p.ip, length=length)
    right = ip.computed_checksum() if checksum is None else checksum
    return replace(p, ip=replace(ip, checksum=right)).pack()


DATA = _with(Flags.PSH | Flags.ACK, bytes(range(100)))
# name: frame, bytes of it that were captured, what happens, a word of the reason, whether something is wrong
CAPTURED: dict[str, tuple[bytes, int | None, str, str, bool]] = {
    "whole": (DATA, None, "relay", "100 bytes of data", False),
    "checksum pending": (_pending(DATA), None, "relay", "TCP checksum pending", False),
    "checksum of a SYN pending": (_pending(_with(Flags.SYN)), None, "relay", "checksum pending", False),
    "wrong checksum": (packet.corrupt(DATA, "tcp"), None, "drop", "TCP checksum is", True),
    "cut within the data": (DATA, 68, "relay", "captured 68 of 154 bytes", False),
    "cut, data as on the wire": (DATA, 68, "relay", "100 bytes of data are stored", False),
    "cut within the options": (
        packet.craft(TOPOLOGY, 0, Flags.ACK, payload=b"x", tcp_options=b"\x01" * 12),
        60,
        "relay",
        "1 bytes of",
        False,
    ),
    "cut and pending": (_pending(DATA), 68, "relay", "TCP checksum pending", False),
    "cut, wrong IP checksum": (packet.corrupt(DATA, "ip"), 68, "drop", "IP checksum is", True),
    "cut, other port": (packet.craft(TOPOLOGY, port=80, payload=bytes(99)), 60, "pass", "port is 80", True),
    "cut within the headers": (DATA, 40, "unknown", "captured 40 of 154 bytes", False),
    "cut within Ethernet": (DATA, 9, "unknown", "captured 9 of 154 bytes", False),
    "cut, IP options": (
        packet.craft(TOPOLOGY, ip_options=b"\x01" * 40, payload=b"x"),
        56,
        "unknown",
        "TCP header is not whole",
        False,
    ),
    "cut, of another kind": (_request().pack()[:12] + b"\x86\xdd" + bytes(99), 30, "pass", "0x86dd", True),
    "TSO": (
        _pending(_large(7000)),
        None,
        "relay",
        "7000 bytes of data in one frame, 5 segments or more",
        False,
    ),
    "TSO, cut": (_pending(_large(7000)), 96, "relay", "7000 bytes of data in one frame", False),
    "TSO, length 0": (_large(7000, length=0, checksum=0), None, "relay", "7000 bytes of data in one", False),
    "TSO, more than 64 KiB": (
        _pending(_large(100, length=0) + bytes(70_000)),
        None,
        "relay",
        "70100 bytes",
        False,
    ),
    "merged for real": (_large(7000), None, "drop", "exceed 1460", True),
    "contradiction": (_ip(length=46), None, "drop", "lengths contradict", True),
    "length 0, small": (_large(100, length=0), None, "drop", "lengths contradict", True),
}


class TestCaptured:
    @pytest.mark.parametrize("name", CAPTURED)
    def test_verdict(self, name: str) -> None:
        frame, captured, action, word, is_wrong = CAPTURED[name]
        verdict = packet.judge(frame[:captured], TOPOLOGY, len(frame))
        assert verdict.action == action, verdict
        assert any(word in reason for reason in verdict.reasons), verdict
        assert bool(packet.check(frame[:captured], TOPOLOGY, len(frame))) is is_wrong

    def test_on_the_wire_nothing_is_forgiven(self) -> None:
        """What the program sees has no card before it: it is judged by what is there."""
        assert packet.judge(_pending(DATA), TOPOLOGY).action == "drop"
        assert packet.judge(DATA[:68], TOPOLOGY).action == "drop"

    @settings(max_examples=200)
    @given(st.sampled_from([frame for frame, *_ in (*VERDICTS.values(), *CAPTURED.values())]), st.data())
    def test_cut_anywhere(self, frame: bytes, data: st.DataObject) -> None:
        """A verdict is that on the whole frame, as far as headers tell, or unknown."""
        whole = packet.judge(frame, TOPOLOGY, len(frame))
        end = data.draw(st.integers(0, len(frame)))
        cut = packet.judge(frame[:end], TOPOLOGY, len(frame))
        by_checksum = any("checksum is" in reason for reason in whole.reasons)
        if cut.action != "unknown" and not by_checksum:
            assert cut.action == whole.action
        assert cut.action != "unknown" or end < 14 + 60 + 20
        packet.headline(frame[:end], len(frame))


class TestReadFrames:
    @pytest.mark.parametrize("text", ["{0}", "0x{0}\n", "{0}\n\n{0}\n", " \n{0}\n \n{0}"])
    def test_hex(self, text: str) -> None:
        frame = packet.craft(TOPOLOGY)
        frames = _frames(text.format(frame.hex()).encode(), "x")
        assert set(frames) == {frame}
        assert len(frames) == text.count("{0}")

    def test_hex_with_colons_and_line_breaks(self) -> None:
        frame = packet.craft(TOPOLOGY)
        assert _frames(frame.hex(":", 2).replace(":", "\n", 3).encode(), "x") == [frame]

    @pytest.mark.parametrize("endianness", ["<", ">"])
    @pytest.mark.parametrize("nano", [False, True])
    def test_pcap_of_scapy(self, tmp_path: Path, endianness: str, nano: bool) -> None:
        frames = [packet.craft(TOPOLOGY, payload=bytes(n), flags=Flags.ACK) for n in (0, 1, 1000)]
        path = tmp_path / "x.pcap"
        wrpcap(str(path), [Ether(frame) for frame in frames], endianness=endianness, nano=nano)
        assert _frames(path.read_bytes(), "x.pcap") == frames

    def test_empty_pcap(self) -> None:
        assert _frames(_pcap(1), "x") == []

    @pytest.mark.parametrize(
        ("data", "complaint"),
        [
            (b"", "x: empty"),
            (b"hello", "hexadecimal digits in pairs: 'hello'"),
            (b"abc", "in pairs"),
            (b"\xff\x00", "neither"),
            (b"\xd4\xc3\xb2\xa1", "within its header"),
            (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + bytes(7), "within packet 1"),
            (
                struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + struct.pack("<IIII", 0, 0, 9, 9),
                "within packet 1",
            ),
        ],
    )
    def test_refuses(self, data: bytes, complaint: str) -> None:
        with pytest.raises(ConfigError, match=complaint):
            _frames(data, "x")


@pytest.fixture
def const(tmp_path: Path) -> Path:
    path = tmp_path / "const.toml"
    network.write(path, TOPOLOGY, written_by="the tests")
    return path


def _run(*arguments: str | Path, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


class TestCommands:
    def test_show_as_json(self, const: Path) -> None:
        result = _run("show", "--const", const, "--data", "hello", "--sensor", "2", "--json")
        shown = json.loads(result.stdout)
        before = packet.craft(TOPOLOGY, 1, Flags.PSH | Flags.ACK, 1000, 0, b"hello")
        assert shown["before"]["frame"] == before.hex()
        assert shown["after"]["frame"] == packet.rewrite(before, TOPOLOGY).hex()
        assert shown["action"] == "relay"
        assert shown["changed"] == [
            "Ethernet destination",
            "Ethernet source",
            "IP checksum",
            "IP destination",
            "TCP checksum",
        ]
        assert all(
            entry["right"] for moment in ("before", "after") for entry in shown[moment]["checksums"].values()
        )

    def test_show_for_people(self, const: Path) -> None:
        out = _run("show", "--const", const, "--syn").stdout
        assert "IP destination *" in out
        assert out.count("right") == 4
        assert "WRONG" not in out

    def test_show_a_reply(self, const: Path) -> None:
        shown = json.loads(_run("show", "--const", const, "--syn", "--ack", "--reply", "--json").stdout)
        assert shown["changed"] == ["IP checksum", "IP source", "TCP checksum"]

    def test_show_a_wrong_checksum(self, const: Path) -> None:
        assert _run("show", "--const", const, "--corrupt", "tcp").stdout.count("WRONG") == 2

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (("--data", "x", "--hex", "00"), "use one of them"),
            (("--hex", "0"), "in pairs"),
            (("--sensor", "3"), "const.toml has 2"),
            (("--port", "65536"), "65535"),
        ],
    )
    def test_refused_arguments(self, const: Path, arguments: tuple[str, ...], complaint: str) -> None:
        result = _run("show", "--const", const, *arguments)
        assert isinstance(result.exception, ConfigError)
        assert complaint in str(result.exception)

    def test_check_hex_argument(self, const: Path) -> None:
        result = _run("check", packet.craft(TOPOLOGY).hex(), "--const", const)
        assert result.exit_code == 0
        assert "relay" in result.stdout
        assert "opens a connection" in result.stdout

    def test_check_standard_input(self, const: Path) -> None:
        frames = [packet.craft(TOPOLOGY), packet.craft(TOPOLOGY, port=80)]
        text = "\n\n".join(frame.hex() for frame in frames).encode()
        result = _run("check", "-", "--const", const, "--json", stdin=text)
        verdicts = [json.loads(line) for line in result.stdout.splitlines()]
        assert [verdict["action"] for verdict in verdicts] == ["relay", "pass"]
        assert result.exit_code == 0

    @pytest.mark.parametrize("name", ["bad TCP checksum", "bad checksum, no data", "SYN with data"])
    def test_check_leaves_with_1_for_a_faulty_marked_frame(
        self, const: Path, tmp_path: Path, name: str
    ) -> None:
        path = tmp_path / "x.pcap"
        frame = VERDICTS[name][0]
        path.write_bytes(_pcap(1) + struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)
        assert _run("check", path, "--const", const).exit_code == 1

    @pytest.mark.parametrize("write", [pcap, pcapng, lambda frames: packed(pcapng(frames, order=">"))])
    def test_check_every_format(
        self, const: Path, tmp_path: Path, write: Callable[[list[Frame]], bytes]
    ) -> None:
        path = tmp_path / "x"
        path.write_bytes(write([Frame(DATA), Frame(_pending(DATA)), Frame(DATA[:68], length=len(DATA))]))
        result = _run("check", path, "--const", const, "--json")
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert [(line["action"], line["length"], line["captured"]) for line in lines] == [
            ("relay", 154, 154),
            ("relay", 154, 154),
            ("relay", 154, 68),
        ]
        assert result.exit_code == 0
        said = _run("check", path, "--const", const).stdout
        assert "TCP checksum pending" in said and "captured 68 of 154 bytes" in said

    @pytest.mark.parametrize("link", [COOKED, COOKED_2, RAW, NULL, LOOP])
    def test_check_without_mac_addresses(self, const: Path, tmp_path: Path, link: int) -> None:
        path = tmp_path / "x.pcap"
        legs = [
            packet.craft(TOPOLOGY, 0, Flags.ACK, leg=leg) for leg in (Leg.REQUEST, Leg.REPLY, Leg.RESTORED)
        ]
        path.write_bytes(pcap([Frame(framed(frame[14:], link)) for frame in legs], link))
        result = _run("check", path, "--const", const, "--json")
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert (lines[0]["action"], lines[0]["leg"]) == ("relay", Leg.REQUEST)
        assert all(f"link type {link}: supposed to be right" in line["reasons"][-1] for line in lines)
        if link in (RAW, NULL, LOOP):
            assert [line["leg"] for line in lines] == [Leg.REQUEST, Leg.REPLY, Leg.RESTORED]

    def test_check_a_forged_cooked_packet(self, const: Path, tmp_path: Path) -> None:
        path = tmp_path / "x.pcap"
        path.write_bytes(pcap([Frame(framed(packet.craft(TOPOLOGY, 1)[14:], COOKED))], COOKED))
        assert "the MAC of sensor 10.83.0.12 is" in _run("check", path, "--const", const).stdout

    def test_check_another_link_type(self, const: Path, tmp_path: Path) -> None:
        path = tmp_path / "x.pcap"
        path.write_bytes(pcap([Frame(DATA)], 127))
        result = _run("check", path, "--const", const)
        assert isinstance(result.exception, ConfigError)
        assert "packet 1: link type 127, expected Ethernet" in str(result.exception)

    def test_check_a_damaged_file_as_far_as_it_goes(self, const: Path, tmp_path: Path) -> None:
        path = tmp_path / "x.pcap"
        path.write_bytes(pcap([Frame(DATA), Frame(DATA)])[:-5])
        result = _run("check", path, "--const", const)
        assert "relay" in result.stdout
        assert isinstance(result.exception, ConfigError) and "within packet 2" in str(result.exception)

    def test_check_neither_file_nor_digits(self, const: Path) -> None:
        result = _run("check", "missing.pcap", "--const", const)
        assert isinstance(result.exception, ConfigError)
        assert "missing.pcap: not a file" in str(result.exception)

    @pytest.mark.parametrize("command", ["send", "listen"])
    def test_missing_interface(self, const: Path, command: str) -> None:
        result = _run(command, "--const", const, "--interface", "ms-no-such-if")
        assert isinstance(result.exception, NetworkError | KernelError)
        assert "ms-no-such-if" in str(result.exception)

    @pytest.mark.parametrize("command", ["send", "listen"])
    def test_without_the_capability(self, const: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr("midstream.packet.wire.socket.socket", refuse)
        result = _run(command, "--const", const, "--interface", "lo")
        assert isinstance(result.exception, KernelError)
        assert "CAP_NET_RAW" in str(result.exception)


def _recomputed(frame: bytes) -> bytes:
    """The frame with the checksums that scapy computes."""
    scapy = Ether(frame)
    del scapy[IP].chksum, scapy[TCP].chksum
    return bytes(scapy)


def _zero_checksum(p: Packet) -> Packet:
    """The packet with the identification that makes its IP checksum 0x0000."""
    p = p.with_checksums()
    fitting = ~packet.checksum(struct.pack("!HH", p.ip.checksum, p.ip.identification)) & 0xFFFF
    p = replace(p, ip=replace(p.ip, identification=fitting)).with_checksums()
    assert p.ip.checksum == 0
    return p


def _turned(frame: bytes) -> bytes:
    """The packet with source and destination swapped; neither checksum depends on the order of words."""
    p = Packet.parse(frame)
    ip = replace(p.ip, source=p.ip.destination, destination=p.ip.source)
    tcp = replace(p.tcp, source_port=p.tcp.destination_port, destination_port=p.tcp.source_port)
    return replace(p, ip=ip, tcp=tcp).pack()


def _tagged(frame: bytes) -> bytes:
    return frame[:12] + b"\x81\x00\x00\x07" + frame[12:]


def _frames(data: bytes, name: str) -> list[bytes]:
    return [captured.data for captured in packet.read_frames(BytesIO(data), name)]


def _pcap(link: int) -> bytes:
    return struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link)
