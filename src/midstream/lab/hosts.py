"""The plan of the lab: which hosts there are, their names, addresses and cores."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from midstream.errors import LabError
from midstream.network import Host, SensorStream, Topology

SUBNET = IPv4Network("10.83.0.0/24")
INTERFACE = "eth0"
SWITCH = "switch"
HARDWORKER, LOGGER, FIRST_SENSOR = 2, 3, 11  # last byte of the address
MAX_SENSORS = 254 - FIRST_SENSOR + 1

_NAMESPACE = re.compile(r"ms-(switch|hardworker|logger|sensor(-[0-9]+)?)")


@dataclass(frozen=True)
class LabHost:
    """A host: `sensor`, `sensor-2`, …, `hardworker` or `logger`.

    `napi` is the process id of the kernel thread that does the receive work of the host's eth0, `switch_napi`
    that of the switch's port to the host; 0 in a plan that has not been built yet.
    """

    name: str
    ip: IPv4Address
    mac: str
    cpus: tuple[int, ...]
    napi: int = 0
    switch_napi: int = 0

    @property
    def namespace(self) -> str:
        """The name of its network namespace, below /run/netns."""
        return namespace(self.name)

    @property
    def port(self) -> str:
        """The switch's interface to this host, inside ms-switch."""
        return self.name

    @property
    def port_mac(self) -> str:
        """The MAC address of that interface."""
        return self.mac.replace("02:4d:53:00", "02:4d:53:01")


def plan(sensors: int, hardworker_cpus: tuple[int, ...], other_cpus: tuple[int, ...]) -> tuple[LabHost, ...]:
    """Hardworker, logger and `sensors` sensors. Raises LabError if the subnet has no room for that many."""
    if not 1 <= sensors <= MAX_SENSORS:
        raise LabError(f"sensors = {sensors}: the lab has room for 1 to {MAX_SENSORS} sensors in {SUBNET}")
    names = {"hardworker": HARDWORKER, "logger": LOGGER, "sensor": FIRST_SENSOR}
    names |= {f"sensor-{number}": FIRST_SENSOR + number - 1 for number in range(2, sensors + 1)}
    return tuple(
        LabHost(
            name=name,
            ip=SUBNET[last],
            mac=f"02:4d:53:00:00:{last:02x}",  # locally administered, and the letters M and S
            cpus=hardworker_cpus if name == "hardworker" else other_cpus,
        )
        for name, last in names.items()
    )


def topology(
    hosts: tuple[LabHost, ...],
    *,
    tos: int,
    port: int,
    mtu: int,
    size: int,
    streams: tuple[SensorStream, ...] = (),
) -> Topology:
    """What const.toml says about these hosts. port, size: where there are no streams with names."""
    by_name = {host.name: Host(host.ip, host.mac) for host in hosts}
    return Topology(
        sensors=tuple(host for name, host in by_name.items() if name.startswith("sensor")),
        hardworker=by_name["hardworker"],
        logger=by_name["logger"],
        tos=tos,
        port=streams[0].port if streams else port,
        mtu=mtu,
        size=streams[0].size if streams else size,
        streams=streams,
    )


def namespace(host: str) -> str:
    """The namespace of a host or of the switch."""
    return f"ms-{host}"


def is_ours(name: str) -> bool:
    """Whether a namespace of this name belongs to the lab."""
    return _NAMESPACE.fullmatch(name) is not None
