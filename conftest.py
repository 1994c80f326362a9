"""What holds for every test: no thread is left behind, root skips nothing, SIGINT ends what is started.

Tests run side by side (`pytest -n 2`, pytest-xdist). Each worker has a world of its own, since the lab's
names are fixed. The labs that measure times stay on one worker, and what else runs gives way to them.
"""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from tests.support.examples import examples
from xdist.remote import Producer  # type: ignore[import-untyped]  # xdist ships no types
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from midstream.lab import enter

TESTS = tuple(Path(__file__).parent / place for place in ("tests", "bench/tests"))
LABS = tuple(folder / "lab" for folder in TESTS)
UNTIMED = LABS[0] / "commands"
NEEDS_ROOT = (*LABS, *(folder / name for folder in TESTS for name in ("program", "hosts")))
GRACE = 2.0  # seconds that a thread may take to end after its test

# A shell that is no terminal's starts what it puts in the background with SIGINT ignored, which is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes depends on what the other worker does.
hypothesis.settings.register_profile("midstream", deadline=None, max_examples=examples(50))
hypothesis.settings.load_profile("midstream")


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # therefore Any
    """The labs that measure times together, and every other module by itself."""

    def _split_scope(self, nodeid: str) -> str:
        module, _, _ = nodeid.partition("::")
        return "the labs" if _measures_times(self.config.rootpath / module) else module


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return Scheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        _enter_a_world_of_its_own()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
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
def gives_way_to_the_labs(request: pytest.FixtureRequest) -> None:
    """A worker is a session, and Linux shares the processors among sessions (sched(7), autogroup)."""
    autogroup = Path("/proc/self/autogroup")
    if hasattr(request.config, "workerinput") and autogroup.exists():
        autogroup.write_text("0" if _measures_times(request.path) else "10")


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A folder that every user may look into."""
    for path in (tmp_path, *tmp_path.parents):
        if path == Path(tempfile.gettempdir()):
            break
        path.chmod(0o755)
    return tmp_path


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + GRACE
    while left := [thread for thread in threading.enumerate() if thread not in before]:
        if time.monotonic() > deadline:
            pytest.fail(f"the test left threads behind: {', '.join(thread.name for thread in left)}")
        left[0].join(0.01)


def _measures_times(module: Path) -> bool:
    return any(folder in module.parents for folder in LABS) and UNTIMED not in module.parents


def _enter_a_world_of_its_own() -> None:
    """Mounts, /run and the BPF file system that no other worker sees, and a session."""
    os.setsid()
    enter.unshare(enter.CLONE_NEWNS)
    for command in (
        "mount --make-rprivate /",
        "mount -t tmpfs tmpfs /run",
        "mkdir -p /run/netns /run/lock",
        "mount -t bpf bpf /sys/fs/bpf",
    ):
        subprocess.run(command.split(), check=True)
