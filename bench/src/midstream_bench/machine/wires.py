"""Sensors and logger of a virtual hardworker: network namespaces, joined with its tap by a bridge.

Nothing leaves the machine: the bridge is in a namespace too, and QEMU runs there.
"""

import fcntl
import os
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream.ebpf import compiler, libbpf
from midstream.errors import LabError
from midstream.lab import enter, faults, hosts, links, namespaces
from midstream.lab.hosts import INTERFACE, SUBNET, LabHost
from midstream.lab.impairment import ALL, Impairment, find_legs
from midstream.network import Topology
from midstream_bench.ebpf import compile_program

SWITCH = "msb-switch"
TAP = "hardworker"  # as the port of a lab's switch
RTO_MIN = 200
"""Milliseconds: the smallest time-out of Linux's TCP."""
IMPAIRED = Path("/sys/fs/bpf/midstream-vm-switch")

# linux/if_tun.h. A queue joins a tap that has the same properties; the program stays when the queue is gone.
_TUNSETIFF, _TUNSETSTEERINGEBPF = 0x400454CA, 0x800454E0
_RTAX_RTO_MIN = 13  # linux/rtnetlink.h
_TAP_QUEUE = 0x0002 | 0x0100 | 0x1000 | 0x4000  # IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR


class MachineHost(LabHost):
    """A host beside the virtual machine: its namespace is not one of the lab's, which may be up meanwhile."""

    @property
    def namespace(self) -> str:
        return f"msb-{self.name}"


@contextmanager
def wired(sensors: int, mtu: int) -> Iterator[tuple[LabHost, ...]]:
    """The hosts while the context lasts; the hardworker among them is the machine at the tap.

    Raises LabError: not root, or the namespaces are there already.
    """
    planned = tuple(MachineHost(**vars(host)) for host in hosts.plan(sensors, (), ()))
    others = [host for host in planned if host.name != "hardworker"]
    names = [SWITCH, *(host.namespace for host in others)]
    if there := [name for name in names if Path(enter.NAMESPACES, name).exists()]:
        raise LabError(
            f"namespaces {', '.join(there)} exist: another measurement runs, or was killed; "
            "remove them with `ip netns del`"
        )
    try:
        namespaces.create(names)
        namespaces.call(SWITCH, (), links.wire, others, mtu)
        namespaces.call(SWITCH, (), _start_switch, [host.port for host in others], mtu)
        for host in others:
            namespaces.call(host.namespace, (), _start_host, host, planned)
        yield planned
    finally:
        namespaces.end(
            namespaces.processes([name for name in names if Path(enter.NAMESPACES, name).exists()])
        )
        if Path(enter.NAMESPACES, SWITCH).exists():
            namespaces.call(SWITCH, (), links.unwire)
        namespaces.remove([name for name in names if Path(enter.NAMESPACES, name).exists()])
        shutil.rmtree(IMPAIRED, ignore_errors=True)


def slow_down(hosts: Sequence[LabHost], slow: int) -> None:
    """TCP's timers beside the machine become as slow as its clock, for connections made from now on.

    The smallest time-out is one of them. Others follow it: after how long a pause a receiver acknowledges
    every segment, and when the tail of what was sent is sent again.
    """
    for host in hosts:
        if host.name != "hardworker":
            namespaces.call(host.namespace, (), _slow_down, str(host.ip), slow)


def impair(hosts: Sequence[LabHost], impairment: Impairment, topology: Topology) -> None:
    """What happens to the TCP frames of every wire from now on, as in a lab; they are counted anew."""
    legs = find_legs(ALL, [host.name for host in hosts])
    program = compiler.compile_program("impair", topology)
    namespaces.call(SWITCH, (), faults.impair_ports, hosts, legs, impairment, program, IMPAIRED)


def steer(topology: Topology) -> None:
    """The machine gets every frame at its first queue, as from a card with a queue to receive and another for
    XDP_TX. QEMU forgets that when the guest changes the number of queues, as attaching a program does."""
    namespaces.call(SWITCH, (), _steer, compile_program("steer", topology))


def command(namespace: str, argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The arguments that run a program in a namespace."""
    return [
        sys.executable,
        "-I",
        "-S",
        enter.__file__,
        namespace,
        str(os.getpid()),
        "",
        *(os.fspath(one) for one in argv),
    ]


def _start_switch(ports: Sequence[str], mtu: int) -> None:
    with IPRoute() as ipr:
        ipr.link("add", ifname=TAP, kind="tun", tun_type=2, tun_multi_queue=1, tun_vnet_hdr=1, tun_persist=1)
        (bridge,) = ipr.link_lookup(ifname=links.BRIDGE)
        (tap,) = ipr.link_lookup(ifname=TAP)
        ipr.link("set", index=tap, master=bridge, mtu=mtu, state="up")
        for port in ports:
            (index,) = ipr.link_lookup(ifname=port)
            links.set_offloads(port)
            ipr.link("set", index=index, state="up")


def _steer(path: Path) -> None:
    queue = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(queue, _TUNSETIFF, struct.pack("16sH22x", TAP.encode(), _TAP_QUEUE))
        with libbpf.Object(path) as program:
            program.load()
            steering = struct.pack("i", program.program_fd("midstream_steer"))
            fcntl.ioctl(queue, _TUNSETSTEERINGEBPF, steering)
    finally:
        os.close(queue)


def _slow_down(address: str, slow: int) -> None:
    with IPRoute() as ipr:
        (index,) = ipr.link_lookup(ifname=INTERFACE)
        # scope and protocol as of the route that the address brought: it is replaced
        ipr.route(
            "replace",
            dst=str(SUBNET),
            oif=index,
            prefsrc=address,
            scope="link",
            proto="kernel",
            metrics={"rto_min": RTO_MIN * slow, "lock": 1 << _RTAX_RTO_MIN},  # heeded only if locked
        )


def _start_host(host: LabHost, neighbours: Sequence[LabHost]) -> None:
    with IPRoute() as ipr:
        (index,) = ipr.link_lookup(ifname=INTERFACE)
        links.set_offloads(INTERFACE)
        ipr.addr("add", index=index, address=str(host.ip), prefixlen=SUBNET.prefixlen)
        ipr.link("set", index=index, state="up")
        # No connection begins with what one of another speed has measured.
        Path("/proc/sys/net/ipv4/tcp_no_metrics_save").write_text("1")
        for other in neighbours:
            if other.name != host.name:
                ipr.neigh("replace", dst=str(other.ip), lladdr=other.mac, ifindex=index, state="permanent")
