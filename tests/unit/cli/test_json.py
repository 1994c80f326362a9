"""Every command has --json, and what it says then is JSON."""

import json
import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.support.commands import all_commands
from tests.unit.cli.test_cli import CONST

from midstream import cli, lab
from midstream.lab import Lab, daemons
from midstream.lab.hosts import LabHost


def test_every_command_has_it() -> None:
    """But exec, whose output is that of another program, and schema, which is JSON."""
    without = [
        words
        for words, command in all_commands()
        if not any("--json" in each.opts for each in command.params)
    ]
    assert without == [("config", "schema"), ("lab", "exec")]


def said(*arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["midstream", *arguments, "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    return json.loads(out)


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "const.toml").write_text(CONST)
    found = said("compile", "sensor", "-o", "x.o", capsys=capsys, monkeypatch=monkeypatch)
    assert found == {"file": "x.o", "bytes": (tmp_path / "x.o").stat().st_size}
    assert said("key", "key", capsys=capsys, monkeypatch=monkeypatch) == {"file": "key"}


def test_detach(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text("")
    found = said("detach", "sensor", "--pins", f"{tmp_path}/none", capsys=capsys, monkeypatch=monkeypatch)
    assert found == {"role": "sensor", "pins": f"{tmp_path}/none", "detached": False}


def test_a_lab(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    built = Lab(
        tmp_path, (LabHost("sensor", IPv4Address("10.83.0.11"), "02:00:00:00:00:0b", (0,)),), kept=False
    )
    monkeypatch.setattr(lab, "up", lambda *_, **__: built)
    monkeypatch.setattr(lab, "down", lambda: None)
    monkeypatch.setattr(daemons, "start", lambda _: 1.5)
    assert said("lab", "up", capsys=capsys, monkeypatch=monkeypatch) == {
        "run_dir": str(tmp_path),
        "kept": False,
        "daemons_ready_after": 1.5,
        "hosts": [{"name": "sensor", "ip": "10.83.0.11", "mac": "02:00:00:00:00:0b"}],
    }
    assert said("lab", "down", capsys=capsys, monkeypatch=monkeypatch) == {"up": False}
