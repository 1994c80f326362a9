"""The replay: what the logger stored, and then the ring, without a seam."""

import socket
import time
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.exchanges import Young, asking, exchanging, message, send, write_key
from tests.support.fake_ring import FakeRing, Segment
from tests.support.site import Serving, Site

from midstream.ebpf.records import OPEN
from midstream.errors import ConfigError, NetworkError
from midstream.hardworker import Hardworker
from midstream.hardworker.source import Beginning
from midstream.logger import replaying
from midstream.storage.stored import StoredConnection


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return exchanging(Site(tmp_path))


def begun(site: Site, port: int) -> Beginning:
    """As the ring knows the connection from a port: with the number that the logger has, if it has one."""
    ((first, opened),) = site.query(f"SELECT first, opened_ns FROM connections WHERE port = {port}")
    return Beginning(0, port, first or 0, opened)


def test_history_and_then_the_ring(site: Site) -> None:
    ring = FakeRing(1 << 16)
    with Serving(site.config):
        send(site, range(3000))
        send(site, range(5))
        with Hardworker(site.config, source=(source := Young(ring))) as hardworker:
            port = send(site, range(7))  # through the ring too
            source.noted.append(begun(site, port))
            ring.put(Segment(1, 0, 40000, 0, 5, OPEN, b""), capacity=None)
            ring.put(Segment(1, 0, 40000, 0, 5, 0, b"".join(map(message, range(7)))), capacity=None)
            got = list(islice(hardworker.replay(), 3012))
    assert [found.connection for found in got] == [-1] * 3000 + [-2] * 5 + [1] * 7
    assert [found.sequence for found in got] == [*range(3000), *range(5), *range(7)]
    assert [found.payload for found in got] == [message(found.sequence) for found in got]
    assert {found.sensor for found in got} == {"127.0.0.11"}
    assert abs(got[0].time - time.time_ns()) < 60e9


@pytest.mark.slow
def test_since(site: Site) -> None:
    with Serving(site.config):
        send(site, range(3))
        time.sleep(0.05)
        between = datetime.now(UTC)
        send(site, range(4))
        with Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker:
            got = list(islice(hardworker.replay(between), 4))
            assert [found.sequence for found in got] == [0, 1, 2, 3]
            hardworker.stop()
            assert list(hardworker.replay(between + timedelta(hours=1))) == []


@pytest.mark.slow
def test_messages_of_an_open_connection_are_waited_for(site: Site) -> None:
    """What the logger's kernel has acknowledged is in the answer, although it was not committed."""
    with (
        Serving(site.config),
        socket.create_connection(("127.0.0.1", site.port), 10, ("127.0.0.11", 0)) as client,
    ):
        client.sendall(message(0))
        site.wait_for("SELECT count(*) FROM messages", [(1,)])
        with Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker:
            client.sendall(message(1))
            assert [found.sequence for found in islice(hardworker.replay(), 2)] == [0, 1]


@pytest.mark.slow
def test_what_the_ring_has_when_the_logger_has_looked_is_not_history(site: Site) -> None:
    """The first connection may open while the logger is asked: it is in its list, and in the ring."""
    with Serving(site.config), asking(site) as line:
        send(site, range(3))
        line.send({"kind": "replay", "since": 0, "beginnings": {"127.0.0.11": []}})
        port = send(site, range(5))
        assert line.receive()[0] == {"seen": True}
        line.send({"beginnings": {"127.0.0.11": [begun(site, port)[1:4]]}})
        head, _ = line.receive()
        assert head["messages"] == 3
        assert line.receive()[0] == {"end": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    "question",
    [
        {},
        {"since": 0},
        {"since": "0", "beginnings": {}},
        {"since": 0, "beginnings": []},
        {"since": 0, "beginnings": {"127.0.0.11": [[1]]}},
    ],
)
def test_what_is_no_question_ends_the_line(site: Site, question: dict[str, object]) -> None:
    with Serving(site.config), asking(site) as line:
        line.send({"kind": "replay"} | question)
        with pytest.raises(NetworkError, match=r"ended|reset"):
            line.receive()


