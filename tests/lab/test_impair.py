"""Bad wires between real hosts: what arrives, how often, when, in which order; and that TCP survives it."""

import contextlib
import errno
import hashlib
import json
import os
import random
import select
import signal
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from math import sqrt
from typing import NamedTuple, Protocol

import pytest
from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types
from typer.testing import CliRunner

from midstream import network, packet
from midstream.cli.lab import app
from midstream.errors import ConfigError
from midstream.lab import (
    ImpairedLeg,
    Impairment,
    Lab,
    LabLeg,
    clear,
    down,
    impair,
    impairments,
    links,
    status,
    up,
)
from midstream.lab.faults import PINS
from midstream.lab.programs import attach
from midstream.packet import Flags

PORT = 40000
ALL_OF_IT = Impairment(drop=0.01, duplicate=0.01, reorder=0.02, corrupt=0.005, seed=7)


class Machine(Protocol):
    def traces(self) -> dict[str, object]: ...
    def settles_to(self, expected: dict[str, object]) -> None: ...


class Arrival(NamedTuple):
    number: int
    frame: bytes
    time: int  # nanoseconds, CLOCK_REALTIME, by the kernel


class Shown(NamedTuple):
    stdout: str
    stderr: str
    error: BaseException | None


LINKS = ["sensor:logger", "logger:sensor", "sensor-logger", "sensor"]


@pytest.fixture(autouse=True)
def good_wires(lab: Lab) -> Iterator[None]:
    yield
    clear(lab)


# single frames


@pytest.mark.slow
def test_every_fault_comes_as_often_as_it_should(lab: Lab) -> None:
    """Within five standard deviations; and the counters say exactly what really happened."""
    total, odds = 10_000, 0.05
    impair(lab, "sensor:hardworker", Impairment(odds, odds, odds, odds, seed=1))
    sent, _, arrivals = transmit(lab, total, 1 / 4000)
    (leg,) = impairments(lab)
    copies = Counter(arrival.number for arrival in arrivals)
    wrong = [arrival for arrival in arrivals if arrival.frame != sent[arrival.number]]
    assert leg.frames == total
    assert leg.dropped == total - len(copies)
    assert leg.duplicated == sum(n - 1 for n in copies.values())
    assert leg.corrupted == len(wrong)
    assert (leg.passed, leg.overflowed) == (total - leg.dropped, 0)
    for hit in (leg.dropped, leg.duplicated, leg.reordered, leg.corrupted):
        assert abs(hit - total * odds) < 5 * sqrt(total * odds)
    headers = 0
    for arrival in wrong:
        (place,) = [i for i, byte in enumerate(sent[arrival.number]) if byte != arrival.frame[i]]
        headers += place < 54
        assert place >= 34
    assert abs(headers - len(wrong) / 2) < 5 * sqrt(len(wrong)) / 2


@pytest.mark.slow
def test_a_reordered_frame_comes_after_its_successors(lab: Lab) -> None:
    impair(lab, "sensor:hardworker", Impairment(reorder=0.05, hold=3, seed=2))
    sent, times, arrivals = transmit(lab, 5000, 1 / 2000)
    (leg,) = impairments(lab)
    assert sorted(arrival.number for arrival in arrivals) == [*range(5000)]
    late, overtaken = [], []
    newest = -1
    for arrival in arrivals:
        assert arrival.frame == sent[arrival.number]
        if arrival.number < newest:
            late.append(arrival.time - times[arrival.number])
            overtaken.append(newest - arrival.number)
        newest = max(newest, arrival.number)
    # One whose successors were all held back too is late and yet in order.
    assert 0.95 * leg.reordered <= len(late) <= leg.reordered
    assert min(late) >= 2_900_000
    assert 3_000_000 <= statistics.median(late) < 5_000_000
    assert 3 <= statistics.median(overtaken) <= 15
    report("reordered", f"late by {summary(late)} ms, overtaken by {statistics.median(overtaken)} frames")


@pytest.mark.slow
@pytest.mark.parametrize("delay", [1, 20])
def test_delay(lab: Lab, delay: int) -> None:
    """Every frame takes that much longer; order and bytes stay."""
    _, times, arrivals = transmit(lab, 2000, 1 / 2000)
    before = [arrival.time - times[arrival.number] for arrival in arrivals]
    impair(lab, "sensor:hardworker", Impairment(delay=delay))
    sent, times, arrivals = transmit(lab, 2000, 1 / 2000)
    after = [arrival.time - times[arrival.number] for arrival in arrivals]
    assert [arrival.frame for arrival in arrivals] == sent
    assert min(after) >= delay * 1_000_000
    # The first decile: every scheduler may let one of a few processes on two cores wait for milliseconds.
    assert statistics.quantiles(after, n=10)[0] < (delay + 0.5) * 1_000_000
    assert statistics.median(after) < (delay + 5) * 1_000_000
    report(f"delay {delay} ms", f"{summary(after)} ms, without {summary(before)} ms")


