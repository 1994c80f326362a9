"""The daemons: from bare namespaces to data that flows, and what they heal while it flows."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types
from tests.lab.ends import Ends, running
from tests.lab.processes import on_host
from tests.lab.triangle import HARDWORKER, LOGGER, SENSOR, Program, command, started, wait_until
from tests.support.announcements import announcement

from midstream import network
from midstream.daemon.discovery import Discovery
from midstream.daemon.freshness import Voice
from midstream.daemon.seal import Key
from midstream.daemon.way import SPOOL
from midstream.hardworker.recording import recorded_dtype
from midstream.lab import Lab, daemons
from midstream.lab import up as lab_up
from midstream.sensor import SENT_DTYPE

SIZE, RATE = 1024, 1000
STOPPED = 5.0  # seconds: more than daemon.silence
HOSTS = ("hardworker", "logger", "sensor")
each_host = pytest.mark.parametrize(
    "name",
    ["hardworker", *(pytest.param(name, marks=pytest.mark.slow) for name in ("logger", "sensor"))],
)
BARE: dict[str, Any] = {
    "sensors": 1,
    "bare": True,
    "data": {"size": SIZE, "freq": RATE},
    "sensor": {"reconnect": 20.0},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three daemons that found each other, started in no particular order."""
    built = lab_up(run_dir=tmp_path_factory.mktemp("lab"), **BARE)
    order = random.sample(HOSTS, 3)
    seconds = daemons.start(built, order)
    print(f"started {', '.join(order)}: found each other in {seconds:.2f} s")
    assert seconds < 10
    yield built
    for name in HOSTS:
        assert "Traceback" not in log(built, name), name


@dataclass
class Flow:
    """A sensor that sends, and what becomes of its messages."""

    lab: Lab
    ends: Ends
    sensor: Program
    sent_record: Path
    reconnects: int = 0

    def delivered(self) -> np.ndarray:
        """What the application was given until now: a row for each message."""
        whole = self.ends.record.stat().st_size // recorded_dtype(SIZE).itemsize
        return np.fromfile(self.ends.record, recorded_dtype(SIZE), whole)

    def numbers(self) -> np.ndarray:
        """The sensor's number of each message delivered."""
        payload = np.ascontiguousarray(self.delivered()["message"]["payload"][:, :8])
        return payload.view("<u8")[:, 0] if len(payload) else np.empty(0, "<u8")

    def newest(self) -> np.void | None:
        """The message that was delivered last, if there is one."""
        row = recorded_dtype(SIZE)
        whole = self.ends.record.stat().st_size // row.itemsize if self.ends.record.exists() else 0
        if not whole:
            return None
        found: np.void = np.fromfile(self.ends.record, row, 1, offset=(whole - 1) * row.itemsize)[0][
            "message"
        ]
        return found

    def wait_for_fresh(self, seconds: float) -> None:
        """Until a message arrives that is sent after this call."""
        now = time.time_ns()

        def arrived() -> bool:
            newest = self.newest()
            return newest is not None and int.from_bytes(newest["payload"][8:16].tobytes(), "little") > now

        wait_until(arrived, seconds)

    def longest_gap(self, since_ns: int) -> float:
        """Seconds between two deliveries since then, the longest."""
        delivered = self.delivered()["delivered"]
        return float(np.diff(delivered[delivered >= since_ns]).max(initial=0)) / 1e9

    def end(self) -> dict[str, Any]:
        """Stop the sensor, then the others; the sensor's summary."""
        ended = self.sensor.end()
        assert ended.code == 0, ended.err
        self.ends.end()
        return ended.object

    def assert_nothing_lost(self, *, repeated: int = 0) -> None:
        """Every message was delivered once and in order; so many may have come again."""
        sent = np.fromfile(self.sent_record, SENT_DTYPE)["sequence"]
        found = self.numbers()
        assert set(sent.tolist()) == set(found.tolist())
        assert len(found) - len(sent) <= repeated
        if not repeated:
            assert np.array_equal(found, sent)


