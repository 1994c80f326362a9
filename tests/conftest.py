"""What holds for every test: no thread is left behind, root skips nothing, SIGINT ends what is started."""

import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NEEDS_ROOT = (HERE / "program", HERE / "lab", HERE / "hosts")
GRACE = 2.0  # seconds that a thread may take to end after its test

# A shell that is no terminal's starts what it puts in the background with SIGINT ignored, which is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + GRACE
    while left := [thread for thread in threading.enumerate() if thread not in before]:
        if time.monotonic() > deadline:
            pytest.fail(f"the test left threads behind: {', '.join(thread.name for thread in left)}")
        left[0].join(0.01)
