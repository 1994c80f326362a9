"""What tests of the running triangle have in common: commands, plain clients, and what each end received.

A client here is an ordinary TCP client and knows nothing of midstream; the logger's database is read with
sqlite3 and the kernel's own counters from /proc, so nothing is judged by the code that it comes from.
"""

import hashlib
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midstream import cli
from midstream.ebpf import loader
from midstream.ebpf.records import OUTCOMES
from midstream.hardworker import Hardworker
from midstream.lab import Lab

HARDWORKER, LOGGER = "10.83.0.2", "10.83.0.3"
SENSOR = "10.83.0.11"
PORT, TOS = 12345, 104
PINS = Path("/sys/fs/bpf/midstream-lab")
PROGRAM = Path(sys.executable).with_name("midstream")
PATIENCE = 30.0  # seconds

Peer = tuple[str, int]
Option = tuple[int, int, int | bytes]


# commands


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def object(self) -> dict[str, Any]:
        """The one JSON object on its standard output."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


def command(lab: Lab, host: str, *arguments: str | os.PathLike[str]) -> Result:
    """`midstream ARGUMENTS…` on a host, in a forked child: without the time that Python takes to start."""
    return lab.call(host, _command, [os.fspath(argument) for argument in arguments])


def _command(arguments: list[str]) -> Result:
    sys.argv = ["midstream", *arguments]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            cli.main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int)
    return Result(code, out.getvalue(), err.getvalue())


class Program:
    """`midstream ARGUMENTS…` as a process of its own on a host, started by `launcher`."""

    def __init__(
        self,
        lab: Lab,
        host: str,
        folder: Path,
        arguments: Iterable[str | os.PathLike[str]],
        launcher: Iterable[str] = (),
    ):
        self._files = tuple(folder / f"{time.monotonic_ns()}.{name}" for name in ("out", "err"))
        out, err = self._files
        with out.open("w") as stdout, err.open("w") as stderr:
            self.process = lab.popen(
                host, [*launcher, PROGRAM, *arguments], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )

    def wait_for(self, text: str) -> None:
        """Wait until the program has said `text` on standard error."""

        def said() -> bool:
            assert self.process.poll() is None, self._files[1].read_text()
            return text in self._files[1].read_text()

        wait_until(said)

    def end(self, number: signal.Signals = signal.SIGINT) -> Result:
        """Ask it to end, and wait."""
        self.process.send_signal(number)
        return self.result()

    def result(self) -> Result:
        """Wait for its end."""
        code = self.process.wait(PATIENCE)
        out, err = (path.read_text() for path in self._files)
        return Result(code, out, err)


@contextmanager
def started(
    lab: Lab,
    host: str,
    folder: Path,
    *arguments: str | os.PathLike[str],
    ready: str = "",
    launcher: Iterable[str] = (),
) -> Iterator[Program]:
    """A program that is ready; killed at the latest at the end."""
    program = Program(lab, host, folder, arguments, launcher)
    try:
        program.wait_for(ready)
        yield program
    finally:
        program.process.kill()
        program.process.wait()


def variant(lab: Lab, name: str, **tables: Mapping[str, object] | str | float) -> Path:
    """Another config.toml for the same hosts, beside the lab's own."""
    settings: dict[str, Any] = tomllib.loads(lab.config.read_text())
    for key, value in tables.items():
        settings[key] = settings.get(key, {}) | dict(value) if isinstance(value, Mapping) else value
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if not isinstance(value, dict)]
    for key, table in settings.items():
        if isinstance(table, dict):
            lines += [f"[{key}]", *(f"{name} = {json.dumps(value)}" for name, value in table.items())]
    path = lab.run_dir / name
    path.write_text("\n".join(lines) + "\n")
    return path


# plain clients


def send(
    address: str,
    data: bytes,
    *,
    tos: int = TOS,
    port: int = PORT,
    source: int = 0,
    options: Iterable[Option] = (),
    chunk: int = 1 << 20,
) -> tuple[int, bytes]:
    """Connect, send, end; return the own port and what the peer sent until it ended too."""
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("", source))
        if tos:
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        for option in options:
            client.setsockopt(*option)
        client.connect((address, port))
        reply = bytearray()
        with ThreadPoolExecutor(1) as reader:
            received = reader.submit(_receive_all, client, reply)
            for start in range(0, len(data), chunk):
                client.sendall(data[start : start + chunk])
            client.shutdown(socket.SHUT_WR)
            received.result()
        return client.getsockname()[1], bytes(reply)


