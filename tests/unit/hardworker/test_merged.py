"""Several streams: each by itself, and all of them as one."""

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.examples import examples
from tests.support.exchanges import KEY, write_key
from tests.support.hosts import LOGGER, SENSORS, configure
from tests.support.reader import later
from tests.support.several import GPS, IMU, LIDAR, SIZE, STREAMS, RingSite, content, write_files

from midstream.config import HardworkerSection
from midstream.ebpf import irq_mitigation
from midstream.errors import ConfigError, KernelError
from midstream.hardworker import Hardworker, Message, pinned, reader, waiting, watch
from midstream.hardworker.cadence import Cadence
from midstream.hardworker.source import Beginning
from midstream.line import Line
from midstream.page import Row, pack

NAMES = (IMU, GPS, LIDAR)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> RingSite:
    return RingSite(monkeypatch)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_files(tmp_path)


def named(messages: list[Message]) -> list[tuple[str, int]]:
    return [(message.stream, message.sequence) for message in messages]


# one of them


def test_a_stream_is_opened_alone(site: RingSite, config: Path) -> None:
    with Hardworker(config) as hardworker:
        assert site.opened == []
        gps = hardworker.stream(GPS)
        assert site.opened == [GPS]
        site.begin()
        for name in NAMES:
            site.put(name, 3)
        found = list(gps.messages())
        assert found[1] == Message(SENSORS[0], 2, 1, 5, content(GPS, 1), GPS)
        assert len(found) == 3
        assert gps.config.data.framing == "line" and gps.topology.port == 12348
        assert hardworker.stream(GPS) is gps is gps.stream(GPS)
        assert site.opened == [GPS]
    assert site.rings[GPS].consumer == site.rings[GPS].producer
    assert site.rings[IMU].consumer == 0
    assert site.reading[GPS].closed == 1
    with pytest.raises(ConfigError, match="closed; use it inside"):
        gps.latest()


def test_a_stream_has_arrays_of_its_fields(site: RingSite, config: Path) -> None:
    with Hardworker(config) as hardworker:
        site.begin()
        site.put(IMU, 7)
        imu = hardworker.stream(IMU)
        sequence, seq, gyro = next(imu.columns("sequence", "seq", "gyro"))
        assert sequence.tolist() == seq.tolist() == list(range(7))
        assert gyro.shape == (7, 3) and gyro.dtype == "<f4"
        site.put(IMU, 2, piece=10)
        (gyro,) = next(imu.columns("gyro"))
        assert gyro.shape == (2, 3), "of messages that were put together, too"
        site.put(IMU, 300)
        (gyro,) = next(imu.columns("gyro"))
        assert gyro.shape == (300, 3)
        assert imu.fields(imu.batch)["gyro"].shape == (300, 3)
        assert imu.message_size == SIZE


def test_one_stream_is_named_at_once(site: RingSite, config: Path) -> None:
    with Hardworker(config, stream=LIDAR) as lidar:
        assert site.opened == [LIDAR]
        assert lidar.stream(LIDAR) is lidar
        assert lidar.stream(GPS).config.stream_name == GPS


def test_the_only_stream_is_the_hardworker(tmp_path: Path, site: RingSite) -> None:
    hardworker = Hardworker(configure(tmp_path))
    assert hardworker.stream("data") is hardworker
    path = write_files(tmp_path, streams=STREAMS[:1])
    with Hardworker(path) as hardworker:
        assert site.opened == [IMU]
        assert hardworker.stream(IMU) is hardworker
        site.begin(IMU)
        site.put(IMU)
        assert [message.stream for message in hardworker.messages()] == [IMU]
        with pytest.raises(ConfigError, match=r'there is no stream "gps"; there are imu'):
            hardworker.stream(GPS)


def test_an_unknown_stream_is_refused_and_the_others_named(site: RingSite, config: Path) -> None:
    with (
        Hardworker(config) as hardworker,
        pytest.raises(ConfigError, match=r'no stream "camera"; there are imu, gps, lidar'),
    ):
        hardworker.stream("camera")
    with pytest.raises(ConfigError, match=r'no stream "camera"'):
        Hardworker(config, stream="camera")
    with pytest.raises(ConfigError, match="closed; use it inside"):
        hardworker.stream(IMU)


