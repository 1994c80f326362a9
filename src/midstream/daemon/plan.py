"""From what was heard to the topology: who is who, which marks hold, and what contradicts itself."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from midstream import streams
from midstream.config import Config, Role
from midstream.daemon.announcement import Announcement, Mark, pack
from midstream.daemon.peers import Peers
from midstream.errors import ConfigError
from midstream.network import Host, Topology

DEFAULT_TOS = 104


@dataclass(frozen=True)
class TopologyPlan:
    """A topology, or the reason why there is none. waiting: it may come by itself, when others are heard."""

    topology: Topology | None
    reason: str = ""
    waiting: bool = False
    loggers: tuple[Announcement, ...] = ()


def decide_mark(config: Config, previous: Topology | None) -> Mark:
    """What the hardworker decides for all: config.toml, else const.toml as it was, else the default."""
    tos, port, size = config.network.tos, config.network.port, config.data.size
    before = Mark(
        tos=previous.tos if previous else DEFAULT_TOS,
        port=previous.port if previous else streams.FIRST_PORT,
        size=previous.size if previous and not previous.streams else streams.DEFAULT_SIZE,
    )
    tos = before.tos if tos is None else tos
    if decided := streams.decide(config, previous.streams if previous else ()):
        first = decided[0]
        return Mark(tos=tos, port=first.port, size=first.size, packed=pack(decided))
    return Mark(
        tos=tos,
        port=before.port if port is None else port,
        size=before.size if size is None else size,
    )


def make_plan(config: Config, own: Announcement, peers: Peers, previous: Topology | None) -> TopologyPlan:
    """The topology as this host sees it."""
    hosts = {role: [*([own] if own.role == role else []), *peers.of(role)] for role in _ROLES}
    hardworkers = hosts["hardworker"]
    sensors = sorted(hosts["sensor"], key=lambda said: said.ip)
    loggers = tuple(hosts["logger"])
    primaries = [said for said in loggers if not said.standby]
    for role, claimants in (("hardworker", hardworkers), ("logger", primaries)):
        if len(claimants) > 1:
            advice = ", or set standby = true in [daemon] of one" if role == "logger" else ""
            names = " and ".join(f"{said.name} ({said.ip}, {said.mac})" for said in claimants)
            return TopologyPlan(
                None, f"{names} both claim to be the {role}; give one of them another role{advice}"
            )
    # A logger that was known before may be off: data flows without it.
    known = loggers or (previous.loggers if previous else ())
    missing = [
        name
        for name, found in (("hardworker", hardworkers), ("logger", known), ("sensor", sensors))
        if len(found) < (config.daemon.sensors if name == "sensor" and own.role != "sensor" else 1)
    ]
    if missing:
        return TopologyPlan(None, _missing(missing, len(sensors), config), waiting=True)
    hardworker = hardworkers[0]
    mark = hardworker.mark
    if mark is None:
        return TopologyPlan(None, f"{hardworker} has not said yet which marks hold", waiting=True)
    if fault := _contradiction(config, mark) or _unequal_mtu([*hardworkers, *loggers, *sensors]):
        return TopologyPlan(None, fault)
    first, *standbys = _loggers(
        own,
        _in_order(preferred(loggers), previous.loggers if previous else (), (hardworker, *sensors)),
    )
    topology = Topology(
        sensors=_in_order(sensors, previous.sensors if previous else (), (hardworker, *loggers)),
        hardworker=Host(hardworker.ip, hardworker.mac),
        logger=first,
        standbys=tuple(standbys),
        tos=mark.tos,
        port=mark.port,
        mtu=own.mtu,
        size=mark.size,
        streams=mark.streams,
    )
    return TopologyPlan(topology, loggers=loggers)


def addresses(topology: Topology | None) -> list[str]:
    """The loggers', by position."""
    return [str(host.ip) for host in topology.loggers] if topology else []


