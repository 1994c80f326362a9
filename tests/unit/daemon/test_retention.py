"""What is retained for the logger in use, word by word, with a ring and a logger that are made up."""

from collections.abc import Mapping
from ipaddress import IPv4Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from midstream.cli.kernel import retained_lines
from midstream.daemon.retention import ALL, LINGER, Retention
from midstream.daemon.sockets import LoggerWord, Socket
from midstream.ebpf.control import Ended, Open
from midstream.ebpf.records import FIN, HERE, RESET
from midstream.ebpf.retained import Retained, Stored
from midstream.lost import Lost

SENSOR = IPv4Address("192.0.2.11")
SIZE = 10


class Ring:
    """What the kernel has, and what its reader is told."""

    def __init__(self) -> None:
        self.opened: dict[int, Open] = {}
        self.records: dict[int, Retained] = {}
        self.told: dict[int, int] | None = None
        self.known = self.renewed = 0

    def open(self, number: int, port: int, destination: int = 0) -> None:
        self.opened[number] = Open(
            SENSOR, port, 1000 + number, 7, 0, number, 0, destination, opened_ns=5 * number, seen_ns=0
        )
        self.records[number] = Retained(0, port, [])

    def store(self, number: int, count: int = 1) -> None:
        """So many records of SIZE bytes."""
        for _ in range(count):
            held = self.opened[number].next
            self.records[number].records.append(Stored(held, 1000 + held, 0, bytes([number]) * SIZE))
            self._update(number, next=held + SIZE)

    def end(self, number: int, *, reset: bool = False) -> Ended:
        one = self.opened.pop(number)
        self.records[number].records.append(Stored(one.next, 2000, RESET if reset else FIN, b""))
        known = one.ip, one.port, one.first, one.next, one.number, 0, one.destination, one.opened_ns
        return Ended(*known, reset=reset)

    def _update(self, number: int, **changes: int) -> None:
        self.opened[number] = Open(**{**vars(self.opened[number]), **changes})

    # as Retention sees it

    def connections(self) -> list[Open]:
        return list(self.opened.values())

    def tell(self, committed: Mapping[str, Mapping[int, int]], known: Mapping[str, int]) -> None:
        self.told, self.known = dict(committed.get("data", {})), known.get("data", 0)

    def renew(self) -> None:
        self.renewed += 1

    def withdraw(self) -> None:
        self.told = None

    def retained(self) -> dict[int, Retained]:
        return self.records


class World:
    """batch_interval is 0, and so LINGER all that is waited for."""

    def __init__(self) -> None:
        self.ring = Ring()
        self.retention = Retention(self.ring, 0.0, lambda: (10**9, 0), self._ask)
        self.destination = 0
        self.ends: list[Ended] = []  # of which nobody has told

    def _ask(self) -> None:
        self.retention.note_ends(self.ring.connections(), self.ends)
        self.ends = []

    def hear(self, *sockets: tuple[int, int, int], run: str = "a", times: int = 1) -> list[Lost]:
        """sockets: port, key, committed."""
        word = LoggerWord(run, len(sockets), tuple(Socket(SENSOR, *each) for each in sockets))
        lost: list[Lost] = []
        for _ in range(times):
            lost += self.retention.hear(self.destination, word)
        return lost

    def retained(self, number: int) -> int:
        """Bytes of its stream before which nothing is retained."""
        assert self.ring.told is not None
        return self.ring.told.get(number, ALL if number <= self.ring.known else 0)


def test_the_reader_is_told_what_the_logger_has_committed() -> None:
    world = World()
    world.ring.open(1, 4001)
    world.ring.store(1, 5)
    world.hear()
    assert world.retained(1) == 0
    world.hear((4001, 77, 30))
    assert world.retained(1) == 30
    world.hear((4001, 77, 20))
    assert world.retained(1) == 30, "the kernel's counts are a lower bound"
    world.hear((4001, 77, 51))
    assert world.retained(1) == 50, "a FIN is no byte of it"


@pytest.mark.parametrize(
    "seen", ["open", "ended", "ended, and not told", "before it was left", "when it was left"]
)
def test_what_was_refused_and_goes_elsewhere_now_was_not_lost(seen: str) -> None:
    """Its SYN went to the logger, which was no more. The next SYN keeps the number, and goes to this host."""
    world = World()
    world.ring.open(1, 4001)
    world.hear()
    world.ring.open(2, 4002)
    world.hear()
    world.ring._update(2, destination=HERE, first=5000)
    world.ring.store(2)
    if seen == "open":
        world.hear()
    elif seen == "before it was left":
        world.retention.look()
    elif seen == "ended":
        world.retention.note_ends([], [world.ring.end(2)])
    elif seen == "ended, and not told":
        world.ends.append(world.ring.end(2))
    world.ring.store(1)
    assert [lost.port for lost in world.retention.leave()] == [4001]


def test_a_number_is_of_its_latest_syn() -> None:
    world = World()
    world.ring.open(1, 4001)
    world.hear()
    world.ring._update(1, first=5000, opened_ns=77)
    world.ring.store(1)
    (lost,) = world.retention.leave()
    assert (lost.first, lost.opened_ns) == (5000, 10**9 + 77)


def test_what_goes_to_this_host_is_not_retained() -> None:
    world = World()
    world.ring.open(1, 4001, HERE)
    world.hear()
    assert world.retained(1) == ALL
    assert world.retained(2) == 0, "it may go to the logger"


def test_a_connection_that_has_ended_is_retained_until_it_is_stored() -> None:
    world = World()
    world.ring.open(1, 4001)
    world.ring.store(1, 5)
    world.hear((4001, 77, 0))
    world.retention.note_ends([], [world.ring.end(1)])
    world.hear((4001, 77, 20), times=50)
    assert world.retained(1) == 20
    world.hear((4001, 77, 50))
    assert world.retained(1) == ALL


