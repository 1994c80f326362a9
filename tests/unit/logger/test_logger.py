"""The logger over loopback TCP: what was sent is in the database, however connection and logger end."""

import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.support.site import SIZE, TOS, Serving, Site, ThreadWorker, reset

from midstream.errors import NetworkError, StoreError
from midstream.framing import Framing, encode
from midstream.logger import Logger, server
from midstream.sensor import Sensor, file_messages, numbered_messages


@pytest.fixture(autouse=True)
def worker_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts faster; that it is a process is what test_logger_crash.py is about."""
    monkeypatch.setattr(server, "_start_worker", ThreadWorker)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_every_message_of_a_sensor_is_stored(site: Site) -> None:
    before = time.time_ns()
    with Serving(site.config) as serving, Sensor(site.config) as sensor:
        sent = sensor.run(numbered_messages(SIZE, 5000), rate=0)
        # A clean close says that all is stored: no waiting here.
        assert sent.clean
        stored = site.query("SELECT sensor, port, sequence, payload, received_ns FROM log ORDER BY sequence")
        ends = site.query("SELECT sensor, port, bytes, digest, reset, reason, unfinished FROM connections")
    assert ends == [(sent.sensor, sent.port, sent.bytes, sent.digest, 0, "end of stream", None)]
    assert [row[:3] for row in stored] == [("127.0.0.1", sent.port, number) for number in range(5000)]
    assert hashlib.sha256(b"".join(row[3] for row in stored)).hexdigest() == sent.digest
    assert all(before <= row[4] <= time.time_ns() for row in stored)
    summary = serving.summary
    assert (summary.connections, summary.messages, summary.bytes) == (1, 5000, 5000 * SIZE)
    assert (summary.unfinished, summary.resets, summary.framing_errors) == (0, 0, 0)
    assert 1 <= summary.commits < 500
    assert summary.seconds > 0


@pytest.mark.parametrize("framing", ["fixed", "length", "line"])
def test_framings(site: Site, framing: Framing) -> None:
    site.configure(framing=framing)
    messages = [bytes([65 + n]) * (SIZE if framing == "fixed" else n) for n in range(20)]
    stream = b"".join(encode(framing, m, size=SIZE, max_size=1 << 20) for m in messages)
    with Serving(site.config) as serving, site.connect() as client:
        for start in range(0, len(stream), 13):
            client.sendall(stream[start : start + 13])
            time.sleep(0.001)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert site.query("SELECT sequence, payload FROM log ORDER BY sequence") == list(enumerate(messages))
    assert site.query("SELECT bytes, digest, reason FROM connections") == [
        (len(stream), hashlib.sha256(stream).hexdigest(), "end of stream")
    ]
    assert serving.summary.messages == 20


@pytest.mark.slow
def test_many_connections_at_once(site: Site) -> None:
    clients = 600
    with Serving(site.config) as serving:
        sockets = [site.connect() for _ in range(clients)]
        for turn in range(3):
            for number, client in enumerate(sockets):
                client.sendall(struct.pack("<II", number, turn).ljust(SIZE, b"\0"))
        ports = [client.getsockname()[1] for client in sockets]
        for client in sockets:
            client.shutdown(socket.SHUT_WR)
        for client in sockets:
            assert client.recv(1) == b""
            client.close()
    expected = [
        (port, turn, struct.pack("<II", number, turn).ljust(SIZE, b"\0"))
        for number, port in enumerate(ports)
        for turn in range(3)
    ]
    assert site.query("SELECT port, sequence, payload FROM log ORDER BY port, sequence") == sorted(expected)
    assert site.query("SELECT count(*), sum(bytes), sum(reset) FROM connections") == [
        (600, 600 * 3 * SIZE, 0)
    ]
    assert (serving.summary.connections, serving.summary.messages) == (600, 1800)


def test_a_connection_without_data_gets_a_row(site: Site) -> None:
    with Serving(site.config) as serving, site.connect() as client:
        port = client.getsockname()[1]
        site.wait_for("SELECT sensor, port, closed_ns FROM connections", [("127.0.0.1", port, None)])
        serving.stop()
    assert site.query("SELECT bytes, digest, reason FROM connections") == [
        (0, hashlib.sha256().hexdigest(), "the logger was stopped")
    ]


def test_a_client_killed_mid_message(site: Site) -> None:
    code = f"""
