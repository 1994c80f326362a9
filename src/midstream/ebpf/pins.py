"""What the loader leaves in a bpffs, and how others find and trust it.

A host's folder holds, for the hardworker, the maps, the program and the link that ties it to its
interface; for the logger the map and two programs; for the sensor program and link. Streams that have names
have folders of their names in `streams` below it, each with the maps and the program of the one stream; the
maps that they share are in all of them, and in the host's folder (`SHARED`).

`settings` is among the maps: constant since the program was loaded, it bears the stamp, a hash of everything
that makes the program and its maps what they are, and a second one, the layout, of what makes the maps alone.
Who attaches compares the stamp with that of his own configuration, who reads the maps compares the layout: so
neither a stale nor a foreign pin is ever used, and a reader goes on when the program is replaced for other
addresses.
"""

import ctypes
import errno
import hashlib
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from midstream.config import DATA, Config, Role
from midstream.ebpf import compiler, libbpf, records
from midstream.ebpf.sizing import ring_size
from midstream.errors import KernelError
from midstream.network import Topology
from midstream.streams import resolved

_BPF_FS_MAGIC = 0xCAFE4A11


STREAMS = "streams"
ASIDE = "aside"
"""A folder of the hardworker's: pins that are not whole yet, or not needed any more."""
SHARED = ("control", "last_number", "irq_mitigation")
"""Maps of which the hardworker's streams have one."""


def stamp(role: Role, config: Config, topology: Topology) -> bytes:
    """The hash of what the host's program and maps are made from: sources, const.toml, and of config.toml
    what the loader sets."""
    if role != "hardworker":
        return _stamp(role, config, topology)
    each = [_stamp(role, *stream) for stream in resolved(config, topology).values()]
    if len(each) == 1:
        return each[0]
    return hashlib.sha256(b"".join(each) + compiler.key(STREAMS, topology).encode()).digest()


def _stamp(role: Role, config: Config, topology: Topology) -> bytes:
    made_from = compiler.key(role, topology) + config.named_stream
    return hashlib.sha256(layout(role, config, topology) + made_from.encode()).digest()


def layout(role: Role, config: Config, topology: Topology) -> bytes:
    """The hash of what the maps, and the records in them, are made from: the ABI, the size of a message, and
    of config.toml what the loader sets. Addresses, marks and sources are not among it. Of the hardworker's
    maps those of its only stream."""
    made_from = f"{role} {records.ABI}"
    if role == "hardworker":
        settings = config.hardworker
        period = settings.period if settings.irq_mitigation else settings.period > 0
        made_from += f" {topology.size} {ring_size(config, topology)} {settings.connections} {period}"
        made_from += f" {settings.checksums} {settings.quota}"
        if config.named_stream:  # a reader that cuts otherwise must not go on with connections that are open
            made_from += f" {config.data.framing}"
    return hashlib.sha256(made_from.encode()).digest()


def default_folder(role: Role, config: Config) -> Path:
    """Where a role's program is pinned unless another place is named."""
    return Path(config.network.pins, role)


def stream_folder(folder: Path, config: Config) -> Path:
    """Where in a hardworker's folder the pins of the only stream of `config` are."""
    return folder / STREAMS / config.named_stream if config.named_stream else folder


def stream_folders(folder: Path) -> dict[str, Path]:
    """Where in a hardworker's folder the pins of each stream are, by its name."""
    try:
        return {path.name: path for path in sorted((folder / STREAMS).iterdir())}
    except OSError:  # there are no names, or this process may not look, which whoever opens a pin is told
        return {DATA: folder}


def host_folder(folder: Path) -> Path:
    """The hardworker's folder of that of a stream."""
    return folder.parent.parent if folder.parent.name == STREAMS else folder


def open_map(folder: Path, name: str, *, value_size: int | None = None) -> int:
    """The descriptor of a pinned map. Raises KernelError if it is missing, foreign, or of another layout."""
    path = folder / name
    fd = libbpf.get(path)
    try:
        found = libbpf.map_info(fd).value_size
        if value_size is not None and found != value_size:
            raise KernelError(
                f"{path}: its values have {found} bytes instead of {value_size}; "
                "another version of midstream made it: `midstream detach`, then `midstream attach`"
            )
    except KernelError:
        os.close(fd)
        raise
    return fd


OF_STREAM = frozenset(
    {"settings", "ring", "journal", "unfinished", "committed", "connections", "ended", "counters", "shares"}
    | {"beginnings", "midstream_hardworker", "midstream_break_off", *SHARED}
)
"""What is opened by its pin of each stream."""

