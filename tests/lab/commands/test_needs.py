"""What the lab lacks is named as what it is: a PID namespace, a mount point, a right, time."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from midstream.errors import LabError
from midstream.lab import Lab, daemons, enter, lifecycle, namespaces, needs, state
from midstream.lab.hosts import LabHost

CLONE_NEWPID = 0x20000000


def test_this_machine_has_what_it_needs() -> None:
    needs.check("up")


def test_processes_that_begin_in_another_pid_namespace() -> None:
    """`unshare --pid` without `--fork`: the first child is an init, and with it all ends."""

    def in_it() -> str:
        enter.unshare(CLONE_NEWPID)
        with pytest.raises(LabError) as raised:
            needs.check("up")
        return str(raised.value)

    assert "begin with `unshare --fork --pid --mount-proc`" in namespaces.call_here(in_it)


def test_a_pid_namespace_whose_first_process_has_ended() -> None:
    def in_it() -> str:
        enter.unshare(CLONE_NEWPID)
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
        with pytest.raises(LabError) as raised:
            namespaces.call_here(os.getpid)
        return str(raised.value)

    told = namespaces.call_here(in_it)
    assert "no process can be started" in told
    assert "another PID namespace" in told


@pytest.mark.slow
def test_a_proc_of_another_pid_namespace() -> None:
    """`unshare --pid --fork` without `--mount-proc`."""
    code = "from midstream.lab import status; status()"
    argv = ["unshare", "--pid", "--fork", sys.executable, "-c", code]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "LabError: /proc belongs to another PID namespace" in ended.stderr
    assert "mount -t proc proc /proc" in ended.stderr


def test_a_mount_point_that_is_missing() -> None:
    def in_it() -> str:
        enter.unshare(enter.CLONE_NEWNS)
        enter.mount("none", "/", "", enter.MS_REC | enter.MS_SLAVE)
        enter.mount("tmpfs", "/sys", "tmpfs")
        with pytest.raises(LabError) as raised:
            lifecycle._mount_bpffs()
        return str(raised.value)

    told = namespaces.call_here(in_it)
    assert "/sys/fs/bpf" in told
    assert "mount -t sysfs sysfs /sys" in told


@pytest.mark.slow
def test_a_root_without_its_rights() -> None:
    code = "from midstream.lab import enter, namespaces; namespaces.create(['ms-nobody'])"
    argv = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", code]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "LabError: cannot make namespace ms-nobody" in ended.stderr
    assert "CAP_SYS_ADMIN" in ended.stderr


# time


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A lab of one host whose daemon is this: a process that sleeps."""
    sleeper = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(daemons, "launch", lambda *_, **__: sleeper.pid)
    (tmp_path / "hardworker").mkdir()
    (tmp_path / "hardworker" / "daemon.log").touch()
    one = LabHost("hardworker", IPv4Address("10.83.0.2"), "02:4d:53:00:00:02", (0,))
    yield Lab(tmp_path, (replace(one),))
    sleeper.kill()
    sleeper.wait()


def test_a_slow_daemon_is_given_as_long_as_it_needs(host: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs 0.3 s to answer and as much to be ready, with a patience of nothing at all beside that."""
    monkeypatch.setattr(daemons, "PATIENCE", 0.0)
    monkeypatch.setattr(daemons, "PATIENCE_EACH", 0.0)
    began = time.monotonic()

    def slow_state(*_: object) -> dict[str, Any] | None:
        seconds = time.monotonic() - began
        return {"ready_after": seconds > 0.6, "reason": ""} if seconds > 0.3 else None

    monkeypatch.setattr(daemons, "state", slow_state)
    assert 0.6 < daemons.start(host, ["hardworker"]) < 5


def test_a_daemon_that_waits_says_for_what(host: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATIENCE", "PATIENCE_EACH", "SLOWNESS"):
        monkeypatch.setattr(daemons, name, 0)
    states = iter([None, {"ready_after": 0}])
    waiting = {"ready_after": 0, "reason": "no logger has been heard"}
    monkeypatch.setattr(daemons, "state", lambda *_: next(states, waiting))
    with pytest.raises(
        LabError, match=r"not ready after 0 s: no logger has been heard; .*daemon.log is empty"
    ):
        daemons.start(host, ["hardworker"])


def test_a_daemon_that_hangs_and_one_that_has_ended(host: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "_STUCK", 0.05)
    monkeypatch.setattr(daemons, "state", lambda *_: None)
    with pytest.raises(LabError, match=r"its daemon, process \d+, hangs; .* is empty: it was ended"):
        daemons.start(host, ["hardworker"])
    monkeypatch.setattr(daemons, "launch", lambda *_, **__: 2**22)
    with pytest.raises(LabError, match="its daemon has ended"):
        daemons.start(host, ["hardworker"])


@pytest.mark.slow
def test_another_command_of_the_lab_is_waited_for_while_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(needs, "_STUCK", 0.1)
    code = (
        "import sys, time; from pathlib import Path; from midstream.lab import state; "
        "state.LOCK = Path(sys.argv[1]); work = sys.argv[2]\n"
        "with state.locked():\n"
        "    print(flush=True); end = time.monotonic() + 0.5\n"
        "    while work == 'works' and time.monotonic() < end: pass\n"
        "    time.sleep(0 if work == 'works' else 60)"
    )
    for work in ("works", "hangs"):
        argv = [sys.executable, "-c", code, str(tmp_path / "lock"), work]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as other:
            assert other.stdout
            other.stdout.readline()
            try:
                if work == "works":
                    with state.locked():
                        assert other.wait(5) == 0
                else:
                    with pytest.raises(LabError, match=f"process {other.pid}, holds"), state.locked():
                        pytest.fail("it was held")
            finally:
                other.kill()
