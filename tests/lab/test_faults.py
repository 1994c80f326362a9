"""Bad wires: everything arrives all the same, about as soon as at a plain TCP receiver."""

import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
import pytest
from tests.lab.triangle import HARDWORKER, PATIENCE, PORT, TOS

from midstream.hardworker import Hardworker
from midstream.lab import Impairment, Lab, clear, impair
from midstream.sensor.tcp import recover_promptly

FAULTS = "drop=0.01,duplicate=0.01,reorder=0.02,corrupt=0.005,seed=7"
RATE, SLOW_RATE = 2000, 1000  # messages a second
SIZE = 1024
PLAIN = 5001  # port of the plain receiver

Receiver = Callable[[Lab, int], np.ndarray]


@pytest.mark.parametrize("messages", [4000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "link",
    [
        "all",
        *(
            pytest.param(leg, marks=pytest.mark.slow)
            for leg in ("sensor:hardworker", "hardworker:logger", "logger:sensor")
        ),
    ],
)
def test_all_arrives_once_in_order_and_unchanged(link: str, messages: int) -> None:
    arguments = ["--messages", str(messages), "--rate", str(RATE), "--impair", f"{FAULTS},link={link}"]
    if messages < 100_000:
        arguments.append("--no-daemon")  # it takes seconds to start
    found = demo(*arguments)
    perfect = {
        "sent": messages,
        "missing": 0,
        "duplicates": 0,
        "in_order": True,
        "corrupt": 0,
        "logged": messages,
        "logged_missing": 0,
        "logged_duplicates": 0,
        "logged_corrupt": 0,
        "logged_in_order": True,
        "connections": 1,
        "reset": 0,
        "unclean": 0,
    }
    assert {name: found[name] for name in perfect} == perfect
    suffered = {"all": "bad_checksum", "sensor:hardworker": "out_of_order"}.get(link, "duplicate")
    assert found["counters"][suffered] > 0
    assert found["hardworker_stack"]["sockets"] == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_latency_under_loss(triangle: Lab) -> None:
    """p99 at the application, beside a plain TCP receiver on the hardworker: same sender, rate and seeds, in
    turn. The wire that is bad is passed once by both."""
    count = 8 * SLOW_RATE
    p99: dict[Receiver, list[float]] = {receive: [], receive_plainly: []}
    for seed in range(1, 6):
        for receiver, found in p99.items():
            latency = run(triangle, receiver, count, seed)
            found.append(float(np.percentile(latency, 99)))
            figures = " ".join(f"p{q:g} {np.percentile(latency, q):.3f}" for q in (50, 90, 99, 99.9))
            print(f"{receiver.__name__}, seed {seed}, ms: {figures}")
    assert median(p99[receive]) <= 1.5 * median(p99[receive_plainly])


@pytest.mark.slow
@pytest.mark.parametrize("leg", ["sensor:hardworker", "hardworker:logger", "logger:sensor"])
def test_a_lost_segment_is_repeated_within_a_round_trip(triangle: Lab, leg: str) -> None:
    """As long as there are segments behind it: the logger's duplicate acknowledgements find their way back.
    A time-out would take 200 ms."""
    impair(triangle, leg, Impairment(drop=0.002, seed=4))
    try:
        latency = send_and_receive(triangle, receive, 2 * RATE, RATE, bounded=False)
    finally:
        clear(triangle)
    assert np.percentile(latency, 99.5) < 100


# helpers


def demo(*arguments: str) -> dict[str, Any]:
    """The object that a good demonstration prints."""
    command = [sys.executable, "-P", "-m", "midstream", "demo", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=200)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run(lab: Lab, receiver: Receiver, count: int, seed: int) -> np.ndarray:
    """Latencies with 1 % of what the sensor sends lost, in milliseconds. `impair` starts anew to number the
    frames."""
    impair(lab, "sensor:hardworker", Impairment(drop=0.01, seed=seed))
    try:
        return send_and_receive(lab, receiver, count, SLOW_RATE, bounded=True)
    finally:
        clear(lab)


def send_and_receive(lab: Lab, receiver: Receiver, count: int, rate: int, *, bounded: bool) -> np.ndarray:
    """Latencies in milliseconds. bounded: the sender's time-outs are, as those of `midstream sensor`."""
    port, tos = (PORT, TOS) if receiver is receive else (PLAIN, 0)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(lab.call, "hardworker", receiver, lab, count)
        lab.call("sensor", send_timed, port, tos, count, rate, bounded)
        latency = received.result()
    assert len(latency) == count
    return latency / 1e6


def send_timed(port: int, tos: int, count: int, rate: int, bounded: bool) -> None:
    """Messages that begin with CLOCK_MONOTONIC in nanoseconds."""
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if bounded:  # else whether a retransmission is lost too, and 200 ms pass, decides all
            recover_promptly(client)
        while client.connect_ex((HARDWORKER, port)):  # until the plain receiver listens
            time.sleep(0.05)
        start = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, start + number / rate - time.monotonic()))
            client.sendall(struct.pack("<Q", time.monotonic_ns()).ljust(SIZE, b"."))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def receive(lab: Lab, count: int) -> np.ndarray:
    """With midstream; nanoseconds from sending to reading, message by message."""
    found: list[np.ndarray] = []
    with Hardworker(lab.config) as application:
        while sum(map(len, found)) < count:
            assert application.wait(PATIENCE)
            sent = application.read()["payload"][:, :8].copy().view("<i8").ravel()
            found.append(time.monotonic_ns() - sent)
    return np.concatenate(found)


def receive_plainly(lab: Lab, count: int) -> np.ndarray:
    """With an ordinary socket."""
    found, rest = [], b""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.settimeout(PATIENCE)
        listener.bind((HARDWORKER, PLAIN))
        listener.listen()
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(1 << 18):
                now, rest = time.monotonic_ns(), rest + data
                found += [
                    now - struct.unpack_from("<Q", rest, start)[0]
                    for start in range(0, len(rest) - SIZE + 1, SIZE)
                ]
                rest = rest[len(rest) - len(rest) % SIZE :]
    assert not rest and len(found) == count
    return np.array(found)
