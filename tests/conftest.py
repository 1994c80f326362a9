"""What holds for every test: no thread is left behind, root skips nothing, SIGINT ends what is started.

Side by side (`pytest -n 2 --dist loadgroup`) the labs stay on one worker, since they measure times. Each
worker has a world of its own, since their names are fixed. What else runs yields the processors to the lab.
"""

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LAB = HERE / "lab"
NEEDS_ROOT = (HERE / "program", LAB, HERE / "hosts")
_CLONE_NEWNS, _CLONE_NEWNET = 0x20000, 0x40000000  # linux/sched.h
GRACE = 2.0  # seconds that a thread may take to end after its test

# A shell that is no terminal's starts what it puts in the background with SIGINT ignored, which is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        _enter_a_world_of_its_own()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if LAB in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("lab"))
    if os.geteuid() == 0:
        return
    for item in items:
        if any(folder in item.path.parents for folder in NEEDS_ROOT):
            item.add_marker(pytest.mark.skip(reason="needs root: it loads eBPF programs"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """As root a skipped test is a failed one: what is not there has to be installed, not passed over."""
    report = yield
    if report.skipped and os.geteuid() == 0 and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but as root every test must run ({reason})"
    return report


@pytest.fixture(autouse=True, scope="module")
def yields_to_the_lab(request: pytest.FixtureRequest) -> None:
    """A worker is a session, and Linux shares the processors among sessions (sched(7), autogroup)."""
    autogroup = Path("/proc/self/autogroup")
    if hasattr(request.config, "workerinput") and autogroup.exists():
        autogroup.write_text("0" if LAB in request.path.parents else "10")


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + GRACE
    while left := [thread for thread in threading.enumerate() if thread not in before]:
        if time.monotonic() > deadline:
            pytest.fail(f"the test left threads behind: {', '.join(thread.name for thread in left)}")
        left[0].join(0.01)


def _enter_a_world_of_its_own() -> None:
    """Mounts, network, /run and the BPF file system that no other worker sees."""
    os.setsid()
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS | _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    for command in (
        "mount --make-rprivate /",
        "mount -t tmpfs tmpfs /run",
        "mkdir -p /run/netns /run/lock",
        "mount -t bpf bpf /sys/fs/bpf",
        "ip link set lo up",
    ):
        subprocess.run(command.split(), check=True)
