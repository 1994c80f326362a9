"""What the hardworker holds reaches the loggers: each connection's last word, whoever dies meanwhile."""

import json
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.hosts import configure
from tests.support.logs import LogFile

from midstream.config import load
from midstream.daemon import teller
from midstream.daemon.held import Book, Entry
from midstream.daemon.pending import SpoolFile
from midstream.daemon.teller import CHUNK, GRACE, IDLE, Teller, ToldLogger
from midstream.ebpf.control import Ended, Open
from midstream.ebpf.records import HERE, RECORD
from midstream.errors import KernelError, NetworkError
from midstream.told import CLOSED, LOST, OPEN, RESET, STEP, UNTOLD, ArrivalTimes, HeldConnection

EPOCH = 1_764_000_000 * 10**9


def opened(port: int, held: int, *, destination: int = 0, since: int = 5) -> Open:
    address = IPv4Address("10.83.0.11")
    return Open(address, port, 7, 1, held, port, 0, destination, since, since)


def ended(port: int, held: int, *, reset: bool = False, destination: int = 0, since: int = 5) -> Ended:
    return Ended(IPv4Address("10.83.0.11"), port, 7, held, port, 0, destination, since, reset)


def stream(port: int, held: int, state: str, *, here: bool = False, since: int = 5) -> HeldConnection:
    return HeldConnection("10.83.0.11", port, 7, EPOCH + since, held, state, here)


def everywhere(entry: Entry) -> HeldConnection:
    return entry.stream


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Book]:
    boot = tmp_path / "boot_id"
    boot.write_text("one\n")

    def made(*, wall: int = EPOCH, **more: Any) -> Book:
        return Book(tmp_path / "held.jsonl", boot=boot, clocks=lambda: (wall, 0), **more)

    return made


def test_what_has_changed_is_told_until_it_is_confirmed(make: Callable[..., Book]) -> None:
    book = make()
    book.see([opened(1, 100), opened(2, 0)], [])
    assert book.untold(everywhere, 9) == book.untold(everywhere, 9) == [stream(1, 100, OPEN)]
    book.confirm([stream(1, 100, OPEN)])
    assert book.untold(everywhere, 9) == []
    book.see([opened(1, 300)], [])
    told = book.untold(everywhere, 9)
    book.see([], [ended(1, 400, reset=True), ended(3, 50), ended(4, 0)])  # while it was being told
    book.confirm(told)
    assert book.untold(everywhere, 9) == [stream(1, 400, RESET), stream(3, 50, CLOSED)]
    book.confirm(book.untold(everywhere, 9))
    assert len(book) == 0


def test_what_nobody_saw_end_is_lost(make: Callable[..., Book]) -> None:
    book = make()
    book.see([opened(1, 100)], [])
    book.see([], [])
    assert book.untold(everywhere, 9) == [stream(1, 100, LOST)]


def test_the_next_daemon_goes_on(make: Callable[..., Book]) -> None:
    """Also when the clock was set meanwhile: a connection keeps its name."""
    book = make()
    book.see([opened(1, 100), opened(2, 100)], [ended(3, 50, destination=HERE)])
    book.confirm([stream(1, 100, OPEN)])
    after = make(wall=EPOCH + 3600 * 10**9)
    after.see([opened(1, 150)], [ended(2, 120)])
    assert after.untold(everywhere, 9) == [
        stream(1, 150, OPEN),
        stream(2, 120, CLOSED),
        stream(3, 50, CLOSED, here=True),
    ]


def test_what_was_open_when_the_host_went_down_is_lost(make: Callable[..., Book], tmp_path: Path) -> None:
    book = make()
    book.see([opened(1, 100)], [ended(3, 50)])
    with (tmp_path / "held.jsonl").open("a") as file:
        file.write('[["10.83.0.11", 4, 7')  # the power went
    (tmp_path / "boot_id").write_text("two\n")
    after = make(wall=EPOCH + 99)
    assert after.untold(everywhere, 9) == [stream(1, 100, LOST), stream(3, 50, CLOSED)]
    after.see([opened(1, 10)], [])
    assert after.untold(everywhere, 9)[-1].opened_ns == EPOCH + 99 + 5