@pytest.mark.slow
def test_another_key_gets_nothing(site: Site) -> None:
    with Serving(site.config), Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker:
        send(site, range(3))
        asking(site).close()  # it runs, and has read its key
        write_key(site.folder / "key", b"x" * 32)
        with pytest.raises(NetworkError, match="key"):
            next(hardworker.replay())


@pytest.mark.slow
def test_a_database_that_cannot_be_read_is_told(site: Site) -> None:
    with Serving(site.config), Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker:
        asking(site).close()
        (site.folder / "midstream.db").unlink()
        with pytest.raises(NetworkError, match=r"the logger cannot replay: .*no such file"):
            next(hardworker.replay())


def test_no_logger_and_no_replay(site: Site) -> None:
    with (
        Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker,
        pytest.raises(NetworkError, match=r"no answer.*logger.replay_port"),
    ):
        next(hardworker.replay())
    site.configure(logger="replay_port = 0\n")
    with (
        Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker,
        pytest.raises(ConfigError, match=r"logger.replay_port = 0"),
    ):
        next(hardworker.replay())


# what came before the ring


SENSORS = ("10.83.0.11", "10.83.0.12")


def stored(
    number: int, sensor: str, port: int, first: int | None, opened: int, spooled: bool = False
) -> StoredConnection:
    rest = (None, None, None, False, "", b"", "fixed", None, 0)
    return StoredConnection(number, sensor, port, opened, *rest, first=first, spooled=spooled)


def test_a_clock_that_steps_does_not_matter() -> None:
    """The logger's clock was years ahead before the ring began, and the hardworker's is years behind."""
    known = [
        stored(1, SENSORS[0], 1, 11, 9000),
        stored(2, SENSORS[0], 2, 12, 9001),
        stored(3, SENSORS[0], 3, 13, 100),
        stored(4, SENSORS[0], 4, 14, 101),
    ]
    found = replaying.before(known, {SENSORS[0]: frozenset({replaying.FirstConnection(3, 13, 5)})})
    assert [each.id for each in found] == [1, 2]


def test_a_logger_that_does_not_have_the_first_goes_by_the_time() -> None:
    known = [stored(number, SENSORS[0], number, None, number) for number in range(4)]
    found = replaying.before(known, {SENSORS[0]: frozenset({replaying.FirstConnection(2, 12, 2)})})
    assert [each.id for each in found] == [0, 1]


def test_a_connection_of_the_spool_has_a_later_number() -> None:
    """That of an earlier ring is history all the same, and that of this ring is not."""
    known = [
        stored(1, SENSORS[0], 1, 11, 10),
        stored(7, SENSORS[0], 2, 12, 20, True),
        stored(2, SENSORS[0], 3, 13, 30),
        stored(8, SENSORS[0], 4, 14, 40, True),
        stored(9, SENSORS[0], 5, 15, 29, True),  # noted, whatever a clock says
    ]
    named = frozenset({replaying.FirstConnection(3, 13, 30), replaying.FirstConnection(5, 15, 35)})
    assert [each.id for each in replaying.before(known, {SENSORS[0]: named})] == [1, 7]


@given(st.data())
def test_what_came_before_and_what_came_to_the_ring(data: st.DataObject) -> None:
    """Whatever the clocks say, and in whatever order the first few reached the logger."""
    past = data.draw(st.lists(st.sampled_from(SENSORS), max_size=8))
    later = data.draw(st.lists(st.sampled_from(SENSORS), min_size=1, max_size=12))
    firsts = {sensor: [place for place, of in enumerate(later) if of == sensor][:7] for sensor in SENSORS}
    order = data.draw(st.permutations([place for each in firsts.values() for place in each]))
    rest = [place for place in range(len(later)) if place not in order]
    times = st.integers(0, 2**62)
    known = [
        stored(number, sensor, number, 7 * number, data.draw(times)) for number, sensor in enumerate(past)
    ]
    for number, place in enumerate([*order, *rest], len(past)):
        known.append(stored(number, later[place], 1000 + place, 7 * place, data.draw(times)))
    known.sort(key=lambda each: (each.opened_ns, each.id))
    named = {
        sensor: frozenset(
            replaying.FirstConnection(1000 + place, 7 * place, data.draw(times)) for place in places
        )
        for sensor, places in firsts.items()
    }
    assert {each.id for each in replaying.before(known, named)} == set(range(len(past)))
