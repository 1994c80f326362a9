"""The object of a host's program: compiled for its const.toml or, without a compiler, midstream's own.

midstream's own were compiled when the package was built, with loaded/const.h. They serve every network: its
constants are a section that is written here, before the kernel gets the program. The verifier folds them
then, as the compiler folds those of const.toml.
"""

from pathlib import Path

import numpy as np

from midstream.config import MAX_STREAMS
from midstream.ebpf import clang, compiler, libbpf
from midstream.network import MAX_LOGGERS, MAX_SENSORS, Host, Topology

SECTION = ".rodata.constants"
"""Of midstream's own objects, where they need any."""

_LOGGER = [("ip", "<u4"), ("mac", "u1", 6), ("padding", "V2")]
_SENSOR = [("ip", "<u4"), ("number", "<u2"), ("mac", "u1", 6)]
CONSTANTS = np.dtype(
    [
        ("hardworker_ip", "<u4"),
        ("hardworker_mac", "u1", 6),
        ("port", "<u2"),
        ("tos", "<u4"),
        ("mtu", "<u4"),
        ("size", "<u4"),
        ("logger_count", "<u4"),
        ("sensor_count", "<u4"),
        ("port_count", "<u4"),
        ("ports", "<u2", MAX_STREAMS),
        ("loggers", _LOGGER, MAX_LOGGERS),
        ("sensors", _SENSOR, MAX_SENSORS),
    ]
)
"""struct constants of loaded/const.h."""


def are_brought() -> bool:
    """Has this package midstream's own objects? It has where it was built for a processor that is known."""
    return all(path.is_file() for path in map(own, clang.PROGRAMS))


def open_object(name: str, topology: Topology, *, compiled: bool | None = None) -> libbpf.Object:
    """The object of the program `name` (clang.PROGRAMS), with the topology's constants; the caller closes it.

    compiled: for this topology, or not; by default as this host can. Raises CompileError if the compiler
    refuses, or if there is neither a compiler nor an object of midstream's own; KernelError.
    """
    if compiled is None:
        compiled = bool(compiler.installed()) or not own(name).is_file()
    if compiled:
        return libbpf.Object(compiler.compile_program(name, topology))
    found = libbpf.Object(own(name))
    if SECTION in found.map_names():
        found.set_initial_value(SECTION, constants(topology))
    return found


def own(name: str) -> Path:
    """midstream's own object of that name, if the package has it."""
    return compiler.SOURCES / "loaded" / f"{name}.o"


def constants(topology: Topology) -> bytes:
    """struct constants: addresses in host byte order, sensors by address, loggers in their order."""
    values = np.zeros((), CONSTANTS)
    values["hardworker_ip"], values["hardworker_mac"] = _addresses(topology.hardworker)
    for name in ("port", "tos", "mtu", "size"):
        values[name] = getattr(topology, name)
    values["port_count"] = len(topology.ports)
    values["ports"][: len(topology.ports)] = list(topology.ports)
    values["logger_count"], values["sensor_count"] = len(topology.loggers), len(topology.sensors)
    for row, host in zip(values["loggers"], topology.loggers, strict=False):
        row["ip"], row["mac"] = _addresses(host)
    for row, (number, host) in zip(values["sensors"], topology.by_address(), strict=False):
        row["number"] = number
        row["ip"], row["mac"] = _addresses(host)
    return values.tobytes()


def _addresses(host: Host) -> tuple[int, list[int]]:
    return int(host.ip), list(host.mac_bytes)
