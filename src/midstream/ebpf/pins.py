"""What the loader leaves in a bpffs, and how others find and trust it.

A host's folder holds, for the hardworker, the maps, the program and the link that ties it to its
interface; for the logger the map and two programs; for the sensor program and link. `settings` is among
the maps: constant since the program was loaded, it bears the stamp, a hash of everything that makes the
program and its maps what they are. Who reads the pins compares the stamp with that of his own
configuration, so neither a stale nor a foreign pin is ever used.
"""

import ctypes
import errno
import hashlib
import os
from pathlib import Path

import numpy as np

from midstream.config import Config, Role
from midstream.ebpf import compiler, libbpf, records
from midstream.errors import KernelError
from midstream.network import Topology

_BPF_FS_MAGIC = 0xCAFE4A11


def stamp(role: Role, config: Config, topology: Topology) -> bytes:
    """The hash of what the host's program and maps are made from: sources, const.toml, and of config.toml
    what the loader sets."""
    made_from = compiler.key(role, topology)
    if role == "hardworker":
        settings = config.hardworker
        period = settings.period if settings.defer else settings.period > 0
        made_from += f" {settings.ring_size} {settings.connections} {period}"
        made_from += f" {settings.checksums} {settings.quota}"
    return hashlib.sha256(made_from.encode()).digest()


def default_folder(role: Role, config: Config) -> Path:
    """Where a role's program is pinned unless another place is named."""
    return Path(config.network.pins, role)


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


def read_stamp(folder: Path) -> bytes | None:
    """The stamp of a folder's pins; None if there is none, because nothing or something else was pinned.

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
    return None if value is None else bytes(np.frombuffer(value, records.SETTINGS)["stamp"][0].tobytes())


def verify(folder: Path, expected: bytes) -> None:
    """Raise KernelError unless the folder's pins bear the expected stamp."""
    if not folder.exists() or not any(folder.iterdir()):
        raise KernelError(f"{folder}: no program is attached; run `midstream attach` on this host first")
    found = read_stamp(folder)
    if found is None:
        raise KernelError(
            f"{folder}: these pins bear no stamp of midstream, so they are left alone; "
            "name another folder in config.toml: network.pins, or remove them"
        )
    if found != expected:
        raise KernelError(
            f"{folder}: these pins were made from other files (stamp {found.hex()[:12]}, "
            f"config.toml and const.toml give {expected.hex()[:12]}); "
            "run `midstream detach`, then `midstream attach`"
        )


def ensure_bpffs(folder: Path) -> None:
    """See that folder lies in a bpffs, mounting one on /sys/fs/bpf if that was meant and none is there."""
    root = Path("/sys/fs/bpf")
    if folder.is_relative_to(root) and _filesystem(root) != _BPF_FS_MAGIC:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"bpf", os.fsencode(root), b"bpf", 0, None):
            code = ctypes.get_errno()
            advice = "run as root" if code == errno.EPERM else "does the kernel have CONFIG_BPF_SYSCALL?"
            raise KernelError(f"{root}: no bpffs can be mounted ({os.strerror(code)}); {advice}")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if _filesystem(existing) != _BPF_FS_MAGIC:
        raise KernelError(
            f"{folder}: not below a bpffs, where alone programs can be pinned; "
            "correct config.toml: network.pins (usually below /sys/fs/bpf)"
        )


def _filesystem(path: Path) -> int:
    """The magic number of the file system at path (statfs(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = (ctypes.c_long * 32)()
    if libc.statfs(os.fsencode(path), buffer):
        return 0
    return buffer[0]
