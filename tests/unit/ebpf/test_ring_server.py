"""Handing the ring over: who gets it, who does not, and what he is told.

The ring is two files in memory, and its pins are an empty folder; socket, descriptors and lock are real.
"""

import fcntl
import gc
import json
import mmap
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from midstream.ebpf import libbpf, pins, ring_server
from midstream.errors import ConfigError, KernelError

STAMP, OTHER = bytes(range(32)), bytes(32)
SIZE = 1 << 16
ACCEPTS = "00010000"  # __SO_ACCEPTCON (linux/net.h)
RING, JOURNAL, UNFINISHED = b"the ring", b"the journal", b"unfinished messages"


@pytest.fixture(autouse=True)
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a ring with STAMP seems to be pinned."""

    def verify(folder: Path, *, layout: bytes) -> None:
        if layout != STAMP:
            raise KernelError(f"{folder}: other files")

    def open_map(folder: Path, name: str, **options: Any) -> int:
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        contents = {
            "ring": RING,
            "journal": JOURNAL,
            "unfinished": UNFINISHED,
            "committed": b"what the logger has committed",
            "control": bytes(mmap.PAGESIZE),
            "beginnings": b"",
        }
        os.write(fd, contents[name])
        return fd

    monkeypatch.setattr(pins, "verify", verify)
    monkeypatch.setattr(pins, "open_map", open_map)
    monkeypatch.setattr(libbpf, "map_info", lambda fd: libbpf.MapInfo(27, 0, 0, SIZE, 1))
    folder = tmp_path / "pins"
    folder.mkdir()
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "ring.sock"


@pytest.fixture(autouse=True)
def no_descriptor_left_behind(pinned: Path) -> Iterator[None]:
    gc.collect()  # what earlier tests have left must not go meanwhile
    before = descriptors()
    yield
    assert descriptors() == before


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def settle(expected: int) -> None:
    """The server, which is a thread here, closes its own descriptors right after the application has its."""
    deadline = time.monotonic() + 5
    while (found := descriptors()) != expected and time.monotonic() < deadline:
        time.sleep(0.001)
    assert found == expected


@contextmanager
def serving(
    rings: Mapping[str, tuple[Path, bytes]] | Path, path: Path, *, mode: int = 0o660, group: str = ""
) -> Iterator[None]:
    stop = threading.Event()
    if isinstance(rings, Path):
        rings = {"": (rings, STAMP)}
    server = threading.Thread(
        target=ring_server.serve,
        args=(rings, path),
        kwargs={"mode": mode, "group": group, "stop": stop.is_set},
    )
    server.start()
    try:
        while not accepts(path):
            assert server.is_alive()
            time.sleep(0.005)
        yield
    finally:
        stop.set()
        server.join()


def accepts(path: Path) -> bool:
    """Does somebody listen? Bound alone is not enough. The kernel's list tells without disturbing him."""
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return any(fields[-1] == os.fspath(path) and fields[3] == ACCEPTS for fields in sockets)


def contents(fd: int) -> bytes:
    return os.pread(fd, 100, 0)


def refused(path: Path, stamp: bytes = STAMP, stream: str = "") -> str:
    with pytest.raises(KernelError) as caught:
        ring_server.request(path, stamp, stream)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@contextmanager
def answering(path: Path, answer: Callable[[socket.socket], object]) -> Iterator[None]:
    """A server that answers one application as it likes."""
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                answer(connection)

        server = threading.Thread(target=serve)
        server.start()
        try:
            yield
        finally:
            server.join()


# who gets it


def test_an_application_gets_ring_and_journal(pinned: Path, path: Path) -> None:
    with serving(pinned, path):
        ring = ring_server.request(path, STAMP)
        assert (contents(ring.ring), contents(ring.journal), ring.size) == (RING, JOURNAL, SIZE)
        assert not any(os.get_inheritable(fd) for fd in ring.descriptors)
        ring.close()


def test_a_hundred_applications_one_after_another(pinned: Path, path: Path) -> None:
    with serving(pinned, path):
        before = descriptors()
        for _ in range(100):
            ring_server.request(path, STAMP).close()
        settle(before)


def test_one_reader_at_a_time(pinned: Path, path: Path) -> None:
    with serving(pinned, path):
        first = ring_server.request(path, STAMP)
        assert "another application reads this ring already; end it first" in refused(path)
        with pytest.raises(KernelError, match="another application reads this ring already"):
            ring_server.open_pinned(pinned, STAMP)
        first.close()
        second = ring_server.open_pinned(pinned, STAMP)
        assert (contents(second.ring), contents(second.journal), second.size) == (RING, JOURNAL, SIZE)
        assert "another application reads this ring already" in refused(path)
        second.close()
        ring_server.request(path, STAMP).close()


