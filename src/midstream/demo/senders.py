"""Who sends in the demonstration: a `midstream sensor` on each sensor's host, or one load for a mix."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from midstream import network
from midstream.closing import Closing
from midstream.config import DATA
from midstream.demo import records
from midstream.demo.programs import LabProgram
from midstream.demo.verdict import Stream
from midstream.lab import Lab
from midstream.lab.enter import NAMESPACES
from midstream.load import Load, LoadSummary
from midstream.load.mix import Mix, connections, joint_plan, mixed_sendings


@dataclass(frozen=True)
class Sent:
    """What was sent: of each stream by name the SENT_DTYPE rows of each connection. unclean: connections that
    did not see in time that everything was stored. rate: messages a second, of a sensor's only stream, or of
    all."""

    streams: Mapping[str, Mapping[Stream, np.ndarray]]
    unclean: int
    rate: float
    seconds: float


class Senders(Protocol):
    """Sensors that are connected and wait."""

    @property
    def waiting(self) -> list[str]:
        """Those that are not ready yet. Raises LabError if one has ended instead."""

    @property
    def running(self) -> bool:
        """Does one still send?"""

    def go(self) -> None:
        """Let all send."""

    def feed(self) -> None:
        """To be called now and then while they run."""

    def check(self) -> None:
        """Raises MidstreamError if one has failed."""

    def stop(self) -> None:
        """Ask them to end early."""

    def result(self, timeout: float) -> Sent:
        """Wait for their end. Raises MidstreamError after `timeout` seconds, or if one has failed."""


class SensorPrograms:
    """A program on each sensor's host, all of the only stream. start: starts one on a host."""

    def __init__(
        self,
        built: Lab,
        start: Callable[..., LabProgram],
        messages: int,
        rate: float,
        record: Callable[[str], Path],
    ) -> None:
        plan = ["--messages", str(messages), "--rate", str(rate), "--wait"]
        self._record = record
        self._programs = tuple(
            start(host.name, "sensor", *plan, "--record", str(record(host.name))) for host in built.sensors
        )

    @property
    def waiting(self) -> list[str]:
        return [program.name for program in self._programs if not program.is_ready()]

    @property
    def running(self) -> bool:
        return any(program.running for program in self._programs)

    def go(self) -> None:
        for program in self._programs:
            program.go()

    def feed(self) -> None: ...

    def check(self) -> None:
        for program in self._programs:
            program.check()

    def stop(self) -> None:
        for program in self._programs:
            if program.running:
                program.stop()

    def result(self, timeout: float) -> Sent:
        told = [program.result(timeout) for program in self._programs]
        rows = {
            (summary["sensor"], summary["port"]): records.sent(self._record(program.name))
            for program, summary in zip(self._programs, told, strict=True)
        }
        return Sent(
            {DATA: rows},
            sum(not summary["clean"] for summary in told),
            sum(summary["rate"] for summary in told) / len(told),
            max(summary["seconds"] for summary in told),
        )


class MixLoad(Closing):
    """One load that sends a mix, each stream from its sensor's host. Connected while the context lasts."""

    def __init__(self, built: Lab, mix: Mix, seconds: float, record: Path) -> None:
        topology = network.load(built.const)
        self._record = record
        self._sendings = mixed_sendings(mix, seconds)
        self._hosts = [built.sensors[sending.sensor] for sending in self._sendings]
        namespaces = [f"{NAMESPACES}/{host.namespace}" for host in built.sensors]
        to_hardworker = connections(self._sendings, str(topology.hardworker.ip), topology.tos, namespaces)
        plan = joint_plan(self._sendings)
        self._load = Load(plan, to_hardworker, record=record, launch=partial(built.popen, "sensor"))
        self._summary: LoadSummary | None = None

    def __enter__(self) -> "MixLoad":
        self._load.__enter__()
        return self

    def close(self) -> None:
        self._load.close()

    @property
    def waiting(self) -> list[str]:
        return []

    @property
    def running(self) -> bool:
        return self._load.running

    def go(self) -> None:
        self._load.start()

    def feed(self) -> None:
        self._load.feed()

    def check(self) -> None:
        if not self.running:
            self._finish()

    def stop(self) -> None:
        self._load.stop()

    def result(self, timeout: float) -> Sent:
        deadline = time.monotonic() + timeout
        while self.running and time.monotonic() < deadline:
            self.feed()
            time.sleep(0.05)
        summary = self._finish()
        framings = [sending.plan.framing for sending in self._sendings]
        rows = records.sent_by_load(self._record, framings)
        return Sent(
            {
                sending.name: {(str(host.ip), port): sent}
                for sending, host, port, sent in zip(
                    self._sendings, self._hosts, summary.ports, rows, strict=True
                )
            },
            int(not summary.clean),
            summary.rate,
            summary.seconds,
        )

    def _finish(self) -> LoadSummary:
        if self._summary is None:
            self._summary = self._load.result()
        return self._summary
