"""The ring handed to an application of the user nobody, which has no capability at all."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tests.lab.triangle import (
    HARDWORKER,
    PATIENCE,
    PINS,
    SENSOR,
    Program,
    Result,
    _command,
    command,
    logged,
    send,
    started,
    variant,
    wait_until,
)

from midstream import config as configuration
from midstream import network
from midstream.ebpf import attachment, pins, ring_server
from midstream.errors import KernelError
from midstream.lab import Lab

NOBODY = 65534
SIZE = 1024
REFUSED = (
    "its owner and mode decide who may have the ring: hardworker.socket_group and "
    "hardworker.socket_mode in config.toml"
)

# It says on standard output who it is and then, as often as it is asked, what it has got and for how long it
# may go on. What is needed to be asked about lies where nobody may look: interpreter, sources, test folder.
APPLICATION = """
import hashlib, json, os, sys
from midstream import Hardworker
from midstream.ebpf import pins

config, user = sys.argv[1], int(sys.argv[2])
hardworker = Hardworker(config, autocommit=False)
stamp = pins.layout("hardworker", hardworker.config, hardworker.topology)
pins.layout = lambda *_: stamp
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
with hardworker, open("/proc/self/status") as status:
    lines = dict(line.split(":", 1) for line in status)
    told = {name: lines[name].split() for name in ("Uid", "Groups", "CapPrm", "CapEff")}
    print(json.dumps(told), flush=True)
    for line in sys.stdin:
        digest, number, wanted = hashlib.sha256(), 0, int(line)
        while number < abs(wanted):
            hardworker.wait(1)
            for row in hardworker.read():
                digest.update(row["payload"].tobytes())
                number += 1
        if wanted > 0:
            hardworker.commit()
        print(json.dumps({"messages": number, "digest": digest.hexdigest()}), flush=True)
"""


class Application:
    """A process of nobody's that has the ring."""

    def __init__(self, lab: Lab, config: Path) -> None:
        pipe = subprocess.PIPE
        argv = [sys.executable, "-P", "-c", APPLICATION, os.fspath(config), str(NOBODY)]
        self.process = lab.popen("hardworker", argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self._in, self._out, self._err = self.process.stdin, self.process.stdout, self.process.stderr
        self.identity = self.answer()

    def answer(self) -> dict[str, Any]:
        line = self._out.readline()
        if not line:
            pytest.fail(self._err.read())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, messages: int) -> None:
        """Get so many messages and commit them; if negative, do not commit."""
        self._in.write(f"{messages}\n")
        self._in.flush()

    def take(self, messages: int) -> dict[str, Any]:
        self.ask(messages)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> None:
        self._in.close()
        assert self.process.wait(PATIENCE) == 0
        self._out.close()
        self._err.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that everybody may enter."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def configure(triangle: Lab, folder: Path) -> Callable[..., Path]:
    """A function that writes config.toml for a socket, in a place that everybody may read."""

    def configure(**keys: object) -> Path:
        table = {"socket": str(folder / "run" / "ring.sock"), "socket_group": "nogroup"} | keys
        written = variant(triangle, "served.toml", const=str(folder / "const.toml"), hardworker=table)
        (folder / "const.toml").write_bytes(triangle.const.read_bytes())
        path = folder / "config.toml"
        path.write_bytes(written.read_bytes())
        return path

    return configure


@pytest.fixture
def applications(triangle: Lab) -> Iterator[Callable[[Path], Application]]:
    """A function that starts an application; killed at the latest at the end."""
    running: list[Application] = []

    def start(config: Path) -> Application:
        application = Application(triangle, config)
        running.append(application)
        return application

    yield start
    for application in running:
        if application.process.returncode is None:
            application.kill()


def served(lab: Lab, folder: Path, config: Path) -> AbstractContextManager[Program]:
    arguments = ("attach", "hardworker", "--serve", "--config", config)
    return started(lab, "hardworker", folder, *arguments, ready="serving the ring at")


