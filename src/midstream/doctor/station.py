"""What to type on a control station, so that it reaches the three hosts whatever ARP says.

The commands are text made from const.toml: nothing here asks the system, so any system will do.
"""

from shlex import quote
from typing import Literal, get_args

from midstream.errors import ConfigError
from midstream.network import Host, Topology

System = Literal["windows", "macos", "linux"]

_INTERFACES: dict[System, str] = {"windows": "Ethernet", "macos": "en0", "linux": "eth0"}


def commands(system: str, topology: Topology, interface: str = "") -> list[str]:
    """The commands for a station, in order; as its administrator. interface: default the system's usual name.

    A permanent neighbour for each host, and a route to each through this interface, for a station that has
    several or an address of another network. Raises ConfigError for a system that is not known.
    """
    known: tuple[System, ...] = get_args(System)
    for name in known:
        if name == system:
            device = interface or _INTERFACES[name]
            hosts = (topology.hardworker, topology.logger, *topology.sensors)
            return [command for host in hosts for command in _commands(name, host, device)]
    raise ConfigError(f"--station = {system!r}: must be windows, macos or linux")


def _commands(system: System, host: Host, interface: str) -> list[str]:
    if system == "windows":
        netsh, mac = "netsh interface ipv4 add", host.mac.replace(":", "-")
        return [
            f'{netsh} route {host.ip}/32 "{interface}" store=persistent',
            f'{netsh} neighbors "{interface}" {host.ip} {mac} store=persistent',
        ]
    if system == "macos":
        return [
            f"sudo route -n add -host {host.ip} -interface {quote(interface)}",
            f"sudo arp -s {host.ip} {host.mac} ifscope {quote(interface)}",
        ]
    device = quote(interface)
    return [
        f"ip route replace {host.ip}/32 dev {device}",
        f"ip neigh replace {host.ip} lladdr {host.mac} dev {device} nud permanent",
    ]
