"""A command in a virtual machine with another kernel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

RUN = Path(__file__).with_name("run.py")
PROJECT = RUN.parents[2]


def in_vm(*command: str, kernel: str = "6.1", timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, RUN, "--kernel", kernel, "--timeout", str(timeout), "--", *command],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("kernel", "series"), [("6.1", "6.1."), ("6.12", "6.12."), ("newest", "")])
def test_the_machine_is_what_it_says(kernel: str, series: str) -> None:
    mark = PROJECT / "written-by-the-guest"
    done = in_vm(
        "sh", "-c", f"uname -r; id -u; touch {mark} && findmnt -no FSTYPE /sys/fs/bpf; exit 7", kernel=kernel
    )
    release, user, filesystem = done.stdout.split()
    assert release.startswith(series) and release != os.uname().release
    assert (user, filesystem, done.returncode) == ("0", "bpf", 7), done.stderr
    assert not mark.exists()


def test_time_out() -> None:
    done = in_vm("sleep", "600", timeout=15.0)
    assert done.returncode == 124
    assert "stopped after 15 s" in done.stderr
