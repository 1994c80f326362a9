"""Whatever clocks do, nothing goes that is not old by the time that has really passed."""

import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine

from midstream.errors import StoreError
from midstream.storage import pruning, schema
from midstream.storage.passed import Clocks
from midstream.storage.pruning import Pruner, prune
from midstream.storage.store import checksum

SECOND = 10**9
YEAR = 365 * 86400 * SECOND
KEEP = 3600 * SECOND
BYTES = 8  # of a message


class World:
    """A logger's host with a clock that may say anything, and what really passes meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.db"
        self.real = 10 * YEAR
        self.running = 7 * SECOND
        self.wall = 0
        self.boots = 0
        self.told: list[str] = []
        self.since: dict[tuple[int, int], int] = {}  # when each message was really stored
        self.seen: dict[tuple[int, int], int] = {}  # at which look it was first there
        self.looks = 0
        self.counts = {1: 0, 2: 0}
        engine = create_engine(self.url)
        with engine.begin() as database:
            schema.prepare(database, self.url)
        engine.dispose()
        self.execute(
            "INSERT INTO connections (id, sensor, port, opened_ns, closed_ns, token, framing) "
            "VALUES (1, '10.0.0.1', 1, 0, NULL, 'a', 'fixed'), (2, '10.0.0.2', 2, 0, NULL, 'b', 'fixed')"
        )
        self.pruner: Pruner
        self.restart()

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    def execute(self, statement: str, *rows: tuple[object, ...]) -> None:
        with closing(sqlite3.connect(self.path)) as database, database:
            if rows:
                database.executemany(statement, rows)
            else:
                database.execute(statement)

    def store(self, count: int, connection: int = 1) -> None:
        begin = self.counts[connection]
        self.counts[connection] += count
        numbers = range(begin, begin + count)
        payload = bytes(BYTES)
        self.execute(
            "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)",
            *(
                (
                    connection,
                    number,
                    self.wall,
                    payload,
                    number * BYTES,
                    checksum(number, number * BYTES, self.wall, payload),
                )
                for number in numbers
            ),
        )
        self.since |= {(connection, number): self.real for number in numbers}

    def wait(self, ns: int) -> None:
        self.real += ns
        self.running += ns
        self.wall += ns

    def set_clock(self, ns: int) -> None:
        self.wall += ns

    def reboot(self, off: int, wall: int) -> None:
        """The power was off for so long; then the clock says something."""
        self.real += off
        self.running = 3 * SECOND
        self.wall = wall
        self.boots += 1
        self.restart()

    def restart(self, keep_bytes: int = 0) -> None:
        """Another process looks."""
        clocks = Clocks(lambda: f"boot-{self.boots}", lambda: self.running, lambda: self.wall)
        self.pruner = Pruner(
            self.url,
            keep_ns=0 if keep_bytes else KEEP,
            keep_bytes=keep_bytes,
            told=self.told.append,
            clocks=clocks,
        )

    def left(self) -> set[tuple[int, int]]:
        with closing(sqlite3.connect(self.path)) as database:
            return set(database.execute("SELECT connection_id, sequence FROM messages"))

    def look(self) -> None:
        before = self.left()
        for message in before:
            self.seen.setdefault(message, self.looks)
        self.looks += 1
        self.pruner.look()
        for message in before - self.left():
            assert self.real - self.since[message] >= KEEP, (message, self.real - self.since[message])


Act = Callable[[World], None]
WAITS = st.sampled_from([SECOND, 60 * SECOND, 600 * SECOND, KEEP // 2, KEEP + SECOND])
STEPS = st.sampled_from([1, 5, 3600, 86400, 40 * 365 * 86400]).flatmap(
    lambda seconds: st.sampled_from([seconds * SECOND, -seconds * SECOND])
)
ACTS: st.SearchStrategy[Act] = st.one_of(
    st.builds(
        lambda count, key: lambda world: world.store(count, key), st.integers(1, 20), st.integers(1, 2)
    ),
    st.builds(lambda ns: lambda world: world.wait(ns), WAITS),
    st.builds(lambda ns: lambda world: world.set_clock(ns), STEPS),
    st.builds(
        lambda off, wall: lambda world: world.reboot(off, wall),
        st.sampled_from([SECOND, 3600 * SECOND, YEAR // 12]),
        st.sampled_from([0, 30 * YEAR, 56 * YEAR]),
    ),
    st.just(World.restart),
)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "PAUSE", 0)
    monkeypatch.setattr(pruning, "HOLD", 0)
    monkeypatch.setattr(pruning, "ROWS", 7)


def live(acts: list[Act]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for act in acts:
            act(world)
            world.look()
        # Whatever was before: once the host runs for so long, all of it is gone but what the logger needs.
        for _ in range(3):
            world.wait(KEEP // 2 + SECOND)
            world.look()
        last = {(key, count - 1) for key, count in world.counts.items() if count}
        assert world.left() == last


@settings(max_examples=8)
@given(st.lists(ACTS, max_size=12))
def test_nothing_goes_too_early_and_everything_at_last(acts: list[Act]) -> None:
    live(acts)


@pytest.mark.slow
@settings(max_examples=600)
@given(st.lists(ACTS, max_size=40))
def test_nothing_goes_too_early_in_many_worlds(acts: list[Act]) -> None:
    live(acts)


@pytest.mark.slow
@settings(max_examples=6)
@given(st.lists(ACTS, max_size=12), st.integers(1, 40))
def test_by_size_the_oldest_really_go_first(acts: list[Act], keep: int) -> None:
    """What was there at an earlier look goes before what was not, whatever the clock said when it came."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for act in acts:
            act(world)
            world.wait(1)  # no two looks are at one moment
            before = world.left()
            for message in before:
                world.seen.setdefault(message, world.looks)
            world.looks += 1
            world.restart(keep * BYTES)
            world.pruner.look()
            after = world.left()
            last = {(key, count - 1) for key, count in world.counts.items()}
            gone = [world.seen[message] for message in before - after]
            stay = [world.seen[message] for message in after - last]
            assert max(gone, default=0) <= min(stay, default=world.looks)
            assert len(after) <= keep + 2


def test_a_clock_that_was_set_is_told(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.store(5)
    world.look()
    assert world.told == []
    world.set_clock(3 * YEAR)
    world.look()
    world.look()
    world.set_clock(-5 * SECOND)
    world.look()
    assert [text.split(" than")[0] for text in world.told] == [
        "the clock went 1,095.0 days further",
        "the clock went 5.0 seconds less far",
    ]


def test_a_database_in_the_place_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.store(50)
    world.look()
    world.wait(KEEP // 2)
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other")
    other.execute("UPDATE connections SET token = token || '2'")
    other.store(50)
    other.path.replace(world.path)
    for name in ("log.db-wal", "log.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    world.wait(KEEP // 2 + SECOND)
    world.pruner.look()
    assert len(world.left()) == 50


def test_the_command_believes_no_clock_that_the_log_contradicts(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.set_clock(50 * YEAR)
    world.store(5)
    world.set_clock(-20 * YEAR)
    with pytest.raises(StoreError, match=r"newest message is 630,720,000 s later than this host's clock"):
        prune(world.url, keep_ns=1, keep_bytes=None, now_ns=world.wall)
    assert len(world.left()) == 5