def test_a_reader_keeps_the_ring_when_its_server_is_gone(pinned: Path, path: Path) -> None:
    with serving(pinned, path):
        first = ring_server.request(path, STAMP)
    with serving(pinned, path):
        assert "another application reads this ring already" in refused(path)
        assert contents(first.ring) == RING
        first.close()
        ring_server.request(path, STAMP).close()


def test_a_killed_reader_leaves_the_ring_to_the_next_at_once(pinned: Path, path: Path) -> None:
    with serving(pinned, path):
        before = descriptors()
        for _ in range(20):
            settle(before)  # a child must not inherit the server's
            ready, tell = os.pipe()
            child = os.fork()
            if child == 0:
                with suppress(BaseException):
                    ring_server.request(path, STAMP)
                    os.write(tell, b"!")
                    time.sleep(60)
                os._exit(1)
            os.close(tell)
            assert os.read(ready, 1) == b"!"
            os.close(ready)
            os.kill(child, 9)
            os.waitpid(child, 0)
            ring_server.request(path, STAMP).close()


def test_an_application_that_goes_before_it_is_answered_takes_nothing_with_it(
    pinned: Path, path: Path
) -> None:
    with serving(pinned, path):
        for _ in range(20):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as hasty:
                hasty.connect(os.fspath(path))
        deadline = time.monotonic() + 5
        while True:  # the last of them may be answered just now
            with suppress(KernelError):
                ring_server.request(path, STAMP).close()
                break
            assert time.monotonic() < deadline


@pytest.mark.parametrize("known", [False, True, None])
@pytest.mark.parametrize("told", [False, True])
def test_an_application_that_may_not_look_is_told(
    pinned: Path, monkeypatch: pytest.MonkeyPatch, known: bool | None, told: bool
) -> None:
    """Whether the program is on its interface: what this user sees counts before what the server says."""
    monkeypatch.setattr(pins, "is_linked", lambda folder, role: known)
    ring = ring_server.open_pinned(pinned, STAMP)
    os.pwrite(ring.control, (7).to_bytes(4, "little") + int(told).to_bytes(4, "little"), 0)
    assert ring.is_linked is (known if known is not None else not told)
    ring.close()


# who does not


def test_nobody_serves(path: Path) -> None:
    assert "No such file" in (text := refused(path))
    assert "`midstream attach hardworker --serve` has to run (`systemctl start midstream-ring`" in text


