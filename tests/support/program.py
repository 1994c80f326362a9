"""`midstream logger` as a process, and sensors that know exactly what was acknowledged."""

import array
import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Self

from tests.support.site import Site, wait_until


class Program:
    """A logger's process until the `with` block ends. files: its limit on open ones, 0: this process's."""

    def __init__(self, site: Site, *, files: int = 0) -> None:
        limited = ["prlimit", f"--nofile={files}:{files}"] if files else []
        command = [sys.executable, "-m", "midstream", "logger", "--config", str(site.config)]
        self._command = [*limited, *command, *(["--spool"] if site.spool else [])]
        self.lines: list[str] = []

    def __enter__(self) -> Self:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            self._command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(30)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self._reader.join(30)
        return code

    def wait_for(self, words: str) -> None:
        wait_until(lambda: self.count(words) > 0)

    def count(self, words: str) -> int:
        """Lines that it said with these words."""
        return sum(words in line for line in list(self.lines))

    @property
    def worker(self) -> int:
        """The process that stores."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        (worker,) = [
            int(each)
            for each in children
            if "midstream.logger\0" in Path(f"/proc/{each}/cmdline").read_text()
        ]
        return worker

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                self.lines.append(line)


def unacknowledged(client: socket.socket) -> int:
    """Bytes that were given to TCP, and that the other end has not acknowledged."""
    count = array.array("i", [0])
    fcntl.ioctl(client, termios.TIOCOUTQ, count)
    return count[0]


def untaken(client: socket.socket) -> int:
    """Bytes that the other end, a process of this host, has acknowledged and not yet read."""
    ends = [f":{address[1]:04X}" for address in (client.getpeername(), client.getsockname())]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, _, queues = line.split()[1:5]
        if [local[-5:], remote[-5:]] == ends:
            return int(queues.split(":")[1], 16)
    raise ValueError(f"no connection between the ports {ends}")
