"""Every program, for a sweep of message sizes, on the oldest kernel supported, one between, the newest, and this one.

    python tests/vm/sweep.py [--kernel 6.1]… [--here]

Prints a table of programs and kernels: "ok", or "refused", and then each refusal. Exit status 1 if there is one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from midstream.bench.machine.kernel import RELEASES
from midstream.bench.machine.machine import Machine
from midstream.ebpf import compiler, records
from midstream.errors import MidstreamError
from midstream.network import MAX_MTU, Host, Topology

PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / ".cache" / "vm"
HERE = "this one"
TIMEOUT = 240.0  # seconds

MTUS = (1500, MAX_MTU)
SIZES = (64, 256, 512, 520, 1000, 1024, 1030, 1088, 1448, 1460, 1536, 3072)
TOPOLOGY = Topology(
    sensors=tuple(Host(IPv4Address(f"10.83.0.{n}"), f"02:00:00:00:00:{n}") for n in (21, 11, 31)),
    hardworker=Host(IPv4Address("10.83.0.2"), "02:00:00:00:00:02"),
    logger=Host(IPv4Address("10.83.0.3"), "02:00:00:00:00:03"),
    tos=104,
    port=12345,
    mtu=1500,
    size=1024,
)
CHECKING = records.settings(
    bytes(32), wakeup=True, check=True, ring_quota=records.NO_QUOTA, open_quota=records.NO_QUOTA
)
OTHERS = {
    "logger": CHECKING,
    "sensor": CHECKING,
    "selftest": bytes(2),
    "pass": b"",
    "steer": b"",
    "floor": b"",
    "impair": b"",
}
"""The programs beside the hardworker's, and what is set before each is loaded."""


@dataclass(frozen=True)
class Case:
    """A program, compiled for an MTU and a size of messages, with settings."""

    program: str
    mtu: int
    size: int
    settings: bytes

    def __str__(self) -> str:
        return f"{self.program}, mtu {self.mtu}" + (
            f", size {self.size}" if self.program == "hardworker" else ""
        )

    def compile(self) -> Path:
        return compiler.compile_program(self.program, replace(TOPOLOGY, mtu=self.mtu, size=self.size))


def cases() -> Iterator[Case]:
    for mtu in MTUS:
        for size in SIZES:
            yield Case("hardworker", mtu, size, CHECKING)
        for program, settings in OTHERS.items():
            yield Case(program, mtu, TOPOLOGY.size, settings)


def load_in(kernel: str, jobs: Path) -> tuple[list[str], str]:
    """Load what the file asks for, on one kernel; the reasons of its refusals, or nothing for each, and what the
    kernel is called. Raises MidstreamError."""
    command = ["sh", "-c", f"uname -r; exec {sys.executable} {Path(__file__).with_name('load.py')} {jobs}"]
    with tempfile.TemporaryFile() as output:
        if kernel == HERE:
            code = subprocess.run(command, stdout=output, check=False).returncode
            console = ""
        else:
            with Machine(command, cache=CACHE, release=RELEASES[kernel], cpus=1, output=output) as machine:
                code, console = machine.wait(TIMEOUT), machine.console
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    if code:
        raise MidstreamError(f"{kernel}: ended with {code}\n" + "\n".join([*lines[-20:], console[-2000:]]))
    return [json.loads(line)["refused"] for line in lines[1:]], lines[0]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Load every program on several kernels.")
    parser.add_argument("--kernel", action="append", choices=[*RELEASES, HERE], help="default: all")
    options = parser.parse_args(arguments)
    kernels = options.kernel or [*RELEASES, HERE]
    begin, asked = time.monotonic(), list(cases())
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = Path(folder, "jobs")
        lines = [
            json.dumps({"object": str(path), "settings": case.settings.hex()})
            for case, path in zip(asked, pool.map(Case.compile, asked), strict=True)
        ]
        jobs.write_text("\n".join(lines) + "\n")
        print(f"compiled after {time.monotonic() - begin:.0f} s", file=sys.stderr)
        answers = list(pool.map(partial(load_in, jobs=jobs), kernels))
    print(f"| | {' | '.join(name for _, name in answers)} |\n|---|{'---|' * len(kernels)}")
    refusals = []
    for row, case in enumerate(asked):
        found = [answer[row] for answer, _ in answers]
        print(f"| {case} | {' | '.join('refused' if refused else 'ok' for refused in found)} |")
        refusals += [
            f"Linux {name}: {case}: {refused}"
            for refused, (_, name) in zip(found, answers, strict=True)
            if refused
        ]
    print(
        f"{len(asked)} programs on {len(kernels)} kernels, {len(refusals)} refused, in "
        f"{time.monotonic() - begin:.0f} s"
    )
    for refusal in refusals:
        print(f"\n{refusal}")
    return bool(refusals)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MidstreamError as error:
        sys.exit(f"sweep: {error}")
