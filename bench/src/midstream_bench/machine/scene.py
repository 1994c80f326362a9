"""Runs in a virtual hardworker that is up: a receiver in the guest, sensors and logger beside it.

Slow motion is as slow as a receiver needs: one that falls behind is run again, twice as slow.
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Any

from midstream.ebpf import irq_mitigation
from midstream.errors import LabError, MidstreamError
from midstream.lab import enter
from midstream.lab.hosts import LabHost
from midstream.lab.impairment import Impairment
from midstream.load import Connection, Load, Sink
from midstream.load.mix import Sending, connections, joint_plan
from midstream.network import Topology
from midstream_bench.machine import wires
from midstream_bench.machine.counted import BUSY, KEPT_UP, Counted
from midstream_bench.machine.hardworker import NANOSECONDS, VirtualHardworker
from midstream_bench.machine.verdict import TOO_MUCH, Seen, behind, judge
from midstream_bench.receiver import Receiver, Setting
from midstream_bench.receivers.arrangement import Arrangement
from midstream_bench.scenario import Scenario
from midstream_bench.traffic import MiddlewareTraffic, Program, TcpTraffic, Traffic, conclude

PINS = "/sys/fs/bpf/midstream-vm"
OFF = irq_mitigation.IrqMitigation(0, 0)
SLOWEST = 32
"""So many times slower than this machine's clock a receiver is tried at most."""

_VERIFY = 0.15  # seconds of the guest's, as all here: of load before and after, its bytes verified
_SETTLE = 0.4  # of load then, before the window
_CALLS = 1.0  # of this machine's: what asking the guest takes in between
_MEET, _MEET_EACH = 2.0, 0.25  # of this machine's: until the guest's side of a middleware knows every sensor
_REST = 6.0  # what a boot leaves to be done later has been done then
_SEED = 1  # of what is lost: the same for all
_END = 30.0  # seconds of this machine's: until all have heard all


class _FellBehindError(Exception):
    """The guest's clock goes too slowly, or it is never idle; there is no use in a window."""


@dataclass(frozen=True)
class _Beside:
    """The hosts beside the machine, where programs run as on those of a lab."""

    def popen(self, host: str, argv: Sequence[str | os.PathLike[str]], **kwargs: Any) -> "Popen[Any]":
        return Popen(wires.command(f"msb-{host}", argv), **kwargs)