@pytest.mark.slow
def test_the_same_seed_hits_the_same_frames(lab: Lab) -> None:
    """Lost, duplicate and corrupt ones, to the byte; another seed hits others."""
    runs = []
    for seed in (3, 3, 4):
        impair(lab, "sensor:hardworker", Impairment(0.1, 0.1, 0.1, 0.1, seed=seed))
        _, _, arrivals = transmit(lab, 1000, 1 / 4000)
        runs.append(Counter(arrival.frame for arrival in arrivals))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_nothing_else_is_hit(lab: Lab, ping: Callable[[str], bool]) -> None:
    """Only TCP, only this way, only these hosts."""
    impair(lab, "sensor:logger", Impairment(drop=1, delay=5))
    assert lab.call("sensor", ping, str(lab.host("logger").ip))
    with pytest.raises(TimeoutError):
        lab.call("sensor", socket.create_connection, (str(lab.host("logger").ip), PORT), timeout=1.5)
    (leg,) = impairments(lab)
    assert (leg.leg, leg.passed, leg.dropped) == (LabLeg("sensor", "logger"), 0, leg.frames)
    assert leg.frames >= 2
    for source, target in (("sensor", "hardworker"), ("sensor-2", "logger"), ("hardworker", "logger")):
        data = os.urandom(100_000)
        assert transfer(lab, source, target, data) == digest(data)
    assert impairments(lab) == [leg]
    assert transmit(lab, 1000, 1 / 4000)[2][-1].number == 999


# whole connections


@pytest.mark.parametrize("link", ["all", *(pytest.param(link, marks=pytest.mark.slow) for link in LINKS)])
def test_tcp_survives_all_of_it(lab: Lab, link: str) -> None:
    data = random.Random(link).randbytes(4_000_000)
    impair(lab, link, ALL_OF_IT)
    started = time.monotonic()
    assert transfer(lab, "sensor", "logger", data) == digest(data)
    seconds = time.monotonic() - started
    legs = {leg.leg: leg for leg in impairments(lab)}
    there, back = legs.get(LabLeg("sensor", "logger")), legs.get(LabLeg("logger", "sensor"))
    assert there or back
    if there:  # each segment by itself, not what GRO makes of several
        assert there.frames >= len(data) / 1460
        assert min(there.dropped, there.duplicated, there.reordered, there.corrupted) > 0
    for leg in legs.values():
        assert leg.overflowed == 0
        assert leg.frames == 0 or leg in (there, back)
    report(
        f"TCP, {link}",
        f"{len(data) / 1e6 / seconds:.1f} MB/s, {[counts(leg) for leg in (there, back) if leg]}",
    )


@pytest.mark.slow
def test_tcp_survives_delay_and_much_of_it(lab: Lab) -> None:
    data = random.Random(0).randbytes(500_000)
    impair(
        lab, "all", Impairment(drop=0.05, duplicate=0.2, reorder=0.2, corrupt=0.05, delay=5, hold=10, seed=1)
    )
    assert transfer(lab, "sensor", "logger", data) == digest(data)
    assert all(leg.overflowed == 0 for leg in impairments(lab))


@pytest.mark.slow
def test_what_the_hardworkers_program_transmits_is_hit(lab: Lab) -> None:
    """Frames sent by XDP_TX pass the switch as any others."""
    topology = network.load(lab.const)
    data = random.Random(1).randbytes(1_000_000)
    attach(lab)
    impair(lab, "hardworker-logger", ALL_OF_IT)
    assert transfer(lab, "sensor", "hardworker", data, topology.port, topology.tos, at="logger") == digest(
        data
    )
    there, back = sorted(impairments(lab), key=lambda leg: leg.leg.source)
    assert there.leg == LabLeg("hardworker", "logger")
    assert there.frames >= len(data) / 1460
    assert there.dropped > 0
    assert back.frames == 0, "the logger answers the sensor directly"


# setting and clearing


