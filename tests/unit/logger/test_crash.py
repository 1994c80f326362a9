"""The logger's worker is killed at any moment: every message is stored once, and no connection notices."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

import pytest
from tests.support.site import SIZE, Serving, Site, Workers, reset, verify

from midstream.framing import Framing, encode
from midstream.sensor import Sensor, numbered_messages
from midstream.storage.store import FRAME


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["logger", "spool"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return Site(tmp_path, spool=request.param)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    return Workers(monkeypatch)


@pytest.mark.parametrize(
    ("kills", "messages", "rate"),
    [(3, 3000, 2000), pytest.param(100, 100_000, 2000, marks=pytest.mark.slow)],
)
def test_killed_again_and_again(site: Site, workers: Workers, kills: int, messages: int, rate: int) -> None:
    random = Random(5)
    killed = threading.Event()
    with Serving(site.config, spool=site.spool) as serving, Sensor(site.config) as sensor:
        sending = threading.Thread(
            target=sensor.run,
            args=(numbered_messages(SIZE, None),),
            kwargs={
                "rate": rate,
                "stop": lambda: killed.is_set() and sensor.summary.messages >= messages,
            },
        )
        sending.start()
        for _ in range(kills):
            time.sleep(2 * random.random() * messages / rate / kills)
            workers.kill()
        killed.set()
        sending.join(120)
        sent = sensor.summary
        messages = sent.messages
    assert sent.clean
    assert verify(site) == {(sent.sensor, sent.port): sent.digest}
    assert site.query("SELECT count(*), max(sequence) FROM messages") == [(messages, messages - 1)]
    assert site.query("SELECT count(*), sum(reset) FROM connections") == [(1, 0)]
    assert serving.summary.restarts == kills
    assert (serving.summary.messages, serving.summary.bytes) == (messages, messages * SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("framing", ["length", pytest.param("line", marks=pytest.mark.slow)])
def test_killed_inside_messages_longer_than_the_kernel_holds(
    site: Site, workers: Workers, framing: Framing
) -> None:
    """Their beginnings are stored as fragments, so that TCP's window does not stay closed."""
    site.configure(framing=framing, max_size=1 << 26)
    sizes = [12 << 20, 5, 0, 3 << 20, 1 << 20]
    messages = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    stream = b"".join(encode(framing, message, size=SIZE, max_size=1 << 26) for message in messages)
    fragments = "SELECT count(*) > 0 FROM fragments"
    with Serving(site.config, spool=site.spool) as serving, site.connect() as client:
        sending = threading.Thread(target=client.sendall, args=(stream,))
        sending.start()
        for _ in range(3):
            site.wait_for(fragments, [(True,)])
            workers.kill()
        sending.join(120)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(120)
        assert client.recv(1) == b""
    assert serving.summary.restarts == 3
    assert list(verify(site, frame=FRAME[framing]).values()) == [hashlib.sha256(stream).hexdigest()]
    assert site.query("SELECT length(payload) FROM messages ORDER BY sequence") == [
        (len(message),) for message in messages
    ]


@pytest.mark.slow
def test_killed_with_many_connections_open(site: Site, workers: Workers) -> None:
    """In every state: silent, with half a message, ended, reset, and accepted while no worker lived."""
    with Serving(site.config, spool=site.spool) as serving:
        clients = [site.connect() for _ in range(80)]
        for client in clients:
            client.sendall(bytes(SIZE) * 3 + b"half")
        site.wait_for("SELECT count(*) FROM messages", [(240,)])
        workers.kill()
        for client in clients[:20]:
            client.sendall(bytes(SIZE - 4))
        for client in clients[20:40]:
            client.shutdown(socket.SHUT_WR)
        for client in clients[40:60]:
            reset(client)
        late = [site.connect() for _ in range(20)]
        for client in late:
            client.sendall(b"late".ljust(SIZE))
            client.shutdown(socket.SHUT_WR)
        for client in (*clients[20:40], *late):
            assert client.recv(1) == b""
        site.wait_for("SELECT count(*) FROM connections WHERE reset", [(20,)])
        site.wait_for("SELECT count(*) FROM messages", [(240 + 20 + 20,)])
        workers.kill()
        for client in clients[:20]:
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
    verify(site)
    assert site.query("SELECT count(*), count(token), count(DISTINCT token) FROM connections") == [(100,) * 3]
    assert site.query(
        "SELECT reason, length(unfinished), count(*) FROM connections GROUP BY 1, 2 ORDER BY 3, 1"
    ) == [
        ("Connection reset by peer", 4, 20),
        ("end of stream", 4, 20),
        ("the logger was stopped", 4, 20),
        ("end of stream", None, 40),
    ]
    assert serving.summary.restarts == 2
    for client in (*clients, *late):
        client.close()


def test_the_holder_is_killed_and_what_was_acknowledged_is_stored(site: Site) -> None:
    """The worker has the sockets too: it stores what they hold, and ends them."""
    site.configure(interval=60)
    with start(site) as logger, site.connect() as client:
        client.sendall(bytes(SIZE) * 100 + b"half")
        time.sleep(0.2)
        logger.kill()
        logger.wait()
        client.settimeout(10)
        assert client.recv(1) == b""
    verify(site)
    assert site.query("SELECT reason, length(unfinished) FROM connections") == [("the logger was killed", 4)]
    assert site.query("SELECT count(*) FROM messages") == [(100,)]


def start(site: Site) -> subprocess.Popen[bytes]:
    """`midstream logger` as a process, listening."""
    command = [sys.executable, "-m", "midstream", "logger", "--config", str(site.config)]
    command += ["--spool"] if site.spool else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    assert b"listening" in process.stderr.readline()
    return process