class Scene:
    """A guest and the hosts of a scenario. `folder`: for configurations; it has the topology's const.toml."""

    def __init__(
        self,
        guest: VirtualHardworker,
        hosts: Sequence[LabHost],
        topology: Topology,
        scenario: Scenario,
        folder: Path,
        seconds: float,
    ) -> None:
        self.guest = guest
        self._hosts = hosts
        self._topology = topology
        self._scenario = scenario
        self._folder = folder
        self._seconds = seconds
        guest.call("defer", OFF.empty_looks, OFF.timeout)
        guest.slow = 1
        time.sleep(_REST)
        # The smallest of some: part of the kernel's own work comes once in many seconds.
        self._background = min(self.window(1, None)["instructions"] for _ in range(3))

    @property
    def is_over(self) -> bool:
        """Whether the guest is gone."""
        return self.guest.gone

    def count(self, receiver: Receiver, slow: int) -> Counted:
        """One receiver's window, `slow` times slower than this machine's clock, or more where it needs it."""
        while True:
            counted = Counted(receiver.name, slow=slow)
            try:
                counted = self._run(receiver, slow)
                if counted.kept_up:
                    break
            except _FellBehindError as error:
                counted = replace(counted, problems=(str(error),))
            except (MidstreamError, OSError, ValueError) as error:  # ValueError: what it said is no JSON
                return replace(counted, problems=(str(error),))
            if slow >= SLOWEST:
                break
            slow = min(2 * slow, SLOWEST)
        return counted

    def _run(self, receiver: Receiver, slow: int) -> Counted:
        scenario, seconds = self._scenario, self._seconds
        config = self._configure(receiver)
        setting = Setting(
            config, config.with_name("const.toml"), scenario.sensors,
            scenario.incoming(self._topology.port), str(self._topology.hardworker.ip),
            str(self._topology.logger.ip), str(self._topology.sensors[0].ip), slow,
        )  # fmt: skip
        wires.slow_down(self._hosts, slow)
        with ExitStack() as undo:
            undo.callback(setattr, self.guest, "slow", 1)
            if scenario.loss:
                wires.impair(self._hosts, Impairment(drop=scenario.loss, seed=_SEED), self._topology)
            traffic = self._start(receiver, setting, slow, undo)
            self._wait(_VERIFY * slow, traffic)
            if receiver.command:
                self.guest.call("begin")  # nothing is verified from now on
            self.guest.slow = slow
            self._wait(0.05, traffic)
            self._settle(slow, traffic)
            first = traffic.sent
            taken = self.window(slow, traffic)
            sent = traffic.sent - first
            self.guest.slow = 1
            ended = conclude(traffic, (seconds + _VERIFY) * slow + _END)
            told = self.guest.call("finish") if receiver.command else None
        seen = Seen(slow, taken, sent, ended.total, ended.logged, ended.wrong, told)
        return judge(receiver, scenario, seconds, seen, self._background)

    def _start(self, receiver: Receiver, setting: Setting, slow: int, undo: ExitStack) -> Traffic:
        """Logger, receiver and sensors, in this order; sends from now on."""
        seconds = (_VERIFY + _SETTLE + self._seconds + _VERIFY) * slow + _CALLS
        sendings = self._scenario.sendings(seconds, self._topology.port, slow=slow)
        plan = joint_plan(sendings)
        traffic: Traffic
        if receiver.partner:
            partner = undo.enter_context(Program(_Beside(), "logger", receiver.partner(setting)))
            self._receive(receiver, setting, undo)
            traffic = undo.enter_context(MiddlewareTraffic(_Beside(), receiver, setting, plan, partner))
            time.sleep(_MEET + _MEET_EACH * setting.sensors)
        else:
            launch = partial(_Beside().popen, "logger")
            logger = Sink(setting.logger, setting.incoming, joined=receiver.joined, launch=launch)
            sink = undo.enter_context(logger)
            self._receive(receiver, setting, undo)
            load = undo.enter_context(Load(plan, self._connections(setting, sendings), slow=slow))
            traffic = TcpTraffic(load, sink)
        traffic.start()
        return traffic

    def _receive(self, receiver: Receiver, setting: Setting, undo: ExitStack) -> None:
        """The receiver, in the guest, with what Arrangement prepares for it in a lab."""
        config = str(setting.config)
        wanted = receiver.attach if isinstance(receiver.attach, Arrangement) else Arrangement()
        if wanted.program == "midstream":
            self.guest.call("attach", config)
            undo.callback(self.guest.call, "detach", config)
        elif wanted.program == "floor":
            self.guest.call("attach_floor", config)
            undo.callback(self.guest.call, "detach_floor", config)
        if wanted.program:  # which has changed the number of queues
            wires.steer(self._topology)
        if wanted.irq_mitigation:
            self.guest.call("defer", wanted.irq_mitigation.empty_looks, wanted.irq_mitigation.timeout)
            undo.callback(self.guest.call, "defer", OFF.empty_looks, OFF.timeout)
        if receiver.command:
            self.guest.call("start", receiver.command(setting))
            undo.callback(self.guest.call, "kill")

    def _settle(self, slow: int, traffic: Traffic) -> None:
        """Load for a while. Raises _FellBehindError."""
        before, executed, began = self.guest.call("sample"), self.guest.instructions, time.monotonic_ns()
        self._wait(_SETTLE * slow, traffic)
        asked, executed = (time.monotonic_ns() - began) / slow, self.guest.instructions - executed
        passed = self.guest.call("sample")["now"] - before["now"]
        if passed < KEPT_UP * asked:
            raise _FellBehindError(behind(passed, asked, slow))
        if executed * NANOSECONDS >= BUSY * passed:
            raise _FellBehindError(TOO_MUCH)

    def window(self, slow: int, traffic: Traffic | None) -> dict[str, float]:
        """What the guest counts while a window lasts."""
        before = self.guest.call("begin")
        instructions, began = self.guest.instructions, time.monotonic_ns()
        self._wait(self._seconds * slow, traffic)
        instructions, ended = self.guest.instructions - instructions, time.monotonic_ns()
        after = self.guest.call("end")
        counted = {name: after[name] - before[name] for name in before}
        return counted | {"instructions": instructions, "asked": (ended - began) / slow}

    def _configure(self, receiver: Receiver) -> Path:
        """config.toml as this receiver wants it, where the guest finds it too."""
        lines = ["[network]", f'pins = "{PINS}"']
        for table, keys in receiver.tables.items():
            lines.append(f"[{table}]")
            lines += [f"{key} = {str(value).lower()}" for key, value in keys.items()]
        path = self._folder / f"{receiver.name}.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def _connections(self, setting: Setting, sendings: Sequence[Sending]) -> list[Connection]:
        sensors = [host for host in self._hosts if host.name.startswith("sensor")]
        namespaces = [f"{enter.NAMESPACES}/{host.namespace}" for host in sensors]
        return connections(sendings, setting.address, self._topology.tos, namespaces)

    def _wait(self, seconds: float, traffic: Traffic | None) -> None:
        """So many seconds of this machine's, in which the load is fed. Raises LabError if it ends."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if traffic:
                traffic.feed()
                if not traffic.running:
                    traffic.result()
                    raise LabError("the load ended before the window did")
            time.sleep(min(left, 0.05))
