"""A million messages: how long it takes to look at them, and how much memory."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.logs import LAYOUT, START, LogFile, reading

MESSAGES, CONNECTIONS = 1_000_000, 4
MOST_MEMORY = 256  # MiB: the messages alone, as Python has them, would be more

_MEASURED = """
import sys
sys.argv = sys.argv[1:]
from midstream.cli import main
try:
    main()
finally:
    status = open("/proc/self/status").read()
    print("peak", status.partition("VmHWM:")[2].split("\\n")[0], file=sys.stderr)
"""
"""The command, and the most memory that it had, in KiB."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LogFile]:
    log = LogFile(tmp_path_factory.mktemp("million") / "log.db")
    for number in range(CONNECTIONS):
        log.add(
            (reading(sequence % 30000) for sequence in range(MESSAGES // CONNECTIONS)),
            sensor=f"10.83.0.{11 + number}",
            start_ns=START + number * 1000,
            step_ns=1_000_000,
            layout=LAYOUT,
        )
    yield log
    log.close()


@pytest.mark.parametrize("arguments", ["csv", "jsonl", "parquet", "mcap", "plot", "verify", "show"])
def test_memory_does_not_grow_with_the_log(
    million: LogFile, arguments: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"million.{arguments}"
    commands = {
        "plot": ["plot", "temperature", "-o", f"{path}.png"],
        "verify": ["verify"],
        "show": ["show", "--where", "temperature<20.1"],
    }
    command = commands.get(arguments, ["export", "-o", str(path)])
    arguments_given = ["midstream", "log", *command, "--database", million.url]
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", _MEASURED, *arguments_given], capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - started
    assert ended.returncode == 0, ended.stderr
    memory = int(ended.stderr.split()[-2]) / 1024
    size = path.stat().st_size / 1e6 if path.exists() else 0
    with capfd.disabled():
        print(f"\n{arguments}: {seconds:.1f} s, {memory:.0f} MiB, file of {size:.0f} MB")
    assert memory < MOST_MEMORY