@pytest.mark.parametrize(
    "use",
    [
        lambda hardworker: hardworker.read(),
        lambda hardworker: hardworker.batches(),
        lambda hardworker: hardworker.columns("seq"),
        lambda hardworker: hardworker.batch,
        lambda hardworker: hardworker.fields(None),
    ],
)
def test_arrays_are_of_one_stream(site: RingSite, config: Path, use: Callable[[Hardworker], object]) -> None:
    with (
        Hardworker(config) as hardworker,
        pytest.raises(ConfigError, match=r'of one stream.* imu, gps, lidar.*hardworker\.stream\("imu"\)'),
    ):
        use(hardworker)
    assert site.opened == []


def test_a_stream_that_is_not_of_one_size_has_no_arrays(site: RingSite, config: Path) -> None:
    with (
        Hardworker(config) as hardworker,
        pytest.raises(ConfigError, match=r'stream "gps": framing = "line": read\(\) gives arrays'),
    ):
        hardworker.stream(GPS).read()


def test_a_stream_that_was_closed_is_opened_again(site: RingSite, config: Path) -> None:
    with Hardworker(config) as hardworker:
        with hardworker.stream(IMU) as imu:
            site.begin(IMU)
            site.put(IMU, 2)
            assert len(imu.read()) == 2
        site.put(IMU)
        assert hardworker.stream(IMU).read()["offset"].tolist() == [2 * SIZE]
        assert site.opened == [IMU, IMU]


def test_a_stream_is_read_once(site: RingSite, config: Path) -> None:
    with Hardworker(config) as hardworker:
        hardworker.latest()
        with pytest.raises(ConfigError, match="reads all streams already, and so imu, too"):
            hardworker.stream(IMU)
    with Hardworker(config) as hardworker:
        hardworker.stream(GPS)
        with pytest.raises(KernelError, match="another application reads"):
            hardworker.latest()
        assert site.reading[IMU].closed, "what was opened is closed again"
        hardworker.stream(IMU)


def test_after_an_exception_nothing_is_committed(site: RingSite, config: Path) -> None:
    def fail() -> None:
        with Hardworker(config) as hardworker:
            assert len(hardworker.stream(IMU).read()) == 1
            raise ZeroDivisionError

    site.begin()
    site.put(IMU)
    with pytest.raises(ZeroDivisionError):
        fail()
    with Hardworker(config, stream=IMU) as imu:
        assert len(imu.read()) == 1


def test_stop_ends_all(site: RingSite, config: Path) -> None:
    with Hardworker(config) as hardworker, later(hardworker.stop):
        assert list(hardworker.stream(IMU)) == []
        assert hardworker.stream(GPS).stopped


# all of them


def test_all_are_read_in_turn(site: RingSite, config: Path) -> None:
    with Hardworker(config) as hardworker:
        site.begin()
        site.put(LIDAR, 50)
        site.put(IMU, 3)
        site.put(GPS, 1)
        found = list(hardworker.messages())
        assert set(site.opened) == set(NAMES)
        assert Counter(message.stream for message in found) == {LIDAR: 50, IMU: 3, GPS: 1}
        assert {message.stream for message in found[:3]} == set(NAMES)
        assert {message.stream for message in found[7:]} == {LIDAR}
        for name in NAMES:
            own = [message for message in found if message.stream == name]
            assert [message.payload for message in own] == [content(name, n) for n in range(len(own))]
        totals = hardworker.totals
        assert (totals.messages, totals.opened, hardworker.connections) == (54, 3, 3)
        assert 0 < hardworker.fill < 1
        assert hardworker.commit()
        assert hardworker.fill == 0
    assert all(ring.consumer == ring.producer for ring in site.rings.values())
    assert all(source.closed == 1 for source in site.reading.values())


