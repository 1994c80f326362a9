"""Permanent neighbour entries for the peers, and host routes where one is not on the link.

Ours bear a protocol number of their own, so the next daemon knows them after a `kill -9`. What the user set
himself is left alone while it is right, and put back at the end if we had to change it.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from socket import AF_INET

from pyroute2 import IPRoute, NetlinkError  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream.daemon.interface import Interface
from midstream.ebpf import routes

PROTOCOL = 77
"""Who set an entry or a route (`ip route show proto 77`): 77 is "M", and nobody's in rt_protos."""

_PERMANENT, _FAILED, _INCOMPLETE = 0x80, 0x20, 0x01  # NUD_ (linux/neighbour.h)


@dataclass
class Neighbours:
    """What this host's tables must say about the peers."""

    before: dict[IPv4Address, str] = field(default_factory=dict)  # permanent entries of the user's we changed
    _settled: set[IPv4Address] = field(default_factory=set)
    _routed: set[IPv4Address] = field(default_factory=set)

    def ensure(self, interface: Interface, wanted: Mapping[IPv4Address, str]) -> list[str]:
        """Set what is missing or wrong, remove ours that are no longer wanted; what was repaired, in words.

        What is set for the first time is no repair.
        """
        repaired = []
        with IPRoute() as netlink:
            found = {entry.ip: entry for entry in _entries(netlink, interface)}
            for ip, mac in wanted.items():
                entry = found.get(ip)
                if entry and entry.permanent and entry.mac == mac:
                    self._settled.add(ip)
                    continue
                if ip in self._settled:
                    repaired.append(f"neighbour {ip}: {entry or 'missing'}, set to {mac} again")
                elif entry and entry.permanent and not entry.ours:
                    self.before[ip] = entry.mac
                self._set(netlink, interface, ip, mac)
                self._settled.add(ip)
            for ip, entry in found.items():
                if entry.ours and ip not in wanted:
                    self._unset(netlink, interface, ip)
            repaired += self._ensure_routes(netlink, interface, wanted)
        return repaired

    def remove(self, interface: Interface) -> None:
        """Take ours away, and put back the user's."""
        with IPRoute() as netlink:
            for entry in list(_entries(netlink, interface)):
                if entry.ours:
                    self._unset(netlink, interface, entry.ip)
            for ip in _routed(netlink, interface):
                routes.remove(netlink, ip, interface.index, PROTOCOL)
        self._settled.clear()
        self._routed.clear()

    def _set(self, netlink: IPRoute, interface: Interface, ip: IPv4Address, mac: str) -> None:
        netlink.neigh(
            "replace",
            dst=str(ip),
            lladdr=mac,
            ifindex=interface.index,
            state="permanent",
            protocol=PROTOCOL,
        )

    def _unset(self, netlink: IPRoute, interface: Interface, ip: IPv4Address) -> None:
        with suppress(NetlinkError):  # somebody else was faster
            netlink.neigh("del", dst=str(ip), ifindex=interface.index)
        self._settled.discard(ip)
        if mac := self.before.pop(ip, None):
            netlink.neigh("add", dst=str(ip), lladdr=mac, ifindex=interface.index, state="permanent")

    def _ensure_routes(
        self, netlink: IPRoute, interface: Interface, wanted: Mapping[IPv4Address, str]
    ) -> list[str]:
        repaired = []
        ours = _routed(netlink, interface)
        off_link = {ip for ip in wanted if ip not in interface.network}
        for ip in ours - off_link:
            routes.remove(netlink, ip, interface.index, PROTOCOL)
        for ip in off_link - ours:
            if routes.add(netlink, ip, interface.index, PROTOCOL):  # else the user's own, which says the same
                if ip in self._routed:
                    repaired.append(f"route {ip}: missing, set again")
                self._routed.add(ip)
        self._routed &= off_link
        return repaired


@dataclass(frozen=True)
class _Entry:
    ip: IPv4Address
    mac: str
    state: int
    ours: bool

    @property
    def permanent(self) -> bool:
        return self.state == _PERMANENT

    def __str__(self) -> str:
        if self.state & (_FAILED | _INCOMPLETE) or not self.mac:
            return "unresolved"
        return f"{'permanent' if self.permanent else 'learned'} with {self.mac}"


def _entries(netlink: IPRoute, interface: Interface) -> Iterator[_Entry]:
    for entry in netlink.get_neighbours(family=AF_INET, ifindex=interface.index):
        yield _Entry(
            IPv4Address(entry.get("dst")),
            entry.get("lladdr") or "",
            entry["state"],
            entry.get("protocol") == PROTOCOL,
        )


def _routed(netlink: IPRoute, interface: Interface) -> set[IPv4Address]:
    return {ip for ip, index in routes.find(netlink, PROTOCOL) if index == interface.index}
