"""What streams tell of a destination, the clock that stands, and what a kernel's queues tell of a logger."""

from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
import pytest

from midstream.daemon.awake import Awake
from midstream.daemon.backlog import Backlog, listening
from midstream.daemon.witness import Trail, Witness
from midstream.ebpf.control import Open
from midstream.ebpf.records import HERE, OUTCOMES


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_daemon_that_was_stopped_has_missed_nothing() -> None:
    clock = Clock()
    awake = Awake(0.2, clock)
    for _ in range(10):
        clock.now += 0.1
        awake.tick()
    assert awake.now() == pytest.approx(1.0)
    clock.now += 10
    assert awake.now() == pytest.approx(1.2)
    awake.tick()
    clock.now += 0.1
    assert awake.now() == pytest.approx(1.3)


def stream(
    number: int, held: int, *, destination: int = 0, established: bool = True, opened: int = 0
) -> Open:
    return Open(
        IPv4Address("192.0.2.11"),
        4000 + number,
        first=1,
        acknowledged=7 if established else None,
        next=held,
        number=number,
        sensor=0,
        destination=destination,
        opened_ns=opened,
        seen_ns=0,
    )


def counters(known: int = 0, bare: int = 0, strangers: int = 0) -> np.ndarray:
    rows = np.zeros((2, len(OUTCOMES)), "<u8")
    rows[0, OUTCOMES.index("duplicate")], rows[0, OUTCOMES.index("pure_ack")] = known, bare
    rows[1, OUTCOMES.index("duplicate")] = strangers
    return rows


class Looks:
    """Looks ten times a second at whatever is given."""

    def __init__(self) -> None:
        self.witness, self.now = Witness(), 5.0

    def __call__(self, opened: list[Open], counted: np.ndarray, destination: int = 0) -> Trail:
        self.now += 0.1
        self.witness.look([destination], opened, counted, now=self.now, ns=int(self.now * 1e9))
        trail = self.witness.trail(destination)
        assert trail
        return trail


def test_a_stream_that_stands_and_repeats() -> None:
    look = Looks()
    look([stream(1, 1024)], counters(known=5, bare=3))
    trail = look([stream(1, 1024)], counters(known=5, bare=3, strangers=9))
    assert (trail.repeats, trail.probes, trail.repeating) == (0, 0, None)
    look([stream(1, 1024)], counters(known=6, bare=3))
    trail = look([stream(1, 1024)], counters(known=7, bare=4))
    assert (trail.repeats, trail.probes) == (2, 1)
    assert look.now - trail.advanced == pytest.approx(0.3)
    assert trail.repeating == pytest.approx(look.now - 0.1)


@pytest.mark.parametrize(
    "then",
    [[stream(1, 1025)], [stream(1, 1024), stream(2, 0)]],
    ids=["bytes", "a new connection is answered"],
)
def test_what_goes_on_takes_back_what_was_repeated(then: list[Open]) -> None:
    look = Looks()
    look([stream(1, 1024)], counters())
    look([stream(1, 1024)], counters(known=3))
    trail = look(then, counters(known=4))
    assert (trail.repeats, trail.repeating, trail.advanced) == (0, None, look.now)


def test_what_goes_on_elsewhere_is_no_progress_here() -> None:
    look = Looks()
    look([stream(1, 10), stream(2, 10, destination=HERE)], counters())
    trail = look([stream(1, 10), stream(2, 99, destination=HERE)], counters(known=1))
    assert trail.repeats == 1
    assert trail.advanced == pytest.approx(look.now - 0.1)


def test_a_connection_that_nobody_answers() -> None:
    look = Looks()

    def asked(before: float) -> list[Open]:
        return [stream(1, 0, established=False, opened=int((look.now + 0.1 - before) * 1e9))]

    assert look(asked(0.1), counters()).unanswered == 0
    trail = look(asked(0.4), counters())
    assert (trail.unanswered, trail.repeating) == (1, look.now)
    assert look(asked(60.0), counters()).unanswered == 0, "nobody waits for that one any more"


def test_nothing_is_remembered_of_what_is_over() -> None:
    look = Looks()
    look([stream(1, 10)], counters())
    look([stream(1, 10)], counters(known=2))
    look.witness.forget()
    assert look.witness.trail(0) is None
    assert look([stream(1, 10)], counters(known=9)).repeats == 0


# the logger's backlog

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n"


@pytest.fixture
def table(tmp_path: Path) -> Callable[[dict[int, int]], Path]:
    path = tmp_path / "tcp"

    def write(queues: dict[int, int]) -> Path:
        listening = "   0: 0300000A:3039 00000000:0000 0A 00000000:00000009 00:0 0\n"
        rows = [
            f"   1: 0300000A:3039 0B00000A:{port:04X} 01 00000000:{size:08X} 00:0 0\n"
            for port, size in queues.items()
        ]
        other = "   9: 0300000A:1111 0B00000A:0001 01 00000000:00FFFFFF 00:0 0\n"
        path.write_text(HEAD + listening + "".join(rows) + other)
        return path

    return write


def test_a_queue_that_no_longer_shrinks(table: Callable[[dict[int, int]], Path]) -> None:
    clock = Clock()
    backlog = Backlog({12345: 1024}, table({1: 50_000, 2: 9000}), clock)
    waited = []
    for queues in ({1: 90_000, 2: 9000}, {1: 90_000, 2: 9000}, {1: 99_000, 2: 9000}, {1: 98_000, 2: 9000}):
        waited.append(backlog.waits())
        table(queues)
        clock.now += 1
    assert (waited, backlog.waits()) == ([0, 1, 2, 3], 0)


def test_what_is_less_than_a_message_waits_for_the_rest_of_it(
    table: Callable[[dict[int, int]], Path],
) -> None:
    clock = Clock()
    backlog = Backlog({12345: 8192}, table({1: 8000}), clock)
    backlog.waits()
    clock.now += 60
    assert backlog.waits() == 0


def test_whether_somebody_listens(table: Callable[[dict[int, int]], Path]) -> None:
    assert 12345 in listening(table({}))
    assert 0x1111 not in listening(table({}))
