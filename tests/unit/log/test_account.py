"""The log knows what it lacks: complete, pending, forgotten, or a hole, whatever became of the
connections."""

import json
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.examples import examples
from tests.support.hosts import configure
from tests.support.logs import SECOND, START, LogFile

from midstream.cli import main
from midstream.cli.log import HOLE, PENDING
from midstream.errors import StoreError
from midstream.framing import Framing
from midstream.log.account import Account, Accounts, accounts, summary
from midstream.log.spans import Spans
from midstream.log.verify import verify
from midstream.storage.sql_log import SqlLog
from midstream.told import (
    CLOSED,
    LOST,
    OPEN,
    RESET,
    UNKNOWN,
    UNTOLD,
    Forgotten,
    HeldConnection,
    Knowledge,
    Pending,
)

SENSOR = "10.83.0.11"
SIZE = 32


def numbered(first: int, count: int) -> list[bytes]:
    return [struct.pack("<QQ", first + each, START).ljust(SIZE, b"x") for each in range(count)]


def held(
    messages: int, *, index: int = 0, state: str = CLOSED, here: bool = False, more: int = 0
) -> HeldConnection:
    """Connection `index` of the sensor: ports and first numbers are of its own."""
    return HeldConnection(
        SENSOR, 40000 + index, 7 + index, START + 60 * index * SECOND, messages * SIZE + more, state, here
    )


def waiting(index: int, first: int, last: int) -> Pending:
    """Messages `first` to `last` of connection `index`."""
    count = last + 1 - first
    start = START + 60 * index * SECOND
    return Pending(SENSOR, 40000 + index, 7 + index, start, first * SIZE, (last + 1) * SIZE, count, start)


def add(
    log: LogFile,
    payloads: list[bytes],
    index: int = 0,
    *,
    there: list[int] | None = None,
    closed: bool = True,
) -> int:
    return log.add(
        payloads,
        sensor=SENSOR,
        port=40000 + index,
        first=7 + index,
        start_ns=START + 60 * index * SECOND,
        step_ns=SECOND // 100,
        closed=closed,
        sequences=there,
    )


def of(log: LogFile) -> Accounts:
    with SqlLog(log.url) as opened:
        return accounts(opened, opened.told(), opened.connections(), opened.extents())


def lacks(log: LogFile) -> list[tuple[str, int | None]]:
    return [(lack.kind, lack.messages) for account in of(log).all for lack in account.lacks]


def test_a_log_that_nobody_has_told_does_not_know(log: LogFile) -> None:
    add(log, numbered(0, 5))
    found = of(log)
    assert (found.known, found.all) == (False, [])


def test_all_that_was_held_is_there(log: LogFile) -> None:
    key = add(log, numbered(0, 5))
    log.tell(Knowledge([held(5)]))
    found = of(log)
    assert found.by_id[key].verdict == "complete" and not found.by_id[key].lacks


def test_the_beginning_of_a_message_is_none(log: LogFile) -> None:
    add(log, numbered(0, 5))
    log.tell(Knowledge([held(5, more=SIZE - 1)]))
    assert lacks(log) == []


def test_a_tail_that_nobody_has_any_more_is_a_hole(log: LogFile) -> None:
    add(log, numbered(0, 5), closed=False)
    log.execute("UPDATE connections SET closed_ns = 1, reset = true")
    log.tell(Knowledge([held(8, state=RESET)]))
    assert lacks(log) == [("hole", 3)]


def test_what_is_in_the_spool_is_pending(log: LogFile) -> None:
    add(log, numbered(0, 10), there=[0, 1, 5, 6])
    log.tell(Knowledge([held(10)], [waiting(0, 2, 4)]))
    assert lacks(log) == [("pending", 3), ("hole", 3)]


def test_what_waits_of_a_connection_that_is_not_told_yet_is_pending(log: LogFile) -> None:
    add(log, numbered(0, 5))
    log.tell(Knowledge([held(5)], [waiting(1, 0, 3)]))
    assert lacks(log) == [("pending", 4)]
    assert [account.held.port for account in of(log).elsewhere()] == [40001]


