"""Real database servers that live as long as a test run: started as an ordinary user, on loopback."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from midstream.storage.jetstream import JetStreamStore
from midstream.storage.store import Unavailable

START_TIMEOUT = 30.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Postgres:
    """A PostgreSQL server with a new, empty cluster in `folder`.

    sync: it waits for the disk, as it does by default. Without, a killed server recovers all the same: only
    the machine's end would cost something.
    """

    def __init__(self, folder: Path, *, sync: bool = False) -> None:
        self.port = free_port()
        self._sync = sync
        self._folder = folder
        self._programs = max(
            Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name)
        )
        self._user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
        if self._user:
            shutil.chown(folder, self._user)
        self._run(
            "initdb", "--auth=trust", "--username=midstream", "--no-sync", "--pgdata", str(folder / "data")
        )
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it can be connected to. Does nothing if it runs."""
        if self._server is not None:
            return
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self._folder),
            "fsync": "on" if self._sync else "off",
        }
        arguments = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self._server = subprocess.Popen(
            [self._programs / "postgres", "-D", self._folder / "data", "-p", str(self.port), *arguments],
            user=self._user,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_TIMEOUT
        while self._ready() != 0:
            assert self._server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self, sign: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: connections are broken off, and the server stops in order (a fast shutdown)."""
        if self._server is not None:
            self._server.send_signal(sign)
            self._server.wait(START_TIMEOUT)
            self._server = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """None of the server's processes gets to run, and none says so (SIGSTOP)."""
        assert self._server is not None
        pid = self._server.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        processes = [pid, *map(int, children)]

        def tell(sign: signal.Signals) -> None:
            for process in processes:
                with suppress(ProcessLookupError):  # a connection that has just ended
                    os.kill(process, sign)

        tell(signal.SIGSTOP)
        try:
            yield
        finally:
            tell(signal.SIGCONT)

    def new_database(self, name: str) -> str:
        """Make an empty database, and return its URL."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "midstream", name)
        return f"postgresql+psycopg://midstream@127.0.0.1:{self.port}/{name}"

    def _ready(self) -> int:
        command = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            user=self._user,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )


@contextmanager
def postgres(*, sync: bool = False) -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="midstream-postgres-") as folder:
        server = Postgres(Path(folder), sync=sync)
        server.start()
        try:
            yield server
        finally:
            server.stop()


class Nats:
    """A cluster of three NATS servers with JetStream, each with a folder of its own in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ports = [free_port() for _ in range(3)]
        self._routes = [free_port() for _ in range(3)]
        self._servers: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, number: int) -> None:
        routes = ",".join(f"nats://127.0.0.1:{port}" for port in self._routes)
        command = ["--jetstream", "--addr", "127.0.0.1", "--port", str(self.ports[number])]
        command += ["--name", f"n{number}", "--store_dir", str(self._folder / str(number))]
        command += ["--cluster_name", "test", "--cluster", f"nats://127.0.0.1:{self._routes[number]}"]
        command += ["--routes", routes, "--log", str(self._folder / f"{number}.log")]
        program = Path(sys.executable).with_name("nats-server")
        self._servers[number] = subprocess.Popen(
            [program, *command], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self, number: int) -> None:
        server = self._servers.pop(number)
        server.kill()
        server.wait()

    def stop(self) -> None:
        for number in list(self._servers):
            self.kill(number)

    def runs(self) -> bool:
        """Has the cluster found itself, and is every server there?"""
        try:
            patient(self.url("first")).close()
        except AssertionError:
            return False
        return all(server.poll() is None for server in self._servers.values())

    def url(self, stream: str, replicas: int = 3) -> str:
        servers = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"nats://{servers}/{stream}?replicas={replicas}"


@contextmanager
def nats() -> Iterator[Nats]:
    """One that works: a port that was free may be taken when its server starts. Then there is another."""
    for last in (False, False, True):
        with tempfile.TemporaryDirectory(prefix="midstream-nats-") as folder:
            cluster = Nats(Path(folder))
            try:
                for number in range(3):
                    cluster.start(number)
                if cluster.runs():
                    yield cluster
                    return
                assert not last, "no cluster of NATS servers can be started"
            finally:
                cluster.stop()


def patient(url: str, **options: Any) -> JetStreamStore:
    """Open it as soon as the cluster has found itself."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return JetStreamStore(url, **options)
        except Unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.1)