@contextmanager
def flowing(lab: Lab, folder: Path) -> Iterator[Flow]:
    """A logger, an application that records, and a sensor that sends 1000 messages a second."""
    with running(lab, folder) as ends:
        wait_until(lambda: is_well(lab), 10)  # no logger served before
        record = folder / "sent"
        arguments = ("sensor", "--config", ends.config, "--json", "--record", record)
        with started(lab, "sensor", folder, *arguments, ready="connected") as sensor:
            flow = Flow(lab, ends, sensor, record)
            flow.wait_for_fresh(10)
            yield flow


def is_well(lab: Lab) -> bool:
    """Does the data go to the logger, and does nobody have to end for that any more?"""
    return daemons.is_logger_taken(lab) and state(lab, "hardworker")["spool"] != "running"


def state(lab: Lab, name: str) -> dict[str, Any]:
    found = daemons.state(lab, name)
    assert found is not None
    return found


def log(lab: Lab, name: str) -> str:
    return (daemons.folder(lab, name) / "daemon.log").read_text()


def daemon_pid(name: str) -> int:
    """The process id of a host's daemon."""
    for pid in on_host(name):
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"\0daemon\0" in command and f"/{name}/config.toml".encode() in command:
                return pid
    raise AssertionError(f"no daemon of {name}")


@pytest.fixture(scope="module")
def flow(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    """Data that flows while everything below happens; at the end nothing may be lost."""
    with flowing(lab, tmp_path_factory.mktemp("flow")) as flow:
        yield flow
        time.sleep(0.2)
        summary = flow.end()
        assert summary["clean"]
        assert summary["reconnects"] <= flow.reconnects  # fewer, if a spool was asked back before it began
    print(f"{summary['messages']} messages, {summary['repeated']} sent again")
    flow.assert_nothing_lost(repeated=summary["repeated"])


@pytest.mark.slow
def test_data_flows_and_the_topology_is_written(lab: Lab, flow: Flow) -> None:
    flow.wait_for_fresh(1)
    for path in (lab.const, daemons.folder(lab, "logger") / "const.toml"):
        topology = network.load(path)
        assert (str(topology.hardworker.ip), str(topology.logger.ip)) == (HARDWORKER, LOGGER)
        assert [str(host.ip) for host in topology.sensors] == [SENSOR]
        assert path.read_text().startswith("# Written by midstream daemon on ")
    told = command(lab, "hardworker", "status", "--config", lab.config, "--json").object
    assert (told["daemon"]["state"], told["daemon"]["destination"]) == ("working", LOGGER)
    assert [state(lab, name)["rejected"] for name in HOSTS] == [{}, {}, {}]
    assert told["hardworker"]["counters"][SENSOR]["opened"] == 1
    told_in_words = command(
        lab, "logger", "status", "--config", daemons.folder(lab, "logger") / "config.toml"
    ).out
    assert f"daemon: logger logger on eth0 ({LOGGER}), working" in told_in_words
    assert f"hardworker hardworker {HARDWORKER} {topology.hardworker.mac}, heard" in told_in_words


@pytest.mark.slow
@each_host
def test_a_daemon_is_killed_under_load(lab: Lab, flow: Flow, name: str) -> None:
    os.kill(daemon_pid(name), signal.SIGKILL)
    time.sleep(0.2)
    flow.wait_for_fresh(1)
    print(f"{name}: ready again after {daemons.start(lab, [name]):.2f} s")
    flow.wait_for_fresh(1)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["removed", "falsified"])
def test_neighbours_are_repaired_while_data_flows(lab: Lab, flow: Flow, damage: str) -> None:
    before = {name: state(lab, name)["repaired"] for name in HOSTS}
    for name in HOSTS:
        lab.call(name, {"removed": flush, "falsified": falsify}[damage])
    broken = time.monotonic()
    wait_until(lambda: all(lab.call(name, are_right, lab.const) for name in HOSTS), 1.0)
    print(f"{damage}: repaired after {time.monotonic() - broken:.2f} s")
    flow.wait_for_fresh(1)
    assert all(state(lab, name)["repaired"] >= before[name] + 2 for name in HOSTS)
    assert "repaired" in log(lab, "sensor")


