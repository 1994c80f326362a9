"""The middlewares: what is missing is named, and what is there delivers every message once and whole."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from midstream.load import Incoming, JointPlan, Plan
from midstream.load import message as wire
from midstream_bench.middlewares import MIDDLEWARES, programs
from midstream_bench.middlewares.work import CONNECTION_SHIFT, Work
from midstream_bench.receiver import Family, Job, Receiver, Setting
from midstream_bench.traffic import Program

SENSOR, HARDWORKER, LOGGER = "127.0.0.3", "127.0.0.1", "127.0.0.2"


def setting() -> Setting:
    with socket.socket() as probe:
        probe.bind((HARDWORKER, 0))
        port = probe.getsockname()[1]
    return Setting(
        Path("config.toml"), Path("const.toml"), 2, [Incoming(port, 100)], HARDWORKER, LOGGER, SENSOR
    )


def test_all_are_there_and_tell_their_job() -> None:
    assert [middleware.name for middleware in MIDDLEWARES] == [
        "zeromq-sub",
        "zeromq-push",
        "zenoh",
        "nats",
        "mqtt-0",
        "mqtt-1",
        "dds",
    ]
    assert all(middleware.family is Family.MIDDLEWARE and middleware.note for middleware in MIDDLEWARES)
    assert [middleware.name for middleware in MIDDLEWARES if middleware.job is Job.RELAY] == ["zeromq-push"]
    assert [middleware.name for middleware in MIDDLEWARES if middleware.over_udp] == ["dds"]


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("midstream_bench.middlewares.find_spec", lambda name: None)
    monkeypatch.setattr(programs, "find", lambda name: None)
    assert {middleware.name: middleware.missing() for middleware in MIDDLEWARES} == {
        "zeromq-sub": "not installed: pyzmq",
        "zeromq-push": "not installed: pyzmq",
        "zenoh": "not installed: eclipse-zenoh",
        "nats": "not installed: nats-py, nats-server",
        "mqtt-0": "not installed: paho-mqtt, mosquitto",
        "mqtt-1": "not installed: paho-mqtt, mosquitto",
        "dds": "not installed: cyclonedds",
    }


class Here:
    """Programs are started on this host."""

    def popen(
        self, host: str, argv: Sequence[str | os.PathLike[str]], **kwargs: Any
    ) -> subprocess.Popen[Any]:
        del host
        return subprocess.Popen(argv, **kwargs)


def test_a_broker_goes_with_the_program_that_started_it(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    broker = f"sleep 60 & echo $! > {told}; echo ready >&2; wait"
    with Program(Here(), "logger", ["sh", "-c", broker]):
        process = os.pidfd_open(int(told.read_text()))
        assert not select.select([process], [], [], 0)[0], "it runs"
    try:
        assert select.select([process], [], [], 5)[0]
    finally:
        os.close(process)


def test_the_application_sees_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    work = Work()
    messages = [message(1, n) for n in range(4)]
    damaged = messages[2][:-1] + b"\0"
    for each in (messages[0], messages[1], damaged, messages[3], messages[3], message(2, 5)):
        work.take(each)
    work.report()
    told = json.loads(capsys.readouterr().out)
    # the damaged one, the repeated one, and one whose predecessors are missing
    assert (told["messages"], told["errors"], told["connections"], told["verified"]) == (6, 3, 2, 6)


def message(connection: int, number: int) -> bytes:
    sent = wire.message(connection, number, time.time_ns(), 64)
    return (connection << CONNECTION_SHIFT | number).to_bytes(8, "little") + sent[8:]


@pytest.mark.slow
def test_every_message_arrives() -> None:
    (middleware,) = (each for each in MIDDLEWARES if each.name == "zeromq-push")
    deliver(middleware)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zeromq-sub", "zenoh", "nats", "mqtt-0", "mqtt-1"])
def test_every_message_arrives_with_the_others_too(name: str) -> None:
    (middleware,) = (each for each in MIDDLEWARES if each.name == name)
    deliver(middleware)


def deliver(middleware: Receiver) -> None:
    """One second of load over loopback, with a window in the middle."""
    where, plan = setting(), JointPlan([Plan(sensors=2, rate=200, size=100, seconds=1.0)])
    assert middleware.partner and middleware.command and middleware.sender
    assert not middleware.missing(), "install it: make setup, apt-get install mosquitto"
    running: list[subprocess.Popen[bytes]] = []
    try:
        logger = started(middleware.partner(where), running)
        hardworker = started(middleware.command(where), running)
        sensors = started(middleware.sender(where, plan), running)
        begin = time.monotonic_ns() + 50_000_000
        out, _ = tell(sensors, f"{begin}\n", lambda: window(hardworker, begin))
        sent = json.loads(out)
        assert [each["messages"] for each in sent["connections"]] == [200, 200]
        time.sleep(0.3)
        received, logged = ended(hardworker), ended(logger)
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert (received["messages"], received["errors"], received["connections"]) == (400, 0, 2)
    assert received["bytes"] == 40_000
    assert 100 < received["window_messages"] < 300
    # A library with a thread of its own may deliver one message while the window begins or ends.
    assert abs(received["verified"] + received["window_messages"] - 400) <= 2
    assert 0 < received["latency_ns"]["p50"] <= received["latency_ns"]["max"] < 2e9
    assert (logged["messages"], logged["errors"], logged["verified"]) == (400, 0, 400)


def started(command: list[str], running: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    assert command[0] == sys.executable
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    running.append(process)
    assert process.stderr is not None
    said = process.stderr.readline()
    assert said == b"ready\n", said + process.stderr.read()
    return process


def tell(process: subprocess.Popen[bytes], line: str, meanwhile: Any) -> tuple[bytes, bytes]:
    assert process.stdin is not None
    process.stdin.write(line.encode())
    process.stdin.flush()
    meanwhile()
    return process.communicate(timeout=20)


def window(process: subprocess.Popen[bytes], begin: int) -> None:
    for number, at in ((signal.SIGUSR1, 0.3), (signal.SIGUSR2, 0.8)):
        time.sleep(max(0.0, (begin - time.monotonic_ns()) / 1e9 + at))
        os.kill(process.pid, number)


def ended(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    process.terminate()
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found