def test_bulk_delays_others_by_a_message(site: RingSite, config: Path) -> None:
    """A message that comes while an application is slow with another stream's backlog is the next but one."""
    with Hardworker(config) as hardworker:
        site.begin()
        site.put(LIDAR, 30)
        found = []
        for message in hardworker.messages():
            found.append(message.stream)
            time.sleep(0.002)
            if message.stream == LIDAR and len(found) < 30:
                site.put(IMU)
    for place, stream in enumerate(found[:28]):
        assert stream == IMU or IMU in found[place + 1 : place + 3]


def test_latest_is_of_any_stream(site: RingSite, config: Path) -> None:
    with Hardworker(config) as hardworker:
        site.begin()
        assert hardworker.latest() is None
        site.put(GPS, 2)
        assert named([hardworker.latest(SENSORS[0]) or Message("", 0, 0, 0, b"")]) == [(GPS, 1)]


def test_iterations_wait_for_any_stream(site: RingSite, config: Path) -> None:
    with Hardworker(config) as hardworker:
        site.begin()
        messages = iter(hardworker)
        for name in (IMU, LIDAR, GPS, LIDAR):
            with later(lambda name=name: site.put(name)):  # type: ignore[misc]  # mypy knows no such default
                assert next(messages).stream == name
        assert not hardworker.wait(0.01)
        with later(lambda: site.put(GPS)):
            assert hardworker.wait(5.0)


def test_an_event_loop_waits_for_any_stream(site: RingSite, config: Path) -> None:
    async def three(hardworker: Hardworker) -> list[str]:
        found = []
        async for message in hardworker:
            found.append(message.stream)
            if len(found) == 3:
                hardworker.stop()
        return found

    def put() -> None:
        for name in NAMES:
            site.put(name)

    with Hardworker(config) as hardworker, later(put):
        site.begin()
        assert sorted(asyncio.run(three(hardworker))) == sorted(NAMES)


def test_a_hardworker_that_read_nothing_opens_nothing_at_its_end(site: RingSite, config: Path) -> None:
    with Hardworker(config) as hardworker:
        assert hardworker.totals.messages == 0
    assert site.opened == []


def test_the_cadence_is_that_of_the_fastest(site: RingSite, tmp_path: Path) -> None:
    path = write_files(tmp_path, {IMU: "period = 0.03", LIDAR: "period = 5.0"})
    with Hardworker(path) as hardworker:
        site.begin()
        begun = time.monotonic()
        assert hardworker.wait() and hardworker.wait()
        assert 0.02 < time.monotonic() - begun < 1.0


def test_readers_follow_the_interface_only_if_all_streams_have_a_period() -> None:
    fast, slow, any_time = (HardworkerSection(period=period) for period in (0.002, 0.1, 0.0))
    assert Cadence.of([slow], [slow]) == Cadence(0.1, irq_mitigation.follow(0.1))
    assert Cadence.of([slow], [fast, slow]) == Cadence(0.1, irq_mitigation.follow(0.002))
    assert Cadence.of([fast, slow], [fast, slow]) == Cadence(0.002, irq_mitigation.follow(0.002))
    assert Cadence.of([fast], [fast, any_time]) == Cadence(0.002)
    assert Cadence.of([any_time], [fast, any_time]) == Cadence(0.0)
    assert Cadence.of([fast], [HardworkerSection(period=0.002, irq_mitigation=False)]) == Cadence(0.002)


def test_who_is_silent(site: RingSite, tmp_path: Path) -> None:
    """Whoever misses the deadline of a stream that it has sent."""
    path = write_files(tmp_path, {IMU: "deadline = 0.2", LIDAR: "deadline = 0.7"})
    with Hardworker(path) as hardworker:
        site.begin()
        assert hardworker.silent == ()
        time.sleep(0.2)
        assert hardworker.silent == tuple(SENSORS), "nobody has sent anything"
        site.put(GPS, moment=time.monotonic_ns())
        assert hardworker.silent == tuple(SENSORS), "this stream has no deadline"
        site.put(IMU, moment=time.monotonic_ns())
        assert hardworker.silent == (), "nobody waits for a stream that a sensor never sent"
        site.put(LIDAR, moment=time.monotonic_ns())
        time.sleep(0.2)
        assert hardworker.silent == (SENSORS[0],)
        site.put(IMU, moment=time.monotonic_ns())
        assert hardworker.silent == ()
        time.sleep(0.6)
        site.put(IMU, moment=time.monotonic_ns())
        assert hardworker.silent == (SENSORS[0],)
        site.put(LIDAR, moment=time.monotonic_ns())
        assert hardworker.silent == ()


