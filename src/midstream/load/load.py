"""Drive load.c: connect, start, feed it the plan's events, read what it says at the end."""

import fcntl
import json
import mmap
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from midstream.closing import Closing
from midstream.ebpf import compiler
from midstream.errors import LabError, NetworkError
from midstream.load.schedule import EVENT, Schedule
from midstream.sensor import tcp

SOURCE = Path(__file__).with_name("load.c")

CONNECT_TIMEOUT = 15.0  # seconds for all connections; load.c gives each 10
CLOSE_TIMEOUT = 25.0  # seconds to send what is due and to close; load.c takes up to 10 for each
LEAD = 0.1  # seconds between `start` and the first message's time
_LAST_WORDS = 2.0  # seconds that a helper which is not ready has to say why
_PIPE = 1 << 20  # bytes of events ahead: tens of thousands of messages

Launch = Callable[..., subprocess.Popen[Any]]
"""subprocess.Popen, or something like it that starts the program on another host."""


SENT = np.dtype([("sequence", "<u8"), ("time", "<u8"), ("connection", "<u4"), ("size", "<u4")])
"""struct sent of load.c, a message in the load's record: number, time (ns since 1970), connection, bytes."""


@dataclass(frozen=True)
class Connection:
    """One connection of the load. namespace: a path such as /run/netns/NAME; empty: this one. source: an own
    address, empty: any."""

    peer: str
    port: int
    tos: int = 0
    namespace: str = ""
    source: str = ""


@dataclass(frozen=True)
class LoadSummary:
    """What was sent. late: how long after its time a message was handed to TCP, microseconds (3 % exact).

    planned: messages that were due, without those of a flood. messages: those that TCP has taken. unsent:
    due while their connection was lost, or not taken by the end because the peer took nothing.
    unacknowledged: bytes that TCP had taken and the peer did not acknowledge. lost: how often a connection
    was. clean: each peer acknowledged everything and closed its side. counts: messages of each connection;
    ports: its own port. rate: messages a second, of all connections, from the first to the last.
    """

    planned: int
    messages: int
    unsent: int
    unacknowledged: int
    lost: int
    clean: bool
    seconds: float
    rate: float
    late_p50_us: float
    late_p99_us: float
    late_p999_us: float
    late_max_us: float
    counts: tuple[int, ...]
    ports: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The fields by name, as `midstream load --json` prints them."""
        return asdict(self)


class Load(Closing):
    """The sensors. Entering the context connects them all; NetworkError says who does not answer.

        with Load(plan, connections) as load:
            load.start()
            while load.running:
                load.feed()
                time.sleep(0.1)
            summary = load.result()

    `reconnect`: a connection that is lost is made again; otherwise it ends the load with an error. `slow`:
    TCP's timeouts are so many times longer, for a peer in slow motion. `record`: a file that gets a row of
    SENT for each message that TCP has taken. `launch` starts the program:
    `functools.partial(lab.popen, "sensor")` in a lab.
    """

    def __init__(
        self,
        plan: Schedule,
        connections: Sequence[Connection],
        *,
        reconnect: bool = False,
        slow: int = 1,
        record: Path | None = None,
        launch: Launch = subprocess.Popen,
    ) -> None:
        if len(connections) != len(plan.framings):
            raise ValueError(f"{len(plan.framings)} sensors, but {len(connections)} connections")
        self.plan = plan
        self._connections = connections
        self._flags = "r" if reconnect else "-"
        self._slow = slow
        self._record = record
        self._launch = launch
        self._process: subprocess.Popen[Any] | None = None
        self._events: Iterator[np.ndarray] = iter(())
        self._rest = b""
        self._planned = 0

    def __enter__(self) -> Self:
        program = compiler.compile_executable(SOURCE)
        self._folder = tempfile.TemporaryDirectory(prefix="midstream-load-")
        try:
            lines = [
                f"{c.namespace or '-'} {c.source or '-'} {c.peer} {c.port} {c.tos} {framing}\n"
                for c, framing in zip(self._connections, self.plan.framings, strict=True)
            ]
            listed, counts = Path(self._folder.name, "connections"), Path(self._folder.name, "counts")
            listed.write_text("".join(lines))
            counts.write_bytes(bytes(8 * len(lines)))
            with counts.open("r+b") as file:
                self._counts = np.frombuffer(mmap.mmap(file.fileno(), 0), "<u8")
            arguments = [
                os.fspath(program),
                os.fspath(listed),
                os.fspath(counts),
                str(tcp.RTO_MAX * self._slow),
                str(tcp.RTO_MIN * self._slow),
                self._flags,
                *([os.fspath(self._record)] if self._record else []),
            ]
            self._process = self._launch(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,
            )
            with suppress(OSError):  # more than /proc/sys/fs/pipe-max-size allows: then it is fed more often
                fcntl.fcntl(self._stdin, fcntl.F_SETPIPE_SZ, _PIPE)
            os.set_blocking(self._stdin.fileno(), False)
            await_ready(self._process, "load", CONNECT_TIMEOUT)
        except BaseException:
            self.close()
            raise
        return self

    @property
    def pid(self) -> int:
        """The program's process id, for `Meter`; only inside the context."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Has the program not ended yet?"""
        assert self._process is not None
        return self._process.poll() is None

    @property
    def sent(self) -> int:
        """Messages that TCP has taken until now, of all connections."""
        return int(self._counts.sum())

    def start(self) -> int:
        """Begin; returns when (time.monotonic_ns): the plan's time 0."""
        at = time.monotonic_ns() + round(LEAD * 1e9)
        first = np.zeros(1, EVENT)
        first["at"] = at
        self._rest = first.tobytes()
        self._events = self.plan.events()
        self.feed()
        return at

    def feed(self) -> None:
        """Give the program events ahead of their times. Call it now and then, at least every second."""
        while not self._stdin.closed:
            if not self._rest:
                piece = next(self._events, None)
                if piece is None:
                    self._stdin.close()  # all is planned: it ends when all is sent
                    return
                self._planned += int(np.count_nonzero(piece["until"] == 0))
                self._rest = piece.tobytes()
                continue
            try:
                self._rest = self._rest[os.write(self._stdin.fileno(), self._rest) :]
            except BlockingIOError:
                return
            except BrokenPipeError:
                self._stdin.close()
                return

    def stop(self) -> None:
        """Ask it to end: what is due is sent, then the connections close."""
        assert self._process is not None
        self._process.terminate()

    def result(self) -> LoadSummary:
        """Wait for its end. Raises NetworkError if a connection was lost, LabError if it does not end."""
        assert self._process is not None
        told = finish(self._process, "load", CLOSE_TIMEOUT)
        connections = told.pop("connections")
        counts = tuple(connection["messages"] for connection in connections)
        ports = tuple(connection["port"] for connection in connections)
        rate = (told["messages"] - 1) / told["seconds"] if told["seconds"] else 0.0
        return LoadSummary(planned=self._planned, rate=rate, counts=counts, ports=ports, **told)

    def close(self) -> None:
        """See that it is gone."""
        if self._process is not None:
            end(self._process)
        self._folder.cleanup()

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process is not None and self._process.stdin is not None
        return self._process.stdin


