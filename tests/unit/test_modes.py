"""What midstream makes has modes of its own: nothing is open under umask 0, nothing useless under 0777."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.site import Site

from midstream import key, modes
from midstream.daemon import status
from midstream.ebpf import compiler, ring_server
from midstream.sensor.record import Record

UMASKS = (0, 0o022, 0o077, 0o777)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def found(folder: Path) -> dict[str, int]:
    """The modes of all that lies in a folder, by name."""
    paths = sorted(path for path in folder.rglob("*") if not path.is_symlink())
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in paths}


@pytest.mark.parametrize("mask", UMASKS)
def test_what_others_need_or_must_not_have_is_the_same_under_every_umask(mask: int, tmp_path: Path) -> None:
    with umask(mask):
        key.make(tmp_path / "etc" / "key")
        with ring_server._listening(tmp_path / "run" / "ring.sock", 0o660, ""):
            pass
        listener = status._listen(tmp_path / "run2" / "deep" / "daemon.sock")
        listener.close()
    assert found(tmp_path) == {
        "etc": 0o755,
        "etc/key": 0o600,
        "run": 0o755,
        "run2": 0o755,
        "run2/deep": 0o755,
        "run2/deep/daemon.sock": 0o600,
    }


@pytest.mark.parametrize(("mask", "mode"), [(0, 0o644), (0o022, 0o644), (0o077, 0o600)])
def test_a_record_is_its_owners_and_a_stricter_umask_stays(mask: int, mode: int, tmp_path: Path) -> None:
    with umask(mask):
        Record(tmp_path / "sent").close()
    assert found(tmp_path) == {"sent": mode}


def test_the_compilers_cache_can_be_filled_by_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ring.c").write_text("int one(void);\nint one(void) { return 1; }\n")
    monkeypatch.setenv("MIDSTREAM_CACHE", str(tmp_path / "cache"))
    with umask(0):
        compiler.compile_library(tmp_path / "ring.c")
    open_ones = [name for name, mode in found(tmp_path / "cache").items() if mode & 0o022]
    assert open_ones == [] and len(found(tmp_path / "cache")) > 1


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0, 0o077])
def test_a_command_leaves_nothing_that_others_may_write(mask: int, tmp_path: Path) -> None:
    """A logger with its database, a sensor with its record, all of them processes of their own."""
    site = Site(tmp_path)
    with umask(mask):
        logger = subprocess.Popen(
            [sys.executable, "-m", "midstream", "logger", "--config", str(site.config)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert logger.stderr and "listening" in logger.stderr.readline()
        sent = ("--messages", "3", "--record", str(tmp_path / "sent"))
        subprocess.run(
            [sys.executable, "-m", "midstream", "sensor", "--config", str(site.config), *sent],
            check=True,
            capture_output=True,
        )
        site.wait_for("SELECT count(*) FROM messages", [(3,)])
        during = found(tmp_path)
        logger.terminate()
        logger.communicate(timeout=30)
    assert any("midstream.db" in name for name in during)
    assert [name for name, mode in during.items() if mode & 0o022] == []
    assert all(mode & 0o600 == 0o600 for mode in during.values())


def test_folders_that_are_there_keep_their_modes(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine").chmod(0o770)
    modes.make_folder(tmp_path / "mine" / "new")
    assert found(tmp_path) == {"mine": 0o770, "mine/new": 0o755}


def test_two_make_the_same_folder_at_once(tmp_path: Path) -> None:
    path = tmp_path.joinpath(*"abcdefgh")
    threads = [threading.Thread(target=modes.make_folder, args=(path,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.is_dir()
