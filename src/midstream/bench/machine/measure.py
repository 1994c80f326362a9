"""Instructions a message of whole receivers, counted in a virtual hardworker.

One boot serves all receivers of a scenario. What the guest does without any receiver and load, in a window as
long, is its background, which is subtracted. For the rest see bench/receiver.py.
"""

import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory
from typing import Any

from midstream import config as configuration
from midstream import network
from midstream.bench.load import Connection, Load, Plan, Sink
from midstream.bench.machine import wires
from midstream.bench.machine.hardworker import SLOW, VirtualHardworker, booted
from midstream.bench.receiver import Job, Receiver, Setting
from midstream.bench.receivers import RECEIVERS
from midstream.bench.receivers.arrangement import Arrangement
from midstream.ebpf import compiler, deferral, loader
from midstream.errors import MidstreamError
from midstream.lab import enter, hosts, namespaces
from midstream.lab.hosts import INTERFACE, LabHost
from midstream.network import Topology

PORT, TOS, MTU = 12345, 104, 1500
PINS = "/sys/fs/bpf/midstream-vm"
TOLERANCE = 0.03  # of the messages due in the window

_REST = 10.0  # what a boot leaves to be done later has been done then
_SETTLE = 1.5  # seconds of the guest's, as all here: load before the window
_AFTER = 0.5
_DRAIN = 1.0
_OFF = deferral.Deferral(0, 0)


@dataclass(frozen=True)
class Counted:
    """One receiver's window, in the guest.

    instructions: a message, without background. seconds: by the guest's clock; less than asked for, if it
    fell behind: then messages came in closer company than they should. problems: why this is not a figure.
    """

    receiver: str
    instructions: float
    messages: int
    due: int
    seconds: float
    interrupts: float
    softirqs: float
    switches: float
    problems: tuple[str, ...] = ()
    received: Mapping[str, Any] | None = None


def measure(
    receivers: Sequence[Receiver], *, sensors: int, rate: float, size: int, seconds: float, cache: Path
) -> Iterator[Counted]:
    """Count each receiver's instructions. `cache`: where the kernel is kept. Raises LabError."""
    with ExitStack() as undo:
        folder = Path(undo.enter_context(TemporaryDirectory(prefix="midstream-vm-")))
        built = undo.enter_context(wires.wired(sensors, MTU))
        topology = hosts.topology(built, tos=TOS, port=PORT, mtu=MTU, size=size)
        network.write(folder / "const.toml", topology, "midstream bench")
        for name in ("hardworker", "floor", "logger", "selftest"):
            compiler.compile_program(name, topology)  # here, where it is quick; the guest finds it
        undo.enter_context(_return_path(folder, topology))
        guest = undo.enter_context(booted(built, cache))
        guest.call("defer", _OFF.empty_looks, _OFF.timeout)
        scene = _Scene(
            guest, built, topology, folder, Plan(sensors=sensors, rate=rate / SLOW, size=size), seconds
        )
        _wait(_REST)
        # The smaller of two: some of the kernel's own work comes once in many seconds.
        background = min(scene.window()["instructions"] for _ in range(2))
        for receiver in receivers:
            try:
                yield scene.count(receiver, background)
            except (MidstreamError, OSError) as error:
                yield Counted(receiver.name, 0.0, 0, 0, 0.0, 0.0, 0.0, 0.0, (str(error),))