def order(topology: Topology, heard: Iterable[Announcement]) -> list[int]:
    """The loggers' positions, the preferred one first; those that are not heard last."""
    preference = [said.ip for said in preferred(heard)]
    ips = [host.ip for host in topology.loggers]
    return sorted(
        range(len(ips)),
        key=lambda n: (preference.index(ips[n]) if ips[n] in preference else len(preference), n),
    )


def is_about(topology: Topology, own: Announcement) -> bool:
    """Was this topology made for this host as it is now: same addresses, marks and MTU?"""
    told = (topology.tos, topology.port, topology.size, topology.streams)
    marks = told if own.mark is None else (own.mark.tos, own.mark.port, own.mark.size, own.mark.streams)
    return Host(own.ip, own.mac) in _places(topology, own) and told == marks and topology.mtu == own.mtu


def own_plan(topology: Topology, own: Announcement) -> TopologyPlan:
    """A topology of the user's own const.toml, which must name this host. Raises ConfigError."""
    if own.ip not in {host.ip for host in _places(topology, own)}:
        raise ConfigError(
            f"const.toml names no {own.role} {own.ip}, which is this host's address; correct it, or set "
            "explore = true in [daemon]"
        )
    return TopologyPlan(topology)


def _places(topology: Topology, own: Announcement) -> tuple[Host, ...]:
    """Where this host can be."""
    return topology.sensors if own.role == "sensor" else (getattr(topology, own.role),)


_ROLES: tuple[Role, ...] = ("sensor", "hardworker", "logger")


def _missing(missing: list[str], sensors: int, config: Config) -> str:
    text = f"no {' and no '.join(missing)} has been heard"
    if missing == ["sensor"] and sensors:
        text = f"{sensors} of daemon.sensors = {config.daemon.sensors} sensors have been heard"
    return (
        f"{text}; see that `midstream daemon` runs there with the same key, and that the switch passes "
        "multicast (224.0.0.251, UDP port 5353)"
    )


def _contradiction(config: Config, mark: Mark) -> str:
    """What this host's config.toml says otherwise than the hardworker."""
    if fault := streams.contradiction(config, mark.streams):
        return f"{config.path}: {fault}"
    for name, own, decided in (
        ("network.tos", config.network.tos, mark.tos),
        ("network.port", config.network.port, mark.port),
        ("data.size", config.data.size, mark.size),
    ):
        if own is not None and own != decided:
            advice = "make them equal, or leave it out here"
            return f"{config.path}: {name} = {own}: the hardworker says {decided}; {advice}"
    return ""


def _unequal_mtu(hosts: list[Announcement]) -> str:
    if len({said.mtu for said in hosts}) == 1:
        return ""
    each = ", ".join(f"{said} has {said.mtu}" for said in hosts)
    return (
        f"the MTUs differ: {each}; make them equal (`ip link set DEV mtu N`), else full packets would be "
        "dropped"
    )


def preferred(loggers: Iterable[Announcement]) -> list[Announcement]:
    """Those that are no standby first."""
    return sorted(loggers, key=lambda said: (said.standby, said.ip))


def _loggers(own: Announcement, hosts: tuple[Host, ...]) -> tuple[Host, ...]:
    """A logger is its own first: its program and its server take that address."""
    return tuple(sorted(hosts, key=lambda host: host.ip != own.ip)) if own.role == "logger" else hosts


def _in_order(
    heard: list[Announcement], before: tuple[Host, ...], others: tuple[Announcement, ...]
) -> tuple[Host, ...]:
    """Hosts of one role: those of before in their places, by which they are known, unless one of their
    addresses is another host's now; then the new ones."""
    hosts = {said.ip: Host(said.ip, said.mac) for said in heard}
    taken = {said.ip for said in others}
    macs = {said.mac for said in (*heard, *others)}
    order: list[Host] = []
    for host in before:
        if host.ip in hosts:
            order.append(replace(host, mac=hosts.pop(host.ip).mac))
        elif host.ip not in taken and host.mac not in macs:
            order.append(host)
    return (*order, *hosts.values())