def test_too_many_that_nobody_heard_of_become_a_sum(make: Callable[..., Book]) -> None:
    book = make(most=4)
    book.see([opened(99, 5)], [ended(port, 10) for port in range(1, 8)])
    told = book.untold(everywhere, 99)
    assert [(each.port, each.state) for each in told] == [
        (99, OPEN),
        *((port, CLOSED) for port in (5, 6, 7)),
        (0, UNTOLD),
    ]
    assert told[-1].bytes == 40
    assert make(most=4).untold(everywhere, 99) == told
    book.confirm(told)
    book.see([opened(99, 5)], [])
    assert book.untold(everywhere, 99) == []


@pytest.mark.slow
def test_the_file_stays_small(make: Callable[..., Book], tmp_path: Path) -> None:
    book = make()
    for number in range(5000):
        book.see([], [ended(1 + number % 60000, 10, since=number)])
        book.confirm(book.untold(everywhere, 9))
    assert (tmp_path / "held.jsonl").stat().st_size < 200_000
    assert len((tmp_path / "held.jsonl").read_text().splitlines()) == 1


def test_a_disk_that_takes_nothing_is_said_and_hinders_nobody(
    make: Callable[..., Book], tmp_path: Path
) -> None:
    book = make()
    (tmp_path / "held.jsonl").unlink()
    (tmp_path / "held.jsonl").mkdir()
    book.see([opened(1, 100)], [])
    assert "held.jsonl: what no logger has heard yet cannot be written down (Is a directory)" in book.fault
    assert book.untold(everywhere, 9) == [stream(1, 100, OPEN)]


@pytest.mark.parametrize("seed", range(20))
def test_the_last_word_of_each_connection_arrives(make: Callable[..., Book], seed: int) -> None:
    """Whatever happens: connections open, grow and end, daemons end, loggers do not answer."""
    dice = random.Random(seed)
    book = make(most=9999)
    truth: dict[tuple[int, int], tuple[int, str]] = {}
    there: dict[int, tuple[int, int]] = {}
    logger: dict[tuple[int, int], HeldConnection] = {}
    for step in range(300):
        ends = []
        for port in list(there):
            there[port] = there[port][0], there[port][1] + dice.randrange(0, 3) * 8
            if dice.random() < 0.1:
                since, held = there.pop(port)
                reset = dice.random() < 0.5
                ends.append(ended(port, held, since=since, reset=reset))
                truth[port, since] = (held, RESET if reset else CLOSED)
        if dice.random() < 0.5:
            there.setdefault(dice.randrange(1, 20), (step, 0))
        if dice.random() < 0.2:  # short ones, which no look finds open
            ends.append(ended(30, step + 1, since=step))
            truth[30, step] = (step + 1, CLOSED)
        book.see([opened(port, held, since=since) for port, (since, held) in there.items()], ends)
        if dice.random() < 0.3:
            told = book.untold(everywhere, dice.randrange(1, 6))
            for each in told:  # of which it may not hear that they were written down
                logger[each.port, each.opened_ns - EPOCH] = each
            if dice.random() < 0.5:
                book.confirm(told)
        if dice.random() < 0.05:
            book = make(most=9999)
    book.see([opened(port, held, since=since) for port, (since, held) in there.items()], [])
    while told := book.untold(everywhere, 7):
        for each in told:
            logger[each.port, each.opened_ns - EPOCH] = each
        book.confirm(told)
    found = {key: (each.bytes, each.state) for key, each in logger.items()}
    wanted = {key: end for key, end in truth.items() if end[0]}
    wanted |= {(port, since): (held, OPEN) for port, (since, held) in there.items() if held}
    assert found == wanted


# the spool


