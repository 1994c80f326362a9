"""A captured frame of any link type as the Ethernet frame that it was, or may have been, on the wire."""

from ipaddress import IPv4Address

from midstream.errors import ConfigError
from midstream.network import Topology
from midstream.packet.capture import Captured
from midstream.packet.headers import Ethernet
from midstream.packet.link import ETHERNET, EXPECTED, IPV4, carried
from midstream.packet.path import Leg, addresses


def as_ethernet(captured: Captured, topology: Topology) -> tuple[bytes, int, str]:
    """The frame, its length on the wire, and what had to be supposed ("" if nothing).

    Where there are no MAC addresses, those that `topology` has for the IP addresses are supposed. Raises
    ConfigError for a link type that is not known.
    """
    if captured.link == ETHERNET:
        return captured.data, captured.length, ""
    found = carried(captured.link, captured.data)
    if found is None:
        raise ConfigError(f"link type {captured.link}, expected {EXPECTED}; capture on one interface")
    packet = captured.data[found.start :]
    destination, source = _macs(packet, topology) if found.protocol == IPV4 else (bytes(6), bytes(6))
    header = Ethernet(destination, found.source_mac or source, found.protocol).pack()
    which = "the destination's MAC address is" if found.source_mac else "MAC addresses are"
    supposed = f"{which} not in a capture of link type {captured.link}: supposed to be right"
    return header + packet, captured.length - found.start + len(header), supposed


def _macs(packet: bytes, topology: Topology) -> tuple[bytes, bytes]:
    """Destination's and source's: those of the leg that these IP addresses belong to, or each host's own."""
    if len(packet) < 20:
        return bytes(6), bytes(6)
    source, destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    for leg in (Leg.REQUEST, Leg.DIRECT, Leg.REPLY, Leg.RESTORED):
        for sensor in range(len(topology.sensors)):
            where = addresses(leg, topology, sensor)
            if (where.source, where.destination) == (source, destination):
                return where.destination_mac, where.source_mac
    everybody = (topology.hardworker, *topology.loggers, *topology.sensors)
    hosts = {host.ip: host.mac_bytes for host in everybody}
    return hosts.get(destination, bytes(6)), hosts.get(source, bytes(6))
