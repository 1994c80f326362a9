"""The log knows what it lacks of what the hardworker held, whoever dies, and when."""

import json
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.lab.ends import Ends, running
from tests.lab.test_daemon import BARE, RATE, SIZE, Flow, daemon_pid, is_well, state
from tests.lab.triangle import HARDWORKER, PORT, TOS, Program, command, started, wait_until

from midstream.cli.log import HOLE, PENDING
from midstream.daemon.retention import LINGER
from midstream.lab import Lab, daemons
from midstream.lab import up as lab_up
from midstream.log.messages import LogReader
from midstream.log.selection import Selection
from midstream.storage.databases import open_log
from midstream.storage.stored import StoredMessage

LINE = {"logger": {"replay_port": 12347}, "daemon": {"key": "key"}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    built = lab_up(run_dir=tmp_path_factory.mktemp("lab"), **BARE | LINE)
    daemons.start(built, key="../key")
    yield built
    for name in ("hardworker", "logger", "sensor"):
        text = (daemons.folder(built, name) / "daemon.log").read_text()
        assert "Traceback" not in text, f"{name}: {text[text.index('Traceback') :][:2000]}"


@contextmanager
def flowing(
    lab: Lab, folder: Path, *, disk: Path | None = None, launcher: Sequence[str] = ()
) -> Iterator[Flow]:
    """A logger, an application that records, and a sensor that sends 1000 messages a second."""
    with running(lab, folder, disk=disk, launcher=launcher, daemon={"key": "key"}) as ends:
        wait_until(lambda: is_well(lab), 20)
        record = folder / "sent"
        arguments = ("sensor", "--config", ends.config, "--json", "--record", record)
        with started(lab, "sensor", folder, *arguments, ready="connected") as sensor:
            flow = Flow(lab, ends, sensor, record)
            flow.wait_for_fresh(10)
            yield flow
            # The next logger has another database, into which nothing may come that is retained for this.
            time.sleep(LINGER + 1)


def log(lab: Lab, ends: Ends, *arguments: str) -> tuple[int, Any]:
    """`midstream log …`: its exit code and what it prints."""
    ended = command(lab, "logger", "log", *arguments, "--config", ends.config, "--json")
    assert "Traceback" not in ended.err, ended.err
    return ended.code, json.loads(ended.out) if ended.out else None


def verdicts(lab: Lab, ends: Ends) -> list[tuple[str, str, str]]:
    """Of each connection its state, that at the hardworker, and the verdict."""
    return [(row["state"], row["held_state"], row["verdict"]) for row in log(lab, ends, "list")[1]]


def numbers(database: Path) -> set[int]:
    """The sensor's numbers of all messages in the log."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
        rows = opened.execute("SELECT substr(payload, 1, 8) FROM messages").fetchall()
    return {int.from_bytes(row[0], "little") for row in rows}


def assert_all_is_there(flow: Flow) -> None:
    """What the application was given is in the log, and nothing else."""
    found = numbers(flow.ends.database)
    assert found == set(flow.numbers().tolist())
    assert len(found) == max(found) + 1


def kill_all(pid: int) -> None:
    """A process and its children die at once, as when the power goes."""
    group = [pid]
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            group.append(int(entry))
    for each in group:
        os.kill(each, signal.SIGKILL)


def plain(stop: Path) -> None:
    """A client that connects again and sends nothing twice: 1000 messages per second that bear a number."""
    number, began = 0, time.monotonic()
    while not stop.exists():
        with suppress(OSError), socket.socket() as client:
            client.settimeout(5)
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.connect((HARDWORKER, PORT))
            while not stop.exists():
                time.sleep(max(0.0, began + number / RATE - time.monotonic()))
                number += 1  # with no time beside it nobody takes it for a counter
                client.sendall(number.to_bytes(8, "little").ljust(SIZE, b"\0"))
            client.shutdown(socket.SHUT_WR)
            client.recv(1)
        time.sleep(0.05)


def pending(lab: Lab) -> list[dict[str, int]]:
    """What waits in the spool, of each sensor."""
    return list(state(lab, "hardworker")["held"]["pending"].values())


def again(flow: Flow, folder: Path) -> None:
    """The logger is started anew."""
    flow.ends.logger = Program(flow.lab, "logger", folder, ("logger", "--config", flow.ends.config, "--json"))
    flow.ends.logger.wait_for("listening")


def test_when_each_message_came(lab: Lab, tmp_path: Path) -> None:
    """To the hardworker, and to the logger after that: on one machine their clocks are one."""

    def messages() -> list[StoredMessage]:
        with open_log(f"sqlite:///{flow.ends.database}") as opened:
            return [message for piece in LogReader(opened, Selection()).read() for message in piece]

    with flowing(lab, tmp_path) as flow:
        time.sleep(1.5)
        flow.sensor.end()
        wait_until(lambda: all(message.arrival for message in messages()), 10)
        found = messages()
        assert len(found) == len(numbers(flow.ends.database)) > 1000
        arrived = []
        for message in found:
            assert message.arrival
            time_ns, delay_ns, error_ns = message.arrival
            assert time_ns < message.received_ns
            assert 0 <= error_ns < 10**9
            assert abs(message.received_ns - time_ns - delay_ns) <= error_ns + 10**5
            arrived.append(time_ns)
        assert arrived == sorted(arrived)
        assert arrived[-1] - arrived[0] == pytest.approx(len(found) / RATE * 1e9, rel=0.2)


@pytest.mark.slow
def test_all_that_was_held_is_there(lab: Lab, tmp_path: Path) -> None:
    with flowing(lab, tmp_path) as flow:
        time.sleep(2)
        code, _ = log(lab, flow.ends, "verify")
        assert code in (0, PENDING), "a second's messages may be on their way"
        flow.sensor.end()
        wait_until(lambda: verdicts(lab, flow.ends) == [("closed", "closed", "complete")], 10)
        code, rows = log(lab, flow.ends, "verify")
        assert (code, [row["verdict"] for row in rows]) == (0, ["complete"])
        assert rows[0]["held"] == rows[0]["messages"] * SIZE
        assert_all_is_there(flow)
        with closing(sqlite3.connect(flow.ends.database)) as database:
            database.execute("DELETE FROM messages WHERE sequence BETWEEN 500 AND 599")
            database.commit()
        code, rows = log(lab, flow.ends, "verify")
        assert (code, rows[0]["lacks"]) == (
            HOLE,
            [{"kind": "hole", "start": 500 * SIZE, "end": 600 * SIZE, "messages": 100}],
        )


@pytest.mark.slow
def test_a_connection_that_ends_while_no_daemon_runs(lab: Lab, tmp_path: Path) -> None:
    with flowing(lab, tmp_path) as flow:
        time.sleep(1.5)
        os.kill(daemon_pid("hardworker"), signal.SIGKILL)
        flow.sensor.end()
        time.sleep(1)
        code, rows = log(lab, flow.ends, "verify")
        assert code == 0, rows  # of what it was told
        daemons.start(lab, ["hardworker"], key="../key")
        wait_until(lambda: log(lab, flow.ends, "list")[1][0]["held"] == len(flow.numbers()) * SIZE, 20)
        assert verdicts(lab, flow.ends) == [("closed", "closed", "complete")]
        assert log(lab, flow.ends, "verify")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("spool_dies", [False, True])
def test_the_logger_loses_power(lab: Lab, tmp_path: Path, spool_dies: bool) -> None:
    """What it had not committed, and what came while it was away, is pending, and then there."""
    with flowing(lab, tmp_path) as flow:
        time.sleep(2)
        kill_all(flow.ends.logger.process.pid)
        flow.ends.logger.process.wait()
        wait_until(lambda: state(lab, "hardworker")["destination"] == "spool", 10)
        flow.wait_for_fresh(5)
        time.sleep(2)
        if spool_dies:
            kill_all(int((daemons.folder(lab, "hardworker") / "spool.pid").read_text()))
            flow.wait_for_fresh(10)
            time.sleep(2)
        wait_until(lambda: [each["messages"] > 1000 for each in pending(lab)] == [True], 20)
        again(flow, tmp_path)
        seen: set[int] = set()
        flow.sensor.end()
        wait_until(lambda: is_whole(lab, flow.ends, seen), 60)
        assert seen <= {0, PENDING}, "nothing was called lost that was not"
        assert_all_is_there(flow)
        found = log(lab, flow.ends, "list")[1]
        assert {row["verdict"] for row in found} == {"complete"}
        assert {row["state"] for row in found} <= {"closed", "reset"}


@pytest.mark.slow
def test_the_logger_loses_power_while_a_plain_client_sends(lab: Lab, tmp_path: Path) -> None:
    """What its TCP had not had acknowledged is lost with the connection, for application and log alike."""
    with running(lab, tmp_path, daemon={"key": "key"}) as ends, ThreadPoolExecutor(1) as pool:
        wait_until(lambda: is_well(lab), 20)
        stop = tmp_path / "stop"
        client = pool.submit(lab.call, "sensor", plain, stop)
        flow = Flow(lab, ends, ends.logger, stop)
        try:
            time.sleep(3)
            kill_all(ends.logger.process.pid)
            ends.logger.process.wait()
            wait_until(lambda: state(lab, "hardworker")["destination"] == "spool", 10)
            time.sleep(2)
            again(flow, tmp_path)
            wait_until(lambda: state(lab, "hardworker")["destination"] != "spool", 60)
            time.sleep(2)
        finally:
            stop.touch()
            client.result()
        wait_until(lambda: is_whole(lab, ends, set()), 60)
        found = flow.numbers().tolist()
        assert len(found) == len(set(found)) > 5 * RATE
        assert numbers(ends.database) == set(found)


def is_whole(lab: Lab, ends: Ends, seen: set[int]) -> bool:
    """Has the log heard how all connections ended, and does it lack nothing? `seen`: codes of verify."""
    if state(lab, "hardworker")["held"]["untold_ends"]:
        return False
    told = all(at_the_hardworker != "open" for _, at_the_hardworker, _ in verdicts(lab, ends))
    seen.add(code := log(lab, ends, "verify")[0])
    return code == 0 and told
