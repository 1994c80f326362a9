"""The interface to the peers: state, addresses, MTU, driver, offloads, and what its card complains of."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from shlex import quote
from typing import Literal

from pyroute2 import IPRoute, NetlinkError  # type: ignore[import-untyped]  # pyroute2 ships no types
from pyroute2.ethtool.ioctl import IoctlEthtool  # type: ignore[import-untyped]  # likewise
from pyroute2.netlink import NLM_F_REQUEST, genlmsg  # type: ignore[import-untyped]  # likewise
from pyroute2.netlink.generic import GenericNetlinkSocket  # type: ignore[import-untyped]  # likewise

from midstream.doctor.finding import Finding, fault, ok, repairable, unknown, warning
from midstream.doctor.repair import SetMtu, SetUp, SwitchOff
from midstream.doctor.subject import Subject

XdpMode = Literal["native", "generic", ""]

# Modes as pyroute2 names them; "multi" is native and generic at once.
_MODES: dict[str | None, XdpMode] = {"xdp": "native", "xdpmulti": "native", "xdpgeneric": "generic"}
_NETDEV_XDP_ACT_BASIC = 1  # linux/netdev.h: pass, drop, transmit
_NETDEV_CMD_DEV_GET = 1

# Of a TCP segment over IPv4; those of tunnels, SCTP and IPv6 are on on many a healthy host.
_COMPLETED_BY_A_CARD = {
    "tx-checksum-ip-generic",
    "tx-checksum-ipv4",
    "tx-tcp-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
}

# What a card counts when packets are lost in front of the kernel, and what it means.
_COMPLAINTS = {
    "rx_crc_errors": "damaged frames: cable, plug or switch port",
    "rx_missed_errors": "frames lost for want of room: a larger receive ring (ethtool -G), "
    "or its interrupts on an idle core (/proc/interrupts)",
    "rx_fifo_errors": "frames lost for want of room: a larger receive ring (ethtool -G)",
    "collisions": "half duplex: set both ends of the cable alike",
}


@dataclass(frozen=True, slots=True)
class InterfaceState:
    """xdp, program: mode and number of the XDP program attached, "" and 0 without one. native: whether the
    driver can run XDP itself, None if the kernel (before 6.3) does not say. offloads: those that are on and
    can be switched off, by the kernel's names. errors: the card's counters that are not 0. merging:
    the interfaces below this one on which GRO is on."""

    name: str
    up: bool
    carrier: bool
    mac: str
    mtu: int
    addresses: tuple[IPv4Address, ...]
    driver: str
    native: bool | None
    xdp: XdpMode
    program: int
    offloads: frozenset[str]
    errors: dict[str, int]
    merging: tuple[str, ...] = ()


def read(name: str) -> InterfaceState | None:
    """The interface of that name; None if there is none."""
    with IPRoute() as netlink:
        try:
            index = socket.if_nametoindex(name)
            (link,) = netlink.get_links(index)
        except (OSError, NetlinkError, ValueError):
            return None
        addresses = tuple(
            IPv4Address(address.get("address")) for address in netlink.get_addr(family=2, index=index)
        )
    xdp = link.get_attr("IFLA_XDP")
    statistics = link.get_attr("IFLA_STATS64") or {}
    return InterfaceState(
        name=name,
        up=link.get("state") == "up",
        carrier=bool(link.get_attr("IFLA_CARRIER")),
        mac=str(link.get("address")),
        mtu=int(link.get("mtu")),
        addresses=addresses,
        driver=_driver(name, link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")),
        native=_native(index),
        xdp=_MODES.get(xdp.get_attr("IFLA_XDP_ATTACHED"), "") if xdp else "",
        program=int(xdp.get_attr("IFLA_XDP_PROG_ID") or 0) if xdp else 0,
        offloads=_offloads(name),
        errors={name: int(statistics[name]) for name in _COMPLAINTS if statistics.get(name)},
        merging=tuple(below for below in _below(name) if "rx-gro" in _offloads(below)),
    )


def check(interface: InterfaceState | None, subject: Subject) -> Iterator[Finding]:
    if interface is None:
        yield fault(
            "interface",
            f"{subject.interface}: no such interface" if subject.interface else "no route to the peers",
            f"the interface with {subject.host.ip}, {subject.host.mac}",
            "ip -brief address; then correct config.toml: network.interface, or bring the interface up",
        )
        return
    yield _check_state(interface)
    yield _check_mac(interface, subject)
    yield _check_address(interface, subject)
    yield _check_mtu(interface, subject)
    if subject.has_program and subject.role != "logger":
        yield _check_xdp(interface, subject)
    yield _check_offloads(interface, subject)
    yield from _check_below(interface, subject)
    for name, count in interface.errors.items():
        yield warning("card", f"{interface.name}: {count:,} {name}", "0", _COMPLAINTS[name])


def _check_state(interface: InterfaceState) -> Finding:
    name = interface.name
    if not interface.up:
        return repairable("interface", "fault", f"{name} is down", "up", SetUp(name))
    if not interface.carrier:
        return fault("interface", f"{name} has no carrier", "a link", "check the cable and the other end")
    return ok("interface", f"{name} is up ({interface.driver})")


def _check_mac(interface: InterfaceState, subject: Subject) -> Finding:
    if interface.mac == subject.host.mac:
        return ok("MAC address", interface.mac)
    return fault(
        "MAC address",
        f"{interface.name} has {interface.mac}",
        f"{subject.host.mac} by const.toml [mac] {subject.role}",
        f"{_sed(subject, subject.host.mac, interface.mac)}  # on every host if the card was replaced; "
        "then detach and attach. Otherwise name the right interface in config.toml: network.interface",
    )


def _check_address(interface: InterfaceState, subject: Subject) -> Finding:
    if subject.host.ip in interface.addresses:
        return ok("address", str(subject.host.ip))
    return fault(
        "address",
        f"{interface.name} has {', '.join(map(str, interface.addresses)) or 'none'}",
        f"{subject.host.ip} by const.toml [ip] {subject.role}",
        f"ip address add {subject.host.ip}/PREFIX dev {quote(interface.name)}  "
        "# with your network's prefix length",
    )


def _check_mtu(interface: InterfaceState, subject: Subject) -> Finding:
    expected = subject.topology.mtu
    if interface.mtu == expected:
        return ok("MTU", str(expected))
    # More than the programs were compiled for is dropped; less only makes smaller packets.
    status: Literal["fault", "warning"] = "fault" if interface.mtu > expected else "warning"
    return repairable(
        "MTU",
        status,
        f"{interface.name} has {interface.mtu}",
        f"{expected} by const.toml [data] mtu",
        SetMtu(interface.name, expected),
    )


def _check_xdp(interface: InterfaceState, subject: Subject) -> Finding:
    what = f"{interface.driver} on {interface.name}"
    if interface.xdp == "native":
        return ok("XDP mode", f"native, {what}")
    if interface.xdp == "generic" and interface.native:
        return warning(
            "XDP mode",
            f"generic, though {what} can do native",
            "native",
            subject.attach_anew,
        )
    if interface.xdp == "generic" or interface.native is False:
        return warning(
            "XDP mode",
            f"generic: {what} cannot run XDP itself, so it costs more",
            "native",
            "another network card, or accept the cost; it works",
        )
    if interface.native is None:
        return unknown("XDP mode", f"{what}: before Linux 6.3 only attaching tells whether it is native")
    return ok("XDP mode", f"native possible, {what}")


def _check_offloads(interface: InterfaceState, subject: Subject) -> Finding:
    harmful = harmful_offloads(interface, subject)
    if not harmful:
        return ok("offloads", f"none of {interface.name} does harm")
    if interface.driver == "veth":
        why = "off, at both ends: nothing completes what veth leaves to a card, and XDP sends it on"
    else:
        why = "off: they merge segments before the program sees them"
    return repairable(
        "offloads", "fault", f"{', '.join(harmful)} on", why, SwitchOff(interface.name, tuple(harmful))
    )


def _check_below(interface: InterfaceState, subject: Subject) -> Iterator[Finding]:
    """A generic program is asked before GRO of its own interface, but behind that of a card below a VLAN, a
    bridge or a bond."""
    if interface.xdp != "generic" or subject.role != "hardworker" or not subject.has_program:
        return
    for name in interface.merging:
        yield repairable(
            "offloads",
            "fault",
            f"rx-gro on {name}, which is below {interface.name}",
            "off: it merges segments before the program sees them",
            SwitchOff(name, ("rx-gro",)),
        )


def harmful_offloads(interface: InterfaceState, subject: Subject) -> list[str]:
    """The offloads of this interface that break the data path."""
    harmful = []
    merges = subject.role == "hardworker" and subject.has_program
    for name in sorted(interface.offloads):
        if interface.driver == "veth":
            # Nothing ever fills in what a veth end has left for the card to do.
            if name in _COMPLETED_BY_A_CARD:
                harmful.append(name)
        # Linux leaves GRO out where a program is attached, also a generic one; what a card merges it cannot.
        elif merges and name in ("rx-lro", "rx-gro-hw"):
            harmful.append(name)
    return harmful


def _sed(subject: Subject, old: str, new: str) -> str:
    return f"sed -i 's/{old}/{new}/' {quote(str(subject.config.const_path))}"


def _driver(name: str, kind: str | None) -> str:
    """The kind of a virtual interface, else the name of the card's driver."""
    if kind:
        return kind
    try:
        return Path("/sys/class/net", name, "device/driver").resolve(strict=True).name
    except OSError:
        return "unknown driver"