@pytest.mark.slow
def test_a_new_impairment_replaces_the_old_one_of_its_legs(lab: Lab) -> None:
    first, second = Impairment(drop=0.25, delay=1, seed=5), Impairment(corrupt=1e-9, seed=(1 << 64) - 1)
    assert len(impair(lab, "all", first)) == 12
    transmit(lab, 100, 0)
    assert impair(lab, "sensor:hardworker", second) == [LabLeg("sensor", "hardworker")]
    found = {leg.leg: leg for leg in impairments(lab)}
    changed = found.pop(LabLeg("sensor", "hardworker"))
    assert changed == ImpairedLeg(LabLeg("sensor", "hardworker"), second)
    assert {leg.impairment for leg in found.values()} == {first}
    assert status().impaired == tuple(impairments(lab))
    assert status().problems == ()
    clear(lab, "sensors")
    assert {leg.leg.source for leg in impairments(lab)} == {"hardworker", "logger"}
    assert lab.call("switch", gro_of_ports) == {
        "hardworker": False, "logger": False, "sensor": True, "sensor-2": True,
    }  # fmt: skip
    assert status().problems == ()


@pytest.mark.slow
def test_clear_leaves_nothing(lab: Lab) -> None:
    before = lab.call("switch", what_hangs_on_the_ports)
    threads = {host.name: host.switch_napi for host in lab.hosts}
    impair(lab, "all", Impairment(drop=0.5, delay=20, seed=1))
    assert PINS.exists()
    assert lab.call("switch", what_hangs_on_the_ports) != before
    assert [process.namespace for process in status().processes] == ["ms-switch"]
    clear(lab)
    assert lab.call("switch", what_hangs_on_the_ports) == before
    assert not PINS.exists()
    assert (status().processes, status().problems, status().impaired) == ((), (), ())
    assert {host.name: host.switch_napi for host in lab.hosts} == threads
    sent, _, arrivals = transmit(lab, 2000, 1 / 4000)
    assert [arrival.frame for arrival in arrivals] == sent
    clear(lab)
    clear(lab, "sensor")


@pytest.mark.slow
def test_clear_sends_what_is_held(lab: Lab) -> None:
    impair(lab, "sensor:hardworker", Impairment(delay=10_000))

    def clear_soon() -> None:
        time.sleep(0.3)
        clear(lab)

    clearing = threading.Thread(target=clear_soon)
    clearing.start()
    sent, _, arrivals = transmit(lab, 100, 0)
    clearing.join()
    assert [arrival.frame for arrival in arrivals] == sent


@pytest.mark.slow
def test_a_lost_holder_is_noticed_and_replaced(lab: Lab) -> None:
    impair(lab, "sensor:hardworker", Impairment(delay=1))
    (holder,) = status().processes
    os.kill(holder.pid, signal.SIGKILL)
    wait_until(lambda: not status().processes)
    assert [problem for problem in status().problems if "nobody holds the delayed frames" in problem]
    impair(lab, "sensor:hardworker", Impairment(delay=1))
    assert status().problems == ()
    assert len(transmit(lab, 100, 1 / 4000)[2]) == 100


def test_a_wrong_link_changes_nothing(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="no link 'sensor-3'"):
        impair(lab, "sensor-3", Impairment(drop=1))
    with pytest.raises(ConfigError, match="no link 'nowhere'"):
        clear(lab, "nowhere")
    assert impairments(lab) == []


def test_command_line(lab: Lab) -> None:
    shown = midstream("impair", "logger:sensors", "--drop", "0.25", "--seed", "9", "--json")
    assert shown.error is None
    found = json.loads(shown.stdout)["impaired"]
    assert [(leg["source"], leg["destination"]) for leg in found] == [
        ("logger", "sensor"), ("logger", "sensor-2"),
    ]  # fmt: skip
    assert (found[0]["drop"], found[0]["seed"], found[0]["frames"]) == (0.25, 9, 0)
    assert "logger:sensor  drop=0.25 seed=9  (no frames yet)" in midstream("impair").stdout
    assert "impaired: logger:sensor  drop=0.25" in midstream("status").stdout
    assert json.loads(midstream("status", "--json").stdout)["impaired"] == found
    wrong = [("all",), ("all", "--drop", "2"), ("--drop", "0.1"), ("all", "--clear", "--drop", "0.1")]
    for arguments in wrong:
        assert isinstance(midstream("impair", *arguments).error, ConfigError)
    assert midstream("impair", "logger:sensor", "--clear").stdout.startswith("logger:sensor-2")
    assert json.loads(midstream("impair", "--clear", "--json").stdout) == {"impaired": []}
    assert midstream("impair").stderr == "nothing is impaired\n"


@pytest.mark.slow
def test_down_removes_it_all(lab: Lab, machine: Machine) -> None:
    down(keep=True)
    before = machine.traces()
    impair(up(2, lab.run_dir), "all", Impairment(drop=0.1, delay=5))
    down(keep=True)
    machine.settles_to(before)
    assert not PINS.exists()
    assert up(2, lab.run_dir).hosts[0].ip == lab.hosts[0].ip
    assert impairments(lab) == []


# run on the hosts


