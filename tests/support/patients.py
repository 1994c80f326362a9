"""A host for the doctor's checks, and facts of one that is well; a test changes what it is about."""

from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from midstream.config import Config, Role
from midstream.doctor.finding import Finding, Status
from midstream.doctor.interface import InterfaceState
from midstream.doctor.kernel import KernelState
from midstream.doctor.neighbours import Neighbour, Route, Stack
from midstream.doctor.program import ProgramState
from midstream.doctor.subject import Subject
from midstream.network import Host, Topology

SENSORS = tuple(Host(IPv4Address(f"192.0.2.{n}"), f"02:00:00:00:00:{n}") for n in (11, 12))
HARDWORKER = Host(IPv4Address("192.0.2.2"), "02:00:00:00:00:02")
LOGGER = Host(IPv4Address("192.0.2.3"), "02:00:00:00:00:03")
FOREIGN = "02:00:00:00:00:99"
FOLDER = Path("/sys/fs/bpf/midstream/hardworker")


def subject(role: Role, **settings: Any) -> Subject:
    """The host of that role, the first sensor; settings are config.toml's tables."""
    topology = Topology(SENSORS, HARDWORKER, LOGGER, tos=104, port=12345, mtu=1500, size=1024)
    host = {"sensor": SENSORS[0], "hardworker": HARDWORKER, "logger": LOGGER}[role]
    return Subject(role, host, "eth0", Config.model_validate(settings), topology)


def kernel(**changed: Any) -> KernelState:
    well: dict[str, Any] = {
        "release": "6.1.0-18-amd64",
        "bpffs": True,
        "supports": {"XDP": True, "tc": True, "ring buffers": True},
        "capabilities": (1 << 41) - 1,
        "lockdown": "none",
        "libbpf": "1.1",
        "compiler": "ziglang 0.13.0",
        "jit": 1,
        "distribution": ("debian",),
    }
    return KernelState(**well | changed)


def interface(host: Host = HARDWORKER, **changed: Any) -> InterfaceState:
    well: dict[str, Any] = {
        "name": "eth0",
        "up": True,
        "carrier": True,
        "mac": host.mac,
        "mtu": 1500,
        "addresses": (host.ip,),
        "driver": "igc",
        "native": True,
        "xdp": "native",
        "program": 7,
        "offloads": frozenset({"rx-gro", "tx-checksum-ip-generic", "tx-tcp-segmentation"}),
        "errors": {},
    }
    return InterfaceState(**well | changed)


def stack(of: Subject, **changed: Any) -> Stack:
    peers = of.peers.values()
    well: dict[str, Any] = {
        "neighbours": {host.ip: Neighbour(host.mac, "permanent") for host in peers},
        "routes": {host.ip: Route("eth0", "", str(of.host.ip)) for host in peers},
        "rp_filter": 1,
        "arp_ignore": {"all": 0, "eth0": 0},
        "chains": (),
        "iptables": (),
    }
    return Stack(**well | changed)


def program(**changed: Any) -> ProgramState:
    well: dict[str, Any] = {"folder": FOLDER, "pinned": True, "attached": "eth0", "current": True}
    return ProgramState(**well | changed)


def only(findings: list[Finding], status: Status) -> Finding:
    """The one finding that is not ok, which has that status."""
    (found,) = [finding for finding in findings if finding.status != "ok"]
    assert found.status == status, found
    assert status == "unknown" or found.fix
    return found


def well(findings: list[Finding]) -> bool:
    return bool(findings) and all(finding.status == "ok" for finding in findings)
