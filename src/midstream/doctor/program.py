"""This host's eBPF program: is it attached, is it made from these files, and what has it counted?"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from midstream.doctor.finding import Finding, fault, ok, unknown, warning
from midstream.doctor.interface import InterfaceState
from midstream.doctor.subject import Subject
from midstream.ebpf import attachment, irq_mitigation, loader, pins, quickack
from midstream.ebpf.records import OUTCOMES
from midstream.ebpf.sizing import ring_rate, ring_size
from midstream.errors import CompileError, KernelError
from midstream.streams import ResolvedStream, resolved
from midstream.values import MAX_RING

PAUSE = 1.0  # seconds for which an application may pause, at the rate of config.toml

TROUBLE = {
    "stranger": "marked packets from no sensor of const.toml: add it there, or give its traffic another mark",
    "forged": "a sensor's IP address with another MAC address: a replaced card, or somebody pretends; "
    "`midstream packet listen` shows the MAC address",
    "oversized": "longer than the MTU: receive offloads merge segments, or the sensor's MTU is larger",
    "bad_checksum": "on veth, checksum offload; otherwise a bad cable or card",
    "no_connection": "data of connections opened before the program was attached; the sensor connects anew",
    "ring_full": "the application does not keep up, or does not run: `midstream hardworker`, or a larger "
    "hardworker.ring_size",
    "quota_full": "one sensor sends more than its share: hardworker.quota, or a larger hardworker.ring_size",
    "table_full": "too many connections at once: raise hardworker.connections, or see who opens them",
    "syn_data": "TCP Fast Open: switch it off in the client",
    "ip_options": "IP options are refused: no TCP of today sends them; see who does",
    "fragment": "fragments are refused: the MTU of the sensor is larger than its way here",
    "bad_length": "malformed packets: a bad card, or somebody crafts them",
    "bad_flags": "malformed packets: somebody crafts them",
    "no_ack": "data without an acknowledgement: somebody crafts them",
    "bad_ack": "acknowledges what was never sent: somebody guesses (RFC 5961)",
}
"""Counters that name a fault of the setup, and what each is a sign of."""


@dataclass(frozen=True, slots=True)
class ProgramState:
    """pinned: the folder has pins. attached: the interface, "" if nothing is. current: whether the pins were
    made from these files, None if nothing is pinned. problem: why this could not be told. counters: those of
    all sensors together, since the program was attached. missing: pins that somebody has removed. untuned:
    what `attach` has set beside the program, and somebody has taken back, in words."""

    folder: Path
    pinned: bool = False
    attached: str = ""
    current: bool | None = None
    problem: str = ""
    counters: dict[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    untuned: tuple[str, ...] = ()


def read(subject: Subject) -> ProgramState:
    role, folder = subject.role, pins.default_folder(subject.role, subject.config)
    try:
        if not folder.exists() or not any(folder.iterdir()):
            return ProgramState(folder)
        attached = attachment.find(role, folder)
        marks = pins.read_marks(folder)
        current = marks is not None and marks.stamp == pins.stamp(role, subject.config, subject.topology)
        missing = tuple(pins.missing(role, folder))
        untuned = tuple(_untuned(subject, attached.interface)) if attached else ()
        counters = {}
        if role == "hardworker" and marks and "counters" not in missing:
            counters = dict(zip(OUTCOMES, loader.counters(folder).sum(axis=0).tolist(), strict=True))
    except (KernelError, CompileError) as error:
        return ProgramState(folder, problem=str(error))
    except OSError as error:
        return ProgramState(folder, problem=f"{folder}: {error.strerror}")
    where = attached.interface if attached else ""
    return ProgramState(folder, True, where, current, "", counters, missing, untuned)


def check(program: ProgramState, interface: InterfaceState | None, subject: Subject) -> Iterator[Finding]:
    yield _check_attached(program, interface, subject)
    if subject.role == "hardworker" and subject.has_program:
        for stream in resolved(subject.config, subject.topology).values():
            yield from _check_ring(stream, subject)
    for what in program.untuned:
        yield warning(
            "settings", what, "as `midstream attach` sets it", subject.command("attach", subject.role)
        )
    seen = {name: count for name, count in program.counters.items() if count}
    for name, count in seen.items():
        if name in TROUBLE:
            yield warning("counters", f"{name} {count:,}", "0", TROUBLE[name])
    if seen and not TROUBLE.keys() & seen:
        yield ok("counters", ", ".join(f"{name} {count:,}" for name, count in seen.items()))


def _check_ring(stream: ResolvedStream, subject: Subject) -> Iterator[Finding]:
    """Nothing is said of a rate that config.toml leaves out, nor of messages of any length."""
    config, topology = stream
    data, size, sensors = config.data, ring_size(config, topology), len(topology.sensors)
    second = ring_rate(config, topology) * sensors
    whose = f"{config.named_stream}: " if config.named_stream else ""
    if data.framing != "fixed" or not second:
        return
    rate = f"{sensors} × {data.freq:g} Hz × {topology.size} bytes"
    found = f"{whose}{size >> 10} KiB hold {size / second:.2g} s of {rate}"
    if size >= second * PAUSE:
        yield ok("ring", found)
        return
    enough = min(1 << math.ceil(math.log2(second * PAUSE)), MAX_RING)
    yield warning(
        "ring",
        found,
        f"{PAUSE:g} s, so that an application may pause",
        f"a larger ring in config.toml, {config.ring_named('ring_size')} = {enough}; "
        f"then {subject.attach_anew}",
    )


def _untuned(subject: Subject, interface: str) -> Iterator[str]:
    is_hardworker = subject.role == "hardworker"
    if is_hardworker and (period := loader.irq_period(subject.config, subject.topology)):
        if irq_mitigation.read(interface) != irq_mitigation.matched(period):
            yield f"interrupts of {interface} are not deferred to match the period of {period:g} s"
    elif subject.role == "logger" and (
        missing := quickack.missing(host.ip for host in subject.topology.sensors)
    ):
        shown = ", ".join(map(str, missing[:3]))
        yield f"{len(missing)} sensors are not acknowledged at once ({shown}): no route with quickack"


def _check_attached(program: ProgramState, interface: InterfaceState | None, subject: Subject) -> Finding:
    attach = subject.command("attach", subject.role)
    if program.problem:
        return unknown("program", program.problem, "run as root")
    if not subject.has_program:
        if program.pinned:
            return warning(
                "program",
                f"pinned in {program.folder}, though config.toml asks for none",
                "none",
                subject.command("detach", subject.role),
            )
        return ok("program", "none, and none is needed here")
    if program.missing:
        return fault(
            "program",
            f"{', '.join(program.missing)} missing in {program.folder}",
            "all that `midstream attach` has pinned",
            f"rm -r {quote(str(program.folder))}; {attach}",
        )
    if program.pinned and program.current is False:
        return fault(
            "program",
            f"the pins in {program.folder} were made from other files",
            "made from this config.toml and const.toml",
            subject.attach_anew,
        )
    if not program.attached:
        if interface and interface.program and subject.role != "logger":
            # Without the mode's own word the kernel looks for a native one alone, where there may be one.
            kind = "xdpgeneric" if interface.xdp == "generic" else "xdp"
            return fault(
                "program",
                f"program {interface.program} on {interface.name} is not midstream's",
                "midstream's",
                f"ip link set dev {quote(interface.name)} {kind} off && {attach}",
            )
        return fault("program", "not attached", "attached", subject.attach_anew if program.pinned else attach)
    if interface and program.attached != interface.name:
        return fault(
            "program", f"attached to {program.attached}", f"attached to {interface.name}", subject.attach_anew
        )
    return ok("program", f"attached to {program.attached}, made from these files")