import socket, time
client = socket.create_connection(("127.0.0.1", {site.port}))
client.sendall(bytes({SIZE}) + b"half")
print(flush=True)
time.sleep(60)
"""
    with Serving(site.config) as serving:
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            client.stdout.readline()
            client.kill()
        site.wait_for("SELECT unfinished, reset FROM connections", [(b"half", 0)])
    assert site.query("SELECT sequence, payload FROM log") == [(0, bytes(SIZE))]
    stream = bytes(SIZE) + b"half"
    assert site.query("SELECT bytes, digest FROM connections") == [
        (len(stream), hashlib.sha256(stream).hexdigest())
    ]
    assert (serving.summary.unfinished, serving.summary.resets) == (1, 0)


def test_a_reset_is_recorded_with_what_came_before_it(site: Site) -> None:
    with Serving(site.config) as serving:
        client = site.connect()
        client.sendall(bytes(SIZE) + b"half")
        site.wait_for("SELECT count(*) FROM messages", [(1,)])
        reset(client)
        site.wait_for("SELECT reset, unfinished FROM connections", [(1, b"half")])
    assert "reset" in str(site.query("SELECT reason FROM connections"))
    assert (serving.summary.unfinished, serving.summary.resets) == (1, 1)


def test_a_framing_error_closes_the_connection_and_keeps_what_was_right(site: Site) -> None:
    site.configure(framing="length", max_size=100)
    right = encode("length", b"right", size=SIZE, max_size=100)
    wrong = (101).to_bytes(4, "big") + b"x"
    with Serving(site.config) as serving, site.connect() as client, site.connect() as other:
        client.sendall(right + wrong)
        assert client.recv(1) == b""  # at once: the bytes before and after the fault came in one piece
        other.sendall(right)
        other.shutdown(socket.SHUT_WR)
        assert other.recv(1) == b""  # the others do not notice
    assert site.query("SELECT payload FROM log") == [(b"right",), (b"right",)]
    ((reason, unfinished),) = site.query(
        "SELECT reason, unfinished FROM connections WHERE unfinished IS NOT NULL"
    )
    assert "101 bytes, but the longest allowed is 100" in str(reason)
    assert unfinished == wrong
    assert (serving.summary.framing_errors, serving.summary.unfinished) == (1, 1)


def test_stop_commits_everything_that_was_received(site: Site) -> None:
    site.configure(interval=60, logger="batch_size = 1000000\n")
    with Serving(site.config) as serving, site.connect() as client:
        client.sendall(bytes(SIZE) * 300 + b"rest")
        time.sleep(0.2)
        assert site.query("SELECT count(*) FROM messages") == [(0,)]  # they wait for their commit
        serving.stop()
    assert site.query("SELECT count(*) FROM messages") == [(300,)]
    assert site.query("SELECT reason, unfinished FROM connections") == [("the logger was stopped", b"rest")]
    assert (serving.summary.messages, serving.summary.bytes) == (300, 300 * SIZE + 4)


def test_a_stop_while_a_sensor_sends_keeps_a_prefix_and_tells_the_sensor(site: Site) -> None:
    told: list[BaseException] = []

    def send(sensor: Sensor) -> None:
        try:
            sensor.run(numbered_messages(SIZE, None), rate=0)
        except NetworkError as error:
            told.append(error)

    with Serving(site.config) as serving, Sensor(site.config) as sensor:
        sending = threading.Thread(target=send, args=(sensor,))
        sending.start()
        site.wait_for("SELECT count(*) > 100 FROM messages", [(1,)])
        serving.stop()
        sending.join(10)
    assert len(told) == 1
    assert not sensor.summary.clean
    ((count, last),) = site.query("SELECT count(*), max(sequence) FROM messages")
    assert (count, last) == (serving.summary.messages, serving.summary.messages - 1)
    assert count <= sensor.summary.messages + 1
    ((size, unfinished),) = site.query("SELECT bytes, coalesce(length(unfinished), 0) FROM connections")
    assert size == serving.summary.bytes == count * SIZE + unfinished  # every byte that was read is stored


def test_stop_reads_what_the_kernel_holds(site: Site) -> None:
    """Sent and closed while nobody served: all of it is acknowledged, so all of it must be stored."""
    with Logger(site.config) as logger:
        for _ in range(20):
            with site.connect() as client:
                client.sendall(bytes(SIZE) * 100)
        summary = logger.serve(lambda: True)
    assert site.query("SELECT count(*) FROM messages") == [(2000,)]
    assert site.query("SELECT DISTINCT reason FROM connections") == [("end of stream",)]
    assert (summary.connections, summary.messages) == (20, 2000)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_commits_everything(site: Site, sign: signal.Signals) -> None:
    site.configure(interval=60)
    code = f"""
import signal, sys
from midstream.logger import Logger
stop = []
if {int(sign)} == signal.SIGTERM:  # as the command line does; an embedding program gets a KeyboardInterrupt
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
with Logger({str(site.config)!r}) as logger:
    print("ready", flush=True)
    try:
        logger.serve(lambda: bool(stop))
    except KeyboardInterrupt:
        sys.exit(7)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with site.connect() as client:
            client.sendall(bytes(SIZE) * 100)
            site.wait_for("SELECT count(*) FROM messages", [(0,)])
            time.sleep(0.3)
            process.send_signal(sign)
            assert process.wait(10) == (7 if sign == signal.SIGINT else 0)
    assert site.query("SELECT count(*) FROM messages") == [(100,)]
    assert site.query("SELECT reason FROM connections") == [("the logger was stopped",)]


