"""A ring that nothing writes into any more: each reader gets what is in it, and then is told or follows."""

import asyncio
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_ring import FakeRing, RingSource
from tests.support.reader import SIZE, Site, later, payload

from midstream import network
from midstream.config import Config
from midstream.errors import ConfigError, KernelError
from midstream.hardworker import Hardworker, pinned, reader, waiting, watch
from midstream.hardworker.watch import Watch
from midstream.network import Topology

INTERVAL = 0.02
LONGEST = (
    30 * INTERVAL
)  # as 0.9 s are to the real interval of 0.3 s, with ten times as much for a busy machine


@dataclass
class Held:
    """The descriptors of a ring, as the watch sees them."""

    place: Path = Path("/pins/hardworker")
    is_gone: bool = False
    is_linked: bool = True


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (watch, waiting, reader):
        monkeypatch.setattr(module, "INTERVAL", INTERVAL)


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def site(tmp_path: Path, held: Held) -> Iterator[Site]:
    made = Site(tmp_path)
    with watched(made, held):
        yield made


@contextmanager
def watched(site: Site, held: Held) -> Iterator[None]:
    """Its ring has a watch that looks at `held`."""
    looker: Any = Watch(held)  # type: ignore[arg-type]  # all that it needs
    site.source = RingSource(site.ring, looker)
    try:
        yield
    finally:
        looker.close()


def by_reading(hardworker: Hardworker) -> Generator[int, None, None]:
    while True:
        yield from map(number, hardworker.read()["payload"])
        time.sleep(0.001)


def by_waiting(hardworker: Hardworker) -> Generator[int, None, None]:
    while hardworker.wait():
        yield from map(number, hardworker.read()["payload"])


def by_waiting_shortly(hardworker: Hardworker) -> Generator[int, None, None]:
    while True:
        hardworker.wait(0.005)
        yield from map(number, hardworker.read()["payload"])


def by_latest(hardworker: Hardworker) -> Generator[int, None, None]:
    newest = None
    while True:
        if (message := hardworker.latest()) is not None and message != newest:
            newest = message
            yield number(message.payload)
        time.sleep(0.001)


def by_iterating(hardworker: Hardworker) -> Generator[int, None, None]:
    for message in hardworker:
        yield number(message.payload)


def by_messages(hardworker: Hardworker) -> Generator[int, None, None]:
    while hardworker.wait():
        for message in hardworker.messages():
            yield number(message.payload)


def by_batches(hardworker: Hardworker) -> Generator[int, None, None]:
    for batch in hardworker.batches():
        yield from map(number, batch["payload"])


def by_columns(hardworker: Hardworker) -> Generator[int, None, None]:
    for (values,) in hardworker.columns("n", payload=[("n", "<u8"), ("rest", f"V{SIZE - 8}")]):
        yield from values.tolist()


def by_asyncio(hardworker: Hardworker) -> Generator[int, None, None]:
    messages = aiter(hardworker)

    async def newest() -> int:
        return number((await anext(messages)).payload)

    with asyncio.Runner() as runner:
        while True:
            yield runner.run(newest())


def number(data: Any) -> int:
    return int.from_bytes(bytes(data), "little")


READERS = [
    by_reading,
    by_waiting,
    by_waiting_shortly,
    by_latest,
    by_iterating,
    by_messages,
    by_batches,
    by_columns,
    by_asyncio,
]
Reader = Callable[[Hardworker], Generator[int, None, None]]
each_reader = pytest.mark.parametrize("reader", READERS)


@pytest.mark.parametrize("period", [0.0, pytest.param(0.003, marks=pytest.mark.slow), 10.0])
@each_reader
def test_each_reader_gets_the_rest_and_is_told(site: Site, held: Held, reader: Reader, period: float) -> None:
    with site.hardworker(period=period) as hardworker, closing(reader(hardworker)) as reading:
        if period < 1:
            site.open(1)
            site.put(1, 0, payload(1))
            assert next(reading) == 1
            site.put(1, SIZE, payload(2))
        held.is_gone = True
        begun = time.monotonic()
        if period < 1:
            assert next(reading) == 2
        with pytest.raises(
            KernelError, match=r"/pins/hardworker: .*midstream attach hardworker.*follow=True"
        ):
            next(reading)
        assert time.monotonic() - begun < LONGEST
        time.sleep(INTERVAL)
        with pytest.raises(KernelError):  # it stays so
            hardworker.read()


@pytest.mark.parametrize("framing", ["line", "length"])
def test_other_framings_too(site: Site, held: Held, framing: Any) -> None:
    site.open(1)
    data = b"hello\n" if framing == "line" else b"\0\0\0\5hello"
    site.put(1, 0, data)
    held.is_gone = True
    with site.hardworker(framing=framing) as hardworker:
        messages = iter(hardworker)
        assert next(messages).payload == b"hello"
        with pytest.raises(KernelError, match="detached"):
            next(messages)


