"""Load a host's program, pin it, attach it, and take it all away.

The order is the point: maps are made, sized and filled, then pinned, then the self-test runs, and only
then does the interface get the program, in one step. What fails on the way leaves nothing behind. What
is attached outlives this process (attachment.py finds it again); removing the pin of an XDP program's link
detaches it.
"""

import errno
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream import modes, network, streams
from midstream.config import Config, Role
from midstream.ebpf import (
    attachment,
    control,
    irq_mitigation,
    libbpf,
    pins,
    quickack,
    records,
    selftest,
)
from midstream.ebpf.attachment import Attachment, Mode
from midstream.ebpf.objects import open_object
from midstream.ebpf.sizing import ring_size
from midstream.errors import KernelError
from midstream.network import Topology

_CLSACT_PARENTS = (0xFFFFFFF2, 0xFFFFFFF3)  # ingress, egress (linux/pkt_sched.h)
_SENSORS = 64  # the maps have room for so many, or a multiple
# Connections are counted from the milliseconds since the machine was started: a reader that goes on with the
# next attachment's ring never sees a number again, as long as the machine runs for less than 49 days.
_NUMBERS = 1 << 32


class _Part(NamedTuple):
    """A program that does a host's work, alone or as that of one stream; and where its pins are."""

    folder: Path
    config: Config
    topology: Topology


def attach(
    role: Role,
    config: Config,
    topology: Topology,
    *,
    folder: Path | None = None,
    interface: str = "",
    self_test: bool = True,
    replace: bool = False,
) -> Attachment:
    """Compile, load, pin and attach the program of this host's role; on the hardworker that of each stream.

    folder: where to pin (default: the role's folder below config.toml's network.pins). interface: default
    from config.toml, else that of the route to the peer. Attaching what is attached already, from the same
    files, only sets right what `tune` does. With replace, a program for other addresses or marks takes the
    place of one that is attached, in one step and on the same maps: connections go on, and so does the reader
    of the ring. A stream that is new gets maps, and those of one that is gone are removed.
    Raises KernelError if the kernel refuses, the self-test fails, or pins made from other files are in the
    way; NetworkError if no interface is found; CompileError.
    """
    folder = folder or pins.default_folder(role, config)
    interface = interface or config.network.interface or network.find_interface(_peer(role, topology))
    expected = pins.stamp(role, config, topology)
    parts = _parts(role, config, topology, folder)
    pins.ensure_bpffs(folder)
    if folder.exists() and any(folder.iterdir()):
        if replace:
            _remove_unfinished(folder)
            _verify_layouts(role, parts, folder, expected)
        else:
            pins.verify(folder, stamp=expected)
        attached, marks = attachment.find(role, folder), pins.read_marks(folder)
        whole = pins.is_whole(role, folder)
        if attached and marks and marks.stamp == expected and whole and _are_all(role, parts, folder):
            tune(role, attached.interface, config, topology, folder)
            return attached
        if not attached and attachment.is_elsewhere(folder):
            raise KernelError(
                f"{folder}: this program is attached in another network namespace; work there, "
                "or name another folder in config.toml: network.pins"
            )
        if replace and whole and (attached or attachment.link_info(folder)):
            _check_interface(role, interface, topology)
            with _loaded(role, parts, folder, topology, expected) as programs:
                mode = _replace(role, interface, programs, parts, folder)
            tune(role, interface, config, topology, folder)
            return Attachment(role, interface, mode, folder)
        detach(role, folder)  # an attach that was killed half-way
    _check_interface(role, interface, topology)

    try:
        modes.make_folder(folder)  # empty, if an attach was killed at once
        with _loaded(role, parts, folder, topology, expected) as programs:
            mode = _load_and_attach(role, interface, programs, parts, folder, topology, self_test)
        tune(role, interface, config, topology, folder)
    except BaseException:
        detach(role, folder)
        raise
    return Attachment(role, interface, mode, folder)


def _parts(role: Role, config: Config, topology: Topology, folder: Path) -> list[_Part]:
    if role != "hardworker":
        return [_Part(folder, config, topology)]
    each = streams.resolved(config, topology).values()
    return [_Part(pins.stream_folder(folder, one.config), one.config, one.topology) for one in each]