def test_timeout_ends_serving(site: Site) -> None:
    with Logger(site.config) as logger:
        summary = logger.serve(timeout=0.2)
        assert 0.2 <= summary.seconds < 2
        with pytest.raises(NetworkError, match="call serve once"):
            logger.serve(timeout=0.2)


def test_restart_continues_the_database(site: Site) -> None:
    for _ in range(2):
        with Serving(site.config), Sensor(site.config) as sensor:
            assert sensor.run(numbered_messages(SIZE, 3), rate=0).clean
    assert site.query("SELECT connection_id, sequence FROM log ORDER BY 1, 2") == [
        (connection, sequence) for connection in (1, 2) for sequence in range(3)
    ]


def test_a_transaction_holds_at_most_batch_size(site: Site) -> None:
    site.configure(logger="batch_size = 100\n")
    with Serving(site.config) as serving, Sensor(site.config) as sensor:
        assert sensor.run(numbered_messages(SIZE, 5000), rate=0).clean
    assert serving.summary.commits >= 50
    assert site.query("SELECT count(*) FROM messages") == [(5000,)]


def test_the_listener_bears_the_mark(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies are known by it on their way back; accepted sockets inherit it."""
    options = []

    class Recorder(socket.socket):
        def listen(self, backlog: int = 128) -> None:
            options.append(self.getsockopt(socket.IPPROTO_IP, socket.IP_TOS))
            options.append(self.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            super().listen(backlog)

    monkeypatch.setattr(socket, "socket", Recorder)
    with Logger(site.config):
        assert options == [TOS, 1]


def test_the_port_is_taken(site: Site) -> None:
    with (
        socket.create_server(("127.0.0.1", site.port)),
        pytest.raises(
            NetworkError,
            match=rf"port {site.port} for the stream data: .*in use.*end the program",
        ),
        Logger(site.config),
    ):
        pass


def test_not_the_loggers_host(site: Site) -> None:
    const = site.folder / "const.toml"
    const.write_text(const.read_text().replace('"127.0.0.1"', '"192.0.2.7"'))
    with (
        pytest.raises(NetworkError, match=r"cannot listen on 192\.0\.2\.7 .*const\.toml"),
        Logger(site.config),
    ):
        pass


def test_a_wrong_database_url(site: Site) -> None:
    site.url = "oracel://host/db"
    site.configure()
    with pytest.raises(StoreError, match="no such kind of database"), Logger(site.config):
        pass


def test_a_file_with_a_ragged_end_arrives_bit_for_bit(site: Site, tmp_path: Path) -> None:
    content = os.urandom(200 * SIZE + 7)
    source = tmp_path / "input"
    source.write_bytes(content)
    with Serving(site.config), Sensor(site.config) as sensor, source.open("rb") as stream:
        sent = sensor.run(file_messages(stream, "fixed", SIZE), rate=0)
    payloads = site.query("SELECT payload FROM log ORDER BY sequence")
    ((digest, unfinished),) = site.query("SELECT digest, unfinished FROM connections")
    assert b"".join(row[0] for row in payloads) + unfinished == content
    assert digest == sent.digest


def test_no_window_stays_closed_on_the_rest_of_a_segment(site: Site) -> None:
    """A few unread bytes keep the memory of the large segment that they are the end of."""
    site.configure(framing="length")
    message = encode("length", bytes(993), size=SIZE, max_size=1 << 20)
    with Serving(site.config), site.connect() as client:
        for _ in range(10):
            client.sendall(message * 2000)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert site.query("SELECT count(*), sum(length(payload)) FROM messages") == [(20_000, 20_000 * 993)]


@pytest.mark.slow
def test_a_flood_leaves_room_for_others(site: Site) -> None:
    stop = threading.Event()
    with Serving(site.config), site.connect() as flood, site.connect() as other:

        def send() -> None:
            while not stop.is_set():
                flood.sendall(bytes(SIZE) * 4096)

        flooding = threading.Thread(target=send)
        flooding.start()
        try:
            port = other.getsockname()[1]
            for number in range(3):
                other.sendall(bytes(SIZE))
                sent = time.monotonic()
                site.wait_for(f"SELECT count(*) FROM log WHERE port = {port}", [(number + 1,)])
                assert time.monotonic() - sent < 5  # and not when the flood is over
        finally:
            stop.set()
            flooding.join(20)
        flood.shutdown(socket.SHUT_WR)


@pytest.mark.slow
def test_thousands_of_connections(site: Site) -> None:
    clients = 5000
    with Serving(site.config) as serving:
        sockets = [site.connect() for _ in range(clients)]
        for turn in range(5):
            for number, client in enumerate(sockets):
                client.sendall(struct.pack("<II", number, turn).ljust(SIZE, b"\0"))
        for client in sockets:
            client.shutdown(socket.SHUT_WR)
        for client in sockets:
            assert client.recv(1) == b""
            client.close()
    assert site.query("SELECT count(*) FROM messages") == [(5 * clients,)]
    assert serving.summary.restarts == serving.summary.waits == 0
