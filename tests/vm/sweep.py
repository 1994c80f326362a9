"""Every program, for a sweep of message sizes, on the oldest kernel, one between, the newest and this one.

    python tests/vm/sweep.py [--kernel 6.1]… [--quick] [--tests]

Compiled ones, and those that a wheel brings. Prints a table of programs and kernels, "ok" or "refused", and
then each refusal. With --quick there are few sizes. With --tests a part of tests/program runs on each kernel,
too, with both. Exit status 1 if there is a refusal or a failure. Needs root.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from itertools import product
from pathlib import Path

from midstream.ebpf import compiler, objects, records
from midstream.errors import LabError, MidstreamError
from midstream.network import MAX_LOGGERS, MAX_MTU, Host, Topology
from midstream_bench import ebpf as benchmarks
from midstream_bench.machine.kernel import RELEASES
from midstream_bench.machine.machine import Machine

PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / ".cache" / "vm"
HERE = "this one"
TIMEOUT = 600.0  # seconds, of one kernel

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
STANDBYS = tuple(Host(IPv4Address(f"10.83.1.{n}"), f"02:00:00:00:01:{n:02x}") for n in range(1, MAX_LOGGERS))
CHECKING, TRUSTING = (
    records.settings(
        bytes(32), wakeup=check, check=check, ring_quota=records.NO_QUOTA, open_quota=records.NO_QUOTA
    )
    for check in (True, False)
)
IDENTIFIER = bytes(2)
OTHERS = {
    "logger": CHECKING,
    "sensor": CHECKING,
    "selftest": IDENTIFIER,
    "streams": CHECKING,
    "pass": b"",
    "steer": b"",
    "floor": b"",
    "impair": b"",
}
"""The programs beside the hardworker's, and what is set before each is loaded."""
WITHOUT_CONSTANTS = ("pass", "streams")  # objects of midstream's own that know nothing of const.toml

TESTS = (
    "tests/program/test_compiler.py",
    "tests/program/test_hardworker_program.py",
    "tests/program/test_logger_program.py",
    "tests/program/test_selftest_program.py",
    "tests/program/test_sensor_program.py",
    "bench/tests/program/test_floor_program.py",
)


@dataclass(frozen=True)
class Case:
    """A program for an MTU, a size of messages and a number of loggers, with settings. own: not compiled."""

    program: str
    mtu: int
    size: int
    settings: bytes
    loggers: int = 1
    own: bool = False

    def __str__(self) -> str:
        size = f", size {self.size}" if self.program == "hardworker" else ""
        unchecked = ", no checksums" if self.settings == TRUSTING else ""
        several = f", {self.loggers} loggers" if self.loggers > 1 else ""
        own = "own " if self.own else ""
        return f"{own}{self.program}, mtu {self.mtu}{size}{unchecked}{several}"

    def job(self) -> str:
        """A line for load.py; what it names is compiled now."""
        standbys = STANDBYS[: self.loggers - 1]
        topology = replace(TOPOLOGY, mtu=self.mtu, size=self.size, standbys=standbys)
        sections = {".rodata.settings": self.settings.hex()} if self.settings else {}
        if self.own:
            path = objects.own(self.program)
            if self.program not in WITHOUT_CONSTANTS:
                sections[objects.SECTION] = objects.constants(topology).hex()
        elif self.program in benchmarks.PROGRAMS:
            path = benchmarks.compile_program(self.program, topology)
        else:
            path = compiler.compile_program(self.program, topology)
        return json.dumps({"object": str(path), "sections": sections})


@dataclass(frozen=True)
class Answer:
    """What one kernel said. refusals: a reason for each program, or nothing. tests: their last line."""

    kernel: str
    refusals: list[str]
    tests: str
    failed: str

    @property
    def refused(self) -> int:
        return sum(bool(refusal) for refusal in self.refusals)


