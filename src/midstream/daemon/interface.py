"""The interface to the peers, as the kernel tells it."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream.errors import NetworkError

_LOOPBACK = 0x8  # IFF_LOOPBACK


@dataclass(frozen=True)
class Interface:
    """An interface that is up, and its first IPv4 address. mtu: bytes of an IPv4 packet."""

    name: str
    index: int
    ip: IPv4Address
    network: IPv4Network
    mac: str
    mtu: int


def read(name: str) -> Interface:
    """The interface of that name; "": the only one with an IPv4 address. Raises NetworkError."""
    with IPRoute() as netlink:
        links = [link for link in netlink.get_links() if not link["flags"] & _LOOPBACK]
        addresses: dict[int, IPv4Interface] = {}
        for entry in netlink.get_addr(family=2):
            address = IPv4Interface(f"{entry.get('local') or entry.get('address')}/{entry['prefixlen']}")
            addresses.setdefault(entry["index"], address)
    names = ", ".join(link.get("ifname") for link in links) or "none"
    if name:
        links = [link for link in links if link.get("ifname") == name]
        if not links:
            raise NetworkError(
                f"{name}: no such interface; there are {names}: config.toml: network.interface"
            )
    usable = [link for link in links if link["index"] in addresses and link.get("state") == "up"]
    if len(usable) != 1:
        which = (
            f"{name} is down or"
            if name
            else "no interface is up and"
            if not usable
            else "several interfaces have"
        )
        detail = " has no IPv4 address" if not usable else " an IPv4 address"
        raise NetworkError(
            f"{which}{detail} (there are {names}); bring it up with an address, "
            "or name the one to the peers in config.toml: network.interface"
        )
    link = usable[0]
    address = addresses[link["index"]]
    return Interface(
        link.get("ifname"), link["index"], address.ip, address.network, link.get("address"), link.get("mtu")
    )
