"""Compile a host's eBPF program from const.toml.

The compiler is clang in the shape of the `ziglang` wheel: the same version on every host, no root, no
kernel headers, any operating system. An object depends on the sources, the constants, the compiler and its
flags, and on nothing else. `key` is the hash of all but the compiler's version; together they are the name
under which an object is kept. So a changed const.toml can never be missed, and nothing is compiled twice.
What is made for user space depends on the kind of machine as well, and needs no feature that some machines of
that kind lack: hosts may share a cache.
"""

import hashlib
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from midstream import modes
from midstream.ebpf import clang
from midstream.errors import CompileError
from midstream.network import Host, Topology
from midstream.toml import absolute

SOURCES = Path(__file__).parent


class CompilerMissingError(CompileError):
    """There is no compiler here."""

    def __init__(self) -> None:
        super().__init__("the compiler is missing; install it with `pip install 'midstream[compiler]'`")


_UNHEARD = {"CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH", "ZIG_LIB_DIR"}
"""Variables of the environment that would give the compiler other files: no key could tell."""

_USER_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")


def compile_program(name: str, topology: Topology, folder: Path | None = None) -> Path:
    """The object of the program `name` ("hardworker", "logger", …) for this topology, compiled if need be.

    folder: where its source is, if it is none of midstream's; it may include midstream's headers. Raises
    CompileError if the compiler refuses, CompilerMissingError if there is none.
    """
    target = cache_directory() / f"{name}-{key(name, topology, folder)[:32]}-{_compiler_version()}.o"
    if os.path.isfile(target):
        return target
    constants = const_header(topology)
    with tempfile.TemporaryDirectory(prefix="midstream-") as scratch:
        Path(scratch, "const.h").write_text(constants, encoding="utf-8")
        folders = (Path(scratch), SOURCES if folder else Path())
        _run(clang.arguments(name, _compiler(), folders), target, folder=folder or SOURCES)
    return target


def programs(role: str, topology: Topology) -> list[tuple[str, Topology]]:
    """The programs that a host of this role needs, each with the topology that it is compiled for: the
    hardworker has one for each stream and, if there are several, one before them."""
    if role != "hardworker":
        return [(role, topology)]
    streams = [topology.only(stream) for stream in topology.streams] or [topology]
    before = [("streams", topology)] if len(streams) > 1 else []
    return [*((role, stream) for stream in streams), *before, ("selftest", topology)]


def installed() -> str:
    """The version of this host's compiler; "" if it has none."""
    with suppress(CompilerMissingError):
        return _compiler_version()
    return ""


def compile_library(source: Path) -> Path:
    """The shared library of one C file of user space, for machines of this kind; kept like the objects.

    Raises CompileError if the compiler is missing or refuses.
    """
    # Without a C library: the machine may have no headers for one, and the compiler builds one slowly.
    flags = (*_USER_FLAGS, "-shared", "-fPIC", "-nostdlib", "-target", architecture())
    target = cache_directory() / f"{source.stem}-{_digest(flags, [source], _compiler_version())[:32]}.so"
    if not os.path.isfile(target):
        _run([*flags, str(source)], target)
    return target


def compile_executable(source: Path, *, headers: Path | None = None) -> Path:
    """The program of one C file and the headers beside it, for machines of this kind; kept likewise.

    headers: another folder whose headers it includes. It is linked with this machine's C library, which
    midstream's extension module needs anyway. Raises CompileError.
    """
    # Without the compiler's own run-time library: nothing here needs it, and it would be built at first.
    flags = (*_USER_FLAGS, "-s", "-rtlib=none", "-target", architecture())
    folders = [source.parent, *([headers] if headers else [])]
    files = [source, *(header for folder in folders for header in sorted(folder.glob("*.h")))]
    target = cache_directory() / f"{source.stem}-{_digest(flags, files, _compiler_version())[:32]}"
    if not os.path.isfile(target):
        _run([*flags, *(f"-I{folder}" for folder in folders), str(source), "-lm"], target, mode=0o755)
    return target


def architecture() -> str:
    """The kind of machine that this interpreter is made for, as compilers name it, such as aarch64-linux-gnu.

    The kernel may be another's: of 64 bits where the interpreter has 32.
    """
    return sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"