def _are_all(role: Role, parts: list[_Part], folder: Path) -> bool:
    """Are the pins in the folder of these parts, and of no other?"""
    pinned = pins.stream_folders(folder).values() if role == "hardworker" else [folder]
    return set(pinned) == {part.folder for part in parts}


def _remove_unfinished(folder: Path) -> None:
    """A stream's folder has its settings last of all, and its program no packets before: nobody uses what an
    attach that was killed has left without them."""
    for place in pins.stream_folders(folder).values():
        if place != folder and not (place / "settings").exists():
            shutil.rmtree(place)


def _verify_layouts(role: Role, parts: list[_Part], folder: Path, expected: bytes) -> None:
    """Raise KernelError unless the maps that are pinned can serve these programs."""
    if (folder / pins.STREAMS).exists() != (parts[0].folder != folder):
        pins.verify(folder, stamp=expected)  # which cannot be: streams got names, or lost them
    for part in parts:
        if part.folder.exists():
            pins.verify(part.folder, layout=pins.layout(role, part.config, part.topology))


def tune(role: Role, interface: str, config: Config, topology: Topology, folder: Path) -> list[str]:
    """Match the hardworker's interface to the application's period, if it has one; let the logger's kernel
    acknowledge at once. What was not so, in words. Raises KernelError."""
    if role == "logger":
        missing = quickack.ensure(interface, (host.ip for host in topology.sensors))
        return [f"route {ip} with quickack: missing, set again" for ip in missing]
    if role == "sensor":
        return []
    period = irq_period(config, topology)
    if not period:
        irq_mitigation.undo(folder)  # of a stream that is new may be waited for
    elif irq_mitigation.apply(interface, period, folder):
        return [f"interrupt mitigation of {interface}: gone, set again"]
    return []


def irq_period(config: Config, topology: Topology) -> float:
    """The period, in seconds, that the hardworker's interface is to follow: that of the fastest stream; 0 if
    it is to follow none, since one waits for data."""
    if not config.hardworker.irq_mitigation:
        return 0.0
    return min(one.config.hardworker.period for one in streams.resolved(config, topology).values())


def detach(role: Role, folder: Path) -> bool:
    """Detach the program and remove its pins; False if there was nothing.

    Raises KernelError if what is pinned there is not midstream's.
    """
    if not folder.exists():
        return False
    if any(folder.iterdir()) and pins.read_marks(folder) is None:
        raise KernelError(
            f"{folder}: what is pinned there bears no stamp of midstream, so nothing was removed; "
            "remove it by hand, or name another folder in config.toml: network.pins"
        )
    if role == "hardworker":
        irq_mitigation.undo(folder)
    if role == "logger":
        quickack.remove()
        for ifindex, point in attachment.tc_filters(folder):
            libbpf.tc_detach(ifindex, point, attachment.TC_HANDLE, attachment.TC_PRIORITY)
            _remove_empty_clsact(ifindex)
    (folder / "link").unlink(missing_ok=True)  # first: what is in the ring is all that there will be
    pins.remove(folder)
    return True


def attach_pass(interface: str, topology: Topology) -> None:
    """Attach the program that lets everything pass, and leave it there as long as the interface exists."""
    with open_object("pass", topology) as program:
        program.load()
        ifindex = socket.if_nametoindex(interface)
        libbpf.xdp_attach(ifindex, program.program_fd("midstream_pass"), libbpf.XDP_FLAGS_DRV_MODE)


def counters(folder: Path) -> np.ndarray:
    """The hardworker's counters, summed over the CPUs and the streams.

    A row for each sensor, in const.toml's order, and one for what came from none; the columns are
    records.OUTCOMES.
    """
    return total(stream_counters(folder))


def stream_counters(folder: Path) -> dict[str, np.ndarray]:
    """The same per stream."""
    return {name: _counters(place) for name, place in pins.stream_folders(folder).items()}


def total(each: Mapping[str, np.ndarray]) -> np.ndarray:
    """Those of all streams together."""
    found: np.ndarray = sum(each.values(), np.zeros((), "<u8"))
    return found