def transmit(lab: Lab, count: int, interval: float) -> tuple[list[bytes], list[int], list[Arrival]]:
    """Send numbered frames from the sensor to the hardworker. Returns them, when each was sent, what arrived.

    They are resets, because nobody answers them. Their number is in the IP identification, which is never
    corrupted.
    """
    topology = network.load(lab.const)
    filler = random.Random(count).randbytes(64)
    frames = [
        packet.craft(topology, flags=Flags.RST, seq=n, identification=n, payload=filler, port=9)
        for n in range(count)
    ]
    ready, tell = os.pipe()
    result: list[list[Arrival]] = []
    receiver = threading.Thread(target=lambda: result.append(lab.call("hardworker", receive, tell)))
    receiver.start()
    try:
        assert select.select([ready], [], [], 10)[0], "the receiver does not start"
        times = lab.call("sensor", send, frames, interval)
    finally:
        receiver.join()
        os.close(ready)
        os.close(tell)
    return frames, times, result[0]


def send(frames: list[bytes], interval: float) -> list[int]:
    times = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        raw.bind(("eth0", 0))
        due = time.monotonic()
        for frame in frames:
            due += interval
            while (left := due - time.monotonic()) > 0:
                time.sleep(left)
            times.append(time.time_ns())
            while True:
                try:
                    raw.send(frame)
                    break
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    time.sleep(0.0001)  # the queue of the switch's port is full
    return times


def receive(ready: int) -> list[Arrival]:
    """The TCP frames that enter eth0, until none came for a second."""
    arrivals = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        raw.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        raw.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
        raw.bind(("eth0", 0x0800))
        raw.settimeout(1)
        os.write(ready, b"x")
        with contextlib.suppress(TimeoutError):
            while True:
                frame, ((_, _, stamp),), _, (_, _, kind, *_) = raw.recvmsg(2048, 64)
                if kind != socket.PACKET_OUTGOING and frame[23] == socket.IPPROTO_TCP:
                    seconds, nanoseconds = (int.from_bytes(stamp[i : i + 8], sys.byteorder) for i in (0, 8))
                    number = int.from_bytes(frame[18:20], "big")
                    arrivals.append(Arrival(number, frame, seconds * 10**9 + nanoseconds))
    return arrivals


def transfer(
    lab: Lab, source: str, target: str, data: bytes, port: int = PORT, tos: int = 0, at: str = ""
) -> str:
    """Send data by plain TCP from a host to another's address; the digest of what arrived there, or `at`."""
    result: list[str] = []
    server = threading.Thread(target=lambda: result.append(lab.call(at or target, tcp_digest, port, tos)))
    server.start()
    lab.call(source, tcp_send, str(lab.host(target).ip), port, tos, data)
    server.join()
    return result[0]


def tcp_digest(port: int, tos: int) -> str:
    found = hashlib.sha256()
    with socket.create_server(("", port)) as listener:
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        listener.settimeout(30)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            while data := connection.recv(1 << 16):
                found.update(data)
    return found.hexdigest()


def tcp_send(address: str, port: int, tos: int, data: bytes) -> None:
    deadline = time.monotonic() + 10
    while True:
        with socket.socket() as connection:
            connection.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
            connection.settimeout(30)
            try:
                connection.connect((address, port))
            except ConnectionRefusedError:  # the server has not got as far as to listen
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)  # the other side has everything
            return


def what_hangs_on_the_ports() -> list[tuple[object, ...]]:
    with IPRoute() as ipr:
        disciplines = [(q["index"], q.get_attr("TCA_KIND")) for q in ipr.get_qdiscs()]
        programs = [
            (link.get("ifname"), link.get_nested("IFLA_XDP", "IFLA_XDP_PROG_ID")) for link in ipr.get_links()
        ]
    return [*sorted(disciplines), *sorted(programs, key=str), *gro_of_ports().items()]


def gro_of_ports() -> dict[str, bool]:
    return {port: not links.wrong_offloads(port) for port in sorted(os.listdir("/sys/class/net/br0/brif"))}


# helpers


def midstream(*arguments: str) -> Shown:
    result = CliRunner().invoke(app, arguments)
    return Shown(result.stdout, result.stderr, result.exception)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def counts(leg: ImpairedLeg) -> str:
    return f"{leg.frames} frames: -{leg.dropped} +{leg.duplicated} ~{leg.reordered} !{leg.corrupted}"


def summary(nanoseconds: list[int]) -> str:
    median, worst = statistics.median(nanoseconds), statistics.quantiles(nanoseconds, n=100)[98]
    return f"{median / 1e6:.2f} (p99 {worst / 1e6:.2f})"


def report(what: str, figures: str) -> None:
    """Shown by `pytest -rP`."""
    print(f"{what}: {figures}")


def wait_until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