def key(name: str, topology: Topology, folder: Path | None = None) -> str:
    """SHA-256, in hexadecimal, of everything that makes the object what it is, but for the compiler."""
    sources = _digest(clang.FLAGS, [(folder or SOURCES) / f"{name}.bpf.c", *sorted(SOURCES.glob("*.h"))])
    return hashlib.sha256(f"{sources} {const_header(topology)}".encode()).hexdigest()


def const_header(topology: Topology) -> str:
    """const.h: the topology as C constants, addresses in host byte order, sensors sorted by address, loggers
    in their order."""
    table = " ".join(
        f"{{{int(host.ip):#010x}, {number}, {_mac(host)}}}," for number, host in topology.by_address()
    )
    loggers = " ".join(f"{{{int(host.ip):#010x}, {_mac(host)}}}," for host in topology.loggers)
    return (
        "#ifndef MIDSTREAM_CONST_H\n"
        "#define MIDSTREAM_CONST_H\n"
        '#include "hosts.h"\n'
        f"#define HARDWORKER_IP {int(topology.hardworker.ip):#010x}\n"
        f"#define MARK_TOS {topology.tos}\n"
        f"#define MARK_PORT {topology.port}\n"
        f"#define MTU {topology.mtu}\n"
        f"#define PORT_COUNT {len(topology.ports)}\n"
        f"#define DATA_SIZE {topology.size}\n"
        f"#define LOGGER_COUNT {len(topology.loggers)}\n"
        f"#define SENSOR_COUNT {len(topology.sensors)}\n"
        f"static const __u16 PORTS[PORT_COUNT] = {{ {', '.join(map(str, topology.ports))} }};\n"
        f"static const __u8 HARDWORKER_MAC[ETH_ALEN] = {_mac(topology.hardworker)};\n"
        f"static const struct logger LOGGERS[LOGGER_COUNT] = {{ {loggers} }};\n"
        f"static const volatile struct sensor SENSORS[SENSOR_COUNT] = {{ {table} }};\n"
        "#endif\n"
    )


def cache_directory() -> Path:
    """Where objects are kept: $MIDSTREAM_CACHE, else midstream in the user's cache folder."""
    if chosen := os.environ.get("MIDSTREAM_CACHE"):
        return absolute(Path(chosen))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "midstream"


def _digest(flags: Iterable[str], files: Iterable[Path], compiler: str = "") -> str:
    digest = hashlib.sha256(f"{compiler} {tuple(flags)}".encode())
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _mac(host: Host) -> str:
    return "{" + ", ".join(f"{byte:#04x}" for byte in host.mac_bytes) + "}"


@cache
def _compiler_version() -> str:
    try:
        return version("ziglang")
    except PackageNotFoundError as error:
        raise CompilerMissingError from error


def _compiler() -> Path:
    spec = find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise CompilerMissingError
    return Path(spec.origin).parent


def _run(arguments: Iterable[str], target: Path, folder: Path | None = None, mode: int = 0o644) -> None:
    """Compile, in the given folder, into the target."""
    with _unfinished(target, mode) as unfinished:
        result = subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *arguments, "-o", str(unfinished)],
            cwd=folder,
            env={
                **{name: value for name, value in os.environ.items() if name not in _UNHEARD},
                "ZIG_GLOBAL_CACHE_DIR": str(target.parent / "zig"),
            },
            umask=0o022,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise CompileError(f"the compiler refused to make {target.name}:\n{result.stderr.strip()}")


@contextmanager
def _unfinished(target: Path, mode: int = 0o644) -> Iterator[Path]:
    """A file beside the target, to be written, which then becomes it: no reader meets half an object."""
    unfinished = target.with_name(f"{target.name}.{threading.get_native_id()}")
    try:
        modes.make_folder(target.parent)
        unfinished.touch()  # fails here, and not in the compiler, where nothing can be kept
        yield unfinished
        unfinished.chmod(mode)
        unfinished.replace(target)
    except OSError as error:
        raise CompileError(
            f"{target.parent}: objects cannot be kept there ({error.strerror}); "
            "name another folder in the environment variable MIDSTREAM_CACHE"
        ) from error
    finally:
        with suppress(OSError):  # renamed, or never made
            unfinished.unlink()