@pytest.mark.slow
def test_an_impostor_is_ignored_counted_and_logged(lab: Lab, flow: Flow) -> None:
    before = lab.const.read_text()
    rejected = {name: state(lab, name)["rejected"].get("key", 0) for name in HOSTS}
    lab.call("sensor", impostor, bytes(32))
    wait_until(lambda: state(lab, "hardworker")["rejected"].get("key", 0) > rejected["hardworker"], 5)
    assert [peer["ip"] for peer in state(lab, "hardworker")["peers"] if peer["role"] == "logger"] == [LOGGER]
    assert lab.const.read_text() == before
    assert "without the key" in log(lab, "hardworker")
    flow.wait_for_fresh(1)


@pytest.mark.slow
def test_once(lab: Lab, flow: Flow) -> None:
    """It does everything, says so, ends, and leaves it; a daemon that comes later goes on with it."""
    os.kill(daemon_pid("sensor"), signal.SIGKILL)
    time.sleep(0.5)  # its port is free a little later
    done = command(
        lab, "sensor", "daemon", "--once", "--json", "--config", daemons.folder(lab, "sensor") / "config.toml"
    )
    assert done.code == 0, done.err
    assert (done.object["role"], done.object["sensors"]) == ("sensor", [SENSOR])
    assert 0 < done.object["ready_after"] < 10
    assert lab.call("sensor", are_right, lab.const)
    daemons.start(lab, ["sensor"])
    flow.wait_for_fresh(1)


@pytest.mark.slow
@each_host
def test_another_network_card(lab: Lab, flow: Flow, name: str) -> None:
    """Its MAC address changes: the others hear of it, recompile and swap, and no connection ends."""
    old = lab.call(name, mac_address)
    new = f"02:4d:53:aa:00:{random.randrange(1, 255):02x}"
    lab.call(name, set_mac_address, new)
    changed = time.monotonic()
    wait_until(lambda: all(new in const_text(lab, each) for each in HOSTS), 10)
    flow.wait_for_fresh(10)
    print(f"{name}: {old} → {new}, fresh messages after {time.monotonic() - changed:.2f} s")


@pytest.mark.parametrize(
    "name", ["hardworker", *(pytest.param(name, marks=pytest.mark.slow) for name in ("logger", "sensor"))]
)
def test_a_daemon_that_stands_still_changes_nothing(lab: Lab, flow: Flow, name: str) -> None:
    before, pid = time.time_ns(), daemon_pid(name)
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(STOPPED)
    finally:
        os.kill(pid, signal.SIGCONT)
    time.sleep(1)
    assert flow.longest_gap(before) < 1
    found = state(lab, "hardworker")
    assert (found["destination"], found["spool"]) == (LOGGER, "off")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hardworker", pytest.param("sensor", marks=pytest.mark.slow)])
def test_a_cable_that_is_out_for_a_while_changes_nothing(lab: Lab, flow: Flow, name: str) -> None:
    """Its port of the switch passes nothing: no answer, nothing from the sensors, and no ICMP."""
    set_port(lab, name, "disabled")
    try:
        time.sleep(STOPPED)
    finally:
        set_port(lab, name, "forwarding")
    flow.wait_for_fresh(10)
    time.sleep(1)
    assert state(lab, "hardworker")["destination"] == LOGGER


@pytest.mark.slow
def test_the_loggers_host_falls_silent_and_comes_back(lab: Lab, flow: Flow) -> None:
    """Its port of the switch passes nothing, as after a power cut. The spool takes over, and gives back."""
    flow.reconnects += 2
    before = time.time_ns()
    set_port(lab, "logger", "disabled")
    try:
        wait_until(lambda: state(lab, "hardworker")["destination"] == SPOOL, 5)
        flow.wait_for_fresh(3)
        gap = flow.longest_gap(before)
        print(f"the logger's host fell silent: no message for {gap:.2f} s")
        assert "sensors repeat themselves" in state(lab, "hardworker")["destination_reason"]
    finally:
        set_port(lab, "logger", "forwarding")
    back = time.monotonic()
    wait_until(lambda: state(lab, "hardworker")["destination"] == LOGGER, 5)
    flow.wait_for_fresh(3)
    print(f"to the logger again {time.monotonic() - back:.2f} s after its host was back")


