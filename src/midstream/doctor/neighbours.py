"""How this host's stack reaches its peers: neighbours, routes, and what would drop the peers' packets."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from shlex import quote

from pyroute2 import IPRoute, NetlinkError  # type: ignore[import-untyped]  # pyroute2 ships no types
from pyroute2.netlink.nfnetlink.nftsocket import (  # type: ignore[import-untyped]  # likewise
    NFPROTO_INET,
    NFPROTO_IPV4,
)
from pyroute2.nftables.main import NFTables  # type: ignore[import-untyped]  # likewise

from midstream.doctor.finding import Finding, fault, ok, repairable, unknown, warning
from midstream.doctor.repair import SetNeighbour, sysctl
from midstream.doctor.subject import Subject
from midstream.network import Host

_STATES = {
    0x01: "incomplete",
    0x02: "reachable",
    0x04: "stale",
    0x08: "delay",
    0x10: "probe",
    0x20: "failed",
    0x40: "noarp",
    0x80: "permanent",
}
"""NUD_… of linux/neighbour.h."""

_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")  # linux/netfilter.h
_DROP = 0  # NF_DROP


@dataclass(frozen=True, slots=True)
class Neighbour:
    mac: str
    state: str


@dataclass(frozen=True, slots=True)
class Route:
    """Where the kernel would send a packet for a peer; gateway "" if the peer is on the link."""

    interface: str
    gateway: str
    source: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of nftables or iptables-nft at a hook. drops: its policy; its rules are not judged."""

    name: str
    hook: str
    drops: bool


@dataclass(frozen=True, slots=True)
class Stack:
    """neighbours: those of the interface. routes: None for a peer without one. rp_filter: the greater of
    `all` and the interface's (ip-sysctl.rst), which counts. arp_ignore: of both, by their names. chains: None
    if this process may not look."""

    neighbours: dict[IPv4Address, Neighbour]
    routes: dict[IPv4Address, Route | None]
    rp_filter: int
    arp_ignore: dict[str, int]
    chains: tuple[Chain, ...] | None
    iptables: tuple[str, ...]


def read(subject: Subject) -> Stack:
    name = subject.interface
    with IPRoute() as netlink:
        found = netlink.get_neighbours(family=2, ifindex=socket.if_nametoindex(name))
        neighbours = {
            IPv4Address(entry.get("dst")): Neighbour(
                str(entry.get("lladdr") or ""), _STATES.get(entry["state"], str(entry["state"]))
            )
            for entry in found
        }
        routes = {host.ip: _route(netlink, host.ip) for host in subject.peers.values()}
    return Stack(
        neighbours,
        routes,
        rp_filter=max(_setting("all", "rp_filter"), _setting(name, "rp_filter")),
        arp_ignore={of: _setting(of, "arp_ignore") for of in ("all", name)},
        chains=_chains(),
        iptables=_iptables(),
    )


def check(stack: Stack, subject: Subject) -> Iterator[Finding]:
    yield from _check_neighbours(stack, subject)
    yield from _check_routes(stack, subject)
    yield _check_rp_filter(stack, subject)
    if silent := [name for name, value in stack.arp_ignore.items() if value == 8]:
        yield warning(
            "ARP",
            f"arp_ignore = 8 of {' and '.join(silent)}: this host answers no ARP request, so peers without a "
            "permanent entry cannot find it",
            "0",
            sysctl(*(f"net/ipv4/conf/{name}/arp_ignore" for name in silent), value=0),
        )
    yield _check_firewall(stack)


def _check_neighbours(stack: Stack, subject: Subject) -> Iterator[Finding]:
    right = 0
    for name, host in subject.peers.items():
        if finding := _check_neighbour(name, host, stack.neighbours.get(host.ip), subject.interface):
            yield finding
        else:
            right += 1
    owners = {host.mac: name for name, host in subject.peers.items()}
    expected = {host.ip for host in subject.peers.values()}
    for ip, entry in stack.neighbours.items():
        if ip not in expected and entry.mac in owners:
            yield warning(
                "neighbour",
                f"{ip} has the MAC address of {owners[entry.mac]}, {entry.mac}",
                "a MAC address of its own, unless that host has several addresses",
                f"ip neigh del {ip} dev {quote(subject.interface)}",
            )
    if right:
        yield ok("neighbour", f"{right} of {len(expected)} peers permanent, as const.toml says")