def test_a_socket_that_is_gone_was_stored_after_a_while() -> None:
    world = World()
    world.ring.open(1, 4001)
    world.ring.store(1, 5)
    world.hear((4001, 77, 20))
    world.retention.note_ends([], [world.ring.end(1, reset=True)])
    world.hear(times=round(LINGER / 0.1))
    assert world.retained(1) == 20
    world.hear(times=5)
    assert world.retained(1) == ALL


def test_one_that_came_and_went_unseen_is_retained() -> None:
    """It opened and ended between two words: only the queue of ends tells of it."""
    world = World()
    world.hear()
    world.ring.open(1, 4001)
    world.ring.store(1, 2)
    gone = world.ring.end(1)
    world.hear()
    assert world.retained(1) == 0
    world.retention.note_ends([], [gone])
    world.hear()
    assert (world.retained(1), world.ring.known) == (0, 1)
    (lost,) = world.retention.leave()
    assert (lost.first, lost.closed, len(lost.parts)) == (1001, True, 2)


def test_a_port_that_is_used_again() -> None:
    """The logger still has the first connection's socket when the second one opens."""
    world = World()
    world.ring.open(1, 4001)
    world.ring.store(1, 5)
    world.hear((4001, 77, 10))
    world.retention.note_ends([], [world.ring.end(1, reset=True)])
    world.ring.open(2, 4001)
    world.ring.store(2, 1)
    world.hear((4001, 77, 20))
    assert (world.retained(1), world.retained(2)) == (20, 0)
    world.hear((4001, 78, 10), (4001, 77, 30))
    assert (world.retained(1), world.retained(2)) == (30, 10)


def test_a_logger_that_fails_leaves_what_it_has_not_committed() -> None:
    world = World()
    world.ring.open(1, 4001)
    world.ring.store(1, 5)
    world.hear((4001, 77, 25))
    world.retention.renew()
    world.ring.store(1)
    world.ring.open(2, 4002)
    world.ring.store(2)
    world.retention.look()
    world.ring.end(1, reset=True)
    world.ring.end(2, reset=True)
    first, second = world.retention.leave()
    assert [part.offset for part in first.parts] == [20, 30, 40, 50]
    assert (first.sensor, first.port, first.first, first.committed) == (str(SENSOR), 4001, 1001, 25)
    assert (first.opened_ns, first.parts[0].received_ns, first.closed) == (10**9 + 5, 10**9 + 1020, False)
    assert (second.port, second.committed, len(second.parts)) == (4002, 0, 1)
    assert world.ring.told is None, "nothing is retained any more"
    assert world.retention.leave() == []


def test_another_run_has_lost_what_was_not_committed() -> None:
    world = World()
    world.ring.open(1, 4001)
    world.ring.store(1, 5)
    world.hear((4001, 77, 10))
    assert world.hear(run="") == [], "it does not listen just now"
    (lost,) = world.hear(run="b")
    assert [part.offset for part in lost.parts] == [10, 20, 30, 40]
    assert world.hear(run="b") == []
    assert world.retained(1) == 50


def test_a_silent_logger_holds_what_it_said() -> None:
    world = World()
    world.retention.renew()
    assert world.ring.renewed == 0, "nothing was said"
    world.hear()
    world.retention.renew()
    assert world.ring.renewed == 1


@example([("open", 0), ("word", 0), ("store", 0), ("end", 0), ("word", 0)])
@example([("open", 0), ("ends", 0), ("store", 0), ("end", 0), ("word", 0)])
@given(
    st.lists(
        st.tuples(st.sampled_from(["open", "store", "end", "commit", "word", "ends"]), st.integers(0, 3)),
        max_size=60,
    )
)
def test_nothing_is_given_back_that_was_not_committed(steps: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order: the ring and the logger's database have all, together."""
    world, stored = World(), dict[int, int]()
    ends: list[Ended] = []
    sockets: dict[int, int] = {}  # the numbers of connections that the logger has, by port
    number = 0
    for step, port in steps:
        current = sockets.get(port)
        if step == "open" and (current is None or current not in world.ring.opened):
            number += 1
            world.ring.open(number, port)
            sockets[port], stored[number] = number, 0
        elif step == "store" and current in world.ring.opened:
            world.ring.store(current)
        elif step == "end" and current in world.ring.opened:
            ends.append(world.ring.end(current))
        elif step == "commit" and current is not None:
            held = sum(len(each.data) for each in world.ring.records[current].records)
            stored[current] = min(stored[current] + SIZE, held)
        elif step == "ends":
            world.retention.note_ends(world.ring.connections(), ends)
            ends = []
        elif step == "word":
            world.hear(*((at, 100 + which, stored[which]) for at, which in sockets.items()))
        if world.ring.told is not None:
            for which in set(sockets.values()):
                held = sum(len(each.data) for each in world.ring.records[which].records)
                assert min(world.retained(which), held) <= stored[which]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, []),
        ({"retains": True, "forfeited": 0}, []),
        ({"retains": None, "forfeited": None}, []),
        ({"retains": True, "forfeited": 1234}, ["1,234 bytes of the ring were not retained"]),
        ({"retains": True, "unsaved": 5678}, ["5,678 bytes that a logger may have lost are not"]),
        ({"retains": False, "forfeited": 0}, ["is not retained: its daemon does not say"]),
        ({"retains": False, "forfeited": 0, "destination": "spool"}, []),
    ],
)
def test_status_says_what_is_not_retained(told: dict[str, object], words: list[str]) -> None:
    said = list(retained_lines({"destination": "192.0.2.3", **told}))
    assert len(said) == len(words)
    assert all(word in line for word, line in zip(words, said, strict=True))