def test_a_socket_that_a_killed_server_left(pinned: Path, path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as killed:
        killed.bind(os.fspath(path))
    assert "Connection refused" in (text := refused(path))
    assert "`midstream attach hardworker --serve` has to run (`systemctl start midstream-ring`" in text
    with serving(pinned, path):  # and the next one is not in its way
        ring_server.request(path, STAMP).close()
    assert not path.exists()


def test_pins_of_other_files(pinned: Path, path: Path) -> None:
    with serving(pinned, path):
        text = refused(path, OTHER)
        assert "made from other files (stamp 000102030405, this" in text
        assert "give 000000000000); use the same files as `midstream attach`" in text
        ring_server.request(path, STAMP).close()  # the refused one has given everything back


def test_the_program_was_replaced_while_it_was_served(
    pinned: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(pinned, path):

        def verify(folder: Path, *, layout: bytes) -> None:
            raise KernelError(f"{folder}: no program is attached; run `midstream attach` on this host first")

        monkeypatch.setattr(pins, "verify", verify)
        assert refused(path) == f"{pinned}: no program is attached; run `midstream attach` on this host first"


def test_the_folder_has_just_gone(pinned: Path) -> None:
    pinned.rmdir()
    with pytest.raises(KernelError, match=r"pins: cannot be opened \(No such file or directory\)"):
        ring_server.open_pinned(pinned, STAMP)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), KernelError("settings: not permitted", errno=1)]
)
def test_pins_that_this_application_may_not_open(
    pinned: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def verify(folder: Path, *, layout: bytes) -> None:
        raise error

    monkeypatch.setattr(pins, "verify", verify)
    with pytest.raises(KernelError, match=r"[Pp]er.*needs hardworker.socket in config.toml, and `midstream"):
        ring_server.open_pinned(pinned, STAMP)


def test_what_was_opened_is_closed_when_the_journal_is_missing(
    pinned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = pins.open_map

    def open_map(folder: Path, name: str, **options: Any) -> int:
        if name == "journal":
            raise KernelError("no journal")
        return ring(folder, name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pins, "open_map", open_map)
        with pytest.raises(KernelError, match="no journal"):
            ring_server.open_pinned(pinned, STAMP)
    ring_server.open_pinned(pinned, STAMP).close()  # and the lock is free


@pytest.mark.parametrize("last", [lambda _: None, lambda connection: connection.recv(100)])
def test_a_server_that_goes_away(path: Path, last: Callable[[socket.socket], object]) -> None:
    with answering(path, last):
        assert "the server went away; try again" in refused(path)


def test_each_stream_has_a_ring_of_its_own(pinned: Path, path: Path) -> None:
    rings = {}
    for name in ("imu", "lidar"):
        rings[name] = (pinned / pins.STREAMS / name, STAMP)
        rings[name][0].mkdir(parents=True)
    with serving(rings, path):
        imu, lidar = (ring_server.request(path, STAMP, name) for name in rings)
        assert (imu.host, lidar.host) == ("../..", "../..")
        assert "another application reads this ring" in refused(path, stream="imu")
        imu.close()
        ring_server.request(path, STAMP, "imu").close()
        assert 'no stream "gps" is served here; there are imu, lidar' in refused(path, stream="gps")
        lidar.close()


@pytest.mark.parametrize("question", [b"", b"no JSON", b"[]", b'{"stream": []}'])
def test_a_question_that_makes_no_sense_stops_nobody(pinned: Path, path: Path, question: bytes) -> None:
    with serving({"": (pinned, STAMP)}, path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as strange:
            strange.connect(os.fspath(path))
            strange.send(question)
            strange.recv(100)
        ring_server.request(path, STAMP).close()


def test_a_server_that_does_not_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_server, "_PATIENCE", 0.05)
    with answering(path, lambda connection: (connection.recv(100), connection.recv(1))):
        assert "timed out" in (text := refused(path))
        assert text.endswith("is `midstream attach hardworker --serve` running?")


def test_too_few_descriptors(path: Path) -> None:
    """So it looks to a process that may not open so many: the kernel leaves out what has no room."""

    def answer(connection: socket.socket) -> None:
        assert json.loads(connection.recv(100)) == {"stream": ""}
        message = json.dumps({"layout": STAMP.hex(), "size": SIZE}).encode()
        with open(os.devnull, "rb") as file:
            socket.send_fds(connection, [message], [file.fileno()])

    with answering(path, answer):
        assert "no room for seven more descriptors" in refused(path)


def test_a_long_explanation_arrives_whole(pinned: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "é" * 5000

    def refuse(folder: Path, stamp: bytes) -> ring_server.RingDescriptors:
        raise KernelError(text)

    monkeypatch.setattr(ring_server, "open_pinned", refuse)
    with serving(pinned, path):
        assert refused(path) == text


# the socket


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_mode_and_group_are_as_configured(pinned: Path, path: Path, mode: int) -> None:
    with serving(pinned, path, mode=mode):
        state = path.stat()
        assert state.st_mode & 0o777 == mode
        assert (state.st_uid, state.st_gid) == (os.geteuid(), os.getegid())
    assert not path.exists()


def refused_socket(pinned: Path, path: Path, group: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        ring_server.serve({"": (pinned, STAMP)}, path, mode=0o660, group=group, stop=lambda: True)
    return str(caught.value)


def test_a_group_that_does_not_exist(pinned: Path, path: Path) -> None:
    text = refused_socket(pinned, path, "no-such-group")
    assert text.startswith('hardworker.socket_group = "no-such-group": there is no such group on this host;')
    assert not path.exists()


def test_a_place_where_no_socket_can_be(pinned: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    text = refused_socket(pinned, tmp_path / "file" / "ring.sock")
    assert text.startswith(f'hardworker.socket = "{tmp_path}/file/ring.sock": no socket can be made there (')
    assert text.endswith("; name another path in config.toml")
    assert "Address already in use" in refused_socket(pinned, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    assert "no socket can be made there" in refused_socket(pinned, tmp_path)


def test_a_socket_that_somebody_has_removed_is_made_again(pinned: Path, path: Path) -> None:
    with serving(pinned, path):
        path.unlink()
        deadline = time.monotonic() + 5
        while not (path.exists() and accepts(path)) and time.monotonic() < deadline:
            time.sleep(0.01)
        ring_server.request(path, STAMP).close()


def test_two_servers_do_not_share_a_socket(pinned: Path, path: Path) -> None:
    with serving(pinned, path):
        text = refused_socket(pinned, path)
        assert text == (
            f'hardworker.socket = "{path}": another process serves there already; end it first, '
            "or name another path in config.toml"
        )
        ring_server.request(path, STAMP).close()


def test_foreign_pins_are_not_served(pinned: Path, path: Path) -> None:
    with pytest.raises(KernelError, match="other files"):
        ring_server.serve({"": (pinned, OTHER)}, path, mode=0o660, group="", stop=lambda: True)
    assert not path.exists()


def test_the_lock_is_that_of_the_folder(pinned: Path) -> None:
    """Anybody who wants to know whether the ring is read can look, without asking midstream."""
    ring = ring_server.open_pinned(pinned, STAMP)
    fd = os.open(pinned, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    ring.close()
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