def test_the_logger_is_killed_and_comes_back(lab: Lab, flow: Flow, tmp_path: Path) -> None:
    """Nothing is lost; what the lost connection had not acknowledged may come twice."""
    flow.reconnects += 2
    before = time.time_ns()
    flow.ends.logger.process.send_signal(signal.SIGKILL)
    flow.ends.logger.process.wait()
    wait_until(lambda: state(lab, "hardworker")["destination"] == SPOOL, 5)
    flow.wait_for_fresh(3)
    print(f"the logger was killed: no message for {flow.longest_gap(before):.2f} s")
    assert "no logger listens" in state(lab, "hardworker")["destination_reason"]
    wait_until(lambda: state(lab, "hardworker")["spool"] == "running")
    shown = command(lab, "hardworker", "status", "--config", lab.run_dir / "hardworker" / "config.toml").out
    assert "data goes to this host's spool" in shown and "the spool's process is running" in shown
    flow.ends.logger = Program(lab, "logger", tmp_path, ("logger", "--config", flow.ends.config, "--json"))
    flow.ends.logger.wait_for("listening")
    back = time.monotonic()
    wait_until(lambda: state(lab, "hardworker")["destination"] == LOGGER, 5)
    flow.wait_for_fresh(3)
    print(f"to the logger again {time.monotonic() - back:.2f} s after it was back")


def flush() -> None:
    """Also the permanent ones, which `ip neigh flush all` leaves."""
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname="eth0")
        for entry in list(netlink.get_neighbours(ifindex=index, family=2)):
            netlink.neigh("del", dst=entry.get("dst"), ifindex=index)


def falsify() -> None:
    """Not the groups' entries: nobody announces anything without."""
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname="eth0")
        for entry in list(netlink.get_neighbours(ifindex=index, family=2)):
            if IPv4Address(entry.get("dst")).is_multicast:
                continue
            netlink.neigh(
                "replace", dst=entry.get("dst"), lladdr="02:00:00:00:0b:ad", ifindex=index, state="permanent"
            )


def are_right(const: Path) -> bool:
    """Do the permanent neighbours say what const.toml says?"""
    topology = network.load(const)
    hosts = (*topology.sensors, topology.hardworker, topology.logger)
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname="eth0")
        (own,) = (entry.get("address") for entry in netlink.get_addr(index=index, family=2))
        found = {
            entry.get("dst"): entry.get("lladdr")
            for entry in netlink.get_neighbours(ifindex=index, family=2)
            if entry["state"] == 0x80
        }
    return all(found.get(str(host.ip)) == host.mac for host in hosts if str(host.ip) != own)


def mac_address() -> str:
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname="eth0")
        (link,) = netlink.get_links(index)
        return str(link.get("address"))


def set_mac_address(mac: str) -> None:
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname="eth0")
        netlink.link("set", index=index, address=mac)


def set_port(lab: Lab, port: str, state: str) -> None:
    """Let a port of the switch pass everything, or nothing; its link stays up."""
    command = ["bridge", "link", "set", "dev", port, "state", state]
    lab.run("switch", command, check=True, env=os.environ | {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"})


def const_text(lab: Lab, name: str) -> str:
    return (lab.const if name == "hardworker" else daemons.folder(lab, name) / "const.toml").read_text()


def impostor(key: bytes) -> None:
    """Announce a logger, with another key."""

    async def announce() -> None:
        said = announcement(role="logger", name="impostor", ip="10.83.0.66")
        async with Discovery.open(
            IPv4Address(SENSOR),
            Key(key),
            said,
            stamp=Voice().stamp,
            heard=lambda _: None,
            rejected=lambda _: None,
        ) as own:
            for _ in range(10):  # multicast may be lost
                await asyncio.sleep(0.1)
                own.repeat()

    asyncio.run(announce())