def test_a_connection_of_which_nothing_is_stored(log: LogFile) -> None:
    add(log, numbered(0, 5))
    log.tell(Knowledge([held(5), held(4, index=1), held(0, index=2), held(6, index=3)], [waiting(3, 0, 5)]))
    assert lacks(log) == [("hole", 4), ("pending", 6)]
    assert [account.held.port for account in of(log).elsewhere()] == [40001, 40003]


@pytest.mark.parametrize("state", [OPEN, CLOSED])
def test_what_the_logger_has_not_committed_yet_is_coming(log: LogFile, state: str) -> None:
    """Its connection is open: here, at the hardworker, or at both."""
    add(log, numbered(0, 5), closed=False)
    log.tell(Knowledge([held(8, state=state)]))
    assert lacks(log) == [("coming", 3)]


def test_a_connection_whose_logger_died_is_pending_until_its_end_is_told(log: LogFile) -> None:
    key = add(log, numbered(0, 5), closed=False)
    log.add([], sensor=SENSOR, port=40000, first=99, start_ns=START + 3600 * SECOND)  # the port's next
    log.tell(Knowledge([held(4, state=OPEN)]))
    assert of(log).by_id[key].verdict == "pending" and lacks(log) == []
    log.execute(f"UPDATE held SET state = 'lost', held_bytes = {5 * SIZE}")
    assert of(log).by_id[key].verdict == "complete"


def test_nothing_comes_into_the_middle_of_an_open_connection(log: LogFile) -> None:
    add(log, numbered(0, 9), there=[0, 1, 4, 5], closed=False)
    log.tell(Knowledge([held(9, state=OPEN)]))
    assert lacks(log) == [("hole", 2), ("coming", 3)]


def test_a_full_spool_forgot_so_much_and_no_more(log: LogFile) -> None:
    add(log, numbered(0, 20), there=list(range(12, 20)))
    log.tell(Knowledge([held(20, here=True)], [], [Forgotten(SENSOR, START, START + SECOND, 10, 10 * SIZE)]))
    assert lacks(log) == [("forgotten", 10), ("hole", 2)]
    log.execute("UPDATE forgotten SET sensor = '10.83.0.12'")
    assert lacks(log) == [("hole", 12)]
    log.execute(
        f"UPDATE forgotten SET sensor = '{SENSOR}', first_ns = 1, last_ns = 2"
    )  # before it was opened
    assert lacks(log) == [("hole", 12)]


def test_what_was_removed_to_make_room_lacks_nothing(log: LogFile) -> None:
    add(log, numbered(0, 20), there=list(range(12, 20)))
    log.tell(Knowledge([held(20)]))
    log.execute("UPDATE connections SET pruned = 12")
    assert lacks(log) == []
    log.execute("DELETE FROM messages")
    log.execute("UPDATE connections SET pruned = 20")
    assert lacks(log) == []


def test_what_the_sensor_sent_again_is_there(log: LogFile) -> None:
    """Held and not acknowledged: it comes again on the next connection, and the numbers tell."""
    add(log, numbered(0, 10), there=list(range(7)))
    add(log, numbered(7, 50), index=1)
    log.tell(Knowledge([held(10, state=RESET), held(50, index=1)]))
    assert lacks(log) == [("again", 3)]
    assert {account.verdict for account in of(log).all} == {"complete"}


def test_what_the_sensor_did_not_send_again_is_not(log: LogFile) -> None:
    add(log, numbered(0, 10), there=list(range(7)))
    add(log, numbered(8, 50), index=1)
    log.tell(Knowledge([held(10, state=RESET), held(50, index=1)]))
    assert lacks(log) == [("hole", 3)]
    assert of(log).holes == {}  # the number that is missing is among them


def test_a_connection_whose_messages_all_came_again(log: LogFile) -> None:
    add(log, numbered(0, 10))
    add(log, numbered(10, 50), index=2)
    log.tell(Knowledge([held(10, state=RESET), held(6, index=1, state=RESET), held(50, index=2)]))
    assert lacks(log) == [("again", 6)]
    log.execute("DELETE FROM messages WHERE connection_id = 2 AND sequence > 4")
    assert lacks(log)[0] == ("hole", 6)