def _below(name: str) -> Iterator[str]:
    """The interfaces that a VLAN, a bridge or a bond consists of, and those below them."""
    for path in sorted(Path("/sys/class/net", name).glob("lower_*")):
        below = path.name.removeprefix("lower_")
        yield below
        yield from _below(below)


def _offloads(name: str) -> frozenset[str]:
    try:
        ethtool = IoctlEthtool(name)
        try:
            return frozenset(
                feature for feature, on, available, *_ in ethtool.get_features() if on and available
            )
        finally:
            ethtool.close()
    except Exception:  # pyroute2's ioctl errors have no base class in common; the driver has no such thing
        return frozenset()


class _DeviceMessage(genlmsg):  # type: ignore[misc]  # pyroute2 ships no types
    """The first attributes of the netdev family (Documentation/netlink/specs/netdev.yaml)."""

    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
    )


def _native(index: int) -> bool | None:
    request = _DeviceMessage()
    request["cmd"], request["version"] = _NETDEV_CMD_DEV_GET, 1
    request["attrs"] = [("NETDEV_A_DEV_IFINDEX", index)]
    try:
        with GenericNetlinkSocket() as netlink:
            netlink.bind("netdev", _DeviceMessage)
            for answer in netlink.nlm_request(request, msg_type=netlink.prid, msg_flags=NLM_F_REQUEST):
                return bool(answer.get_attr("NETDEV_A_DEV_XDP_FEATURES") & _NETDEV_XDP_ACT_BASIC)
    except (NetlinkError, OSError):
        pass
    return None
