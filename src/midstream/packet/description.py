"""Packets in words, for people."""

from collections.abc import Callable

from midstream.errors import ConfigError
from midstream.packet.headers import Flags, Packet


def headline(frame: bytes, length: int | None = None) -> str:
    """One line: who sends what to whom; the first bytes if `frame` is not TCP over IPv4.

    length: of the frame on the wire, if it comes from a capture.
    """
    try:
        p = Packet.parse(frame, length)
    except ConfigError:
        return _excerpt(frame)
    ends = f"{p.ip.source}:{p.tcp.source_port} → {p.ip.destination}:{p.tcp.destination_port}"
    numbers = f"seq {p.tcp.sequence}" + (f" ack {p.tcp.acknowledgment}" if Flags.ACK in p.tcp.flags else "")
    return f"{ends}  {p.tcp.flags}  {numbers}  {p.size} B of data"


def fields(packet: Packet) -> dict[str, str]:
    """Every field by name, in the order of the wire."""
    return {name: text(packet) for name, text in _FIELDS.items()}


_FIELDS: dict[str, Callable[[Packet], str]] = {
    "Ethernet destination": lambda p: p.ethernet.destination.hex(":"),
    "Ethernet source": lambda p: p.ethernet.source.hex(":"),
    "Ethernet type": lambda p: f"0x{p.ethernet.ethertype:04x}",
    "IP header length": lambda p: str(p.ip.header_length),
    "IP TOS": lambda p: str(p.ip.tos),
    "IP total length": lambda p: str(p.ip.length),
    "IP identification": lambda p: str(p.ip.identification),
    "IP fragment": lambda p: "DF" if p.ip.dont_fragment else "none",
    "IP TTL": lambda p: str(p.ip.ttl),
    "IP protocol": lambda p: str(p.ip.protocol),
    "IP checksum": lambda p: f"0x{p.ip.checksum:04x}",
    "IP source": lambda p: str(p.ip.source),
    "IP destination": lambda p: str(p.ip.destination),
    "IP options": lambda p: p.ip.options.hex() or "none",
    "TCP source port": lambda p: str(p.tcp.source_port),
    "TCP destination port": lambda p: str(p.tcp.destination_port),
    "TCP sequence": lambda p: str(p.tcp.sequence),
    "TCP acknowledgment": lambda p: str(p.tcp.acknowledgment),
    "TCP header length": lambda p: str(p.tcp.header_length),
    "TCP flags": lambda p: str(p.tcp.flags),
    "TCP window": lambda p: str(p.tcp.window),
    "TCP checksum": lambda p: f"0x{p.tcp.checksum:04x}",
    "TCP urgent pointer": lambda p: str(p.tcp.urgent),
    "TCP options": lambda p: p.tcp.options.hex() or "none",
    "payload": lambda p: f"{len(p.payload)} B  {_excerpt(p.payload)}".strip(),
}


def _excerpt(data: bytes) -> str:
    return data[:16].hex(" ") + (" …" if len(data) > 16 else "")