def test_what_waits_in_the_spool(log: LogFile) -> None:
    assert SpoolFile(log.path.with_name("none.db")).look() == []
    log.add([b"12345678"] * 9, sensor="10.83.0.11", port=4, first=7, start_ns=100, step_ns=1, closed=False)
    log.add([b"abc"] * 5, sensor="10.83.0.12", port=5, framing="line", start_ns=200, step_ns=1)
    log.add([], port=6)
    log.execute("DELETE FROM messages WHERE connection_id = 1 AND sequence < 4")
    spool = SpoolFile(log.path)
    assert [each.values for each in spool.look()] == [
        ("10.83.0.11", 4, 7, 100, 32, 72, 5, 104, "data"),
        ("10.83.0.12", 5, -1, 200, 0, 20, 5, 200, "data"),
    ]
    assert [spool.has_all(stream(port, 9, CLOSED, here=True)) for port in (4, 5, 6)] == [False, None, None]
    log.execute("UPDATE connections SET closed_ns = 1 WHERE id = 1")
    log.execute("DELETE FROM messages WHERE connection_id = 2")
    assert [each.port for each in spool.look()] == [4]
    assert spool.has_all(stream(4, 9, CLOSED, here=True))


def test_an_idle_spool_is_not_read(log: LogFile, monkeypatch: pytest.MonkeyPatch) -> None:
    log.add([b"12345678"])
    spool = SpoolFile(log.path)
    known = spool.look()
    monkeypatch.setattr(sqlite3, "connect", lambda *_, **__: pytest.fail("it was opened"))
    assert spool.look() is known


def test_a_spool_that_is_no_database_yet(tmp_path: Path) -> None:
    (tmp_path / "spool.db").touch()
    spool = SpoolFile(tmp_path / "spool.db")
    assert spool.look() == []
    assert "spool.db: cannot be read just now (no such table: connections)" in spool.fault
    with closing(sqlite3.connect(tmp_path / "spool.db")) as database:
        database.execute("CREATE TABLE connections (id)")
    assert spool.look() == []


# telling


class Loggers:
    """Stands for the lines to some loggers."""

    def __init__(self) -> None:
        self.heard: dict[str, list[dict[str, Any]]] = {}
        self.steps: list[bytes] = []  # of the arrivals
        self.clock: dict[str, int] = {}  # what an answer says of it
        self.down: set[str] = set()
        self.dialled: list[str] = []

    def dial(self, address: str) -> Any:
        self.dialled.append(address)
        if address in self.down:
            raise NetworkError(f"{address}: no answer")
        return _Line(self, address)

    def ports(self, address: str) -> list[int]:
        return [each[1] for said in self.heard.get(address, []) for each in said["connections"]]

    def states(self, address: str) -> list[tuple[int, str]]:
        return [(each[1], each[5]) for said in self.heard.get(address, []) for each in said["connections"]]

    def pending(self, address: str) -> list[Any]:
        return [said["pending"] for said in self.heard.get(address, []) if "pending" in said]


class _Line:
    def __init__(self, loggers: Loggers, address: str) -> None:
        self._loggers, self._address = loggers, address

    def send(self, head: dict[str, Any], parts: Sequence[bytes] = ()) -> None:
        if self._address in self._loggers.down:
            raise NetworkError("the connection was lost")
        self._loggers.steps += parts
        self._loggers.heard.setdefault(self._address, []).append(json.loads(json.dumps(head)))

    def receive(self) -> tuple[dict[str, Any], memoryview]:
        return {"noted": 1, **self._loggers.clock}, memoryview(b"")

    def close(self) -> None:
        pass


class Scene:
    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = configure(tmp_path)
        (tmp_path / "key").write_bytes(b"k" * 32)
        (tmp_path / "key").chmod(0o600)
        path.write_text(path.read_text() + '[logger]\nreplay_port = 9\n[daemon]\nkey = "key"\n')
        self.open: list[Open] = []
        self.ends: list[Ended] = []
        self.records = np.empty(0, RECORD)
        self.time, self.saving = 0.0, False
        self.addresses = ["a", "b"]
        self.loggers = Loggers()
        monkeypatch.setattr("midstream.ebpf.control.connections", lambda _: self.open)
        monkeypatch.setattr("midstream.ebpf.control.ended", self._ended)
        monkeypatch.setattr("midstream.ebpf.heads.RingHeads.read", lambda _: self.records)
        self.config = load(path)
        self.teller = self.make()

    def make(self) -> Teller:
        return Teller(
            self.config,
            Path("pins"),
            lambda: self.addresses,
            dial=self.loggers.dial,
            now=lambda: self.time,
            saving=lambda: self.saving,
        )

    def _ended(self, _: Path) -> list[Ended]:
        ends, self.ends = self.ends, []
        return ends

    def look(self, seconds: float = 1.0) -> None:
        self.time += seconds
        self.teller.look()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def test_each_logger_hears_of_its_own_connections(scene: Scene) -> None:
    scene.open = [opened(1, 5), opened(2, 5, destination=1), opened(3, 5, destination=HERE)]
    scene.look()
    assert (scene.loggers.ports("a"), scene.loggers.ports("b")) == ([1, 3], [2])
    assert scene.loggers.pending("a") == [[]] and scene.loggers.pending("b") == []