def test_a_deadline_ends_a_wait(site: RingSite, tmp_path: Path) -> None:
    path = write_files(tmp_path, {IMU: "deadline = 0.2", LIDAR: "deadline = 50.0"})
    with Hardworker(path) as hardworker:
        assert hardworker.stream(LIDAR).silent == ()
        assert not hardworker.stream(IMU).wait(5.0)
        assert hardworker.stream(IMU).silent == tuple(SENSORS)
    with Hardworker(path) as hardworker:
        assert not hardworker.wait(5.0)
        assert hardworker.silent == tuple(SENSORS)


# the end of a program


@dataclass
class Held:
    """The descriptors of a ring, as the watch sees them."""

    place: Path = Path("/pins/hardworker")
    is_gone: bool = False
    is_linked: bool = True


@pytest.fixture
def held(site: RingSite, monkeypatch: pytest.MonkeyPatch) -> dict[str, Held]:
    for module in (watch, waiting, reader):
        monkeypatch.setattr(module, "INTERVAL", 0.02)
    monkeypatch.setattr(pinned, "open_ring", site.open_ring)
    site.held = {name: Held() for name in NAMES}
    return site.held


def test_what_is_in_the_rings_is_delivered_to_the_end(
    site: RingSite, config: Path, held: dict[str, Held]
) -> None:
    found = []

    def read(hardworker: Hardworker) -> None:
        for message in hardworker:
            found.append(message)
            time.sleep(0.005)

    with Hardworker(config) as hardworker:
        site.begin()
        for name in NAMES:
            site.put(name, 20)
            held[name].is_gone = True
        with pytest.raises(KernelError, match="nothing writes into any more"):
            read(hardworker)
    assert Counter(message.stream for message in found) == dict.fromkeys(NAMES, 20)


@pytest.mark.parametrize("gone", [NAMES, (GPS,)])
def test_each_stream_is_followed(
    site: RingSite, config: Path, held: dict[str, Held], gone: tuple[str, ...]
) -> None:
    with Hardworker(config, follow=True) as hardworker:
        site.begin()
        messages = iter(hardworker)
        for name in NAMES:
            site.put(name)
        assert {next(messages).stream for _ in NAMES} == set(NAMES)
        before = {name: site.reading[name] for name in gone}
        site.kill()
        for name in gone:
            held[name].is_gone = True
            site.held[name] = Held()  # of its new ring
            site.rings[name] = type(site.rings[name])(1 << 16)
            site.ends[name] = 0
        site.begin(*gone)
        for name in NAMES:
            site.put(name)
        assert {next(messages).stream for _ in NAMES} == set(NAMES)
        assert all(source.closed == 1 for source in before.values())
        totals = hardworker.totals
        assert (totals.messages, totals.opened) == (6, 3 + len(gone))


# history


