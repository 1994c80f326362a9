"""The eBPF programs on Linux 6.1, the oldest kernel supported: its verifier knows less than newer ones."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

RUN = Path(__file__).with_name("run.py")
PROJECT = RUN.parents[2]


def in_vm(*command: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, RUN, "--timeout", str(timeout), "--", *command],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_machine_is_what_it_says() -> None:
    mark = PROJECT / "written-by-the-guest"
    done = in_vm("sh", "-c", f"uname -r; id -u; touch {mark} && findmnt -no FSTYPE /sys/fs/bpf; exit 7")
    release, user, filesystem = done.stdout.split()
    assert release.startswith("6.1.")
    assert (user, filesystem, done.returncode) == ("0", "bpf", 7), done.stderr
    assert not mark.exists()


def test_time_out() -> None:
    done = in_vm("sleep", "600", timeout=15.0)
    assert done.returncode == 124
    assert "stopped after 15 s" in done.stderr


def test_programs() -> None:
    done = in_vm(sys.executable, "-m", "pytest", "tests/program", "-q", timeout=1500.0)
    assert done.returncode == 0, done.stdout + done.stderr
