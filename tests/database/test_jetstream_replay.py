"""A logger whose database is a JetStream: what a hardworker that was down, and `log verify`, get of it."""

import socket
import time
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pytest
from tests.database import servers
from tests.support.exchanges import Young, exchanging, message, send
from tests.support.fake_ring import FakeRing, Segment
from tests.support.site import Serving, Site

from midstream.ebpf.records import OPEN
from midstream.framing import Framing, encode
from midstream.hardworker import Hardworker
from midstream.hardworker.source import Beginning
from midstream.log.messages import LogReader
from midstream.log.selection import Selection
from midstream.log.verify import verify
from midstream.storage.jetstream_log import JetStreamLog


@pytest.fixture
def site(tmp_path: Path, cluster: servers.Nats, stream: str) -> Site:
    made = Site(tmp_path, cluster.url(stream))
    servers.patient(made.url).close()
    return exchanging(made)


@pytest.mark.slow
def test_history_and_then_the_ring(site: Site) -> None:
    ring = FakeRing(1 << 16)
    with Serving(site.config):
        send(site, range(3000))
        send(site, range(5))
        between = datetime.now(UTC)
        send(site, range(2))
        with Hardworker(site.config, source=(source := Young(ring))) as hardworker:
            now = time.time_ns()
            port = send(site, range(7))  # through the ring too
            source.noted.append(Beginning(0, port, 0, now))
            ring.put(Segment(1, 0, 40000, 0, 5, OPEN, b""), capacity=None)
            ring.put(Segment(1, 0, 40000, 0, 5, 0, b"".join(map(message, range(7)))), capacity=None)
            got = list(islice(hardworker.replay(), 3014))
        with Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker:
            recent = list(islice(hardworker.replay(between), 9))
    assert [found.connection for found in got] == [-1] * 3000 + [-2] * 5 + [-3] * 2 + [1] * 7
    assert [found.sequence for found in got] == [*range(3000), *range(5), *range(2), *range(7)]
    assert [found.payload for found in got] == [message(found.sequence) for found in got]
    assert {found.sensor for found in got} == {"127.0.0.11"}
    assert [found.sequence for found in recent] == [*range(2), *range(7)]


@pytest.mark.slow
@pytest.mark.parametrize("framing", ["length", "line"])
def test_what_a_logger_has_written_is_right(site: Site, framing: Framing) -> None:
    """Frames are part of the stream's digest; so is a message that never became whole."""
    site.configure(framing=framing, max_size=1_000_000)
    payloads = [b"%d" % number * (number % 50 + 1) for number in range(1200)] + [b"x" * 700_000]
    frames = b"".join(encode(framing, payload, size=0, max_size=1 << 20) for payload in payloads)
    unfinished = encode(framing, b"y" * 500, size=0, max_size=1 << 20)[:300]
    with Serving(site.config) as serving, site.connect() as client:
        client.sendall(frames + unfinished)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        serving.stop()
    with JetStreamLog(site.url) as log:
        (connection,) = log.connections()
        assert (connection.unfinished, connection.framing) == (unfinished, framing)
        (verdict,) = verify(log, [connection])
        assert (verdict.faults, verdict.digest, verdict.messages) == ([], "right", len(payloads))
        found = [each.payload for piece in LogReader(log, Selection()).read() for each in piece]
        assert found == payloads
