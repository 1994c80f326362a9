"""Every command where standard output cannot be written, is closed, has no reader, or knows only ASCII."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.commands import all_commands
from tests.support.logs import LAYOUT, LogFile, reading
from tests.unit.cli.test_cli import CONST

# Commands that say something, whatever this machine is.
RESULTS = [
    ["--version"],
    ["log", "list"],
    ["log", "show"],
    ["log", "export", "-o", "-", "--format", "jsonl"],
    ["packet", "show"],
    # Those above are tried with each output, those below with two.
    ["log", "show", "--json"],
    ["log", "verify"],
    ["log", "prune", "--keep-size", "1", "--dry-run"],
    ["log", "export", "-o", "-", "--format", "csv"],
    ["log", "export", "-o", "-", "--format", "mcap"],
    ["log", "export", "-o", "-", "--format", "parquet"],
    ["packet", "show", "--json"],
    ["packet", "check", "00"],
    ["doctor", "--config", "config.toml", "--station", "windows"],
]
OUTPUTS = ["full", "closed", "pipe", "ascii", "speechless", "unread"]  # the last two: of standard error

# Each in a process of its own, forked from one in which everything is imported.
RUN = """
import json, os, sys
import mcap.writer, pyarrow.parquet, sqlalchemy.dialects.sqlite
from midstream import cli
cases = json.load(sys.stdin)
cli.app({arguments[0] for arguments, _ in cases} & cli.COMMANDS.keys())
for number, (arguments, kind) in enumerate(cases):
    if pid := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps(code), flush=True)
        continue
    os.dup2(os.open(f"{number}.err", os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(os.open(f"{number}.out", os.O_WRONLY | os.O_CREAT), 1)
    encoding = "utf-8"
    if kind == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif kind == "pipe":
        readable, writable = os.pipe()
        os.dup2(writable, 1)
        os.close(readable)
        os.close(writable)
    elif kind == "ascii":
        encoding = "ascii"
    elif kind == "speechless":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
    elif kind == "unread":
        os.close(2)
    if kind == "closed":
        os.close(1)
        sys.stdout = sys.__stdout__ = None
    else:
        sys.stdout = sys.__stdout__ = open(1, "w", encoding=encoding, closefd=False)
    sys.stderr = sys.__stderr__ = None if kind == "unread" else open(2, "w", encoding=encoding, closefd=False)
    sys.argv = ["midstream", *arguments]
    code = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    if sys.stdout:
        sys.stdout.flush()
    os._exit(code or 0)
"""


class Ended(NamedTuple):
    command: str
    code: int
    out: bytes
    err: str


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Ended]]:
    """How each of RESULTS ended, by the kind of output."""
    commands = dict.fromkeys(OUTPUTS, RESULTS[:5]) | {"full": RESULTS, "ascii": RESULTS}
    return run(tmp_path_factory.mktemp("output"), commands)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_help_of_every_command(tmp_path: Path, kind: str) -> None:
    helps = [["--help"], *([*words, "--help"] for words, _ in all_commands())]
    for command, code, out, err in run(tmp_path, {kind: helps})[kind]:
        assert (command, code) == (command, 1 if kind in ("full", "closed", "pipe") else 0)
        assert bool(out) == (code == 0)
        assert ("cannot be written" in err) == (kind in ("full", "closed"))
        assert "Traceback" not in err


def run(folder: Path, commands: dict[str, list[list[str]]]) -> dict[str, list[Ended]]:
    """How each of the commands ended, by the kind of output."""
    log = LogFile(folder / "log.db")
    log.add([reading(number) for number in range(3)], layout=LAYOUT)
    log.add(['{"a": "°"}'.encode(), "°C".encode()], framing="line")
    log.close()
    (folder / "const.toml").write_text(CONST)
    (folder / "config.toml").write_text("[logger]\ndatabase = 'sqlite:///log.db'\n")
    cases = [(command, kind) for kind, each in commands.items() for command in each]
    child = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(cases).encode(),
        capture_output=True,
        check=True,
        cwd=folder,
        env=os.environ | {"XDG_CACHE_HOME": str(folder), "COLUMNS": "80"},
        timeout=120,
    )
    results: dict[str, list[Ended]] = {kind: [] for kind in commands}
    for number, ((command, kind), code) in enumerate(zip(cases, child.stdout.split(), strict=True)):
        out, err = (Path(folder, f"{number}.{end}").read_bytes() for end in ("out", "err"))
        results[kind].append(Ended(" ".join(command), int(code), out, err.decode()))
    return results


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "says"), [("full", "No space left on device"), ("closed", "Bad file descriptor")]
)
def test_what_cannot_be_written_is_said(ended: dict[str, list[Ended]], kind: str, says: str) -> None:
    for command, code, _, err in ended[kind]:
        last = err.splitlines()[-1]
        assert (command, code, last) == (
            *(command, 1),
            f"midstream: standard output: cannot be written ({says}); send it elsewhere, or make room there",
        )
        assert "Traceback" not in err


@pytest.mark.slow
def test_a_reader_that_has_enough_is_told_nothing(ended: dict[str, list[Ended]]) -> None:
    for command, code, _, err in ended["pipe"]:
        assert (command, code) == (command, 1)
        assert "standard output" not in err
        assert "Traceback" not in err
        assert "Exception" not in err


def test_an_output_that_knows_only_ascii(ended: dict[str, list[Ended]]) -> None:
    for command, code, out, err in ended["ascii"]:
        assert (command, code, "Traceback" in err) == (command, 0, False)
        if "parquet" in command or "mcap" in command or "csv" in command:
            continue  # a file's encoding is its own
        assert out.decode("ascii"), command
        if "--json" in command or "jsonl" in command:
            assert [json.loads(line) for line in out.splitlines()], command


@pytest.mark.parametrize("kind", ["speechless", "unread"])
def test_what_is_said_on_standard_error_is_not_worth_the_command(
    ended: dict[str, list[Ended]], kind: str
) -> None:
    for (command, code, out, _), good in zip(ended[kind], ended["ascii"], strict=False):
        assert (command, code, bool(out)) == (command, good.code, True)
        assert b"Traceback" not in out


@pytest.mark.slow
def test_a_file_is_not_written_into_by_accident(tmp_path: Path) -> None:
    """Where a standard stream is closed, its number would be given to the next file that is opened."""
    log = LogFile(tmp_path / "log.db")
    log.add([b"x"])
    log.close()
    midstream = f"{sys.executable} -m midstream log export --database {log.url} -o x.csv --json"
    subprocess.run(f"{midstream} <&- >&- 2>&-", shell=True, check=False, cwd=tmp_path, timeout=30)
    _, line = (tmp_path / "x.csv").read_text().splitlines()
    assert line.endswith(",x")


@pytest.mark.slow
def test_a_pipe_that_does_not_wait_is_waited_for(tmp_path: Path) -> None:
    """As node and ssh leave it to their children."""
    log = LogFile(tmp_path / "log.db")
    log.add([bytes(1000)] * 1000)
    log.close()
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    with subprocess.Popen(
        [sys.executable, "-m", "midstream", "log", "show", "--database", log.url], stdout=writable
    ) as process:
        os.close(writable)
        with os.fdopen(readable, "rb") as stream:
            assert len(stream.readlines()) == 1000
    assert process.returncode == 0
