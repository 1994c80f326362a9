"""The system's libbpf (1.0 or newer) through ctypes: objects, maps, programs, links, tc filters.

A thin translation: each function calls the libbpf function of its name and turns a failure into a
KernelError that says what was tried, what the kernel answered and, for a refused program, what the
verifier has against it. File descriptors are plain integers that the caller closes.
"""

import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from midstream.closing import Closing
from midstream.ebpf import refusal
from midstream.errors import KernelError

XDP_FLAGS_SKB_MODE = 1 << 1
XDP_FLAGS_DRV_MODE = 1 << 2
TC_INGRESS, TC_EGRESS = 1, 2

_BPF_XDP = 37  # enum bpf_attach_type
_TC_REPLACE = 1  # BPF_TC_F_REPLACE
_PROG_TYPE_SCHED_CLS, _PROG_TYPE_XDP, _MAP_TYPE_RINGBUF = 3, 6, 27  # enums of linux/bpf.h
_LOG_LINES = 16  # of libbpf's warnings, in an error
_LONGEST_LOG = 1 << 24  # of a verifier, that libbpf asks the kernel for

_log: list[str] = []


class _TestRunOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class _LinkCreateOpts(ctypes.Structure):
    _fields_ = (("sz", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("reserved", ctypes.c_uint32))


class _TcHook(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("attach_point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class _TcOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class _MapInfo(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )


class _LinkInfo(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class MapInfo:
    """A map's definition, as the kernel tells it. id: its number, which no other map gets later."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    id: int


@dataclass(frozen=True)
class LinkInfo:
    """What an XDP link ties together; ifindex is 0 once the interface is gone."""

    program_id: int
    ifindex: int


class Object(Closing):
    """An ELF object: opened, then adjusted, then loaded. Closing it keeps what was pinned or attached."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _log.clear()
        self._handle = _library().bpf_object__open_file(os.fsencode(path), None)
        if not self._handle:
            raise _error(f"{path}: cannot be opened as an eBPF object", ctypes.get_errno())

    def close(self) -> None:
        """Close every descriptor of the object."""
        if self._handle:
            _library().bpf_object__close(self._handle)
            self._handle = None

    def map_names(self) -> list[str]:
        """The names of the object's maps."""
        return [_library().bpf_map__name(m).decode() for m in self._maps()]

    def program_names(self) -> list[str]:
        """The names of the object's programs, in the order of the file."""
        names, program = [], None
        while program := _library().bpf_object__next_program(self._handle, program):
            names.append(_library().bpf_program__name(program).decode())
        return names

    def set_max_entries(self, name: str, entries: int) -> None:
        """Size a map before it is made. A ring's entries are bytes."""
        _check(
            _library().bpf_map__set_max_entries(self._map(name), entries), f"map {name}: {entries} entries"
        )

    def set_initial_value(self, name: str, value: bytes) -> None:
        """Fill a constant section (.rodata…) before it is frozen."""
        _check(
            _library().bpf_map__set_initial_value(self._map(name), value, len(value)),
            f"map {name}: an initial value of {len(value)} bytes",
        )

    def reuse_map(self, name: str, fd: int) -> None:
        """Let the programs work on a map that exists, instead of making one. Its types must be the same."""
        _check(_library().bpf_map__reuse_fd(self._map(name), fd), f"map {name}: it cannot be used further")

    def load(self) -> None:
        """Make the maps, have the verifier check the programs, load them."""
        _log.clear()
        _check(_library().bpf_object__load(self._handle), f"{self.path.name}: the kernel refuses the program")

    def map_fd(self, name: str) -> int:
        """The descriptor of a map of the loaded object, which the object owns."""
        return int(_library().bpf_map__fd(self._map(name)))

    def program_fd(self, name: str) -> int:
        """The descriptor of a program of the loaded object, which the object owns."""
        program = _library().bpf_object__find_program_by_name(self._handle, name.encode())
        if not program:
            raise KernelError(f"{self.path.name} has no program {name}")
        return int(_library().bpf_program__fd(program))

    def _maps(self) -> Iterator[int]:
        handle = None
        while handle := _library().bpf_object__next_map(self._handle, handle):
            yield handle

    def _map(self, name: str) -> int:
        for handle in self._maps():
            if _library().bpf_map__name(handle).decode() == name:
                return handle
        raise KernelError(f"{self.path.name} has no map {name}")


def pin(fd: int, path: Path, *, replace: bool = False) -> None:
    """Give a map, program or link a name below a bpffs, which keeps it alive.

    replace: in one step in the place of what has that name.
    """
    target = path.with_name(f"{path.name}_new") if replace else path
    if replace:
        target.unlink(missing_ok=True)  # left by a process that was killed here
    _check(_library().bpf_obj_pin(fd, os.fsencode(target)), f"{path}: cannot be pinned")
    if replace:
        target.replace(path)


def get(path: Path) -> int:
    """Open what is pinned at path; the caller closes the descriptor."""
    return int(_check(_library().bpf_obj_get(os.fsencode(path)), f"{path}: cannot be opened"))


def map_info(fd: int) -> MapInfo:
    """The definition of a map."""
    info = _MapInfo()
    _info(fd, info)
    return MapInfo(info.type, info.key_size, info.value_size, info.max_entries, info.id)


def link_info(fd: int) -> LinkInfo:
    """What a link ties together."""
    info = _LinkInfo()
    _info(fd, info)
    return LinkInfo(info.prog_id, info.ifindex)


def program_id(fd: int) -> int:
    """The number by which the kernel knows a program."""
    # struct bpf_prog_info begins like struct bpf_map_info: type, id.
    info = _MapInfo()
    _info(fd, info)
    return int(info.id)


def lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of a key, or None. A per-CPU map's value_size covers every possible CPU."""
    value = ctypes.create_string_buffer(value_size)
    result = _library().bpf_map_lookup_elem(fd, key, value)
    if result == -errno.ENOENT:
        return None
    _check(result, "a map cannot be read")
    return value.raw


def update(fd: int, key: bytes, value: bytes) -> None:
    """Set the value of a key."""
    _check(_library().bpf_map_update_elem(fd, key, value, 0), "a map cannot be written")


def delete(fd: int, key: bytes) -> None:
    """Remove a key, if it is there."""
    result = _library().bpf_map_delete_elem(fd, key)
    if result != -errno.ENOENT:
        _check(result, "a map cannot be written")


def pop(fd: int, value_size: int) -> bytes | None:
    """Take the oldest value from a queue; None if it is empty."""
    value = ctypes.create_string_buffer(value_size)
    result = _library().bpf_map_lookup_and_delete_elem(fd, None, value)
    if result == -errno.ENOENT:
        return None
    _check(result, "a queue cannot be read")
    return value.raw


def keys(fd: int, key_size: int) -> Iterator[bytes]:
    """The keys of a map; one that is deleted meanwhile may make others come twice."""
    key = ctypes.create_string_buffer(key_size)
    previous = None
    while _library().bpf_map_get_next_key(fd, previous, key) == 0:
        yield key.raw
        previous = ctypes.create_string_buffer(key.raw, key_size)


def version() -> str:
    """The library's version, such as "1.1"."""
    return f"{_library().libbpf_major_version()}.{_library().libbpf_minor_version()}"


def features() -> dict[str, bool | None]:
    """What midstream needs of the kernel's eBPF, and whether it is there; None: this process may not ask."""
    answers = {
        "XDP": _library().libbpf_probe_bpf_prog_type(_PROG_TYPE_XDP, None),
        "tc": _library().libbpf_probe_bpf_prog_type(_PROG_TYPE_SCHED_CLS, None),
        "ring buffers": _library().libbpf_probe_bpf_map_type(_MAP_TYPE_RINGBUF, None),
    }
    _log.clear()
    return {name: None if answer < 0 else bool(answer) for name, answer in answers.items()}


def possible_cpus() -> int:
    """How many values a per-CPU map has for each key."""
    return int(_check(_library().libbpf_num_possible_cpus(), "the number of CPUs is unknown"))


def link_create(program_fd: int, ifindex: int, flags: int) -> int:
    """Attach an XDP program by a link; it is detached when the link's last descriptor and pin are gone."""
    opts = _LinkCreateOpts(sz=ctypes.sizeof(_LinkCreateOpts), flags=flags)
    result = _library().bpf_link_create(program_fd, ifindex, _BPF_XDP, ctypes.byref(opts))
    if result == -errno.EEXIST:  # what is attached there is so in the other mode, native or generic
        result = -errno.EBUSY
    return int(_check(result, f"{_interface(ifindex)}: the program cannot be attached"))


def link_update(link_fd: int, program_fd: int) -> None:
    """Replace a link's program in one step: each packet meets the old one or the new one."""
    _check(_library().bpf_link_update(link_fd, program_fd, None), "the link's program cannot be replaced")


def xdp_attach(ifindex: int, program_fd: int, flags: int) -> None:
    """Attach an XDP program without a link: it stays until the interface goes."""
    _check(
        _library().bpf_xdp_attach(ifindex, program_fd, flags, None),
        f"{_interface(ifindex)}: the program cannot be attached",
    )


def tc_attach(
    ifindex: int, point: int, program_fd: int, handle: int, priority: int, *, replace: bool = False
) -> None:
    """Attach a classifier in direct-action mode, making the clsact queueing discipline if it is missing.

    replace: in the place of the filter that is there, if there is one, in one step.
    """
    hook = _hook(ifindex, point)
    result = _library().bpf_tc_hook_create(ctypes.byref(hook))
    if result != -errno.EEXIST:
        _check(result, f"{_interface(ifindex)}: no clsact queueing discipline")
    opts = _TcOpts(
        sz=ctypes.sizeof(_TcOpts),
        prog_fd=program_fd,
        flags=_TC_REPLACE if replace else 0,
        handle=handle,
        priority=priority,
    )
    _check(
        _library().bpf_tc_attach(ctypes.byref(hook), ctypes.byref(opts)),
        f"{_interface(ifindex)}: the tc filter cannot be attached",
    )


def tc_query(ifindex: int, point: int, handle: int, priority: int) -> int | None:
    """The number of the program of a tc filter, or None if there is no such filter."""
    hook = _hook(ifindex, point)
    opts = _TcOpts(sz=ctypes.sizeof(_TcOpts), handle=handle, priority=priority)
    _log.clear()
    if _library().bpf_tc_query(ctypes.byref(hook), ctypes.byref(opts)):
        return None
    return int(opts.prog_id)


def tc_detach(ifindex: int, point: int, handle: int, priority: int) -> None:
    """Remove a tc filter."""
    hook = _hook(ifindex, point)
    opts = _TcOpts(sz=ctypes.sizeof(_TcOpts), handle=handle, priority=priority)
    _check(
        _library().bpf_tc_detach(ctypes.byref(hook), ctypes.byref(opts)),
        f"{_interface(ifindex)}: the tc filter cannot be removed",
    )


def prog_test_run(program_fd: int, frame: bytes, repeat: int = 1) -> tuple[int, bytes, int]:
    """BPF_PROG_TEST_RUN: verdict, the frame as the program left it, nanoseconds a run."""
    out = ctypes.create_string_buffer(len(frame) + 256)
    opts = _TestRunOpts(
        sz=ctypes.sizeof(_TestRunOpts),
        data_in=frame,
        data_out=ctypes.addressof(out),
        data_size_in=len(frame),
        data_size_out=len(out),
        repeat=repeat,
    )
    _check(_library().bpf_prog_test_run_opts(program_fd, ctypes.byref(opts)), "the test run failed")
    return opts.retval, out.raw[: opts.data_size_out], opts.duration


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise KernelError(
            "libbpf.so.1 is missing; install libbpf 1.0 or newer (Debian, Ubuntu: `apt-get install libbpf1`)"
        ) from error
    for name in (
        "bpf_object__open_file",
        "bpf_object__next_map",
        "bpf_object__next_program",
        "bpf_object__find_program_by_name",
    ):
        getattr(library, name).restype = ctypes.c_void_p
    for name in ("bpf_map__name", "bpf_program__name"):
        getattr(library, name).restype = ctypes.c_char_p
    # A handle is a pointer: without a prototype ctypes would cut it to 32 bits.
    pointer, number, size = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_size_t
    library.bpf_object__open_file.argtypes = [ctypes.c_char_p, pointer]
    library.bpf_object__close.argtypes = [pointer]
    library.bpf_object__load.argtypes = [pointer]
    library.bpf_object__next_map.argtypes = [pointer, pointer]
    library.bpf_object__next_program.argtypes = [pointer, pointer]
    library.bpf_object__find_program_by_name.argtypes = [pointer, ctypes.c_char_p]
    library.bpf_map__name.argtypes = [pointer]
    library.bpf_map__fd.argtypes = [pointer]
    library.bpf_map__reuse_fd.argtypes = [pointer, ctypes.c_int]
    library.bpf_map__set_max_entries.argtypes = [pointer, number]
    library.bpf_map__set_initial_value.argtypes = [pointer, ctypes.c_char_p, size]
    library.bpf_program__name.argtypes = [pointer]
    library.bpf_program__fd.argtypes = [pointer]
    library.libbpf_set_print(_keep_warnings)
    return library


def _print(level: int, template: int, arguments: int) -> int:
    """Keep libbpf's warnings for the error that follows. A va_list is passed as a pointer to it."""
    if level:
        return 0
    text = ctypes.create_string_buffer(_LONGEST_LOG + 4096)  # with libbpf's own words around it
    libc = ctypes.CDLL(None)
    libc.vsnprintf(text, ctypes.c_size_t(len(text)), ctypes.c_void_p(template), ctypes.c_void_p(arguments))
    said = text.value.decode(errors="replace")
    _log.extend(refusal.explain(said) or said.splitlines()[-_LOG_LINES:])
    del _log[:-_LOG_LINES]
    return 0


_keep_warnings = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_print)


def _interface(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"interface number {ifindex}"


def _hook(ifindex: int, point: int) -> _TcHook:
    return _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=point)


def _info(fd: int, info: ctypes.Structure) -> None:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _check(
        _library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)),
        "the kernel tells nothing about a map, program or link",
    )


def _check(result: Any, what: str) -> Any:
    if result < 0:
        raise _error(what, -result)
    return result


def _error(what: str, code: int) -> KernelError:
    advice = ""
    if code == errno.EPERM:
        advice = f"; {_permission_advice()}"
    elif code == errno.E2BIG:
        advice = "; this kernel's verifier gave up before it had followed every path"
    elif code == errno.EBUSY:
        advice = "; another XDP program is attached there: `ip link show` names it"
    detail = "".join(f"\n  {line}" for line in _log)
    _log.clear()
    return KernelError(f"{what}: {os.strerror(code)}{advice}{detail}", errno=code)


def _permission_advice() -> str:
    """A sandbox refuses bpf(2) also to who needs no capability for it: asked about no descriptor, the kernel
    itself says that it is none."""
    nothing, size = ctypes.create_string_buffer(8), ctypes.c_uint32(8)
    if _library().bpf_obj_get_info_by_fd(-1, nothing, ctypes.byref(size)) == -errno.EPERM:
        return (
            "a sandbox refuses the system call bpf, to root too; a unit needs `SystemCallFilter=bpf` as its "
            "last filter, a container a profile that allows it"
        )
    return "it needs root, or CAP_BPF and CAP_NET_ADMIN"