def test_the_first_that_answers_hears_of_the_spool(scene: Scene) -> None:
    scene.loggers.down = {"a"}
    scene.open = [opened(1, 5), opened(3, 5, destination=HERE), opened(4, 5, destination=7)]
    scene.look()
    assert scene.loggers.ports("b") == [3, 4]
    assert "a: no answer" in str(scene.teller.state()["faults"])
    scene.loggers.down = set()
    scene.look(20)
    assert scene.loggers.ports("a") == [1]
    assert scene.teller.state() == {"untold_ends": 0, "pending": {}, "faults": []}


def test_a_logger_hears_when_bytes_came_once_its_clock_is_known(scene: Scene) -> None:
    scene.loggers.clock = {"received_ns": time.time_ns(), "answered_ns": time.time_ns()}
    scene.open = [opened(1, 5)]
    scene.records = np.array([(0, time.monotonic_ns(), 1, 5, 0, 1, 0, 0)], RECORD)
    before = time.time_ns()
    scene.look()
    first, second = scene.loggers.heard["a"]
    assert "arrivals" not in first and first["connections"]
    ((*place, _opened_ns, start, end, time_ns, _ahead, _error, size),) = second["arrivals"]
    assert (place, start, end, size) == (["10.83.0.11", 1, 7], 0, 5, 8)
    assert abs(time_ns - before) < 10**9
    assert scene.loggers.steps == [STEP.pack(5, 0)]
    scene.records = scene.records[:0]
    scene.look()
    assert len(scene.loggers.heard["a"]) == 2, "it is told once"


def test_a_sensor_without_data_is_silent(scene: Scene) -> None:
    scene.config = scene.config.model_copy(
        update={"data": scene.config.data.model_copy(update={"deadline": 0.05})}
    )
    scene.teller = scene.make()
    assert scene.teller.silent == {}
    time.sleep(0.05)
    assert scene.teller.silent == {}, "the ring has not been looked at since"
    scene.records = np.array([(0, time.monotonic_ns(), 1, 5, 2, 1, 0, 0)], RECORD)
    scene.look()
    assert {0, 1, 3} <= scene.teller.silent["data"] and 2 not in scene.teller.silent["data"]
    scene.records = scene.records[:0]
    time.sleep(0.05)
    scene.look()
    assert 2 in scene.teller.silent["data"]


def test_the_clocks_are_compared_by_what_an_answer_says() -> None:
    """The logger's is 1000 ns ahead. The way there takes 100, its work 50, and the way back 200."""
    loggers, times = Loggers(), iter([10_000, 10_350, 20_000, 20_350])
    loggers.clock = {"received_ns": 11_100, "answered_ns": 11_150}
    ear = ToldLogger("a", loggers.dial, lambda: 0.0, lambda: next(times))
    arrivals = ArrivalTimes("10.83.0.11", 1, 7, EPOCH, 0, 5, EPOCH, 0, 0, STEP.pack(5, 0))
    assert ear.tell([], [], None) and ear.clock == (950, 150)
    assert ear.tell([], [arrivals], None)
    assert loggers.heard["a"][1]["arrivals"][0][-3:-1] == [950, 150]
    ear.hang_up()
    assert ear.clock is None