@dataclass(frozen=True)
class _Scene:
    guest: VirtualHardworker
    hosts: Sequence[LabHost]
    topology: Topology
    folder: Path
    plan: Plan
    seconds: float

    def window(self, load: Load | None = None) -> dict[str, float]:
        """What the guest counts while a window lasts."""
        before = self.guest.call("begin")
        before["instructions"] = self.guest.instructions
        _wait(self.seconds, load)
        instructions = self.guest.instructions
        after = self.guest.call("end") | {"instructions": instructions}
        return {name: after[name] - before[name] for name in before}

    def count(self, receiver: Receiver, background: float) -> Counted:
        """One receiver's run."""
        config = self._configure(receiver)
        address, logger = self.topology.hardworker.ip, self.topology.logger.ip
        setting = Setting(
            config, config.with_name("const.toml"), self.plan.sensors, self.plan.rate * SLOW, self.plan.size,
            str(address), PORT, str(logger),
        )  # fmt: skip
        with ExitStack() as undo:
            launch = partial(_launch, "logger")
            sink = undo.enter_context(Sink(str(logger), PORT, self.plan.size, launch=launch))
            self._arrange(receiver, config, undo)
            if receiver.command:
                self.guest.call("start", receiver.command(setting))
                undo.callback(self.guest.call, "kill")
            length = (_SETTLE + self.seconds + _AFTER) * SLOW
            load = undo.enter_context(Load(replace(self.plan, seconds=length), self._connections()))
            load.start()
            _wait(_SETTLE, load)
            first = load.sent
            taken = self.window(load)
            sent = load.sent - first
            while load.running:
                _wait(0.05, load)
            summary = load.result()
            _wait(_DRAIN)
            told = self.guest.call("finish") if receiver.command else None
            logged = sink.result()
        total = sum(summary.counts)
        messages = told["window_messages"] if told else sent
        due = round(self.plan.sensors * self.plan.rate * self.seconds * SLOW)
        relayed = receiver.job != Job.RECEIVE
        problems = [
            problem
            for wrong, problem in (
                (abs(messages - due) > TOLERANCE * due, f"{messages} messages in the window, {due} were due"),
                (told and told["messages"] != total, f"{told and told['messages']} of {total} delivered"),
                (told and told["errors"], f"{told and told['errors']} messages wrong or out of order"),
                (relayed and logged.messages != total, f"{logged.messages} of {total} arrived at the logger"),
                (logged.wrong, f"{logged.wrong} messages wrong at the logger"),
            )
            if wrong
        ]
        used = taken["instructions"] - background
        each = max(messages, 1)
        return Counted(
            receiver.name, used / each, messages, due, taken["now"] / 1e9, taken["interrupts"] / each,
            taken["softirqs"] / each, taken["switches"] / each, tuple(problems), told,
        )  # fmt: skip

    def _configure(self, receiver: Receiver) -> Path:
        """config.toml as this receiver wants it, where the guest finds it too."""
        lines = ["[network]", f'pins = "{PINS}"']
        for table, keys in receiver.tables.items():
            lines.append(f"[{table}]")
            lines += [f"{key} = {str(value).lower()}" for key, value in keys.items()]
        path = self.folder / f"{receiver.name}.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def _arrange(self, receiver: Receiver, config: Path, undo: ExitStack) -> None:
        """In the guest what Arrangement does in a lab."""
        wanted = receiver.attach if isinstance(receiver.attach, Arrangement) else Arrangement()
        if wanted.program == "midstream":
            self.guest.call("attach", str(config))
            undo.callback(self.guest.call, "detach", str(config))
        elif wanted.program == "floor":
            self.guest.call("attach_floor", str(config))
            undo.callback(self.guest.call, "detach_floor", str(config))
        if wanted.deferral:
            self.guest.call("defer", wanted.deferral.empty_looks, wanted.deferral.timeout)
            undo.callback(self.guest.call, "defer", _OFF.empty_looks, _OFF.timeout)

    def _connections(self) -> list[Connection]:
        sensors = [host for host in self.hosts if host.name.startswith("sensor")]
        address = str(self.topology.hardworker.ip)
        return [Connection(address, PORT, TOS, f"{enter.NAMESPACES}/{host.namespace}") for host in sensors]


def _wait(seconds: float, load: Load | None = None) -> None:
    """So many seconds of the guest's clock."""
    end = time.monotonic() + seconds * SLOW
    while (left := end - time.monotonic()) > 0:
        if load:
            load.feed()
        time.sleep(min(left, 0.05))


def _launch(host: str, argv: Sequence[str], **options: Any) -> "Popen[Any]":
    return Popen(wires.command(f"msb-{host}", argv), **options)


@contextmanager
def _return_path(folder: Path, topology: Topology) -> Iterator[None]:
    """The logger's program, while the context lasts."""
    config = folder / "logger.toml"
    config.write_text("")
    pins, settings = Path(PINS, "logger"), configuration.load(config)
    attach = partial(loader.attach, folder=pins, interface=INTERFACE)
    namespaces.call("msb-logger", (), attach, "logger", settings, topology)
    try:
        yield
    finally:
        namespaces.call("msb-logger", (), loader.detach, "logger", pins)
        pins.parent.rmdir()


def main(words: Sequence[str]) -> None:
    """Print thousand instructions a message of the receivers whose names hold one of these words."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was built is taken down
    chosen = [one for one in RECEIVERS if not words or any(word in one.name for word in words)]
    cache = compiler.cache_directory() / "vm"
    for one in measure(chosen, sensors=16, rate=100.0, size=1024, seconds=3.0, cache=cache):
        print(
            f"{one.receiver:26}{one.instructions / 1e3:8.2f} k, {one.messages} of {one.due} messages in "
            f"{one.seconds:.2f} s, {one.interrupts:.2f} interrupts and {one.switches:.2f} switches a message"
            f" {'; '.join(one.problems)}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
