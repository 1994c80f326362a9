"""`midstream demo` from outside: what it prints, how it leaves, and that it leaves nothing behind."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import create_engine, text

from midstream import cli
from midstream import lab as midstream_lab
from midstream.demo.run import FOLDER
from midstream.storage.schema import prepare

ROOT = Path(__file__).parents[3]
MIDSTREAM = ["-P", "-m", "midstream"]
PATIENCE = 120.0  # seconds


class Machine(Protocol):
    def traces(self) -> dict[str, object]: ...
    def settles_to(self, expected: dict[str, object]) -> None: ...


@pytest.fixture(autouse=True)
def nothing_of_the_demo_left(machine: Machine) -> Iterator[None]:
    midstream_lab.down()
    before, loaded = machine.traces(), ebpf_programs()
    yield
    machine.settles_to(before)
    wait_until(lambda: ebpf_programs() <= loaded)  # the kernel frees them a little later
    assert folders() == []
    assert demo_processes() == []


def test_everything_arrives_once_in_order_and_unchanged() -> None:
    found = demo("--messages", "400", "--rate", "400", "--daemon")
    assert found["sent"] == found["delivered"] == found["logged"] == 400
    assert found["good"]
    assert found["in_order"] is found["logged_in_order"] is True
    assert [found[key] for key in ("missing", "duplicates", "corrupt", "logged_missing")] == [0] * 4
    assert (found["mode"], 0 < found["ready_seconds"] < 10) == ("native", True)
    assert (found["connections"], found["reset"], found["counters"]["opened"]) == (1, 0, 1)
    assert found["hardworker_stack"]["sockets"] == 0
    assert found["hardworker_stack"]["tcp_segments_in"] < 40, "the daemon's word to the logger, and no data"
    assert 0 < found["latency_us"]["p50"] <= found["latency_us"]["p99"]
    assert 0 < found["hardworker_cpu_us_per_message"] < 10_000
    assert found["seconds"] == pytest.approx(399 / 400, rel=0.2)


def test_a_robot_with_five_streams(tmp_path: Path) -> None:
    """Every message of each stream once and in order, at its application and in its own table."""
    arguments = ("--mix", "robot", "--seconds", "3", "--daemon", "--database", "sqlite:///robot.db")
    found = demo(*arguments, cwd=tmp_path)
    due = {"imu": 3000, "joints": 1500, "lidar": 30, "camera": 90, "gps": 30}
    assert list(found["streams"]) == list(due)
    for name, stream in found["streams"].items():
        assert stream["sent"] == stream["delivered"] == stream["logged"] == due[name], name
        faults = ("missing", "duplicates", "corrupt", "logged_missing", "logged_duplicates", "logged_corrupt")
        assert [stream[fault] for fault in faults] == [0] * 6, name
        assert stream["in_order"] is stream["logged_in_order"] is True, name
        assert 0 < stream["latency_us"]["p50"] <= stream["latency_us"]["p99"] <= stream["latency_us"]["max"]
    assert (found["sent"], found["connections"], found["reset"]) == (4650, 5, 0)
    assert found["hardworker_stack"]["sockets"] == 0
    engine = create_engine(f"sqlite:///{tmp_path / 'robot.db'}")
    with engine.connect() as database:
        for name in ("imu", "joints", "lidar"):
            numbers = database.execute(text(f"SELECT number FROM readings_{name} ORDER BY number")).scalars()
            assert list(numbers) == list(range(due[name])), name
    engine.dispose()


@pytest.mark.slow
def test_a_robot_with_ordinary_sockets() -> None:
    found = demo("--mix", "robot", "--seconds", "2", "--no-daemon", "--receiver", "socket")
    assert found["sent"] == found["delivered"] == found["logged"] == 3100


def test_a_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    """It has no compiler: the wheel brings the objects. A robot has room for it."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    (wheel,) = tmp_path.glob("midstream-*.whl")
    install = ["--python", str(python), "install", "--no-compile", str(wheel)]
    subprocess.run([*pip, *install], check=True)
    assert not list((tmp_path / "venv").rglob("ziglang"))
    files = [path for path in (tmp_path / "venv").rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < 150_000_000
    found = demo("--messages", "200", "--rate", "400", python=str(python))
    assert found["sent"] == found["delivered"] == found["logged"] == 200


@pytest.mark.slow
def test_restored_at_the_sensors() -> None:
    found = demo("--messages", "100", "--rate", "200", "--sensors", "3", "--restore", "sensor")
    assert (found["sent"], found["connections"]) == (300, 3)


@pytest.mark.slow
@pytest.mark.parametrize("size", [pytest.param(16, marks=pytest.mark.slow), 4096])
def test_messages_smaller_and_larger_than_a_segment(size: int) -> None:
    found = demo("--messages", "2000", "--rate", "0", "--size", str(size))
    assert (found["delivered"], found["logged"]) == (2000, 2000)


@pytest.mark.slow
def test_with_ordinary_sockets() -> None:
    found = demo("--messages", "200", "--rate", "400", "--receiver", "socket")
    assert (found["mode"], found["counters"], found["delivered"]) == ("socket", {}, 200)
    assert found["hardworker_stack"]["tcp_segments_in"] > 200
    assert found["hardworker_stack"]["sockets"] >= 3, "it listens, and has both ends of a relay"


@pytest.mark.slow
def test_a_database_of_ones_own_is_kept_and_may_hold_earlier_runs(tmp_path: Path) -> None:
    for _ in range(2):
        found = demo("--messages", "50", "--rate", "500", "--database", "sqlite:///own.db", cwd=tmp_path)
        assert found["logged"] == 50
    engine = create_engine(f"sqlite:///{tmp_path / 'own.db'}")
    with engine.connect() as database:
        assert database.execute(text("SELECT count(*) FROM log")).scalar() == 100
    engine.dispose()


@pytest.mark.slow
def test_the_result_in_plain_words_and_in_place_of_a_lab_that_is_up(tmp_path: Path) -> None:
    midstream_lab.up(2, tmp_path / "run")
    done = finish(start("--messages", "50", "--rate", "500"))
    assert done.returncode == 0
    assert "All 50 messages arrived once, in order and unchanged" in " ".join(done.stdout.split())
    assert "demo: the lab that was up is replaced\n" in done.stderr
    assert "demo: building the lab" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopped_in_the_middle(number: signal.Signals) -> None:
    demonstration = start("--messages", "100000", "--rate", "500", "--sensors", "2", "--json")
    wait_until(sending)
    time.sleep(0.5)
    demonstration.send_signal(number)
    done = finish(demonstration)
    found = json.loads(done.stdout)
    assert (done.returncode, found["stopped"], found["unclean"]) == (0, True, 0), done.stderr
    assert 0 < found["sent"] == found["delivered"] == found["logged"] < 200000


@pytest.mark.slow
@pytest.mark.parametrize(
    "after", [0.0, 0.5, *(pytest.param(after, marks=pytest.mark.slow) for after in (0.2, 1.0, 2.0))]
)
def test_stopped_while_it_starts(after: float) -> None:
    demonstration = start("--messages", "100000", "--sensors", "2")
    assert demonstration.stderr
    demonstration.stderr.readline()
    time.sleep(after)
    demonstration.send_signal(signal.SIGINT)
    done = finish(demonstration)
    assert done.returncode == 1 or "Stopped early" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("clean_up", ["down", pytest.param("demo", marks=pytest.mark.slow)])
def test_killed(clean_up: str) -> None:
    """Its programs end with it; the rest goes with the next `lab down` or demo."""
    demonstration = start("--messages", "100000", "--rate", "500", "--json")
    wait_until(sending)
    demonstration.kill()
    finish(demonstration)
    wait_until(lambda: demo_processes() == [])
    assert folders() != []
    if clean_up == "down":
        subprocess.run([sys.executable, *MIDSTREAM, "lab", "down"], check=True, timeout=PATIENCE)
    else:
        done = finish(start("--messages", "50", "--rate", "500", "--json"))
        assert (done.returncode, done.stderr) == (0, "demo: the lab that was up is replaced\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "role", ["hardworker", *(pytest.param(role, marks=pytest.mark.slow) for role in ("logger", "sensor"))]
)
def test_a_program_that_dies_is_an_error(role: str) -> None:
    demonstration = start("--messages", "100000", "--rate", "500", "--json")
    wait_until(sending)
    [victim] = [pid for pid, command in programs() if f"midstream {role}" in command]
    os.kill(victim, signal.SIGKILL)
    done = finish(demonstration)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"midstream: {role}: ended by SIGKILL; its last words:" in done.stderr
    assert f"{role}: " in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_damage_is_reported(tmp_path: Path) -> None:
    """A message that the database changes: the verdict sees it, and the exit code says so."""
    url = f"sqlite:///{tmp_path / 'own.db'}"
    engine = create_engine(url)
    with engine.begin() as database:
        prepare(database, url)
        database.execute(
            text(
                "CREATE TRIGGER damage AFTER INSERT ON messages WHEN new.sequence = 3 BEGIN "
                "UPDATE messages SET payload = zeroblob(1024) "
                "WHERE connection_id = new.connection_id AND sequence = 3; END"
            )
        )
    engine.dispose()
    done = finish(start("--messages", "10", "--rate", "0", "--database", url, "--json"))
    found = json.loads(done.stdout)
    assert (done.returncode, found["good"]) == (1, False)
    assert (found["corrupt"], found["logged_corrupt"], found["missing"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--size", "15"), "--size"),
        (("--receiver", "magic"), "--receiver"),
        (("--database", "nonsense"), "not a URL"),
        (("--database", "sqlite://"), "name a file"),
        (("--database", "nats://127.0.0.1/log"), "reads the database back"),
        (("--database", "postgresql+psycopg://u:secret@127.0.0.1/log"), "name the server by its Unix socket"),
    ],
)
def test_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    """In this process, as nothing is started."""
    monkeypatch.setattr(sys, "argv", ["midstream", "demo", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert words in said.err
    assert "building" not in said.err


def demo(*arguments: str, cwd: Path | None = None, python: str = sys.executable) -> dict[str, Any]:
    """The object that a good demonstration prints, alone."""
    done = finish(start(*arguments, "--json", cwd=cwd, python=python))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def start(*arguments: str, cwd: Path | None = None, python: str = sys.executable) -> subprocess.Popen[str]:
    """Without daemons, which take seconds to start, unless they are asked for."""
    without_daemons = [] if "--daemon" in arguments else ["--no-daemon"]
    return subprocess.Popen(
        [python, *MIDSTREAM, "demo", *arguments, *without_daemons],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    with process:
        out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def sending() -> bool:
    """Has the hardworker's application recorded something?"""
    records = [folder / "hardworker.record" for folder in folders()]
    return any(record.exists() and record.stat().st_size for record in records)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.05)


def ebpf_programs() -> set[int]:
    """The numbers of all programs that the kernel holds."""
    library = ctypes.CDLL("libbpf.so.1")
    number = ctypes.c_uint32(0)
    found = set()
    while library.bpf_prog_get_next_id(number, ctypes.byref(number)) == 0:
        found.add(number.value)
    return found


def folders() -> list[Path]:
    return sorted(FOLDER.glob("midstream-demo-*"))


def programs() -> list[tuple[int, str]]:
    return [(process.pid, process.command) for process in midstream_lab.status().processes]


def demo_processes() -> list[str]:
    """Processes that read a demonstration's config.toml."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", entry, "cmdline").read_bytes()
        except OSError:
            continue
        if b"/midstream-demo-" in command:
            found.append(command.decode().replace("\0", " "))
    return found
