"""The wires: a bridge in ms-switch, a veth pair to every host, and what makes XDP on veth work."""

import errno
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError  # type: ignore[import-untyped]  # pyroute2 ships no types
from pyroute2.ethtool.ioctl import IoctlEthtool  # type: ignore[import-untyped]  # likewise

from midstream.ebpf import loader
from midstream.errors import LabError
from midstream.lab import cpu
from midstream.lab.enter import NAMESPACES
from midstream.lab.hosts import INTERFACE, SUBNET, LabHost
from midstream.network import Topology

BRIDGE = "br0"
BRIDGE_MAC = "02:4d:53:01:00:01"
_GROUP = 83  # of all ports, so that one request removes them all
_NTF_MASTER = 0x04
_NUD_NOARP = 0x40  # in a bridge's table: static


def wire(hosts: Sequence[LabHost], mtu: int) -> None:
    """In ms-switch: the bridge, and a pair to each host, both ends still down. Raises LabError."""
    with IPRoute() as ipr:
        with _needs("CONFIG_BRIDGE (modprobe bridge)"):
            ipr.link(
                "add",
                ifname=BRIDGE,
                kind="bridge",
                address=BRIDGE_MAC,
                mtu=mtu,
                state="up",
                br_stp_state=0,
                br_forward_delay=0,
                br_mcast_snooping=0,
            )
        (bridge,) = ipr.link_lookup(ifname=BRIDGE)
        for host in hosts:
            with _needs("CONFIG_VETH (modprobe veth)"), Path(NAMESPACES, host.namespace).open() as inside:
                ipr.link(
                    "add",
                    ifname=host.port,
                    kind="veth",
                    address=host.port_mac,
                    mtu=mtu,
                    master=bridge,
                    group=_GROUP,
                    num_tx_queues=1,
                    num_rx_queues=1,
                    peer={
                        "ifname": INTERFACE,
                        "net_ns_fd": inside.fileno(),
                        "address": host.mac,
                        "mtu": mtu,
                        "num_tx_queues": 1,
                        "num_rx_queues": 1,
                    },
                )


def start_host(host: LabHost, neighbours: Sequence[LabHost]) -> int:
    """In a host: eth0 up with address and these permanent neighbours. Returns its NAPI thread.

    Raises LabError.
    """
    with IPRoute() as ipr:
        (index,) = ipr.link_lookup(ifname=INTERFACE)
        set_offloads(INTERFACE)
        ipr.addr("add", index=index, address=str(host.ip), prefixlen=SUBNET.prefixlen)
        ipr.link("set", index=index, state="up")
        for other in neighbours:
            if other.name != host.name:
                ipr.neigh("replace", dst=str(other.ip), lladdr=other.mac, ifindex=index, state="permanent")
    return cpu.start_napi_thread(INTERFACE, host.cpus)


def start_switch(hosts: Sequence[LabHost], cpus: Sequence[int], topology: Topology) -> list[int]:
    """In ms-switch: ports up. Returns the NAPI thread of each. Raises LabError, CompileError, KernelError."""
    threads = []
    with IPRoute() as ipr:
        for host in hosts:
            (index,) = ipr.link_lookup(ifname=host.port)
            set_offloads(host.port)
            ipr.link("set", index=index, state="up")
            # A bridge that had to learn would flood the first packets, and later those to silent hosts, to
            # everybody.
            ipr.fdb("add", ifindex=index, lladdr=host.mac, flags=_NTF_MASTER, state=_NUD_NOARP)
            # Without a program here, what the host's program transmits (XDP_TX) stays in this end's queue for
            # ever.
            loader.attach_pass(host.port, topology)
            threads.append(cpu.start_napi_thread(host.port, cpus))
            cpu.prefer(threads[-1])
    return threads


def unwire() -> None:
    """In ms-switch: remove every pair, with both ends and their NAPI threads."""
    with IPRoute() as ipr:
        if ipr.link_lookup(group=_GROUP):
            ipr.link("del", group=_GROUP)


