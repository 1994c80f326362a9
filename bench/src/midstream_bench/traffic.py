"""Sensors and logger of a run: the load and the sink, or a middleware's own."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from midstream.closing import Closing
from midstream.errors import LabError
from midstream.lab.cpu import prefer
from midstream.load import JointPlan, Load, Sink
from midstream.load.load import await_ready, end, finish
from midstream_bench.receiver import Receiver, Setting

DRAIN = 5.0  # seconds for what is under way
READY_TIMEOUT = 30.0  # seconds to start: middlewares look for each other
STOP_TIMEOUT = 15.0
POLL = 0.05

_LAST_LOOK = 0.1  # seconds in which who looks once a period looks at what came last


class Traffic(Protocol):
    """Sensors and logger of a run."""

    @property
    def running(self) -> bool: ...
    @property
    def sent(self) -> int:
        """Messages sent until now; -1 if only the end will tell."""

    def start(self) -> int:
        """Begin; the time (time.monotonic_ns) of the plan's beginning."""

    def feed(self) -> None: ...
    def result(self) -> tuple[int, float, float]:
        """When all is sent: how many messages, seconds, and the 99th percentile of lateness in µs."""

    def logged(self, wanted: int) -> tuple[int, int]:
        """Messages that the logger has, after it was given time to have that many; and how many are wrong."""


class Hosts(Protocol):
    """Where programs can be started: a lab, or what takes its place."""

    def popen(
        self, host: str, argv: Sequence[str | os.PathLike[str]], **kwargs: Any
    ) -> "subprocess.Popen[Any]":
        """Start a program there."""


class Program(Closing):
    """A receiver's program, or one that takes the place of load and sink."""

    def __init__(self, built: Hosts, host: str, command: Sequence[str]) -> None:
        self._name = f"{host}: {os.path.basename(command[0])}"
        self._process = built.popen(
            host,
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        try:
            await_ready(self._process, self._name, READY_TIMEOUT)
        except BaseException:
            end(self._process)
            raise

    def close(self) -> None:
        end(self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def pids(self) -> list[int]:
        """It, and the processes that it has started."""
        everybody = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
        return [pid for pid in everybody if _group(pid) == self.pid]

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Raises LabError if it has ended."""
        if not self.running:
            self.finish()
            raise LabError(f"{self._name}: ended before it was asked to")
        self._process.send_signal(number)

    def tell(self, line: str) -> None:
        """A line on its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Wait for its end, and return what it says."""
        return finish(self._process, self._name, STOP_TIMEOUT)

    def finish(self) -> dict[str, Any]:
        """End it, and return what it says. Raises LabError, NetworkError."""
        self._process.terminate()
        return self.result()


class TcpTraffic:
    """The load and the sink."""

    def __init__(self, load: Load, sink: Sink) -> None:
        self._load, self._sink = load, sink
        if not load.plan.is_flood:  # a flood would keep its core from everything else
            prefer(load.pid)

    @property
    def running(self) -> bool:
        return self._load.running

    @property
    def sent(self) -> int:
        return self._load.sent

    def start(self) -> int:
        return self._load.start()

    def feed(self) -> None:
        self._load.feed()

    def result(self) -> tuple[int, float, float]:
        summary = self._load.result()
        return summary.messages, summary.seconds, summary.late_p99_us

    def logged(self, wanted: int) -> tuple[int, int]:
        _wait_for(lambda: self._sink.received >= wanted, DRAIN)
        summary = self._sink.result()
        return summary.messages, summary.wrong


class MiddlewareTraffic(Closing):
    """A middleware's own sender, and its partner on the logger."""

    sent = -1

    def __init__(
        self, built: Hosts, receiver: Receiver, setting: Setting, plan: JointPlan, partner: Program
    ) -> None:
        assert receiver.sender is not None
        self._program = Program(built, "sensor", receiver.sender(setting, plan))
        self._partner = partner

    def close(self) -> None:
        self._program.close()

    @property
    def running(self) -> bool:
        return self._program.running

    def start(self) -> int:
        at = time.monotonic_ns() + 100_000_000
        self._program.tell(str(at))
        return at

    def feed(self) -> None: ...

    def result(self) -> tuple[int, float, float]:
        summary = self._program.result()
        return summary["messages"], summary["seconds"], summary["late_p99_us"]

    def logged(self, wanted: int) -> tuple[int, int]:
        del wanted  # nothing tells how many have come until it ends
        time.sleep(DRAIN / 10)
        summary = self._partner.finish()
        return summary["messages"], summary["errors"]


class Ended(NamedTuple):
    """How much was sent in all, in how many seconds, and how late (99 %, in µs); how much the logger has, and
    how much of that is wrong."""

    total: int
    seconds: float
    late_p99_us: float
    logged: int
    wrong: int


def conclude(traffic: Traffic, timeout: float) -> Ended:
    """Return when all is sent, or after `timeout` seconds, and when logger and receiver had time for it."""
    _wait_for(lambda: not traffic.running, timeout, traffic.feed)
    total, seconds, late = traffic.result()
    logged, wrong = traffic.logged(total)
    time.sleep(_LAST_LOOK)
    return Ended(total, seconds, late, logged, wrong)


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def _wait_for(condition: Callable[[], bool], timeout: float, work: Callable[[], None] = lambda: None) -> None:
    """Return when it is so, or after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        work()
        time.sleep(POLL)
