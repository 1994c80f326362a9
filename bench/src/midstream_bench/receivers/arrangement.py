"""What the receivers of a benchmark need on the hosts: programs, a bare forwarder, deferred interrupts."""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from midstream import config as configuration
from midstream import network
from midstream.config import Role
from midstream.ebpf import irq_mitigation, libbpf, loader, pins
from midstream.ebpf.irq_mitigation import IrqMitigation
from midstream.lab import Lab
from midstream.lab.hosts import INTERFACE
from midstream_bench.ebpf import compile_program

FLOOR = "floor"


@dataclass(frozen=True)
class Arrangement:
    """What is there before a receiver starts. program: "midstream", "floor" or "" (ordinary sockets).

    irq_mitigation: of the hardworker's interrupts, where `midstream attach` does not set it.
    """

    program: str = ""
    irq_mitigation: IrqMitigation | None = None

    def __call__(self, lab: Lab) -> Callable[[], None]:
        """Arrange it in a lab; returns what undoes it. Raises KernelError, NetworkError, CompileError."""
        config = configuration.load(lab.config)
        topology = network.load(config.const_path)
        folder = Path(config.network.pins)
        with ExitStack() as undo:

            def attach(host: str, role: Role) -> None:
                place = folder / host
                lab.call(host, loader.attach, role, config, topology, folder=place, interface=INTERFACE)
                undo.callback(lab.call, host, loader.detach, role, place)

            if self.program:
                attach("logger", "logger")
            if self.program == "midstream":
                attach("hardworker", "hardworker")
            if self.program == "floor":
                lab.call("hardworker", attach_floor, lab.config)
                undo.callback(detach_floor, lab.config)
            if self.irq_mitigation:
                before = lab.call("hardworker", irq_mitigation.read, INTERFACE)
                undo.callback(lab.call, "hardworker", irq_mitigation.write, INTERFACE, before)
                lab.call("hardworker", irq_mitigation.write, INTERFACE, self.irq_mitigation)
            return undo.pop_all().close


def attach_floor(config: Path, interface: str = INTERFACE) -> None:
    """Attach the bare forwarder (floor.bpf.c) on this host; its pin is the link that holds it."""
    settings = configuration.load(config)
    topology = network.load(settings.const_path)
    path = Path(settings.network.pins, FLOOR)
    pins.ensure_bpffs(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    with libbpf.Object(compile_program("floor", topology)) as program:
        program.load()
        number = socket.if_nametoindex(interface)
        link = libbpf.link_create(program.program_fd("midstream_floor"), number, libbpf.XDP_FLAGS_DRV_MODE)
        try:
            libbpf.pin(link, path)
        finally:
            os.close(link)


def detach_floor(config: Path) -> None:
    """Detach it."""
    Path(configuration.load(config).network.pins, FLOOR).unlink(missing_ok=True)
