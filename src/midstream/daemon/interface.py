"""The interface to the peers, as the kernel tells it."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream.errors import NetworkError

_LOOPBACK = 0x8  # IFF_LOOPBACK
_SECONDARY, _DAD_FAILED, _DEPRECATED, _TENTATIVE = 0x01, 0x08, 0x20, 0x40  # IFA_F_* (linux/if_addr.h)
_GLOBAL, _HOST = 0, 254  # RT_SCOPE_* (linux/rtnetlink.h)


@dataclass(frozen=True)
class Interface:
    """An interface that is up, and its IPv4 address. mtu: bytes of an IPv4 packet."""

    name: str
    index: int
    ip: IPv4Address
    network: IPv4Network
    mac: str
    mtu: int


def read(name: str, named: Container[IPv4Address] = ()) -> Interface:
    """The interface of that name; "": the only one with an IPv4 address. Raises NetworkError.

    Of several addresses it is one of `named`, else the best (see `_rank`), of several the kernel's first. An
    interface without a name is chosen by its best address, too: one that has only a link-local one is left.
    """
    links, addresses = _links(named)
    names = ", ".join(link.get("ifname") for link in links) or "none"
    if name:
        links = [link for link in links if link.get("ifname") == name]
        if not links:
            raise NetworkError(
                f"{name}: no such interface; there are {names}: config.toml: network.interface"
            )
    usable = _usable(links, addresses)
    best = min((addresses[link["index"]][0] for link in usable), default=None)
    usable = [link for link in usable if addresses[link["index"]][0] == best]
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
    address = addresses[link["index"]][1]
    return Interface(
        link.get("ifname"), link["index"], address.ip, address.network, link.get("address"), link.get("mtu")
    )


def addresses() -> dict[str, IPv4Address]:
    """The interfaces that could be the one to the peers: those that are up, with their best address."""
    links, best = _links(())
    return {link.get("ifname"): best[link["index"]][1].ip for link in _usable(links, best)}


Rank = tuple[bool, ...]


def _links(
    named: Container[IPv4Address],
) -> tuple[list[Any], dict[int, tuple[Rank, IPv4Interface]]]:
    """All interfaces but the loopback, and the best address of each that has one."""
    with IPRoute() as netlink:
        links = [link for link in netlink.get_links() if not link["flags"] & _LOOPBACK]
        return links, _best(netlink.get_addr(family=2), named)


def _usable(links: Iterable[Any], addresses: Container[int]) -> list[Any]:
    return [link for link in links if link["index"] in addresses and link.get("state") == "up"]


def _best(entries: Iterable[Any], named: Container[IPv4Address]) -> dict[int, tuple[Rank, IPv4Interface]]:
    """The address of each interface, by index, with its rank."""
    found: dict[int, tuple[Rank, IPv4Interface]] = {}
    for entry in entries:
        address = IPv4Interface(f"{entry.get('local') or entry.get('address')}/{entry['prefixlen']}")
        if entry["scope"] == _HOST or entry["flags"] & (_DAD_FAILED | _TENTATIVE):
            continue
        rank = (address.ip not in named, *_rank(address.ip, entry["scope"], entry["flags"]))
        if entry["index"] not in found or rank < found[entry["index"]][0]:
            found[entry["index"]] = (rank, address)
    return found


def _rank(ip: IPv4Address, scope: int, flags: int) -> Rank:
    """The smaller the better: what is known beyond the link, is not about to go, and is no second address."""
    return (ip.is_link_local or scope != _GLOBAL, bool(flags & _DEPRECATED), bool(flags & _SECONDARY))