def check_host(host: LabHost) -> list[str]:
    """In a host: what is not as `start_host` left it."""
    wrong = _check_link(INTERFACE, host.mac)
    if not wrong:
        with IPRoute() as ipr:
            if not [*ipr.get_addr(address=str(host.ip))]:
                wrong.append(f"{INTERFACE} has no address {host.ip}")
    if not cpu.thread_name(host.napi).startswith(f"napi/{INTERFACE}-"):
        wrong.append(f"{INTERFACE}: its NAPI thread {host.napi} is gone")
    return [f"{host.name}: {problem}" for problem in wrong]


def check_switch(hosts: Sequence[LabHost], impaired: Collection[str] = ()) -> list[str]:
    """In ms-switch: what is not as `start_switch` left it. `impaired` names the ports that must not merge."""
    wrong = []
    for host in hosts:
        if missing := _check_link(host.port, host.port_mac, gro=host.port not in impaired):
            wrong += missing
            continue
        if not _has_xdp(host.port):
            wrong.append(f"{host.port} has no XDP program: what {host.name} sends by XDP_TX would be lost")
        if not Path("/sys/class/net", BRIDGE, "brif", host.port).exists():
            wrong.append(f"{host.port} is not a port of {BRIDGE}")
        if not cpu.thread_name(host.switch_napi).startswith(f"napi/{host.port}-"):
            wrong.append(f"{host.port}: its NAPI thread {host.switch_napi} is gone")
    return [f"switch: {problem}" for problem in wrong]


def set_offloads(interface: str, *, gro: bool = True) -> None:
    """Make `interface` hand over packets as a wire would: checksum and VLAN tag in place, no TSO; GRO on.

    A packet whose checksum the card is to fill in (CHECKSUM_PARTIAL) keeps a wrong one when XDP sends it on;
    and veth has no NAPI without GRO, unless it has an XDP program. Raises LabError if a feature does not
    change.
    """
    ethtool = IoctlEthtool(interface)
    try:
        features = ethtool.get_features()
        for name, _, available, *_ in features:
            if available and _is_wanted(name, gro) is not None:
                features[name] = _is_wanted(name, gro)
        ethtool.set_features(features)
    finally:
        ethtool.close()
    if wrong := wrong_offloads(interface, gro=gro):
        raise LabError(
            f"{interface}: the kernel did not change {', '.join(wrong)}; see `ethtool -k {interface}`"
        )


def wrong_offloads(interface: str, *, gro: bool = True) -> list[str]:
    """The features of `interface` that are not as `set_offloads` sets them."""
    ethtool = IoctlEthtool(interface)
    try:
        return [name for name, on, *_ in ethtool.get_features() if _is_wanted(name, gro) not in (None, on)]
    finally:
        ethtool.close()


def _is_wanted(feature: str, gro: bool) -> bool | None:
    """Whether a feature is to be on or off; None: it does not matter."""
    if feature.startswith(("tx-checksum-", "tx-vlan-", "tx-gso-")) or feature.endswith("-segmentation"):
        return False
    return gro if feature == "rx-gro" else None


def _check_link(interface: str, mac: str, *, gro: bool = True) -> list[str]:
    with IPRoute() as ipr:
        links = ipr.link_lookup(ifname=interface)
        if not links:
            return [f"{interface} is missing"]
        (link,) = ipr.get_links(*links)
    wrong = []
    if link.get("state") != "up":
        wrong.append(f"{interface} is down")
    if link.get("address") != mac:
        wrong.append(f"{interface} has MAC address {link.get('address')}, not {mac}")
    if changed := wrong_offloads(interface, gro=gro):
        wrong.append(f"{interface}: offloads changed: {', '.join(changed)}")
    return wrong


def _has_xdp(interface: str) -> bool:
    with IPRoute() as ipr:
        links = ipr.get_links(*ipr.link_lookup(ifname=interface))
        return any(link.get_nested("IFLA_XDP", "IFLA_XDP_PROG_ID") for link in links)


@contextmanager
def _needs(feature: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code == errno.EOPNOTSUPP:
            raise LabError(f"this kernel lacks {feature}, which the lab needs") from None
        raise LabError(f"the kernel refused a link of the lab: {error}") from None
