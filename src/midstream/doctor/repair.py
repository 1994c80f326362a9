"""What `--fix` may change by itself: link state, MTU, offloads and neighbours of the interface to the peers.

Each repair knows the command that a person would type, and does the same through netlink or ethtool. None
touches the peers, a program that is attached, or a file.
"""

import os
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address
from shlex import quote
from typing import Protocol

from pyroute2 import IPRoute, NetlinkError  # type: ignore[import-untyped]  # pyroute2 ships no types
from pyroute2.ethtool.ioctl import IoctlEthtool  # type: ignore[import-untyped]  # likewise

from midstream.errors import NetworkError


class Repair(Protocol):
    """A change of this host."""

    @property
    def command(self) -> str:
        """The command that does the same."""

    def apply(self) -> None:
        """Do it. Raises NetworkError if the kernel refuses."""


@dataclass(frozen=True, slots=True)
class SetUp:
    interface: str

    @property
    def command(self) -> str:
        return f"ip link set dev {quote(self.interface)} up"

    def apply(self) -> None:
        _link(self.command, self.interface, state="up")


@dataclass(frozen=True, slots=True)
class SetMtu:
    interface: str
    mtu: int

    @property
    def command(self) -> str:
        return f"ip link set dev {quote(self.interface)} mtu {self.mtu}"

    def apply(self) -> None:
        _link(self.command, self.interface, mtu=self.mtu)


@dataclass(frozen=True, slots=True)
class SetNeighbour:
    """A permanent neighbour in place of whatever the kernel has for this address."""

    interface: str
    ip: IPv4Address
    mac: str

    @property
    def command(self) -> str:
        return f"ip neigh replace {self.ip} lladdr {self.mac} dev {quote(self.interface)} nud permanent"

    def apply(self) -> None:
        try:
            with IPRoute() as netlink:
                index = socket.if_nametoindex(self.interface)
                netlink.neigh("replace", dst=str(self.ip), lladdr=self.mac, ifindex=index, state="permanent")
        except (NetlinkError, OSError) as error:
            raise _refused(self.command, error) from error


@dataclass(frozen=True, slots=True)
class SwitchOff:
    """Offloads, by the kernel's names (`ethtool -k`)."""

    interface: str
    features: tuple[str, ...]

    @property
    def command(self) -> str:
        return f"ethtool -K {quote(self.interface)} " + " ".join(f"{name} off" for name in self.features)

    def apply(self) -> None:
        try:
            ethtool = IoctlEthtool(self.interface)
            try:
                features = ethtool.get_features()
                for name in self.features:
                    features[name] = False
                ethtool.set_features(features)
            finally:
                ethtool.close()
        except Exception as error:  # pyroute2's ioctl errors have no base class in common
            raise _refused(self.command, error) from error


def sysctl(*names: str, value: int) -> str:
    """The command that sets these files below /proc/sys, whatever an interface is called and whichever
    sysctl(8) there is."""
    paths = (quote(f"/proc/sys/{name}") for name in names)
    return " && ".join(f"echo {value} > {path}" for path in paths)


def _link(command: str, interface: str, **change: object) -> None:
    try:
        with IPRoute() as netlink:
            netlink.link("set", index=socket.if_nametoindex(interface), **change)
    except (NetlinkError, OSError) as error:
        raise _refused(command, error) from error


def _refused(command: str, error: Exception) -> NetworkError:
    reason = os.strerror(error.code) if isinstance(error, NetlinkError) else error
    return NetworkError(f"`{command}`: the kernel refused ({reason}); it needs CAP_NET_ADMIN, so run as root")
