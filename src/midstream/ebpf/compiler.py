"""Compile a host's eBPF program from const.toml.

The compiler is clang in the shape of the `ziglang` wheel: the same version on every host, no root, no
kernel headers, any operating system. An object depends on the sources, the constants, the compiler and its
flags, and on nothing else. `key` is the hash of all but the compiler's version; together they are the name
under which an object is kept. So a changed const.toml can never be missed, and nothing is compiled twice. A
host without a compiler takes the object of any version that another host has made. What is made for user
space depends on the kind of machine as well, and needs no feature that some machines of that kind lack: hosts
may share a cache.
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
from midstream.errors import CompileError
from midstream.network import Host, Topology
from midstream.toml import absolute

SOURCES = Path(__file__).parent

PROGRAMS = ("sensor", "hardworker", "logger", "selftest")
"""What hosts attach."""

MAX_BYTES = 1 << 22
"""More than any object has."""

FLAGS = (
    "-target",
    "bpfel-freestanding",
    "-mcpu=v3",  # atomics and 32-bit registers; every kernel from 5.12 on
    "-O2",
    "-g",  # BTF, which maps and spin locks need
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
)


class CompilerMissingError(CompileError):
    """There is no compiler here, and no object that another host's has made."""

    def __init__(self, reasons: str = "") -> None:
        told = f", and no logger has given what it makes ({reasons})" if reasons else ""
        super().__init__(
            f"the compiler is missing{told}; install it with `pip install 'midstream[compiler]'`, or copy "
            f"into {cache_directory()} what `midstream compile ROLE --output FOLDER` makes where there is one"
        )


_UNHEARD = {"CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH", "ZIG_LIB_DIR"}
"""Variables of the environment that would give the compiler other files: no key could tell."""

_USER_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")


def compile_program(name: str, topology: Topology, folder: Path | None = None) -> Path:
    """The object of the program `name` ("hardworker", "logger", …) for this topology, compiled if need be.

    folder: where its source is, if it is none of midstream's; it may include midstream's headers. Raises
    CompileError if the compiler refuses, CompilerMissingError if there is none.
    """
    if made := kept(name, topology, folder):
        return made
    target = _object(key(name, topology, folder), name, _compiler_version())
    constants = const_header(topology)
    with tempfile.TemporaryDirectory(prefix="midstream-") as scratch:
        Path(scratch, "const.h").write_text(constants, encoding="utf-8")
        headers = _compiler() / "lib/libc/include"
        # The kernel's types are the same on every architecture that BPF supports; x86's serve all.
        places = [
            Path(scratch),
            *([SOURCES] if folder else []),
            headers / "any-linux-any",
            headers / "x86-linux-any",
        ]
        # Debug information names files; where they lie on this machine must make no difference. The sources'
        # names stay readable from their own folder: clang puts their lines into the verifier's log.
        nameless = ("-ffile-compilation-dir=.", f"-ffile-prefix-map={headers}=include")
        arguments = (*FLAGS, *nameless, *(f"-I{place}" for place in places), "-c", f"{name}.bpf.c")
        _run(arguments, target, folder=folder or SOURCES)
    return target


def programs(role: str) -> tuple[str, ...]:
    """The names of the programs that a host of this role needs."""
    return (role, "selftest") if role == "hardworker" else (role,)


def installed() -> str:
    """The version of this host's compiler; "" if it has none."""
    with suppress(CompilerMissingError):
        return _compiler_version()
    return ""


def kept(name: str, topology: Topology, folder: Path | None = None) -> Path | None:
    """That object, if it has been made: by this host's compiler or, where there is none, by another's."""
    made_of = key(name, topology, folder)
    with suppress(CompilerMissingError):
        target = _object(made_of, name, _compiler_version())
        return target if os.path.isfile(target) else None
    found = sorted(cache_directory().glob(_object(made_of, name, "*").name))
    return found[-1] if found else None


def keep(name: str, topology: Topology, made_by: str, data: bytes) -> None:
    """Keep an object that another host's compiler has made. made_by: that compiler's version."""
    target = _object(key(name, topology), name, made_by)
    with _unfinished(target) as unfinished:
        unfinished.write_bytes(data)


def made_by(path: Path) -> str:
    """The version of the compiler that has made an object in the cache."""
    return path.stem.rpartition("-")[2]


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
    """The static program of one C file and the headers beside it, for machines of this kind; kept likewise.

    headers: another folder whose headers it includes. The first program takes half a minute: the compiler
    builds its C library (musl). Raises CompileError.
    """
    flags = (*_USER_FLAGS, "-static", "-s", "-target", architecture().replace("-gnu", "-musl"))
    folders = [source.parent, *([headers] if headers else [])]
    files = [source, *(header for folder in folders for header in sorted(folder.glob("*.h")))]
    target = cache_directory() / f"{source.stem}-{_digest(flags, files, _compiler_version())[:32]}"
    if not os.path.isfile(target):
        _run([*flags, *(f"-I{folder}" for folder in folders), str(source)], target, mode=0o755)
    return target


def architecture() -> str:
    """The kind of machine that this interpreter is made for, as compilers name it, such as aarch64-linux-gnu.

    The kernel may be another's: of 64 bits where the interpreter has 32.
    """
    return sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"


def key(name: str, topology: Topology, folder: Path | None = None) -> str:
    """SHA-256, in hexadecimal, of everything that makes the object what it is, but for the compiler."""
    made_of = f"{sources_key(name, folder)} {const_header(topology)}"
    return hashlib.sha256(made_of.encode()).hexdigest()


def sources_key(name: str, folder: Path | None = None) -> str:
    """The same without the constants: what every network's object of that program has in common."""
    return _digest(FLAGS, [(folder or SOURCES) / f"{name}.bpf.c", *sorted(SOURCES.glob("*.h"))])


def const_header(topology: Topology) -> str:
    """const.h: the topology as C constants, addresses in host byte order, sensors sorted by address, loggers
    in their order."""
    sensors = sorted(enumerate(topology.sensors), key=lambda numbered: int(numbered[1].ip))
    table = " ".join(f"{{{int(host.ip):#010x}, {number}, {_mac(host)}}}," for number, host in sensors)
    loggers = " ".join(f"{{{int(host.ip):#010x}, {_mac(host)}}}," for host in topology.loggers)
    return "".join(
        f"#define {name} {value}\n"
        for name, value in {
            "HARDWORKER_IP": f"{int(topology.hardworker.ip):#010x}",
            "HARDWORKER_MAC": _mac(topology.hardworker),
            "MARK_TOS": topology.tos,
            "MARK_PORT": topology.port,
            "MTU": topology.mtu,
            "DATA_SIZE": topology.size,
            "LOGGER_COUNT": len(topology.loggers),
            "LOGGERS": f"{{ {loggers} }}",
            "SENSOR_COUNT": len(topology.sensors),
            "SENSORS": f"{{ {table} }}",
        }.items()
    )


def cache_directory() -> Path:
    """Where objects are kept: $MIDSTREAM_CACHE, else midstream in the user's cache folder."""
    if chosen := os.environ.get("MIDSTREAM_CACHE"):
        return absolute(Path(chosen))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "midstream"


def _object(made_of: str, name: str, compiler: str) -> Path:
    return cache_directory() / f"{name}-{made_of[:32]}-{compiler}.o"


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
