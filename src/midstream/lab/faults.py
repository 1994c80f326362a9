"""The bad wires of the lab: a program on the switch's ports that drops, duplicates, corrupts, holds back.

It is on those ports only behind which an impaired leg begins. Program, maps and ring are pinned below the
lab's folder, and one process (hold.py) keeps the frames that are to arrive later. Without impaired legs there
is none of all this. `down` needs to know nothing of it: it removes ports, processes and pins anyway.
"""

import hashlib
import os
import shutil
import socket
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream import network
from midstream.ebpf import compiler, libbpf, pins
from midstream.errors import LabError
from midstream.lab import hold, links, namespaces, state
from midstream.lab.hosts import SWITCH, LabHost, namespace
from midstream.lab.impairment import ALL, PROBABILITIES, TIMES, Impairment, LabLeg, find_legs
from midstream.lab.lab import Lab
from midstream.lab.namespaces import Process

PINS = Path("/sys/fs/bpf/midstream-lab") / SWITCH

COUNTERS = ("frames", "dropped", "duplicated", "reordered", "corrupted", "overflowed")
LEG = np.dtype([(name, "<u8") for name in ("key", "seed", *PROBABILITIES, *TIMES, *COUNTERS)])
"""struct leg of ebpf/impair.bpf.c."""

_PROGRAM = "midstream_impair"
_TC_HANDLE, _TC_PRIORITY = 0x6D73, 0x6D73  # "ms"
_UNIT = 1 << 32  # of probabilities
_MILLISECOND = 1_000_000  # nanoseconds


@dataclass(frozen=True)
class ImpairedLeg:
    """A leg, what is wrong with it, and what happened since: TCP frames, counted.

    overflowed: lost because they came faster than the process that holds them could take them.
    """

    leg: LabLeg
    impairment: Impairment
    frames: int = 0
    dropped: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0
    overflowed: int = 0

    @property
    def passed(self) -> int:
        """Frames that went on, corrupted and late ones included, copies not."""
        return self.frames - self.dropped - self.overflowed


def impair(lab: Lab, link: str, impairment: Impairment) -> list[LabLeg]:
    """Make each leg of a link bad from now on, in place of what was; other legs stay as they are.

    Frame numbers and counters of these legs start at 0. Returns the legs. Raises ConfigError (no such link),
    LabError, CompileError, KernelError.
    """
    legs = find_legs(link, [host.name for host in lab.hosts])
    program = compiler.compile_program("impair", network.load(lab.const))
    with state.locked():
        lab.call(SWITCH, impair_ports, lab.hosts, legs, impairment, program, PINS)
    return legs


def clear(lab: Lab, link: str = ALL) -> None:
    """Make each leg of a link good again; held frames are sent when the last leg is. Raises as `impair`."""
    legs = find_legs(link, [host.name for host in lab.hosts])
    with state.locked():
        lab.call(SWITCH, _clear, lab.hosts, legs)


def impairments(lab: Lab) -> list[ImpairedLeg]:
    """The impaired legs with their counters, in the order of the lab's hosts. Raises KernelError."""
    if not _is_loaded(PINS):
        return []
    order = [host.name for host in lab.hosts]
    found = lab.call(SWITCH, _read, PINS)
    return sorted(found, key=lambda one: (order.index(one.leg.source), order.index(one.leg.destination)))


def problems(impaired: Collection[ImpairedLeg]) -> list[str]:
    """What keeps impaired legs from working as they should."""
    if any(one.impairment.needs_hold for one in impaired) and not _holders():
        return ["switch: nobody holds the delayed frames, they are lost; run `midstream lab impair --clear`"]
    return []


def generator_key(leg: LabLeg, seed: int) -> int:
    """What the program's generator starts from; a hash, so that neighbouring seeds have nothing in common."""
    text = f"{seed} {leg.source} {leg.destination}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


# in ms-switch


def impair_ports(
    hosts: Sequence[LabHost], legs: Sequence[LabLeg], impairment: Impairment, program: Path, folder: Path
) -> None:
    """In a switch's namespace: what `impair` does. `folder`: for pins. Frames are held only in the lab."""
    if not _is_loaded(folder):
        _load(hosts, program, folder)
    if impairment.needs_hold and not _holders():
        _start_hold()
    fd = pins.open_map(folder, "legs", value_size=LEG.itemsize)
    try:
        for leg in legs:
            libbpf.update(fd, _key(leg), _value(leg, impairment))
    finally:
        os.close(fd)
    _settle(hosts, folder)


