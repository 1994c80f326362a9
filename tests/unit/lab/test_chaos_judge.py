"""The judge of tests/lab/test_chaos.py sees each kind of fault, and excuses only what happened."""

import numpy as np
import pytest
from tests.lab.chaos.application import ROW
from tests.lab.chaos.client import Connection
from tests.lab.chaos.judge import Event, Row, Verdict, judge
from tests.lab.chaos.messages import DATA, MIX, SIZE, Flow

PORT, COUNT = 10_001, 6
CONNECTION = Connection(0, PORT, 100, 10.0, COUNT * SIZE, COUNT * SIZE, 20.0, "clean")
LOGGED = [(place, 100 + place) for place in range(COUNT)]


def life(*places: int, connection: int = 1, committed: bool = True, numbers: int = 100) -> np.ndarray:
    """What an application writes that is given the messages at these places."""
    rows = np.zeros(len(places) + committed, ROW)
    if committed:
        rows["committed"][-1] = 1
    given = rows[: len(places)]
    given["connection"], given["port"] = connection, PORT
    given["offset"] = np.array(places) * SIZE
    given["number"] = np.array(places) + numbers
    return rows


def judged(*lives: np.ndarray, logged: list[Row] = LOGGED, events: tuple[Event, ...] = ()) -> Verdict:
    return judge([CONNECTION], {PORT: lives}, {PORT: logged}, events)


def test_a_message_is_known_by_its_bytes() -> None:
    assert DATA.identity(DATA.message(1, 7, PORT)) == (1, 7, PORT)
    assert DATA.identity(DATA.message(1, 7, PORT)[:-1] + b"?") is None


def test_all_is_well() -> None:
    verdict = judged(life(*range(COUNT)))
    assert (verdict.delivered, verdict.logged, verdict.faults) == (COUNT, COUNT, [])


def test_what_was_not_committed_comes_again() -> None:
    assert not judged(life(0, 1), life(2, 3, committed=False), life(2, 3, 4, 5)).faults


@pytest.mark.parametrize(
    ("lives", "words"),
    [
        ([life(0, 1, 1, 2, 3, 4, 5)], "within a life"),
        ([life(0, 2, 3, 4, 5)], "within a life"),
        ([life(0, 1, 3, 2, 4, 5)], "within a life"),
        ([life(0, 1, 2), life(2, 3, 4, 5)], "goes on at 2 after 3, of which 3 were committed"),
        ([life(0, 1), life(3, 4, 5)], "goes on at 3"),
        ([life(*range(COUNT), numbers=101)], "another message of this sensor"),
        ([life(0, 1, 2)], "3 of 6 acknowledged messages are missing"),
        ([life(*range(COUNT + 1))], "were sent"),
    ],
)
def test_a_fault_at_the_application(lives: list[np.ndarray], words: str) -> None:
    assert words in judged(*lives).faults[0]


@pytest.mark.parametrize(
    ("logged", "words"),
    [
        (LOGGED[:4], "log: 2 of 6 acknowledged messages are missing"),
        ([*LOGGED[:2], *LOGGED[3:]], "instead of 102 at 2"),
        ([*LOGGED[:5], (5, -1)], "message -1"),
    ],
)
def test_a_fault_in_the_log(logged: list[Row], words: str) -> None:
    assert words in judged(life(*range(COUNT)), logged=logged).faults[0]


def test_only_what_happened_while_it_was_there_excuses() -> None:
    killed = Event("holder killed", 12.0, 13.0)
    assert not judged(life(*range(COUNT)), logged=LOGGED[:4], events=(killed,)).faults
    later = Event("holder killed", 21.0, 22.0)
    assert judged(life(*range(COUNT)), logged=LOGGED[:4], events=(later,)).faults


def test_a_stranger_in_the_log() -> None:
    verdict = judge([], {}, {PORT: LOGGED}, ())
    assert verdict.faults == [f"port {PORT}: of no client's connection that was accounted for"]


@pytest.mark.parametrize("flow", MIX, ids=lambda flow: flow.name)
def test_messages_of_each_framing_are_counted(flow: Flow) -> None:
    messages = [flow.message(3, number, PORT) for number in range(5, 105)]
    assert [flow.identity(each) for each in messages] == [(3, number, PORT) for number in range(5, 105)]
    assert flow.identity(messages[0][:-1] + b"?") is None
    assert flow.identity(b"\xff") is None
    sizes = {len(each) for each in messages}
    assert flow.size - flow.varies <= min(sizes) and max(sizes) <= flow.size
    assert (len(sizes) > 10) == bool(flow.varies)
    stream = b"".join(map(flow.framed, messages))
    assert flow.bytes(5, 100) == len(stream)
    assert (flow.whole(5, len(stream)), flow.begun(5, len(stream))) == (100, 100)
    assert (flow.whole(5, len(stream) - 1), flow.begun(5, len(stream) - 1)) == (99, 100)
    assert (flow.whole(5, 0), flow.begun(5, 0)) == (0, 0)