def _check_neighbour(name: str, host: Host, entry: Neighbour | None, interface: str) -> Finding | None:
    """What is wrong with a peer's entry; None if nothing is."""
    repair = SetNeighbour(interface, host.ip, host.mac)
    expected = f"{host.mac}, permanent"
    who = f"{name} ({host.ip})" if str(host.ip) not in name else name
    if entry is None:
        return repairable("neighbour", "warning", f"{who}: no entry", expected, repair)
    if entry.state in ("incomplete", "failed") or not entry.mac:
        return repairable("neighbour", "fault", f"{who}: {entry.state}", expected, repair)
    if entry.mac != host.mac:
        return repairable("neighbour", "fault", f"{who}: at {entry.mac}, {entry.state}", expected, repair)
    if entry.state != "permanent":
        return repairable("neighbour", "warning", f"{who}: {entry.state}", expected, repair)
    return None


def _check_routes(stack: Stack, subject: Subject) -> Iterator[Finding]:
    right = 0
    for name, host in subject.peers.items():
        route = stack.routes.get(host.ip)
        fix = f"ip route replace {host.ip}/32 dev {quote(subject.interface)} src {subject.host.ip}"
        who = f"{name} ({host.ip})" if str(host.ip) not in name else name
        if route is None:
            yield fault("route", f"{who}: none", f"directly through {subject.interface}", fix)
        elif route.interface != subject.interface or route.gateway:
            via = f"{route.interface} via {route.gateway}" if route.gateway else route.interface
            yield fault("route", f"{who}: through {via}", f"directly through {subject.interface}", fix)
        elif route.source != str(subject.host.ip):
            yield fault("route", f"{who}: from {route.source}", f"from {subject.host.ip}", fix)
        else:
            right += 1
    if right:
        yield ok("route", f"{right} of {len(subject.peers)} peers directly through {subject.interface}")


def _check_rp_filter(stack: Stack, subject: Subject) -> Finding:
    """Replies come from the logger's MAC with the hardworker's address, relayed packets from the hardworker's
    with the sensor's: the strict filter takes both as long as the way back is this interface."""
    elsewhere = [ip for ip, route in stack.routes.items() if route and route.interface != subject.interface]
    if stack.rp_filter != 1 or not elsewhere:
        return ok("rp_filter", f"{stack.rp_filter}: takes the peers' packets")
    return fault(
        "rp_filter",
        f"1 (strict), and the route to {', '.join(map(str, elsewhere[:3]))} is not {subject.interface}: "
        "their packets are dropped",
        "2 (loose), or routes through this interface",
        sysctl(f"net/ipv4/conf/{subject.interface}/rp_filter", value=2),
    )


def _check_firewall(stack: Stack) -> Finding:
    if stack.chains is None:
        return unknown("firewall", "nftables' chains cannot be listed", "run as root; nft list ruleset")
    hooks = [f"{chain.name} at {chain.hook}" for chain in stack.chains]
    hooks += [f"iptables' table {table}" for table in stack.iptables]
    if dropping := [f"{chain.name} at {chain.hook}" for chain in stack.chains if chain.drops]:
        return warning(
            "firewall",
            f"{', '.join(dropping)} drops what no rule accepts",
            "rules for the peers",
            "nft list ruleset  # it has to accept the peers; see whether the legs below work",
        )
    if hooks:
        return unknown(
            "firewall", f"{', '.join(hooks)}; rules are not judged here", "nft list ruleset; iptables-save"
        )
    return ok("firewall", "none")


def _route(netlink: IPRoute, ip: IPv4Address) -> Route | None:
    try:
        for route in netlink.route("get", dst=str(ip)):
            return Route(
                interface=socket.if_indextoname(route.get("oif")),
                gateway=str(route.get("gateway") or ""),
                source=str(route.get("prefsrc") or ""),
            )
    except (NetlinkError, OSError):
        pass
    return None


def _setting(interface: str, name: str) -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/conf", interface, name).read_text())
    except OSError:
        return 0


def _chains() -> tuple[Chain, ...] | None:
    """The chains at hooks that IPv4 packets meet."""
    chains = []
    try:
        with NFTables(nfgen_family=0) as nftables:
            for chain in nftables.get_chains():
                hook = chain.get_attr("NFTA_CHAIN_HOOK")
                if hook is None or chain["nfgen_family"] not in (NFPROTO_INET, NFPROTO_IPV4):
                    continue
                name = f"{chain.get_attr('NFTA_CHAIN_TABLE')} {chain.get_attr('NFTA_CHAIN_NAME')}"
                number = hook.get_attr("NFTA_HOOK_HOOKNUM")
                where = _HOOKS[number] if number < len(_HOOKS) else f"hook {number}"
                chains.append(Chain(name, where, chain.get_attr("NFTA_CHAIN_POLICY") == _DROP))
    except NetlinkError as error:
        # A kernel without nftables has none of its chains.
        return None if error.code in (1, 13) else ()
    except OSError:
        return ()
    return tuple(chains)


def _iptables() -> tuple[str, ...]:
    """The tables of iptables' older kind that are in the kernel."""
    try:
        return tuple(Path("/proc/net/ip_tables_names").read_text().split())
    except OSError:
        return ()