def test_a_gap_between_connections_that_is_explained_is_no_other_fault(log: LogFile) -> None:
    add(log, numbered(0, 10))
    add(log, numbered(30, 10), index=2)
    log.tell(Knowledge([held(10), held(20, index=1), held(10, index=2)], [waiting(1, 0, 19)]))
    assert (lacks(log), of(log).holes) == ([("pending", 20)], {})
    log.execute("DELETE FROM held WHERE port = 40001")
    log.execute("DELETE FROM pending")
    assert [hole.messages for hole in of(log).holes.values()] == [20]


def test_the_same_port_and_number_twice(log: LogFile) -> None:
    """A small stack begins with the same numbers after each start: then the time tells."""
    for minute in (0, 10):
        log.add(
            numbered(minute, 5 + minute),
            sensor=SENSOR,
            port=49152,
            first=6511,
            start_ns=START + minute * 60 * SECOND,
        )
    streams = [
        HeldConnection(
            SENSOR, 49152, 6511, START + minute * 60 * SECOND + 5, (5 + minute) * SIZE, CLOSED, False
        )
        for minute in (0, 10)
    ]
    log.tell(Knowledge(streams))
    assert [(len(account.connections), account.lacks) for account in of(log).all] == [(1, []), (1, [])]


def test_without_a_first_number_the_time_tells(log: LogFile) -> None:
    add(log, numbered(0, 5))
    log.execute("UPDATE connections SET first = NULL")
    log.tell(Knowledge([held(7)], [Pending(SENSOR, 40000, UNKNOWN, START + 1, 5 * SIZE, 6 * SIZE, 1, START)]))
    assert lacks(log) == [("pending", 1), ("hole", 1)]
    log.execute("UPDATE connections SET opened_ns = 1")
    assert lacks(log) == [("hole", 5), ("pending", 1), ("hole", 1)]


def test_connections_that_could_not_be_told_one_by_one(log: LogFile) -> None:
    add(log, numbered(0, 5))
    log.tell(Knowledge([held(5), HeldConnection(SENSOR, 0, 0, START, 4711, UNTOLD, False)]))
    assert [account.verdict for account in of(log).all] == ["complete", "hole"]


@pytest.mark.parametrize("framing", ["length", "line"])
def test_messages_without_a_size_are_counted_in_bytes(log: LogFile, framing: Framing) -> None:
    log.add([b"abc", b"de"], framing=framing, sensor=SENSOR, port=40000, first=7, closed=False)
    log.execute("UPDATE connections SET closed_ns = 1")
    frame = 4 if framing == "length" else 1
    log.tell(Knowledge([held(0, more=5 + 2 * frame + 6)]))
    (account,) = of(log).all
    assert [(lack.kind, lack.end - lack.start, lack.messages) for lack in account.lacks] == [
        ("hole", 6, None)
    ]


# the commands


@contextmanager
def ended(monkeypatch: pytest.MonkeyPatch, log: LogFile, *arguments: str) -> Iterator[list[int]]:
    code: list[int] = []
    monkeypatch.setattr(sys, "argv", ["midstream", "log", *arguments, "--database", log.url])
    with pytest.raises(SystemExit) as left:
        main()
    code.append(int(left.value.code or 0))
    yield code


