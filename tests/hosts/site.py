"""The three hosts as a person sees them: installing, and looking whether data flows."""

import json
import sqlite3
import struct
import time
from collections import Counter
from contextlib import closing
from typing import Any

from tests.hosts.machine import Machine, wait_until

ADDRESSES = {
    "sensor": ("10.83.0.11", "02:00:00:00:00:11"),
    "hardworker": ("10.83.0.2", "02:00:00:00:00:02"),
    "logger": ("10.83.0.3", "02:00:00:00:00:03"),
}
PATIENCE = 60.0
RECORD = struct.Struct("<QQQQ")  # sensor's number and time, connection, sequence
APPLICATION = """
import struct
from midstream import Hardworker

received = open("/var/lib/robot/received", "ab", buffering=0)
with Hardworker("/etc/midstream/config.toml") as hardworker:
    for message in hardworker:
        own = struct.pack("<QQ", message.connection, message.sequence)
        received.write(message.payload[:16] + own)
"""
REPLAY = """
import sys, threading
from datetime import UTC, datetime
from midstream import Hardworker

with Hardworker(sys.argv[1]) as hardworker:
    threading.Timer(3, hardworker.stop).start()
    for message in hardworker.replay(datetime.fromtimestamp(float(sys.argv[2]), UTC)):
        print(message.payload[:16].hex())
"""
OWN_PROGRAM = """
[Service]
ExecStart=
ExecStart=/opt/midstream/bin/python /opt/robot/application.py
StateDirectory=robot
"""


class Site:
    def __init__(self, machines: dict[str, Machine]) -> None:
        self.machines = machines
        self.sensor, self.hardworker, self.logger = (
            machines[role] for role in ("sensor", "hardworker", "logger")
        )

    def records(self) -> list[tuple[int, ...]]:
        """What the application has received: of each message the fields of RECORD."""
        path = self.hardworker.disk / "var/lib/robot/received"
        if not path.exists():
            return []
        data = path.read_bytes()
        return list(RECORD.iter_unpack(data[: len(data) - len(data) % RECORD.size]))

    def logged(self, since: float) -> Counter[bytes]:
        """The log's messages that were sent since then, by their sensor's number and time."""
        database = self.logger.disk / "var/lib/midstream/midstream.db"
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as opened:
            rows = opened.execute("SELECT substr(payload, 1, 16) FROM messages").fetchall()
        return Counter(head for (head,) in rows if int.from_bytes(head[8:], "little") > since * 1e9)

    def delivered(self, since: float) -> Counter[bytes]:
        """The application's, likewise."""
        rows = [record for record in self.records() if record[1] > since * 1e9]
        return Counter(struct.pack("<QQ", number, sent) for number, sent, *_ in rows)

    def replayed(self, since: float) -> Counter[bytes]:
        """What the log tells an application whose ring is gone, an ordinary user's with a copy of the key.
        The other one is stopped meanwhile."""
        host, home = self.hardworker, "/var/lib/robot"
        host.run("systemctl", "stop", "midstream-hardworker@robot")
        host.run("install", "-o", "robot", "-m", "600", "/etc/midstream/key", f"{home}/key")
        config = host.run("cat", "/etc/midstream/config.toml").stdout
        (host.disk / "var/lib/robot/config.toml").write_text(f'{config}[daemon]\nkey = "{home}/key"\n')
        told = host.run(
            *("setpriv", "--reuid=robot", "--regid=robot", "--groups=midstream"),
            *("env", "MIDSTREAM_CACHE=/var/cache/midstream-robot"),
            *("/opt/midstream/bin/python", "-c", REPLAY, f"{home}/config.toml", str(since)),
        ).stdout
        host.run("systemctl", "start", "midstream-hardworker@robot")
        return Counter(map(bytes.fromhex, told.split()))

    def verify(self) -> int:
        """The exit code of `midstream log verify`."""
        return self.logger.run("midstream", "log", "verify", check=False).returncode

    def flows(self, seconds: float = PATIENCE) -> float:
        """Seconds until the application has a message that was sent from now on."""
        now = time.time_ns()
        return wait_until(
            lambda: any(record[1] > now for record in self.records()[-1000:]), seconds, "a fresh message"
        )

    def status(self, role: str) -> dict[str, Any]:
        """`midstream status --json` on a host; empty if there is nothing to tell."""
        ended = self.machines[role].run("midstream", "status", "--json", check=False)
        told: dict[str, Any] = json.loads(ended.stdout) if ended.returncode == 0 else {}
        return told

    def units(self, role: str) -> dict[str, dict[str, Any]]:
        """`midstream service status --json` on a host, by unit."""
        told = json.loads(self.machines[role].run("midstream", "service", "status", "--json").stdout)
        return {unit["unit"].removesuffix(".service"): unit for unit in told["units"]}

    def property(self, role: str, unit: str, name: str) -> str:
        return (
            self.machines[role].run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()
        )

    def says(self, role: str, unit: str, words: str, seconds: float = PATIENCE) -> None:
        """Wait until a service's status has these words."""
        said = ""

        def has_said() -> bool:
            nonlocal said
            said = self.property(role, unit, "StatusText")
            return words in said

        try:
            wait_until(has_said, seconds, f"{role}: {unit}: {words!r}")
        except AssertionError as error:
            error.add_note(f"it says {said!r}")
            raise

    def copy_key(self, role: str) -> None:
        """By the documented command, with a pipe in the place of ssh."""
        key = self.hardworker.run("cat", "/etc/midstream/key").stdout
        command = "install -o midstream -g midstream -m 600 /dev/stdin /etc/midstream/key"
        self.machines[role].run("sh", "-c", command, stdin=key)