def _counters(folder: Path) -> np.ndarray:
    width = 8 * len(records.OUTCOMES)
    fd = pins.open_map(folder, "counters", value_size=width)
    try:
        marks = pins.read_marks(folder)
        rows = marks.sensors + 1 if marks else libbpf.map_info(fd).max_entries
        cpus = libbpf.possible_cpus()
        values = [libbpf.lookup(fd, row.to_bytes(4, "little"), width * cpus) for row in range(rows)]
    finally:
        os.close(fd)
    table = np.frombuffer(b"".join(value or bytes(width * cpus) for value in values), "<u8")
    return np.asarray(table.reshape(rows, cpus, len(records.OUTCOMES)).sum(axis=1))


def _prepare(role: Role, program: libbpf.Object, config: Config, topology: Topology) -> None:
    """What an object needs before it is loaded: its settings, and the sizes of its maps."""
    settings = config.hardworker
    values = records.settings(
        pins.stamp(role, config, topology),
        wakeup=not settings.period,
        check=settings.checksums,
        ring_quota=_quota(ring_size(config, topology), settings.quota, topology),
        open_quota=_quota(settings.connections, settings.quota, topology),
        layout=pins.layout(role, config, topology),
        sensors=len(topology.sensors),
    )
    program.set_initial_value(".rodata.settings", values)
    if role == "hardworker":
        program.set_max_entries("ring", ring_size(config, topology))
        program.set_max_entries("connections", settings.connections)
        journal = records.journal_size(settings.connections)
        program.set_max_entries("journal", journal // 8)
        program.set_max_entries("committed", records.committed_size(settings.connections) // 8)
        # Room for sensors that come later, so that a program that knows them can go on with these maps.
        capacity = (len(topology.sensors) // _SENSORS + 1) * _SENSORS
        program.set_max_entries("shares", capacity)
        program.set_max_entries("beginnings", capacity)
        program.set_max_entries("counters", capacity + 1)


@contextmanager
def _loaded(
    role: Role, parts: list[_Part], folder: Path, topology: Topology, stamp: bytes
) -> Iterator[list[libbpf.Object]]:
    """The programs of the parts, loaded, on the maps that are pinned and else on new ones. If there are
    several, one more that comes before them."""
    with ExitStack() as opened:

        def reuse(program: libbpf.Object, name: str, fd: int) -> None:
            opened.callback(os.close, fd)
            program.reuse_map(name, fd)

        programs: list[libbpf.Object] = []
        for part in parts:
            program = opened.enter_context(open_object(role, part.topology))
            _prepare(role, program, part.config, part.topology)
            for name in program.map_names():
                if "." in name:
                    continue
                if (part.folder / name).exists():
                    reuse(program, name, pins.open_map(part.folder, name))
                elif name in pins.SHARED and (folder / name).exists():
                    reuse(program, name, pins.open_map(folder, name))
                elif name in pins.SHARED and programs:
                    program.reuse_map(name, programs[0].map_fd(name))
            program.load()
            programs.append(program)
        if len(parts) > 1:
            before = opened.enter_context(open_object(pins.STREAMS, topology))
            before.set_initial_value(
                ".rodata.settings",
                records.settings(stamp, wakeup=False, check=False, ring_quota=0, open_quota=0),
            )
            before.load()
            for part, program in zip(parts, programs, strict=True):
                port, fd = part.topology.port, program.program_fd(f"midstream_{role}")
                key = port.to_bytes(2, "big") + bytes(2)  # as it lies in a packet (streams.bpf.c)
                libbpf.update(before.map_fd("ports"), key, fd.to_bytes(4, "little"))
            programs.append(before)
        yield programs


def _entry(role: Role, programs: list[libbpf.Object]) -> int:
    """The program that the interface gets."""
    name = pins.STREAMS if len(programs) > 1 else role
    return programs[-1].program_fd(f"midstream_{name}")


def _pin(role: Role, programs: list[libbpf.Object], parts: list[_Part], folder: Path) -> None:
    """Pin what is not pinned yet; programs and, at last, settings take the place of those before."""
    for part, program in zip(parts, programs, strict=False):
        _pin_part(program, part.folder, folder)
    if parts[0].folder != folder:
        libbpf.pin(_entry(role, programs), folder / f"midstream_{role}", replace=True)
    if len(programs) > len(parts):
        libbpf.pin(programs[-1].map_fd("ports"), folder / "ports", replace=True)
    libbpf.pin(programs[-1].map_fd(".rodata.settings"), folder / "settings", replace=True)


def _pin_part(program: libbpf.Object, place: Path, folder: Path) -> None:
    """Pin a part of a host's program in `place`, and what it shares in the host's folder, too."""
    modes.make_folder(place)
    for name in program.map_names():
        for each in {place, *([folder] if name in pins.SHARED else [])} if "." not in name else ():
            if not (each / name).exists():
                libbpf.pin(program.map_fd(name), each / name)
    for name in program.program_names():
        libbpf.pin(program.program_fd(name), place / name, replace=True)
    if place != folder:
        libbpf.pin(program.map_fd(".rodata.settings"), place / "settings", replace=True)


def _add_streams(programs: list[libbpf.Object], parts: list[_Part], folder: Path) -> None:
    """Pin what is of new streams before a packet comes to them; each appears as a whole, or not at all."""
    aside = folder / pins.ASIDE
    modes.make_folder(aside)
    if len(programs) > len(parts):  # this map forgets its programs when nobody has it any more
        ports = programs[-1].map_fd("ports")
        libbpf.pin(ports, aside / f"ports_{libbpf.map_info(ports).id}")
        if not (folder / "ports").exists():
            libbpf.pin(ports, folder / "ports")
    for part, program in zip(parts, programs, strict=False):
        if not part.folder.exists():
            place = aside / part.folder.name
            if place.exists():
                shutil.rmtree(place)  # left by one that was killed
            _pin_part(program, place, folder)
            place.rename(part.folder)


def _remove_streams(programs: list[libbpf.Object], parts: list[_Part], folder: Path) -> None:
    """Remove the pins of streams that are gone, each at once; and what was put aside."""
    aside = folder / pins.ASIDE
    for name, place in pins.stream_folders(folder).items():
        if place not in {part.folder for part in parts}:
            place.rename(aside / f"{name}_gone")
    if len(programs) == len(parts):
        (folder / "ports").unlink(missing_ok=True)
    shutil.rmtree(aside)


def _load_and_attach(
    role: Role,
    interface: str,
    programs: list[libbpf.Object],
    parts: list[_Part],
    folder: Path,
    topology: Topology,
    self_test: bool,
) -> Mode:
    if role == "hardworker":
        first = time.monotonic_ns() // 10**6 % _NUMBERS
        libbpf.update(programs[0].map_fd("last_number"), bytes(4), first.to_bytes(4, "little"))
    # The stamp first: whatever happens next, the folder is known to be ours.
    libbpf.pin(programs[-1].map_fd(".rodata.settings"), folder / "settings")
    _pin(role, programs, parts, folder)
    ifindex = socket.if_nametoindex(interface)
    if role == "logger":
        for name, point in attachment.TC_POINTS.items():
            # One of ours may be there, of an attachment whose pins are gone.
            fd = programs[0].program_fd(name)
            libbpf.tc_attach(ifindex, point, fd, attachment.TC_HANDLE, attachment.TC_PRIORITY, replace=True)
        return "tc"
    if role == "hardworker" and self_test:
        identifier = selftest.identifier()
        with selftest.program(topology, identifier) as test:
            link, mode = _link(ifindex, test.program_fd("midstream_selftest"))
            try:
                selftest.run(interface, topology.logger.ip, identifier)
                libbpf.link_update(link, _entry(role, programs))
                libbpf.pin(link, folder / "link")
            finally:
                os.close(link)
        return mode
    link, mode = _link(ifindex, _entry(role, programs))
    try:
        libbpf.pin(link, folder / "link")
    finally:
        os.close(link)
    return mode


def _replace(
    role: Role, interface: str, programs: list[libbpf.Object], parts: list[_Part], folder: Path
) -> Mode:
    """Let the programs take the place of those that are attached, on the maps that are pinned."""
    ifindex = socket.if_nametoindex(interface)
    mode: Mode = "tc"
    if role == "hardworker":
        for part, program in zip(parts, programs, strict=False):
            if part.folder.exists():
                _move_strangers(program, part.folder, part.topology)
        control.tell_unlinked(folder, False)
        _add_streams(programs, parts, folder)
    if role == "logger":
        for name, point in attachment.TC_POINTS.items():
            fd = programs[0].program_fd(name)
            libbpf.tc_attach(ifindex, point, fd, attachment.TC_HANDLE, attachment.TC_PRIORITY, replace=True)
    else:
        mode = _update_link(ifindex, _entry(role, programs), folder)
    _pin(role, programs, parts, folder)
    if role == "hardworker":
        _remove_streams(programs, parts, folder)
    return mode


def _update_link(ifindex: int, program_fd: int, folder: Path) -> Mode:
    """Give the pinned link another program; a new link if its interface is gone."""
    link = libbpf.get(folder / "link")
    try:
        if libbpf.link_info(link).ifindex:
            libbpf.link_update(link, program_fd)
            return attachment.xdp(socket.if_indextoname(ifindex))[1]
    finally:
        os.close(link)
    link, mode = _link(ifindex, program_fd)
    try:
        libbpf.pin(link, folder / "link", replace=True)
    finally:
        os.close(link)
    return mode


def _move_strangers(program: libbpf.Object, folder: Path, topology: Topology) -> None:
    """The counters of what came from no sensor are those behind the last sensor's: move them with it."""
    shares, counters = program.map_fd("shares"), program.map_fd("counters")
    marks, new = pins.read_marks(folder), len(topology.sensors)
    if new > (capacity := libbpf.map_info(shares).max_entries):
        raise KernelError(
            f"{folder}: made for at most {capacity} sensors, and const.toml names {new}; "
            "run `midstream detach`, then `midstream attach`"
        )
    if marks and marks.sensors != new:
        width = 8 * len(records.OUTCOMES) * libbpf.possible_cpus()
        old_key, new_key = (n.to_bytes(4, "little") for n in (marks.sensors, new))
        libbpf.update(counters, new_key, libbpf.lookup(counters, old_key, width) or bytes(width))
        libbpf.update(counters, old_key, bytes(width))


def _quota(whole: int, share: float, topology: Topology) -> int:
    """What one sensor may take of a whole; a single one may take all, and no quota is so small that it
    stops a sensor altogether."""
    if len(topology.sensors) == 1:
        return records.NO_QUOTA
    return max(int(whole * share), 1)


def _link(ifindex: int, program_fd: int) -> tuple[int, Mode]:
    """Attach by a link: in the driver if it can, else in the kernel's generic way, which costs more."""
    try:
        return libbpf.link_create(program_fd, ifindex, libbpf.XDP_FLAGS_DRV_MODE), "native"
    except KernelError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    return libbpf.link_create(program_fd, ifindex, libbpf.XDP_FLAGS_SKB_MODE), "generic"


def _remove_empty_clsact(ifindex: int) -> None:
    """Remove the queueing discipline that our filters hung on, unless somebody else's filter does too."""
    with IPRoute() as netlink:
        if any(any(netlink.get_filters(index=ifindex, parent=parent)) for parent in _CLSACT_PARENTS):
            return
        if any(q.get_attr("TCA_KIND") == "clsact" for q in netlink.get_qdiscs(index=ifindex)):
            netlink.tc("del", "clsact", index=ifindex)


def _peer(role: Role, topology: Topology) -> IPv4Address:
    """A host on whose route this role's interface lies."""
    return {"sensor": topology.hardworker, "hardworker": topology.logger, "logger": topology.hardworker}[
        role
    ].ip


def _check_interface(role: Role, interface: str, topology: Topology) -> None:
    """Raise KernelError if the interface is not the one that const.toml describes: a program compiled for
    other addresses would see no packet, and one for a smaller MTU would drop every full one."""
    with IPRoute() as netlink:
        found = (
            next(iter(netlink.get_links(ifname=interface)), None)
            if interface in attachment.interfaces()
            else None
        )
    if found is None:
        raise KernelError(
            f"{interface}: no such interface; there are {', '.join(attachment.interfaces())}. "
            "Correct config.toml: network.interface"
        )
    mac, mtu = found.get("address"), found.get("mtu")
    hosts = topology.sensors if role == "sensor" else (getattr(topology, role),)
    if mac not in {host.mac for host in hosts}:
        raise KernelError(
            f"{interface}: its MAC address is {mac}, but const.toml [mac] {role} says "
            f"{', '.join(host.mac for host in hosts)}; correct const.toml, or config.toml: network.interface"
        )
    if mtu > topology.mtu:
        raise KernelError(
            f"{interface}: its MTU is {mtu}, more than const.toml [data] mtu = {topology.mtu}; "
            "make them equal, else full packets would be dropped"
        )