def await_ready(process: subprocess.Popen[Any], name: str, timeout: float) -> None:
    """Return when a helper has said "ready" on standard error. Otherwise it is ended, whatever it does, and
    NetworkError tells what it said instead."""
    deadline = time.monotonic() + timeout
    said = _read(process, deadline, lambda said: b"\n" in said)
    if said.partition(b"\n")[0].strip() == b"ready":
        return
    if b"\n" in said:
        said += _read(process, time.monotonic() + _LAST_WORDS, lambda _: False)
    late = not said and time.monotonic() >= deadline
    end(process)
    silent = f"not ready within {timeout:g} s" if late else "ended without a word"
    raise NetworkError(said.decode(errors="replace").strip() or f"{name}: {silent}")


def _read(process: subprocess.Popen[Any], deadline: float, enough: Callable[[bytes], bool]) -> bytes:
    """What a helper says on standard error until that is enough, the end, or the deadline. Never longer: who
    reads to the end of a pipe waits for everyone that has it."""
    assert process.stderr is not None
    said = b""
    while not enough(said):
        left = max(deadline - time.monotonic(), 0)
        if not select.select([process.stderr], [], [], left)[0]:
            break
        piece = os.read(process.stderr.fileno(), 4096)
        if not piece:
            break
        said += piece
    return said


def finish(process: subprocess.Popen[Any], name: str, timeout: float) -> dict[str, Any]:
    """Wait for a helper's end and return the JSON object that it prints. Raises LabError, NetworkError."""
    if process.stdin is not None and process.stdin.closed:
        process.stdin = None
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        end(process)
        raise LabError(f"{name}: did not end within {timeout:g} s") from None
    if process.returncode:
        raise NetworkError(err.decode(errors="replace").strip() or f"{name}: failed")
    result: dict[str, Any] = json.loads(out)
    return result


def end(process: subprocess.Popen[Any]) -> None:
    """See that a helper is gone, with its process group (a middleware's broker) and its pipes."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
