"""Which host of const.toml this is, and through which interface it reaches the others."""

from dataclasses import dataclass
from ipaddress import IPv4Address
from shlex import quote

from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream import network
from midstream.config import Config, Role
from midstream.errors import ConfigError, NetworkError
from midstream.network import Host, Topology


@dataclass(frozen=True, slots=True)
class Subject:
    """The host that is examined. host: its addresses by const.toml. interface: "" if none could be found."""

    role: Role
    host: Host
    interface: str
    config: Config
    topology: Topology

    @property
    def peers(self) -> dict[str, Host]:
        """The hosts that this one exchanges packets with, by what a person calls them."""
        hardworker, logger = {"hardworker": self.topology.hardworker}, {"logger": self.topology.logger}
        if self.role == "sensor":
            return hardworker | logger
        sensors = {sensor_name(host): host for host in self.topology.sensors}
        return (logger if self.role == "hardworker" else hardworker) | sensors

    @property
    def has_program(self) -> bool:
        """Whether an eBPF program belongs on this host."""
        if self.role == "hardworker":
            return self.config.hardworker.receiver == "ebpf"
        return self.config.network.restore == self.role

    def command(self, *words: str) -> str:
        """A command of midstream with this host's config.toml."""
        return f"midstream {' '.join(words)} --config {quote(str(self.config.path))}"

    @property
    def attach_anew(self) -> str:
        """The command that takes this host's program away and attaches it as the files say now."""
        return f"{self.command('detach', self.role)} && {self.command('attach', self.role)}"


def sensor_name(host: Host) -> str:
    return f"sensor {host.ip}"


def find(role: Role | None, config: Config, topology: Topology, interface: str = "") -> Subject:
    """This host, by its role, or else by its addresses. Raises ConfigError if it is none of const.toml's."""
    with IPRoute() as netlink:
        names = {link.get("index"): str(link.get("ifname")) for link in netlink.get_links()}
        macs = {str(link.get("address")): str(link.get("ifname")) for link in netlink.get_links()}
        ips = {
            IPv4Address(address.get("address")): names[address.get("index")]
            for address in netlink.get_addr(family=2)
        }
    role = role or _role(topology, ips)
    host = _host(role, topology, ips, macs)
    interface = interface or config.network.interface or ips.get(host.ip, "") or macs.get(host.mac, "")
    if not interface:
        peer = topology.logger if role == "hardworker" else topology.hardworker
        try:
            interface = network.find_interface(peer.ip)
        except NetworkError:
            interface = ""
    return Subject(role, host, interface, config, topology)


def _role(topology: Topology, ips: dict[IPv4Address, str]) -> Role:
    if topology.hardworker.ip in ips:
        return "hardworker"
    if topology.logger.ip in ips:
        return "logger"
    if any(host.ip in ips for host in topology.sensors):
        return "sensor"
    raise ConfigError(
        f"ROLE: none given, and this host has no address of const.toml ({_shown(ips)}); "
        "name sensor, hardworker or logger, or set role in config.toml"
    )


def _host(role: Role, topology: Topology, ips: dict[IPv4Address, str], macs: dict[str, str]) -> Host:
    if role == "hardworker":
        return topology.hardworker
    if role == "logger":
        return topology.logger
    for host in topology.sensors:
        if host.ip in ips or (host.mac in macs and len(topology.sensors) > 1):
            return host
    if len(topology.sensors) == 1:
        return topology.sensors[0]
    raise ConfigError(
        f"const.toml [ip] sensor: none of its {len(topology.sensors)} addresses is this host's "
        f"({_shown(ips)}), nor is a MAC address; correct const.toml, or give the host its address"
    )


def _shown(ips: dict[IPv4Address, str]) -> str:
    return ", ".join(f"{ip} on {name}" for ip, name in ips.items() if not ip.is_loopback) or "it has none"
