"""A sandbox that refuses bpf(2): root does not help, so nobody is sent there."""

import platform
import subprocess
import sys

import pytest

NUMBERS = {"x86_64": 321, "aarch64": 280}  # of bpf(2), asm/unistd.h

# Installs a filter as systemd's SystemCallFilter= does: bpf ends with EPERM, all else is allowed.
SANDBOXED = """
import ctypes, struct, sys
from pathlib import Path
from midstream.ebpf import libbpf
from midstream.errors import KernelError

def code(operation, true, false, value):
    return struct.pack("=HBBI", operation, true, false, value)

program = b"".join((
    code(0x20, 0, 0, 0),                    # the call's number
    code(0x15, 0, 1, int(sys.argv[1])),     # bpf?
    code(0x06, 0, 0, 0x00050000 | 1),       # EPERM
    code(0x06, 0, 0, 0x7FFF0000),           # allowed
))
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0      # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.byref(Program(4, program)), 0, 0) == 0  # PR_SET_SECCOMP
try:
    libbpf.get(Path("/sys/fs/bpf/midstream/hardworker/ring"))
except KernelError as error:
    print(error)
"""


@pytest.mark.skipif(platform.machine() not in NUMBERS, reason="the number of bpf(2) is not known here")
def test_the_message_names_the_filter_and_not_root() -> None:
    number = str(NUMBERS[platform.machine()])
    ended = subprocess.run(
        [sys.executable, "-c", SANDBOXED, number], capture_output=True, text=True, check=True, timeout=60
    )
    assert "a sandbox refuses the system call bpf, to root too" in ended.stdout
    assert "`SystemCallFilter=bpf`" in ended.stdout and "needs root" not in ended.stdout
