"""Which of our programs is at work on which interface.

XDP programs hang on a pinned link. The logger's tc filters have no link on every kernel we support; they are
found by their handle.
"""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream.config import Role
from midstream.ebpf import libbpf
from midstream.errors import KernelError

Mode = Literal["native", "generic", "tc"]

# One filter of ours on each side of an interface. The handle only has to be ours alone: 0x6d73 is "ms". The
# priority is the highest, so that no filter of the user's ends the classification before ours is asked; ours
# leaves every decision to those behind it.
TC_HANDLE, TC_PRIORITY = 0x6D73, 1
TC_POINTS = {"midstream_logger_ingress": libbpf.TC_INGRESS, "midstream_logger_egress": libbpf.TC_EGRESS}
_XDP_ATTACHED_SKB = "xdpgeneric"  # as pyroute2 names it


@dataclass(frozen=True)
class Attachment:
    """A program at work. reused: it was attached already, from the same files."""

    role: Role
    interface: str
    mode: Mode
    pins: Path
    reused: bool = False


def find(role: Role, folder: Path) -> Attachment | None:
    """The attachment that a folder's pins belong to, or None if nothing is attached."""
    if role == "logger":
        found = list(tc_filters(folder))
        if len(found) < len(TC_POINTS):
            return None
        return Attachment(role, socket.if_indextoname(found[0][0]), "tc", folder, reused=True)
    if link := link_info(folder):
        for interface in interfaces():
            number, mode = xdp(interface)
            if number == link.program_id:
                return Attachment(role, interface, mode, folder, reused=True)
    return None


def is_elsewhere(folder: Path) -> bool:
    """Does the link pinned in folder tie its program to an interface that is not in this network namespace?

    Ask only after `find` found nothing.
    """
    link = link_info(folder)
    return link is not None and link.ifindex != 0


def link_info(folder: Path) -> libbpf.LinkInfo | None:
    try:
        fd = libbpf.get(folder / "link")
    except KernelError:
        return None
    try:
        return libbpf.link_info(fd)
    finally:
        os.close(fd)


def xdp(interface: str) -> tuple[int, Mode]:
    """The number of the XDP program on an interface, 0 if there is none, and its mode."""
    with IPRoute() as netlink:
        for link in netlink.get_links(ifname=interface):
            xdp = link.get_attr("IFLA_XDP")
            mode: Mode = "generic" if xdp.get_attr("IFLA_XDP_ATTACHED") == _XDP_ATTACHED_SKB else "native"
            return int(xdp.get_attr("IFLA_XDP_PROG_ID") or 0), mode
    return 0, "native"


def tc_filters(folder: Path) -> Iterator[tuple[int, int]]:
    """Interface number and side of each filter that runs a program pinned in folder."""
    for name, point in TC_POINTS.items():
        try:
            fd = libbpf.get(folder / name)
        except KernelError:
            continue
        try:
            number = libbpf.program_id(fd)
        finally:
            os.close(fd)
        for ifindex, _ in socket.if_nameindex():
            if libbpf.tc_query(ifindex, point, TC_HANDLE, TC_PRIORITY) == number:
                yield ifindex, point


def interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]