def cases(*, quick: bool) -> Iterator[Case]:
    for mtu, size in ((MTUS[0], 1024), (MTUS[1], 1000)) if quick else product(MTUS, SIZES):
        yield Case("hardworker", mtu, size, CHECKING, own=True)
    for program in ("logger", "sensor", "selftest", "streams", "pass"):
        yield Case(program, MTUS[1], TOPOLOGY.size, OTHERS[program], MAX_LOGGERS, own=True)
    if quick:
        yield Case("hardworker", MTUS[0], TOPOLOGY.size, CHECKING, 2)
        return
    for mtu in MTUS:
        for size in SIZES:
            yield Case("hardworker", mtu, size, CHECKING)
        yield Case("hardworker", mtu, TOPOLOGY.size, TRUSTING)
        for program in ("hardworker", "sensor"):
            for loggers in (2, MAX_LOGGERS):
                yield Case(program, mtu, TOPOLOGY.size, CHECKING, loggers)
        for program, settings in OTHERS.items():
            yield Case(program, mtu, TOPOLOGY.size, settings)


def ask(kernel: str, jobs: Path, *, count: int, tests: bool) -> Answer:
    """Load what the file asks for on one kernel, and run the tests. Raises MidstreamError."""
    load = shlex.join([sys.executable, str(Path(__file__).with_name("load.py")), str(jobs)])
    test = shlex.join([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS])
    test = f"MIDSTREAM_TESTS='own objects' {test} && {test}"
    command = [
        "sh",
        "-c",
        f"cd {PROJECT} && uname -r && {load}" + (f" && {{ {test}; true; }}" if tests else ""),
    ]
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
        said = "\n".join([*lines[-20:], console[-2000:]])
        raise LabError(f"Linux {kernel}: the programs could not be loaded (status {code})\n{said}")
    refusals = [json.loads(line)["refused"] for line in lines[1 : 1 + count]]
    told = lines[-1] if tests else ""
    wrong = tests and ("passed" not in told or "failed" in told or "error" in told)
    answer = Answer(lines[0], refusals, told, "\n".join(lines[1 + count :]) if wrong else "")
    print(f"Linux {answer.kernel}: {answer.refused} of {count} programs refused. {told}", file=sys.stderr)
    return answer


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Load every program on several kernels.")
    parser.add_argument("--kernel", action="append", choices=[*RELEASES, HERE], help="default: all")
    parser.add_argument("--quick", action="store_true", help="few sizes")
    parser.add_argument("--tests", action="store_true", help="run a part of tests/program, too")
    options = parser.parse_args(arguments)
    kernels = options.kernel or [HERE, *RELEASES]
    begin, asked = time.monotonic(), list(cases(quick=options.quick))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = Path(folder, "jobs")
        jobs.write_text("\n".join(pool.map(Case.job, asked)) + "\n")
        one = partial(ask, jobs=jobs, count=len(asked), tests=options.tests)
        # This kernel first: the tests compile what they need, which is slow in a virtual machine.
        answers = [one(kernel) for kernel in kernels if kernel == HERE]
        answers += pool.map(one, [kernel for kernel in kernels if kernel != HERE])
    print_table(asked, answers)
    refused = sum(answer.refused for answer in answers)
    print(
        f"{len(asked)} programs on {len(answers)} kernels, {refused} refused, "
        f"in {time.monotonic() - begin:.0f} s"
    )
    for answer in answers:
        for case, refusal in zip(asked, answer.refusals, strict=True):
            if refusal:
                print(f"\nLinux {answer.kernel}: {case}: {refusal}")
        if answer.failed:
            print(f"\nLinux {answer.kernel}: {answer.failed}")
    return bool(refused or any(answer.failed for answer in answers))


def print_table(asked: Sequence[Case], answers: Sequence[Answer]) -> None:
    print(f"| | {' | '.join(answer.kernel for answer in answers)} |\n|---|{'---|' * len(answers)}")
    for row, case in enumerate(asked):
        found = ("refused" if answer.refusals[row] else "ok" for answer in answers)
        print(f"| {case} | {' | '.join(found)} |")
    if any(answer.tests for answer in answers):
        print(f"| tests/program | {' | '.join(answer.tests for answer in answers)} |")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MidstreamError as error:
        sys.exit(f"sweep: {error}")