def _receive_all(client: socket.socket, into: bytearray) -> None:
    while data := client.recv(1 << 16):
        into += data


@contextmanager
def sending(lab: Lab, host: str, data: bytes, **arguments: Any) -> Iterator[Future[tuple[int, bytes]]]:
    """`send` to the hardworker from a host, meanwhile."""
    address = arguments.pop("address", HARDWORKER)
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(lambda: lab.call(host, send, address, data, **arguments))


# what each end received


def collect(application: Hardworker, connections: int) -> dict[Peer, bytes]:
    """Whatever the application gets until so many connections have ended, by the sensor's address and port.

    For fixed framing.
    """
    streams: defaultdict[Peer, bytearray] = defaultdict(bytearray)
    deadline = time.monotonic() + PATIENCE
    while True:
        batch = application.read()
        if len(batch):
            keys = batch["sensor"].astype("u4") << 16 | batch["port"]
            for key in dict.fromkeys(keys.tolist()):
                sensor = application.topology.sensors[key >> 16]
                streams[str(sensor.ip), key & 0xFFFF] += batch["payload"][keys == key].tobytes()
        totals = application.totals
        if totals.finished + totals.reset >= connections:
            return {peer: bytes(stream) for peer, stream in streams.items()}
        assert application.wait(deadline - time.monotonic()), f"only {totals} after {PATIENCE} s"


def logged(database: Path, peer: Peer) -> bytes:
    """The bytes of a peer's last connection in the logger's database, once that connection has ended."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as store:
        query = "SELECT id, closed_ns, bytes, digest, unfinished FROM connections WHERE sensor=? AND port=?"
        deadline = time.monotonic() + PATIENCE
        while True:
            rows = store.execute(query + " ORDER BY id DESC LIMIT 1", peer).fetchall()
            if rows and rows[0][1] is not None:
                break
            assert time.monotonic() < deadline, f"no ended connection of {peer} in {database}"
            time.sleep(0.02)
        number, _, size, digest, unfinished = rows[0]
        query = "SELECT sequence, payload FROM messages WHERE connection_id=? ORDER BY sequence"
        messages = store.execute(query, (number,)).fetchall()
    store.close()
    assert [sequence for sequence, _ in messages] == list(range(len(messages)))
    data = b"".join(payload for _, payload in messages) + (unfinished or b"")
    if len(data) == size:  # fixed framing; other framings have more in the stream than in the messages
        assert hashlib.sha256(data).hexdigest() == digest
    return data


def messages_logged(database: Path) -> int:
    """How many messages the database holds."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as store:
        (count,) = store.execute("SELECT count(*) FROM messages").fetchone()
    store.close()
    return int(count)


def counters() -> list[dict[str, int]]:
    """The hardworker's counters: an entry for each sensor, and the last for strangers."""
    rows = loader.counters(PINS / "hardworker").tolist()
    return [dict(zip(OUTCOMES, row, strict=True)) for row in rows]


def counted(before: list[dict[str, int]]) -> list[dict[str, int]]:
    """What was counted since, without zeros."""
    pairs = zip(before, counters(), strict=True)
    return [{name: new[name] - old[name] for name in new if new[name] != old[name]} for old, new in pairs]


def stack(lab: Lab, host: str) -> dict[str, int]:
    """The counters of a host's own stack (/proc/net/snmp and netstat), such as Tcp.InSegs."""
    return lab.call(host, _stack)


def _stack() -> dict[str, int]:
    lines = [
        line for name in ("snmp", "netstat") for line in Path("/proc/net", name).read_text().splitlines()
    ]
    found: dict[str, int] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        protocol, *keys = names.replace(":", "").split()
        numbers = map(int, values.split()[1:])
        found |= {f"{protocol}.{key}": number for key, number in zip(keys, numbers, strict=True)}
    return found


def sysctl(lab: Lab, host: str, name: str, value: str) -> str:
    """Set net.ipv4.NAME on a host; return what it was."""
    return lab.call(host, _sysctl, name, value)


def _sysctl(name: str, value: str) -> str:
    path = Path("/proc/sys/net/ipv4", name)
    before = path.read_text().strip()
    path.write_text(value)
    return before


def wait_until(condition: Any, seconds: float = PATIENCE) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{condition} does not hold within {seconds} s"
        time.sleep(0.01)
