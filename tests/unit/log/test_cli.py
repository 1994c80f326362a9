"""midstream log, as a person uses it: what is printed, and with which exit code it ends."""

import json
import sys
from pathlib import Path

import pytest
from tests.support.hosts import configure
from tests.support.logs import LAYOUT, SECOND, START, LogFile, reading

from midstream.cli import main


class Shell:
    """Runs `midstream log …` on a database."""

    def __init__(self, log: LogFile, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.log = log
        self._capsys, self._patch = capsys, patch

    def __call__(self, *arguments: str, database: bool = True) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        given = ["--database", self.log.url] if database else []
        self._patch.setattr(sys, "argv", ["midstream", "log", *arguments, *given])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capsys.readouterr()
        return int(ended.value.code or 0), out, err


@pytest.fixture
def shell(
    log: LogFile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Shell:
    monkeypatch.chdir(tmp_path)
    log.add([reading(number) for number in range(3)], layout=LAYOUT)
    log.add([b'{"speed": 4}', b"$GPGGA"], sensor="10.83.0.12", framing="line", start_ns=START + SECOND // 2)
    return Shell(log, capsys, monkeypatch)


def test_list(shell: Shell) -> None:
    code, out, _ = shell("list")
    assert code == 0
    header, *lines = out.splitlines()
    assert header.split() == [
        *("connection", "messages", "bytes", "missing", "removed", "sensor", "first", "last", "state"),
        "verdict",
    ]
    assert lines[0].split() == [
        *("1", "3", "48", "0", "0", "10.83.0.11"),
        *("2025-11-24", "16:00:00", "2025-11-24", "16:00:02", "closed"),
    ]
    rows = json.loads(shell("list", "--json", "--sensor", "10.83.0.12")[1])
    assert [(row["messages"], row["bytes"], row["framing"]) for row in rows] == [(2, 20, "line")]


def test_list_tells_what_is_missing(shell: Shell) -> None:
    shell.log.execute("DELETE FROM messages WHERE connection_id = 1 AND sequence = 1")
    assert [row["missing"] for row in json.loads(shell("list", "--json")[1])] == [1, 0]


def test_show(shell: Shell) -> None:
    code, out, _ = shell("show")
    assert code == 0
    assert out.count(" tag=616263\n") == 3
    assert [
        line.removeprefix("2025-11-24T16:00:").removesuffix(" tag=616263") for line in out.splitlines()
    ] == [
        "00.000000000Z 10.83.0.11 1:0 temperature=20°C position_0=0m position_1=0m armed=False",
        '00.500000000Z 10.83.0.12 2:0 {"speed": 4}',
        "01.000000000Z 10.83.0.11 1:1 temperature=20.125°C position_0=0.01m position_1=-0.01m armed=True",
        "01.500000000Z 10.83.0.12 2:1 $GPGGA",
        "02.000000000Z 10.83.0.11 1:2 temperature=20.25°C position_0=0.02m position_1=-0.02m armed=False",
    ]
    rows = [json.loads(line) for line in shell("show", "--json", "--where", "speed>3")[1].splitlines()]
    assert [row["json"] for row in rows] == [{"speed": 4}]


def test_show_the_last(shell: Shell) -> None:
    places = [line.split()[2] for line in shell("show", "-n", "2")[1].splitlines()]
    assert places == ["2:1", "1:2"]
    filtered = [
        line.split()[2] for line in shell("show", "-n", "1", "--where", "temperature<20.2")[1].splitlines()
    ]
    assert filtered == ["1:1"]
    until = [
        line.split()[2]
        for line in shell("show", "-n", "1", "--until", "2025-11-24T16:00:01Z")[1].splitlines()
    ]
    assert until == ["2:0"]


def test_fields_of_the_configuration_serve_older_messages(shell: Shell, tmp_path: Path) -> None:
    shell.log.add([b"\x01\x02"], sensor="10.83.0.13")
    path = configure(tmp_path, size=2)
    path.write_text(
        path.read_text()
        + f'[logger]\ndatabase = "{shell.log.url}"\n[[data.field]]\nname = "level"\ntype = "u16"\n'
    )
    out = shell("show", "--sensor", "10.83.0.13", database=False)[1]
    assert out.splitlines()[0].endswith("3:0 level=513")


@pytest.mark.slow
def test_export_and_plot(shell: Shell, tmp_path: Path) -> None:
    code, out, _ = shell("export", "-o", "x.csv", "--json")
    assert (code, json.loads(out)["messages"]) == (0, 5)
    code, out, err = shell("export", "-o", "-", "--format", "jsonl", "--connection", "2")
    assert (code, len(out.splitlines()), err) == (0, 2, "log export: 2 messages\n")
    for name, start in (("x.png", b"\x89PNG"), ("x.svg", b"<?xml")):
        code, out, _ = shell("plot", "temperature", "speed", "-o", name, "--json")
        assert (code, json.loads(out)) == (0, {"values": 4, "file": name})
        assert (tmp_path / name).read_bytes().startswith(start)


def test_verify(shell: Shell) -> None:
    code, out, err = shell("verify")
    assert (code, err) == (
        0,
        "log verify: 5 messages of 2 connections are right; no hardworker has told this log what it held\n",
    )
    assert "connection 1 of 10.83.0.11 (closed): 3 messages, 48 bytes; SHA-256 right; right" in out
    shell.log.execute("UPDATE messages SET payload = x'00' WHERE connection_id = 2 AND sequence = 0")
    code, out, err = shell("verify", "--json")
    assert (code, "in 1 of 2 connections: see above" in err) == (6, True)
    assert [row["right"] for row in json.loads(out)] == [True, False]


def test_prune(shell: Shell) -> None:
    code, out, _ = shell("prune", "--keep-age", "1d", "--dry-run", "--json")
    assert (code, json.loads(out)["messages"]) == (0, 5)
    code, out, _ = shell("prune", "--keep-size", "60", "--json")
    assert (code, json.loads(out)["messages"]) == (0, 1)
    assert shell("verify")[0] == 0
    assert [row["removed"] for row in json.loads(shell("list", "--json")[1])] == [1, 0]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["show", "--since", "soon"], 2, "--since soon: must be a time before now such as -10m"),
        (["show", "--where", "x"], 2, "--where x: must be a field or JSON key"),
        (
            ["show", "--sensor", "10.0.0.1"],
            2,
            "--sensor 10.0.0.1: not in the log; there are 10.83.0.11, 10.83.0.12",
        ),
        (
            ["show", "--where", "temp>1", "--sensor", "10.83.0.11"],
            2,
            "temp>1: no such field; there are temperature,",
        ),
        (["export", "-o", "x.txt"], 2, "--output x.txt: must end in .csv, .jsonl, .parquet, .mcap"),
        (["plot", "temperature", "-o", "x.pdf"], 2, "--output x.pdf: must end in .png or .svg"),
        (["plot", "temp", "-o", "x.png", "--sensor", "10.83.0.11"], 2, "temp: no such field"),
        (
            ["plot", "nothing", "-o", "x.png", "--sensor", "10.83.0.12"],
            2,
            "no message of the selection has such",
        ),
        (["plot", "temperature", "-o", "no/x.png"], 2, "--output no/x.png: cannot be written"),
        (["prune"], 2, "logger.keep_age = 0, logger.keep_size = 0: everything is kept"),
        (["prune", "--keep-size", "10GB"], 2, "--keep-size 10GB: must be a number of bytes"),
        (["prune", "--keep-age", "old"], 2, "--keep-age old: must be a number with s, m, h, d or w"),
        (["list", "--config", "none.toml"], 2, "none.toml: no such file"),
    ],
)
def test_mistakes(shell: Shell, arguments: list[str], code: int, says: str) -> None:
    ended, _, err = shell(*arguments)
    assert ended == code
    assert err.startswith("midstream: ")
    assert says in err


def test_no_database(shell: Shell, tmp_path: Path) -> None:
    configure(tmp_path)
    code, _, err = shell("list", database=False)
    assert (code, "no such file. What to do: start the logger" in err) == (6, True)