NEEDED: dict[Role, frozenset[str]] = {
    "hardworker": frozenset({"settings", "link", "midstream_hardworker", *SHARED}),
    "logger": frozenset({"settings", "midstream_logger_ingress", "midstream_logger_egress"}),
    "sensor": frozenset({"settings", "link", "midstream_sensor"}),
}
"""What is opened by its pin after the program was attached."""


def missing(role: Role, folder: Path) -> list[str]:
    """What somebody has removed of a folder's pins."""
    wanted = {folder: NEEDED[role]}
    if role == "hardworker":
        found = stream_folders(folder).values()
        for of_stream in found:
            wanted[of_stream] = wanted.get(of_stream, frozenset()) | OF_STREAM
        if len(found) > 1:
            wanted[folder] |= {"ports"}
    return sorted(
        str((place / name).relative_to(folder))
        for place, names in wanted.items()
        for name in names - {path.name for path in place.iterdir()}
    )


def is_whole(role: Role, folder: Path) -> bool:
    """Are there pins in the folder, and is none of them missing?"""
    return folder.exists() and not missing(role, folder)


@dataclass(frozen=True)
class PinStamps:
    """What a folder's pins say of themselves. sensors: how many the program knows."""

    stamp: bytes
    layout: bytes
    sensors: int


def read_marks(folder: Path) -> PinStamps | None:
    """The marks of a folder's pins; None if there are none, because nothing or something else was pinned.

    Raises KernelError if this process may not look.
    """
    try:
        fd = open_map(folder, "settings", value_size=records.SETTINGS.itemsize)
    except KernelError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise
        return None
    try:
        value = libbpf.lookup(fd, bytes(4), records.SETTINGS.itemsize)
    finally:
        os.close(fd)
    if value is None:
        return None
    (found,) = np.frombuffer(value, records.SETTINGS)
    return PinStamps(found["stamp"].tobytes(), found["layout"].tobytes(), int(found["sensors"]))


def remove(folder: Path) -> None:
    """Remove a host's folder. The stamp goes last: what somebody who is killed here leaves is known to be
    ours."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "settings":
            path.unlink()
    shutil.rmtree(folder)


def verify(folder: Path, *, stamp: bytes | None = None, layout: bytes | None = None) -> None:
    """Raise KernelError unless the folder's pins bear the expected stamp, or the expected layout."""
    if not folder.exists() or not any(folder.iterdir()):
        raise KernelError(
            f"{folder}: no program is attached; run `midstream attach` on this host first", errno=errno.ENOENT
        )
    marks = read_marks(folder)
    if marks is None:
        raise KernelError(
            f"{folder}: these pins bear no stamp of midstream, so they are left alone; "
            "name another folder in config.toml: network.pins, or remove them"
        )
    for found, expected in ((marks.stamp, stamp), (marks.layout, layout)):
        if expected is None or found == expected:
            continue
        raise KernelError(
            f"{folder}: these pins were made from other files (stamp {found.hex()[:12]}, "
            f"config.toml, const.toml and this midstream give {expected.hex()[:12]}); "
            "run `midstream detach`, then `midstream attach`"
        )


def is_linked(folder: Path, role: Role) -> bool | None:
    """Does the link pinned in a host's folder tie an interface to the program pinned beside it?

    None if this process may not look. For roles with an XDP program.
    """
    try:
        with ExitStack() as opened:
            link = libbpf.get(folder / "link")
            opened.callback(os.close, link)
            program = libbpf.get(folder / f"midstream_{role}")
            opened.callback(os.close, program)
            found = libbpf.link_info(link)
            return found.ifindex != 0 and found.program_id == libbpf.program_id(program)
    except KernelError as error:
        return False if error.errno == errno.ENOENT else None


def ensure_bpffs(folder: Path) -> None:
    """See that folder lies in a bpffs, mounting one on /sys/fs/bpf if that was meant and none is there."""
    root = Path("/sys/fs/bpf")
    if folder.is_relative_to(root) and not is_bpffs(root):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"bpf", os.fsencode(root), b"bpf", 0, None):
            code = ctypes.get_errno()
            advice = (
                "as root: `mount -t bpf bpf /sys/fs/bpf`"
                if code == errno.EPERM
                else "does the kernel have CONFIG_BPF_SYSCALL?"
            )
            raise KernelError(f"{root}: no bpffs can be mounted ({os.strerror(code)}); {advice}")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not is_bpffs(existing):
        raise KernelError(
            f"{folder}: not below a bpffs, where alone programs can be pinned; "
            "correct config.toml: network.pins (usually below /sys/fs/bpf)"
        )


def is_bpffs(path: Path) -> bool:
    """Whether path lies in a bpffs (statfs(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = (ctypes.c_long * 32)()
    return libc.statfs(os.fsencode(path), buffer) == 0 and buffer[0] == _BPF_FS_MAGIC