def test_an_interface_without_its_program_is_given_a_moment(held: Held) -> None:
    """The daemon attaches it again, on the same maps; only if it stays so the reader is told."""
    looker = Watch(held)  # type: ignore[arg-type]  # all that it needs
    try:
        held.is_linked = False
        looker.check(5)
        looker.check(5)
        time.sleep(INTERVAL)
        looker.check(6)  # something was stored meanwhile
        held.is_linked = True
        time.sleep(INTERVAL)
        looker.check(6)
        held.is_linked = False
        looker.check(6)
        time.sleep(INTERVAL)
        with pytest.raises(KernelError):
            looker.check(6)
    finally:
        looker.close()


def test_an_interface_that_stays_without_its_program(site: Site, held: Held) -> None:
    held.is_linked = False
    with site.hardworker() as hardworker, pytest.raises(KernelError, match="no longer on the interface"):
        hardworker.wait(LONGEST)


def look(site: Site) -> None:
    """As if it were due."""
    assert site.source._watch
    site.source._watch.due = 0.0
    site.source.look()


def test_a_ring_in_use_is_not_looked_at(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While messages arrive nothing is asked, whatever the pins say."""
    looks: list[int] = []
    monkeypatch.setattr(Watch, "check", lambda _, stored: looks.append(stored))
    monkeypatch.setattr(watch, "INTERVAL", 1000.0)  # it is due when the test says so
    site.open(1)
    with site.hardworker() as hardworker:
        for number in range(10):
            site.put(1, number * SIZE, payload(number))
            look(site)
            hardworker.read()
        assert not looks
        look(site)
        assert looks == [site.ring.producer]


# following


class Program:
    """What is attached: each attachment a ring of its own."""

    def __init__(self, site: Site, held: Held) -> None:
        self.first, self.held = site, held
        self.opened: RingSource | None = None
        self.next: FakeRing | None = None

    def open_ring(self, config: Config, topology: Topology) -> RingSource:
        if self.next is None:
            raise KernelError("nothing is attached", errno=2)
        ring, self.next = self.next, None
        looker: Any = Watch(Held())  # type: ignore[arg-type]  # all that it needs
        self.opened = RingSource(ring, looker)
        self.opened._let_go = looker.close
        return self.opened


@pytest.fixture
def program(site: Site, held: Held, monkeypatch: pytest.MonkeyPatch) -> Program:
    made = Program(site, held)
    monkeypatch.setattr(pinned, "open_ring", made.open_ring)
    return made


def following(site: Site, **settings: Any) -> Hardworker:
    made = site.hardworker(**settings)
    return Hardworker(made.config.path, source=site.source, follow=True)


@pytest.mark.parametrize("period", [pytest.param(0.0, marks=pytest.mark.slow), 0.003])
@each_reader
def test_each_reader_follows(site: Site, program: Program, reader: Reader, period: float) -> None:
    """The old ring to its end, then the new one from its beginning."""
    site.open(1)
    site.put(1, 0, payload(1))
    with following(site, period=period) as hardworker, closing(reader(hardworker)) as reading:
        assert next(reading) == 1
        site.put(1, SIZE, payload(2))
        program.held.is_gone = True
        new = Site(site.folder)
        new.open(7)
        new.put(7, 0, payload(3))
        with later(lambda: setattr(program, "next", new.ring), 5 * INTERVAL):
            assert next(reading) == 2
            assert next(reading) == 3
        new.put(7, SIZE, payload(4))
        assert next(reading) == 4
        totals = hardworker.totals
        assert (totals.messages, totals.opened, totals.reset, hardworker.connections) == (4, 2, 1, 1)
    assert new.ring.consumer  # it is the new ring's journal that says what is done


def test_half_a_message_of_the_old_ring_is_counted_as_skipped(site: Site, program: Program) -> None:
    site.open(1)
    site.put(1, 0, payload(1)[:10])
    with following(site) as hardworker:
        program.held.is_gone = True
        new = program.next = FakeRing(1 << 16)
        assert not len(hardworker.read())
        hardworker.wait(10 * INTERVAL)
        assert (hardworker.totals.skipped, hardworker.totals.reset) == (10, 1)
        assert program.opened and program.opened.ring is new


def test_it_cannot_follow_to_messages_of_another_size(site: Site, program: Program) -> None:
    with following(site) as hardworker:
        topology = hardworker.topology
        network.write(site.folder / "const.toml", replace(topology, size=SIZE + 1), "a test")
        program.held.is_gone = True
        with pytest.raises(ConfigError, match="has changed since this application was started"):
            hardworker.wait(LONGEST)


def test_it_does_not_wait_in_silence_for_what_it_may_not_read(
    site: Site, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise KernelError("another application reads this ring already")

    monkeypatch.setattr(pinned, "open_ring", refuse)
    with following(site) as hardworker:
        program.held.is_gone = True
        with pytest.raises(KernelError, match="another application"):
            hardworker.wait(LONGEST)
