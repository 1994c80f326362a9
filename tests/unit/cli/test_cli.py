"""The command line as a whole: what starts without what, and how errors end."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from midstream import cli
from midstream.errors import ConfigError

CONST = """\
[mac]
sensor = "02:00:00:00:00:0b"
hardworker = "02:00:00:00:00:02"
logger = "02:00:00:00:00:03"
[ip]
sensor = "10.83.0.11"
hardworker = "10.83.0.2"
logger = "10.83.0.3"
[data]
mtu = 1500
size = 1024
"""

# What only Linux has, or what compiling has no use for.
ABSENT = ["fcntl", "grp", "resource", "termios", "pyroute2", "sqlalchemy", "midstream.ebpf.libbpf"]


def run(*arguments: str, before: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = f"import sys\n{before}\nsys.argv[1:] = {list(arguments)!r}\nfrom midstream.cli import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cwd, timeout=60
    )


@pytest.mark.parametrize("role", ["sensor", "hardworker", "logger"])
def test_compiling_needs_nothing_of_linux(tmp_path: Path, role: str) -> None:
    (tmp_path / "const.toml").write_text(CONST)
    absent = f"sys.modules.update(dict.fromkeys({ABSENT!r}))"
    ended = run("compile", role, "--output", f"{role}.o", before=absent, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert (tmp_path / f"{role}.o").read_bytes().startswith(b"\x7fELF")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["compile", "nobody", "-o", "x.o"], 2, "midstream: ROLE = 'nobody'"),
        (["compile", "sensor", "-o", "x.o"], 2, "midstream: const.toml: no such file"),
        (["compile", "sensor"], 2, "output"),
        (["status"], 2, "midstream: config.toml: no such file"),
        (["sensor"], 2, "midstream: config.toml: no such file"),
        (["hardworker", "--config", "no.toml"], 2, "midstream: no.toml: no such file"),
        (["demo", "--impair", "drop=2"], 2, "midstream: drop = 2.0: expected a probability from 0 to 1"),
        (["load", "--size", "8"], 2, "midstream: size = 8: expected 16"),
        (["load", "--replay", "none.csv"], 2, "midstream: none.csv: cannot be read"),
        (["nothing"], 2, "No such command"),
        ([], 2, ""),
    ],
)
def test_mistakes_end_without_a_traceback(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    """In this process: to start another one for each takes half a second."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["midstream", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == code
    assert says in said
    assert "Traceback" not in said


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    ended = run("status", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("midstream: config.toml: no such file")
    assert "Traceback" not in ended.stderr


def test_help_names_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["midstream", "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    said = capsys.readouterr().out
    for command in (*cli.COMMANDS, "bench"):
        assert f"\n  {command} " in said


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_says_of_a_command_what_it_says_itself(name: str) -> None:
    command = typer.main.get_command(cli.app([name])).commands[name]  # type: ignore[attr-defined]
    first, _, _ = (command.help or "").partition("\n\n")
    assert " ".join(first.split()) == cli.COMMANDS[name].help


def test_help_is_quick() -> None:
    """It imports none of what takes long."""
    slow = {"numpy", "pyroute2", "sqlalchemy", "zeroconf", "cryptography", "asyncio"}
    before = f"import atexit\natexit.register(lambda: print({slow!r} & sys.modules.keys(), file=sys.stderr))"
    assert run("--help", before=before).stderr == "set()\n"


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_others", dict)
    with pytest.raises(ConfigError, match="pip install midstream-bench"):
        cli.app(["bench"])


def test_version() -> None:
    assert run("--version").stdout.startswith("midstream 0.")