class Remembering(threading.Thread):
    """A logger that has stored one message of each stream; `asked`: what it was asked, by stream."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__()
        self._listener = listener
        self.asked: dict[str, object] = {}
        self.start()

    def run(self) -> None:
        for _ in NAMES:
            with Line(self._listener.accept()[0], KEY, asks=False) as line:
                head, _ = line.receive()
                self.asked[head["stream"]] = head["beginnings"][SENSORS[0]]
                line.send({"seen": True})
                line.receive()
                row = Row(0, 0, 7, 0, head["stream"].encode())
                line.send({"connection": 40, "sensor": SENSORS[0], "messages": 1}, pack([row]))
                line.send({"end": True})


def test_each_stream_has_its_history(site: RingSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_key(tmp_path / "key", KEY)
    with socket.create_server((LOGGER, 0)) as listener:
        port = listener.getsockname()[1]
        path = write_files(tmp_path, settings=f'[logger]\nreplay_port = {port}\n[daemon]\nkey = "key"\n')
        logger = Remembering(listener)
        with Hardworker(path) as hardworker:
            assert hardworker.connections == 0
            for number, name in enumerate(NAMES):
                begun = [Beginning(0, number, 10 + number, 20 + number, name)]
                monkeypatch.setattr(site.reading[name], "beginnings", lambda begun=begun: begun)
            site.begin()
            site.put(GPS)
            found = list(islice(hardworker.replay(), 4))
        logger.join()
    assert logger.asked == {name: [[n, 10 + n, 20 + n]] for n, name in enumerate(NAMES)}
    stored = [Message(SENSORS[0], -1 - n, 0, 7, name.encode(), name) for n, name in enumerate(NAMES)]
    assert found == [*stored, Message(SENSORS[0], 2, 0, 5, content(GPS, 0), GPS)]


# the property


@st.composite
def scripts(draw: st.DrawFn) -> list[tuple[str, Any]]:
    puts = st.tuples(
        st.just("put"), st.tuples(st.sampled_from(NAMES), st.integers(1, 5), st.sampled_from([0, 0, 3, 17]))
    )
    takes = st.tuples(st.just("take"), st.integers(0, 8))
    ends = st.tuples(st.sampled_from(["commit", "close", "kill"]), st.none())
    torn = st.tuples(st.just("torn"), st.integers(0, 2))
    return draw(st.lists(st.one_of(puts, puts, takes, takes, ends, torn), max_size=40))


class KilledError(Exception):
    """The process is gone."""


@settings(
    max_examples=examples(80), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(script=scripts())
def test_every_message_once_and_in_order_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: list[tuple[str, Any]]
) -> None:
    """Once: but for what a reader had not committed when it was killed, under the same numbers."""
    site, path = RingSite(monkeypatch), write_files(tmp_path)
    site.begin()
    known = dict.fromkeys(NAMES, 0)  # messages that were delivered
    committed = dict(known)

    def take(messages: list[Message]) -> None:
        for message in messages:
            expected = following[message.stream]
            assert (message.sequence, message.payload) == (expected, content(message.stream, expected))
            assert message.connection == NAMES.index(message.stream) + 1
            following[message.stream] += 1
            known[message.stream] = max(known[message.stream], expected + 1)

    def start() -> Hardworker:
        following.update(committed)
        return Hardworker(path, autocommit=False).__enter__()

    following = dict(known)
    hardworker = start()
    for step, given_ in script:
        if step == "put":
            name, count, piece = given_
            site.put(name, count, piece)
        elif step == "take":
            found = []
            for message in hardworker.messages():
                found.append(message)
                if len(found) > given_:
                    break
            take(found)
        elif step == "commit":
            assert hardworker.commit()
            committed.update(following)
        elif step == "torn" and site.reading:
            _kill_in_commit(hardworker, site, given_, monkeypatch)
            # The streams up to it are committed; the others are given again.
            for name in NAMES[:given_]:
                committed[name] = following[name]
            hardworker = start()
        elif step in ("close", "kill"):
            if step == "close":
                hardworker.close()
            site.kill()
            hardworker = start()
    take(list(hardworker.messages()))
    hardworker.close()
    assert known == site.numbers


def _kill_in_commit(
    hardworker: Hardworker, site: RingSite, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It commits so many streams, and is killed."""

    def killed() -> bool:
        raise KilledError

    monkeypatch.setattr(site.reading[NAMES[place]], "commit", killed)
    before = hardworker.totals.messages
    if hardworker._reader._state is not reader.State.COMMITTED:
        with pytest.raises(KilledError):
            hardworker.commit()
    assert hardworker.totals.messages == before
    site.kill()