def test_a_logger_that_does_not_tell_its_time_hears_of_no_arrivals(scene: Scene) -> None:
    scene.open = [opened(1, 5)]
    scene.records = np.array([(0, 7, 1, 5, 0, 1, 0, 0)], RECORD)
    scene.look()
    scene.records = scene.records[:0]
    scene.look()
    assert [said.get("arrivals") for said in scene.loggers.heard["a"]] == [None]


def test_an_end_is_told_when_what_the_logger_lacks_is_stored_here(scene: Scene) -> None:
    scene.saving, scene.ends = True, [ended(1, 9)]
    scene.look()
    scene.look()
    assert scene.loggers.states("a") == [(1, OPEN)]
    scene.saving = False
    scene.look()
    assert scene.loggers.states("a") == [(1, OPEN), (1, CLOSED)]


def test_an_end_here_is_told_when_the_spool_has_all_of_it(scene: Scene, log: LogFile) -> None:
    """Or after a while, if that says nothing: who knows what it still gets, or has given away?"""
    path = scene.config.path
    path.write_text(path.read_text().replace("[hardworker]", f'[hardworker]\nspool = "{log.path}"'))
    scene.config = load(path)
    scene.teller = scene.make()
    log.add([b"12345678"], sensor="10.83.0.11", port=3, first=7, closed=False)
    scene.ends = [ended(3, 8, destination=HERE), ended(4, 8, destination=HERE)]
    for _ in range(GRACE):
        scene.look()
        assert scene.loggers.states("a") == [(3, OPEN), (4, OPEN)]
    scene.look()
    assert scene.loggers.states("a")[2:] == [(4, CLOSED)]
    log.execute("UPDATE connections SET closed_ns = 1")
    scene.look()
    assert scene.loggers.states("a")[3:] == [(3, CLOSED)]


def test_a_logger_that_is_away_is_called_less_and_less(scene: Scene) -> None:
    scene.loggers.down = {"a", "b"}
    scene.open = [opened(1, 5)]
    for _ in range(60):
        scene.look()
    assert 10 <= len(scene.loggers.dialled) <= 30  # both together


def test_what_a_lost_line_did_not_confirm_is_told_again(scene: Scene) -> None:
    scene.open = [opened(1, 5)]
    scene.look()
    scene.ends, scene.open = [ended(1, 9)], []
    scene.loggers.down = {"a"}
    scene.look()
    scene.teller = scene.make()  # the daemon died, too
    scene.loggers.down = set()
    scene.look()
    first, last = (scene.loggers.heard["a"][place]["connections"][0] for place in (0, -1))
    assert last == [*first[:4], 9, CLOSED, False]


def test_many_are_told_in_pieces(scene: Scene) -> None:
    scene.open = [opened(1 + port, 5) for port in range(2 * CHUNK + 1)]
    scene.look()
    assert [len(said["connections"]) for said in scene.loggers.heard["a"]] == [CHUNK, CHUNK, 1]
    before = len(scene.loggers.heard["a"])
    scene.open = [opened(1 + port, 6) for port in range(2 * CHUNK + 1)]
    scene.look()  # so many are not looked at each second
    assert len(scene.loggers.heard["a"]) == before
    scene.look()
    scene.look()
    assert len(scene.loggers.heard["a"]) == before + 3


def test_a_line_without_news_is_closed_and_opened_for_news(scene: Scene) -> None:
    scene.open = [opened(1, 5)]
    scene.look()
    for _ in range(int(IDLE) + 3):
        scene.look()
    assert scene.loggers.dialled == ["a"]
    scene.open = [opened(1, 6)]
    scene.look()
    assert scene.loggers.dialled == ["a", "a"] and len(scene.loggers.heard["a"]) == 2


def test_without_a_program_it_goes_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> Sequence[Open]:
        raise KernelError("no program")

    monkeypatch.setattr(teller, "PERIOD", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr("midstream.ebpf.control.connections", fail)
        scene.teller.start()
        wait(lambda: scene.teller.state()["faults"] == ["no program"])
    scene.open = [opened(1, 5)]
    wait(lambda: scene.loggers.ports("a") == [1])
    assert scene.teller.state()["faults"] == []
    scene.teller.close()


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