def request(config: Path) -> ring_server.RingDescriptors:
    """What an application of root's gets; the socket is a file, and so the same on every host."""
    settings = configuration.load(config)
    stamp = pins.layout("hardworker", settings, network.load(settings.const_path))
    return ring_server.request(Path(settings.hardworker.socket), stamp)


def wait_until_listening(config: Path) -> None:
    """The program says that it serves right before it listens."""

    def listening() -> bool:
        try:
            request(config).close()
        except KernelError as error:
            return "reads this ring already" in str(error)
        return True

    wait_until(listening)


def run_as(lab: Lab, group: int, config: Path) -> Result:
    """`midstream hardworker` of the user nobody and this group; what he may not read is at hand already."""
    import_module("midstream.cli.hardworker")
    settings = configuration.load(config)
    stamp = pins.layout("hardworker", settings, network.load(settings.const_path))
    return lab.call("hardworker", _run_as, group, config, stamp)


def _run_as(group: int, config: Path, stamp: bytes) -> Result:
    pins.layout = lambda *_: stamp
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    return _command(["hardworker", "--config", os.fspath(config)])


def stream(messages: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(messages * SIZE)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sent(lab: Lab, data: bytes) -> int:
    """Send from the sensor to the end; the own port."""
    port, _ = lab.call("sensor", send, HARDWORKER, data)
    return port


Start = Callable[[Path], Application]
Configure = Callable[..., Path]


@pytest.mark.slow
def test_nobody_receives_what_was_sent(
    triangle: Lab, tmp_path: Path, configure: Configure, applications: Start
) -> None:
    config, data = configure(), stream(1000, 1)
    with served(triangle, tmp_path, config) as server:
        wait_until_listening(config)
        application = applications(config)
        assert application.identity == {
            "Uid": [str(NOBODY)] * 4,
            "Groups": [],
            "CapPrm": ["0" * 16],
            "CapEff": ["0" * 16],
        }
        application.ask(1000)
        port = sent(triangle, data)
        assert application.answer() == {"messages": 1000, "digest": sha256(data)}
        assert logged(triangle.run_dir / "midstream.db", (SENSOR, port)) == data

        # Another one, by the socket and by the pins.
        with pytest.raises(KernelError, match="another application reads this ring already; end it first"):
            request(config)
        result = command(triangle, "hardworker", "hardworker", "--config", triangle.config)
        assert result.code == 4
        assert "another application reads this ring already; end it first" in result.err
        application.end()
        request(config).close()
        ended = server.end(signal.SIGTERM)
    assert (ended.code, ended.err.count("\n")) == (0, 1)
    assert not Path(configuration.load(config).hardworker.socket).exists()
    assert triangle.call("hardworker", attachment.find, "hardworker", PINS / "hardworker")


@pytest.mark.slow
def test_a_killed_reader_and_its_successor(
    triangle: Lab, tmp_path: Path, configure: Configure, applications: Start
) -> None:
    config, data = configure(), [stream(100, seed) for seed in (1, 2, 3)]
    with served(triangle, tmp_path, config):
        wait_until_listening(config)
        first = applications(config)
        sent(triangle, data[0])
        assert first.take(100)["digest"] == sha256(data[0])
        sent(triangle, data[1])
        assert first.take(-100)["digest"] == sha256(data[1])  # not committed
        first.kill()
        request(config).close()  # at once
        second = applications(config)
        assert second.take(100) == {"messages": 100, "digest": sha256(data[1])}
        sent(triangle, data[2])
        assert second.take(100) == {"messages": 100, "digest": sha256(data[2])}
        second.end()


def test_a_killed_server_and_its_successor(
    triangle: Lab, tmp_path: Path, configure: Configure, applications: Start
) -> None:
    config, data = configure(), [stream(100, seed) for seed in (4, 5)]
    with served(triangle, tmp_path, config) as server:
        wait_until_listening(config)
        application = applications(config)
        server.process.kill()
        server.process.wait()
        sent(triangle, data[0])
        assert application.take(100) == {"messages": 100, "digest": sha256(data[0])}
        result = run_as(triangle, NOBODY, config)
        assert (result.code, result.out) == (4, "")
        assert "the ring cannot be had there (Connection refused); `midstream attach" in result.err
    with served(triangle, tmp_path, config):
        wait_until_listening(config)
        with pytest.raises(KernelError, match="another application reads this ring already"):
            request(config)
        sent(triangle, data[1])
        assert application.take(100) == {"messages": 100, "digest": sha256(data[1])}
        application.end()
        request(config).close()


@pytest.mark.slow
def test_a_hundred_rings_leave_no_descriptor(triangle: Lab, tmp_path: Path, configure: Configure) -> None:
    config = configure()
    with served(triangle, tmp_path, config) as server:
        wait_until_listening(config)
        folders = Path("/proc/self/fd"), Path(f"/proc/{server.process.pid}/fd")
        before = [len(os.listdir(folder)) for folder in folders]
        for _ in range(100):
            request(config).close()
        # The last may be on its way.
        wait_until(lambda: all(len(os.listdir(f)) <= n for f, n in zip(folders, before, strict=True)))


@pytest.mark.parametrize(
    ("keys", "group"),
    [
        pytest.param({"socket_group": "nogroup"}, 1, id="another group"),
        pytest.param({"socket_group": ""}, NOBODY, id="root's"),
        pytest.param({"socket_group": "nogroup", "socket_mode": "0600"}, NOBODY, id="mode"),
    ],
)
def test_who_may_not_have_the_ring(
    triangle: Lab, tmp_path: Path, configure: Configure, keys: dict[str, str], group: int
) -> None:
    config = configure(**keys)
    with served(triangle, tmp_path, config):
        wait_until_listening(config)
        result = run_as(triangle, group, config)
    path = configuration.load(config).hardworker.socket
    assert (result.code, result.out) == (4, "")
    assert result.err == (f"midstream: {path}: the ring cannot be had there (Permission denied); {REFUSED}\n")


def test_nobody_serves(triangle: Lab, configure: Configure) -> None:
    result = run_as(triangle, NOBODY, configure())
    assert result.code == 4
    assert (
        "ring.sock: the ring cannot be had there (No such file or directory); "
        "`midstream attach hardworker --serve` has to run"
    ) in result.err


def test_nobody_may_not_open_the_pins(triangle: Lab, configure: Configure) -> None:
    result = run_as(triangle, NOBODY, configure(socket=""))
    assert result.code == 4
    assert "ermi" in result.err  # denied or not permitted, as the bpffs and the kernel are configured
    assert result.err.endswith(
        "an application without privileges needs hardworker.socket in config.toml, and "
        "`midstream attach hardworker --serve`\n"
    )


def test_files_other_than_the_server_s(triangle: Lab, tmp_path: Path, configure: Configure) -> None:
    config = configure()
    with served(triangle, tmp_path, config):
        wait_until_listening(config)
        result = run_as(triangle, NOBODY, configure(ring_size="128KiB"))
        assert result.code == 4
        assert "the attached program was made from other files (stamp " in result.err
        request(configure()).close()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param({"socket_group": "no-such-group"}, "there is no such group on this host", id="group"),
        pytest.param({"socket": "/proc/midstream/ring.sock"}, "no socket can be made there (", id="place"),
        pytest.param({"socket": ""}, "needs the path of a socket in hardworker.socket", id="none"),
        pytest.param({"socket": "ring.sock"}, "must be an absolute path of a Unix socket", id="relative"),
    ],
)
def test_what_cannot_be_served(
    triangle: Lab, configure: Configure, keys: dict[str, str], expected: str
) -> None:
    result = command(triangle, "hardworker", "attach", "hardworker", "--serve", "--config", configure(**keys))
    assert result.code == 2
    assert expected in result.err
    assert "Traceback" not in result.err
    assert not list(Path(configuration.load(configure()).hardworker.socket).parent.glob("*"))
