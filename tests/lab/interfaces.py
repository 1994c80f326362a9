"""What is attached to a host's interface, and ways to change it; to be called on that host."""

import ctypes
import os
import socket
from pathlib import Path

from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types
from pyroute2.ethtool.ioctl import IoctlEthtool  # type: ignore[import-untyped]  # likewise
from tests.lab.triangle import HARDWORKER, PINS

from midstream import network
from midstream.ebpf import compiler, libbpf

INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # of clsact (linux/pkt_sched.h)


def what_is_attached() -> dict[str, int]:
    """On this host's eth0: filters, their queueing discipline, and the XDP program's number."""
    with IPRoute() as ipr:
        (index,) = ipr.link_lookup(ifname="eth0")
        kinds = [queue.get_attr("TCA_KIND") for queue in ipr.get_qdiscs(index=index)]
        # One for each priority: a u32 filter is listed in several parts.
        filters = {
            (parent, found.get("info") >> 16)
            for parent in (INGRESS, EGRESS)
            for found in ipr.get_filters(index=index, parent=parent)
        }
        (link,) = ipr.get_links(index)
        number = link.get_nested("IFLA_XDP", "IFLA_XDP_PROG_ID") or 0
    return {"filters": len(filters), "clsact": kinds.count("clsact"), "xdp": number}


def set_link(name: str, state: str) -> None:
    with IPRoute() as ipr:
        ipr.link("set", index=ipr.link_lookup(ifname=name)[0], state=state)


def remove_xdp(name: str) -> None:
    for flags in (libbpf.XDP_FLAGS_DRV_MODE, libbpf.XDP_FLAGS_SKB_MODE):
        libbpf.xdp_attach(socket.if_nametoindex(name), -1, flags)


def attach_pass(const: Path, flags: int) -> None:
    with libbpf.Object(compiler.compile_program("pass", network.load(const))) as program:
        program.load()
        libbpf.xdp_attach(socket.if_nametoindex("eth0"), program.program_fd("midstream_pass"), flags)


def turn_off_gro(name: str) -> None:
    ethtool = IoctlEthtool(name)
    features = ethtool.get_features()
    features["rx-gro"] = False
    ethtool.set_features(features)
    ethtool.close()


def add_filter() -> None:
    """One that lets everything pass, on the side of ingress."""
    with IPRoute() as ipr:
        (index,) = ipr.link_lookup(ifname="eth0")
        ipr.tc("add", "clsact", index)
        keys = ["0x0/0x0+0"]
        ipr.tc("add-filter", "u32", index, parent=INGRESS, protocol=0x0003, prio=10, target=1, keys=keys)


def remove_clsact() -> None:
    with IPRoute() as ipr:
        ipr.tc("del", "clsact", ipr.link_lookup(ifname="eth0")[0])


def make_bridge(mac: str) -> None:
    """eth0 becomes a port of bridge0, which takes over its address."""
    with IPRoute() as ipr:
        (eth0,) = ipr.link_lookup(ifname="eth0")
        ipr.link("add", ifname="bridge0", kind="bridge", address=mac, mtu=1500, br_mcast_snooping=0)
        (bridge,) = ipr.link_lookup(ifname="bridge0")
        ipr.link("set", index=eth0, master=bridge)
        ipr.flush_addr(index=eth0)
        ipr.addr("add", index=bridge, address=HARDWORKER, prefixlen=24)
        ipr.link("set", index=bridge, state="up")


def remove_bridge() -> None:
    with IPRoute() as ipr:
        (eth0,) = ipr.link_lookup(ifname="eth0")
        ipr.link("del", ifname="bridge0")
        ipr.addr("add", index=eth0, address=HARDWORKER, prefixlen=24)


def pinned_programs(role: str) -> set[int]:
    """The numbers of the programs that are pinned for a role."""
    numbers = set()
    for path in PINS.glob(f"{role}/midstream_*"):
        fd = libbpf.get(path)
        numbers.add(libbpf.program_id(fd))
        os.close(fd)
    return numbers


def programs_of_the_kernel() -> set[int]:
    """The numbers of all loaded programs, whoever's."""
    library, number, numbers = ctypes.CDLL("libbpf.so.1"), ctypes.c_uint32(0), set()
    while library.bpf_prog_get_next_id(number, ctypes.byref(number)) == 0:
        numbers.add(number.value)
    return numbers