@pytest.mark.parametrize(
    ("told", "code", "says"),
    [
        (Knowledge(), 0, "no hardworker has told this log what it held"),
        (Knowledge([held(10)]), 0, "log verify: 10 messages of 1 connections are right\n"),
        (Knowledge([held(12)]), HOLE, "of those that the hardworker held: 1 hole"),
        (Knowledge([held(12)], [waiting(0, 10, 11)]), PENDING, "1 pending"),
        (Knowledge([held(10), held(3, index=1)], [waiting(1, 0, 2)]), PENDING, "1 pending"),
        (Knowledge([held(10), held(3, index=1)]), HOLE, "1 hole"),
        (
            Knowledge([held(12)], [], [Forgotten(SENSOR, START, START, 2, 2 * SIZE)]),
            HOLE,
            "1 forgotten",
        ),
    ],
)
def test_verify_ends_with_a_code_for_each(
    log: LogFile,
    told: Knowledge,
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add(log, numbered(0, 10))
    log.tell(told)
    with ended(monkeypatch, log, "verify") as codes:
        assert (codes, says in capsys.readouterr().err) == ([code], True)


def test_damage_counts_for_more_than_a_hole(
    log: LogFile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add(log, numbered(0, 10))
    log.tell(Knowledge([held(12)]))
    log.execute("UPDATE messages SET payload = x'00' WHERE sequence = 4")
    with ended(monkeypatch, log, "verify") as codes:
        assert codes == [StoreError.exit_code]


def test_a_gap_that_the_account_explains_is_no_damage(log: LogFile) -> None:
    add(log, numbered(0, 10), there=[0, 1, 6, 7])
    log.tell(Knowledge([held(10)], [waiting(0, 2, 5)]))
    with SqlLog(log.url) as opened:
        (verdict,) = verify(opened, opened.connections())
    assert (verdict.faults, verdict.gaps, verdict.digest) == ([], 4, "none")
    assert verdict.account is not None and verdict.account.verdict == "hole"  # messages 8 and 9
    log.execute("UPDATE pending SET stream_start = 96")
    log.execute("UPDATE held SET held_bytes = 192")
    with SqlLog(log.url) as opened:
        (verdict,) = verify(opened, opened.connections())
    assert verdict.faults == ["its stream had 320 bytes, and 256 are stored"]


def test_list_names_what_is_lacking(
    log: LogFile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add(log, numbered(0, 10))
    log.tell(Knowledge([held(12), held(3, index=1)], [waiting(1, 0, 2)]))
    with ended(monkeypatch, log, "list"):
        out = capsys.readouterr().out
    assert out.splitlines()[1].split()[-1] == "hole"
    assert f"{SENSOR}: hole, of 2 connections that the hardworker held" in out
    assert "  connection 1: 2 messages, bytes 320 to 383, are missing: a hole" in out
    assert "no connection in the log: 3 messages, bytes 0 to 95, are pending in the hardworker's spool" in out
    with ended(monkeypatch, log, "list", "--json"):
        rows = json.loads(capsys.readouterr().out)
    assert [(row["connection"], row["verdict"], row["held"]) for row in rows] == [
        (1, "hole", 384),
        (None, "pending", 96),
    ]


def test_a_summary_of_each_sensor(log: LogFile) -> None:
    add(log, numbered(0, 10))
    add(log, numbered(10, 10), index=1, there=[0, 1, 2, 8, 9])  # the gap is not looked for
    log.add(numbered(0, 3), sensor="10.83.0.12", port=5, first=7)
    other = HeldConnection("10.83.0.12", 5, 7, START, 3 * SIZE, CLOSED, False)
    log.tell(Knowledge([held(12), held(15, index=1), other], [waiting(1, 10, 13)]))
    with SqlLog(log.url) as opened:
        found = summary(opened)
    assert found == {
        SENSOR: {
            "verdict": "hole",
            "connections": 2,
            "pending_bytes": 4 * SIZE,
            "lost_bytes": SIZE,  # what the first one lacks came again
            "lost_messages": 1,
            "oldest_pending_ns": START + 60 * SECOND,
        },
        "10.83.0.12": {
            "verdict": "complete",
            "connections": 1,
            "pending_bytes": 0,
            "lost_bytes": 0,
            "lost_messages": 0,
            "oldest_pending_ns": None,
        },
    }


def test_status_on_the_logger_says_it(
    log: LogFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add(log, numbered(0, 10))
    log.tell(Knowledge([held(12)]))
    config = configure(tmp_path)
    config.write_text(f'role = "logger"\n{config.read_text()}[logger]\ndatabase = "{log.url}"\n')
    monkeypatch.setattr(sys, "argv", ["midstream", "status", "--config", str(config)])
    with pytest.raises(SystemExit) as left:
        main()
    assert (left.value.code or 0) == 0
    said = f"log: {SENSOR}: hole, 1 connections were held, 64 bytes are missing"
    assert said in capsys.readouterr().out


# any history


@dataclass(frozen=True)
class History:
    """A connection of a sensor. back: how many numbers it sends again. fates: of each message."""

    back: int
    fates: str  # of letters: s stored, p in the spool, f forgotten by it, n nowhere
    state: str


def histories() -> st.SearchStrategy[list[History]]:
    """The spool has one stretch of a connection, and forgets its beginning."""
    fates = st.builds(
        lambda stored, forgotten, nowhere, pending, tail: (
            "s" * stored + "f" * forgotten + "n" * nowhere + "p" * pending + tail
        ),
        *(st.integers(0, 4) for _ in range(4)),
        st.sampled_from(["", "s", "ss", "n", "sn"]),
    )
    one = st.builds(History, st.integers(0, 3), fates, st.sampled_from([CLOSED, RESET, LOST]))
    return st.lists(one, min_size=1, max_size=5)


def expected(history: list[History]) -> str:
    """A model that looks at each number: where is it, anywhere?"""
    place: dict[int, set[str]] = {}
    following = 0
    for each in history:
        begin = max(0, following - each.back)
        for number, fate in enumerate(each.fates, begin):
            place.setdefault(number, set()).add(fate)
        following = max(following, begin + len(each.fates))
    lacking = [fates for fates in place.values() if "s" not in fates]
    if all("p" in fates for fates in lacking):
        return "pending" if lacking else "complete"
    return "hole" if any(fates == {"n"} for fates in lacking) else "lacking"


def tables(log: LogFile, history: list[History]) -> None:
    """What logger and hardworker have written down of a history, and nothing else."""
    for table in ("messages", "connections", "held", "pending", "forgotten"):
        log.execute(f"DELETE FROM {table}")
    told, following = Knowledge(), 0
    log.add(numbered(0, 1), sensor="10.83.0.12")  # from which the size of messages is known
    for index, each in enumerate(history):
        count = len(each.fates)
        begin = max(0, following - each.back)
        following = max(following, begin + count)
        if there := [place for place, fate in enumerate(each.fates) if fate == "s"]:
            add(log, numbered(begin, count), index, there=there)
        told.held.append(held(count, index=index, state=each.state))
        if "p" in each.fates:
            told.pending.append(waiting(index, each.fates.index("p"), each.fates.rindex("p")))
        if forgotten := each.fates.count("f"):
            when = START + 60 * index * SECOND
            told.forgotten.append(Forgotten(SENSOR, when, when, forgotten, forgotten * SIZE))
    log.tell(told)


@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories())
def test_any_history_is_judged_right(log: LogFile, history: list[History]) -> None:
    """What the verdict of the whole log promises holds: complete only if each number is stored, and
    pending only if each number is stored or in the spool. It errs on one side only, where a connection has
    a gap."""
    tables(log, history)
    found = of(log)
    verdicts = {account.verdict for account in found.all}
    truth = expected(history)
    if verdicts <= {"complete"}:
        assert truth == "complete"
    elif verdicts <= {"complete", "pending"}:
        assert truth in ("complete", "pending")
    if truth == "hole":
        assert verdicts & {"hole", "forgotten"}
    if not any(each.back for each in history):
        assert_exact(history, found.all)


def assert_exact(history: list[History], found: list[Account]) -> None:
    """Where nothing is sent again, each message has the verdict that it was given, the forgotten in sum."""
    for each, account in zip(history, found, strict=True):
        kinds = {"p": "pending", "f": "gone", "n": "gone"}
        wanted = [kinds[fate] for fate in each.fates if fate != "s"]
        told = [
            "gone" if lack.kind in ("forgotten", "hole") else lack.kind
            for lack in account.lacks
            for _ in range(lack.messages or 0)
        ]
        assert told == wanted
    forgotten = sum(
        lack.messages or 0 for account in found for lack in account.lacks if lack.kind == "forgotten"
    )
    assert forgotten == sum(each.fates.count("f") for each in history)


@given(*(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30))) for _ in range(2)))
def test_spans_are_sets(mine: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    def members(spans: Spans | list[tuple[int, int]]) -> set[int]:
        return {each for start, end in spans for each in range(start, end)}

    one, other = Spans(mine), Spans(others)
    assert members(one) == members(mine)
    assert members(one.without(other)) == members(mine) - members(others)
    assert members(one.within(other)) == members(mine) & members(others)
    assert all(first[1] < second[0] for first, second in zip(list(one), list(one)[1:], strict=False))
