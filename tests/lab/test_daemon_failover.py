"""A logger dies, or takes nothing: for how long the application has no message, and that none is missing.

Judged by the databases of logger and spool together: what is still in the spool is not lost.
"""

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from tests.lab.test_daemon import BARE, Flow, daemon_pid, flowing, is_well, log, set_port, state
from tests.lab.test_log_knows import plain
from tests.lab.triangle import LOGGER, PATIENCE, PINS, PROGRAM, Program, wait_until

from midstream.daemon.way import SPOOL
from midstream.ebpf.control import connections
from midstream.errors import KernelError
from midstream.hardworker import Hardworker
from midstream.lab import Lab, daemons, namespaces
from midstream.lab import up as lab_up
from midstream.lab.hosts import namespace
from midstream.sensor import SENT_DTYPE

pytestmark = pytest.mark.slow

TIMES = 3


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    built = lab_up(run_dir=tmp_path / "lab", **BARE)
    daemons.start(built, ["hardworker", "logger", "sensor"])
    yield built
    print(log(built, "hardworker"))  # shown if the test fails


def children(pid: int) -> list[int]:
    """The processes that this one has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill(flow: Flow) -> None:
    """kill -9 of the logger and of its worker."""
    logger = flow.ends.logger.process
    for pid in (logger.pid, *children(logger.pid)):
        os.kill(pid, signal.SIGKILL)
    logger.wait()


def cut_power(flow: Flow) -> None:
    """Nothing leaves the host any more, and then nothing runs there."""
    set_port(flow.lab, "logger", "disabled")
    for process in namespaces.processes([namespace("logger")]):
        os.kill(process.pid, signal.SIGKILL)
    flow.ends.logger.process.wait()


def give_power(flow: Flow, folder: Path) -> None:
    set_port(flow.lab, "logger", "forwarding")
    daemons.start(flow.lab, ["logger"])
    start_logger(flow, folder)


def start_logger(flow: Flow, folder: Path) -> None:
    flow.ends.logger = Program(flow.lab, "logger", folder, ("logger", "--config", flow.ends.config, "--json"))
    flow.ends.logger.wait_for("listening")


def stop_worker(flow: Flow) -> None:
    for pid in children(flow.ends.logger.process.pid):
        os.kill(pid, signal.SIGSTOP)


def go_on(flow: Flow, folder: Path) -> None:
    for pid in children(flow.ends.logger.process.pid):
        os.kill(pid, signal.SIGCONT)


def numbers(database: Path) -> list[int]:
    """The sensor's numbers of all messages in a database of the logger's, or of the spool."""
    if not database.exists():
        return []
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10) as store:
        made = store.execute("SELECT 1 FROM sqlite_master WHERE name = 'messages'").fetchone()
        rows = store.execute("SELECT payload FROM messages").fetchall() if made else []
    store.close()
    return [int.from_bytes(payload[:8], "little") for (payload,) in rows]


def assert_logged(flow: Flow, *, but: int = 0) -> None:
    """Every message is in the log or in the spool, but so many that a kernel had and took with it."""
    sent = set(np.fromfile(flow.sent_record, SENT_DTYPE)["sequence"].tolist())
    spool = daemons.folder(flow.lab, "hardworker") / "spool.db"
    logged = set(numbers(flow.ends.database)) | set(numbers(spool))
    assert len(sent - logged) <= but, f"{len(sent - logged)} of {len(sent)} are missing"


@pytest.mark.parametrize(
    ("die", "heal", "longest"),
    [
        pytest.param(kill, start_logger, 1.0, id="killed"),
        pytest.param(cut_power, give_power, 1.0, id="power cut"),
        # Its kernel takes a mebibyte, a second of data, before the sensor has to wait.
        pytest.param(stop_worker, go_on, 3.5, id="takes nothing"),
    ],
)
def test_the_application_goes_on(
    lab: Lab,
    tmp_path: Path,
    die: Callable[[Flow], None],
    heal: Callable[[Flow, Path], None],
    longest: float,
) -> None:
    gaps = []
    with flowing(lab, tmp_path) as flow:
        for number in range(TIMES):
            wait_until(lambda: is_well(lab), 60)
            flow.wait_for_fresh(5)
            before = time.time_ns()
            die(flow)
            wait_until(lambda: state(lab, "hardworker")["destination"] == SPOOL, 15)
            flow.wait_for_fresh(5)
            gaps.append(flow.longest_gap(before))
            print(f"no message for {gaps[-1]:.2f} s: {state(lab, 'hardworker')['destination_reason']}")
            flow.reconnects += 2
            folder = tmp_path / str(number)
            folder.mkdir()
            heal(flow, folder)
            wait_until(lambda: state(lab, "hardworker")["destination"] == LOGGER, 30)
            wait_until(lambda: {one.destination for one in connections(PINS / "hardworker")} == {0}, 10)
            flow.wait_for_fresh(5)
        time.sleep(1)
        summary = flow.end()
    assert summary["reconnects"] == flow.reconnects, "no other connection ended"
    flow.assert_nothing_lost(repeated=summary["repeated"])
    # What the logger's kernel had acknowledged and not committed: at most what it and a batch hold.
    assert_logged(flow, but=0 if die is stop_worker else 600 * TIMES)
    assert sorted(gaps)[TIMES // 2] < longest, gaps


@contextmanager
def busy(lab: Lab, host: str) -> Iterator[None]:
    """A host whose cores all do something else."""
    spin = ["python3", "-c", "while True: pass"]
    with ExitStack() as stack:
        for _ in range(2 * len(lab.host(host).cpus)):
            process = stack.enter_context(lab.popen(host, spin))
            stack.callback(process.kill)
        yield


@pytest.mark.parametrize("host", ["hardworker", "logger", "sensor"])
def test_a_load_changes_nothing(lab: Lab, tmp_path: Path, host: str) -> None:
    with flowing(lab, tmp_path) as flow:
        with busy(lab, host):
            time.sleep(10)
        flow.wait_for_fresh(10)
        found = state(lab, "hardworker")
        assert (found["destination"], found["spool"]) == (LOGGER, "off")
        summary = flow.end()
    assert summary["reconnects"] == 0
    flow.assert_nothing_lost()
    assert_logged(flow)


def test_the_spool_outlives_the_daemon_and_is_restarted_when_it_dies(lab: Lab, tmp_path: Path) -> None:
    with flowing(lab, tmp_path) as flow:
        kill(flow)
        wait_until(lambda: state(lab, "hardworker")["destination"] == SPOOL, 15)
        flow.wait_for_fresh(5)
        place = daemons.folder(lab, "hardworker") / "spool.pid"
        wait_until(lambda: bool(place.read_text()), 20)  # sensors are let in before the process lives
        pid, before = int(place.read_text()), time.time_ns()
        os.kill(daemon_pid("hardworker"), signal.SIGKILL)
        time.sleep(1)
        daemons.start(lab, ["hardworker"])
        flow.wait_for_fresh(1)
        assert (state(lab, "hardworker")["destination"], int(place.read_text())) == (SPOOL, pid)
        assert flow.longest_gap(before) < 1
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: place.read_text() not in ("", f"{pid}\n"), 20)
        flow.wait_for_fresh(5)
        print(f"the spool was killed: no message for {flow.longest_gap(before):.2f} s")
        start_logger(flow, tmp_path)
        wait_until(lambda: state(lab, "hardworker")["destination"] == LOGGER, 10)
        summary = flow.end()
    assert 2 <= summary["reconnects"] <= 3, "it may have ended before the spool handed back"
    flow.assert_nothing_lost(repeated=summary["repeated"])


def test_a_damaged_spool_does_not_starve_the_application(lab: Lab, tmp_path: Path) -> None:
    """It takes what comes and forgets it, and says which file it is; with another file it stores again."""
    folder = daemons.folder(lab, "hardworker")
    spool = folder / "spool.db"
    with flowing(lab, tmp_path) as flow:
        spool.write_bytes(b"no database" * 1000)
        kill(flow)
        wait_until(lambda: "is forgotten" in state(lab, "hardworker")["spool_fault"], 60)
        before = time.time_ns()
        assert str(spool) in state(lab, "hardworker")["spool_fault"]
        for command in ("status", "doctor"):
            told = lab.run(
                "hardworker",
                [PROGRAM, command, "--config", folder / "config.toml"],
                capture_output=True,
                text=True,
            )
            assert str(spool) in told.stdout.replace("\n", "").replace(" ", ""), told.stdout
        time.sleep(6)  # longer than what the kernel takes without anybody
        flow.wait_for_fresh(3)
        print(f"no message for {flow.longest_gap(before):.2f} s")
        assert flow.longest_gap(before) < 4
        spool.unlink()
        wait_until(lambda: state(lab, "hardworker")["spool_fault"] == "", 30)
        wait_until(lambda: bool(numbers(spool)), 30)
        start_logger(flow, tmp_path)
        wait_until(lambda: state(lab, "hardworker")["destination"] == LOGGER, 10)
        flow.wait_for_fresh(5)
        summary = flow.end()
    flow.assert_nothing_lost(repeated=summary["repeated"])


def test_a_boot_without_a_logger(lab: Lab, tmp_path: Path) -> None:
    """What was in force before is in force again, and data flows into application and spool."""
    os.kill(daemon_pid("hardworker"), signal.SIGKILL)
    os.kill(daemon_pid("logger"), signal.SIGKILL)
    set_port(lab, "logger", "disabled")
    folder = daemons.folder(lab, "hardworker")
    assert lab.run("hardworker", [PROGRAM, "detach", "--config", folder / "config.toml"]).returncode == 0
    stop = tmp_path / "stop"
    with ThreadPoolExecutor(3) as pool:
        client = pool.submit(lab.call, "sensor", plain, stop)
        try:
            began = time.monotonic()
            daemons.launch(lab, "hardworker")
            delivered, spooled = pool.submit(first_delivery, lab), pool.submit(first_row, folder / "spool.db")
            took = [each.result() - began for each in (delivered, spooled)]
        finally:
            stop.touch()
            client.result()
    print("first message after the daemon's start: application {:.2f} s, spool {:.2f} s".format(*took))
    assert took[0] < 4, "2 on a quiet machine"
    assert took[1] < 8, "4 on a quiet machine: what comes meanwhile waits in the kernel"


def first_delivery(lab: Lab) -> float:
    """When an application that starts as soon as it can is given a message (CLOCK_MONOTONIC)."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(KernelError), Hardworker(lab.config) as application:
            if application.wait(PATIENCE) and len(application.read()):
                return time.monotonic()
        time.sleep(0.01)
    raise AssertionError(f"no message within {PATIENCE} s")


def first_row(database: Path) -> float:
    """When a message is committed to a database (CLOCK_MONOTONIC)."""
    wait_until(lambda: numbers(database))
    return time.monotonic()
