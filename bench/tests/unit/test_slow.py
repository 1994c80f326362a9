"""Slow motion: what QEMU is told of the time, here told to a Python that reads both clocks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from midstream.ebpf import compiler
from midstream_bench.machine import hardworker

PROGRAM = """
import ctypes, json, mmap, os, sys, time
libc = ctypes.CDLL(None)
file = open(os.environ["COUNT"], "r+b")
words = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")

def real():
    buffer = (ctypes.c_long * 2)()
    libc.syscall(228 if os.uname().machine == "x86_64" else 113, 1, buffer)  # clock_gettime
    return buffer[0] + buffer[1] / 1e9

def both():
    return time.monotonic(), real()

def spend(seconds, executed=0):
    # seconds of the real clock; how long by the one that is told
    told, begin = both()
    words[0] += executed
    last = told
    while real() < begin + seconds:
        now = time.monotonic()
        assert now >= last and time.time() > 1e9
        last = now
        time.sleep(0.001)
    ended, end = both()
    return (ended - told) / (end - begin)

shares = {}
for slow in (1, 4, 64, 1000, 0):
    before = time.monotonic()
    words[1] = slow
    assert time.monotonic() - before < 0.02, "it jumps"
    shares[slow] = spend(0.1)
words[1] = 4
words[2] = 2
shares["ahead"] = spend(0.1, executed=5_000_000)  # 10 ms of the 25
shares["even again"] = spend(0.1)
print(json.dumps(shares))
"""


@pytest.fixture
def shares(tmp_path: Path) -> dict[str, float]:
    """How fast the told clock went, by what it was asked."""
    count = tmp_path / "count"
    count.write_bytes(np.array([0, 1, 2], "<u8").tobytes())
    slow = compiler.compile_library(Path(hardworker.__file__).with_name("slow.c"))
    environment = os.environ | {"LD_PRELOAD": str(slow), "COUNT": str(count)}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    told: dict[str, float] = json.loads(ended.stdout)
    return told


@pytest.mark.slow
def test_the_clock_goes_as_slow_as_it_is_asked_at_any_time(shares: dict[str, float]) -> None:
    assert shares["1"] == pytest.approx(1, rel=0.1)
    assert shares["4"] == pytest.approx(1 / 4, rel=0.1)
    assert shares["64"] == pytest.approx(1 / 64, rel=0.1)
    assert shares["1000"] == pytest.approx(1 / 64, rel=0.1), "the slowest that there is"
    assert shares["0"] == pytest.approx(1, rel=0.1)


@pytest.mark.slow
def test_a_guest_that_is_ahead_waits_until_it_is_even(shares: dict[str, float]) -> None:
    assert shares["ahead"] == pytest.approx((0.1 / 4 - 0.01) / 0.1, rel=0.15)
    assert shares["even again"] == pytest.approx(1 / 4, rel=0.1)