def _clear(hosts: Sequence[LabHost], legs: Sequence[LabLeg]) -> None:
    if _is_loaded(PINS):
        fd = pins.open_map(PINS, "legs", value_size=LEG.itemsize)
        try:
            for leg in legs:
                libbpf.delete(fd, _key(leg))
        finally:
            os.close(fd)
    _settle(hosts, PINS)


def _settle(hosts: Sequence[LabHost], folder: Path) -> None:
    """Have the program where an impaired leg begins and nowhere else; without any, have nothing at all."""
    sources = {one.leg.source for one in _read(folder)} if _is_loaded(folder) else set()
    for host in hosts:
        index = int.from_bytes(_number(host.port), sys.byteorder)
        attached = libbpf.tc_query(index, libbpf.TC_INGRESS, _TC_HANDLE, _TC_PRIORITY) is not None
        if host.name in sources and not attached:
            # Frames that GRO has merged would share one fate, and be cut again with right checksums.
            links.set_offloads(host.port, gro=False)
            program = libbpf.get(folder / _PROGRAM)
            try:
                libbpf.tc_attach(index, libbpf.TC_INGRESS, program, _TC_HANDLE, _TC_PRIORITY)
            finally:
                os.close(program)
        elif host.name not in sources and attached:
            with IPRoute() as ipr:
                ipr.tc("del", "clsact", index=index)
            links.set_offloads(host.port)
    if not sources:
        namespaces.end(_holders())
        shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path) -> list[ImpairedLeg]:
    fd = pins.open_map(folder, "legs", value_size=LEG.itemsize)
    try:
        found = {key: libbpf.lookup(fd, key, LEG.itemsize) for key in libbpf.keys(fd, 8)}
    finally:
        os.close(fd)
    ports = dict(socket.if_nameindex())
    legs = []
    for key, value in found.items():
        source, destination = (ports.get(int(number)) for number in np.frombuffer(key, "<u4"))
        if value and source and destination:  # all still there
            legs.append(_parse(LabLeg(source, destination), value))
    return legs


def _is_loaded(folder: Path) -> bool:
    return (folder / _PROGRAM).exists()


def _load(hosts: Sequence[LabHost], path: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted attempt has left
    folder.mkdir(parents=True)
    with libbpf.Object(path) as program:
        program.set_max_entries("legs", len(hosts) * (len(hosts) - 1))
        program.set_max_entries("ports", len(hosts))
        program.load()
        for host in hosts:
            mac = bytes.fromhex(host.mac.replace(":", ""))
            libbpf.update(program.map_fd("ports"), mac, _number(host.port))
        for name in ("legs", "held"):
            libbpf.pin(program.map_fd(name), folder / name)
        libbpf.pin(program.program_fd(_PROGRAM), folder / _PROGRAM)  # last: now it is loaded


def _holders() -> list[Process]:
    return [one for one in namespaces.processes([namespace(SWITCH)]) if hold.__file__ in one.command]


def _start_hold() -> None:
    """Start the process that holds frames. It lives until the last impaired leg or the lab is gone."""
    ring = libbpf.get(PINS / "held")
    answer, output = os.pipe()
    os.set_inheritable(ring, True)
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", hold.__file__, str(ring)],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ],
        setsid=True,
    )
    os.close(output)
    os.close(ring)
    with open(answer) as told:
        if (text := told.read().strip()) != hold.READY:
            raise LabError(f"switch: the process that holds delayed frames does not start: {text}")


def _key(leg: LabLeg) -> bytes:
    return _number(leg.source) + _number(leg.destination)


def _number(port: str) -> bytes:
    try:
        return socket.if_nametoindex(port).to_bytes(4, sys.byteorder)
    except OSError:
        raise LabError(f"switch: {port} is missing; `midstream lab up` repairs the lab") from None


def _value(leg: LabLeg, impairment: Impairment) -> bytes:
    value = np.zeros(1, LEG)
    value["key"], value["seed"] = generator_key(leg, impairment.seed), impairment.seed
    for name in PROBABILITIES:
        value[name] = round(getattr(impairment, name) * _UNIT)
    for name in TIMES:
        value[name] = round(getattr(impairment, name) * _MILLISECOND)
    return value.tobytes()


def _parse(leg: LabLeg, value: bytes) -> ImpairedLeg:
    (found,) = np.frombuffer(value, LEG)
    impairment = Impairment(
        **{name: round(int(found[name]) / _UNIT, 9) for name in PROBABILITIES},
        **{name: int(found[name]) / _MILLISECOND for name in TIMES},
        seed=int(found["seed"]),
    )
    return ImpairedLeg(leg, impairment, *(int(found[name]) for name in COUNTERS))
