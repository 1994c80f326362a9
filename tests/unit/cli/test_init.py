"""midstream init and config: a first config.toml, and what is said of one."""

import json
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
from tests.support import hosts
from tests.unit.cli.test_cli import CONST
from typer.testing import CliRunner

from midstream import cli, config, initial, network
from midstream.config import Config, Role
from midstream.errors import ConfigError
from midstream.network import SensorStream

ROLES = get_args(Role)
EXAMPLE = Path(config.__file__).with_name("config.example.toml")
SCHEMA = Path(config.__file__).with_name("config.schema.json")


def init(folder: Path, *arguments: str, typed: str = "") -> str:
    """What it says; raises what it raises."""
    command = ["init", "--output", str(folder / "config.toml"), *arguments]
    ended = CliRunner().invoke(cli.app(["init"]), command, input=typed, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return str(ended.stderr)


@pytest.mark.parametrize("role", ROLES)
def test_nothing_is_set_but_what_was_chosen(tmp_path: Path, role: Role) -> None:
    key = tmp_path / "key"
    said = init(tmp_path, "--yes", "--role", role, "--key", str(key))
    found = config.load(tmp_path / "config.toml")
    assert found.model_dump(exclude_unset=True) == {"role": role, "network": {}, "data": {}} | {
        table: {} for table in ("sensor", "hardworker", "logger") if f"\n[{table}]" in found.path.read_text()
    } | {"daemon": {"key": str(key)}}
    assert key.exists() == (role == "hardworker")
    assert ("a new key" in said) == (role == "hardworker")


@pytest.mark.parametrize("role", ROLES)
def test_every_comment_is_a_key_as_it_would_be(tmp_path: Path, role: Role) -> None:
    """Each line that was made a comment can be made a key again."""
    example = EXAMPLE.read_text().splitlines()
    lines = initial.written(role, {}).splitlines()
    again = [line[2:] if line.startswith("# ") and line[2:] in example else line for line in lines]
    found, wanted = tomllib.loads("\n".join(again)), tomllib.loads("\n".join(example))
    assert found.pop("role") == role
    assert {"timeout", "const", "network", "data", "daemon"} <= found.keys()
    assert found == {key: wanted[key] for key in found}


def test_a_person_answers(tmp_path: Path) -> None:
    said = init(tmp_path, "--interface", "eth7", typed=f"chief\nhardworker\n{tmp_path}/key\ny\n")
    found = config.load(tmp_path / "config.toml")
    assert "ROLE = 'chief': must be sensor, hardworker or logger" in said
    assert (found.role, found.network.interface, found.key_path) == ("hardworker", "eth7", tmp_path / "key")
    assert found.key_path.exists()


@pytest.mark.parametrize(
    ("arguments", "typed", "says"),
    [
        (["--yes"], "", "--role: is needed with --yes"),
        (["--yes", "--role", "chief"], "", "must be sensor, hardworker or logger"),
        (["--role", "sensor", "--interface", "a name of many letters"], "key\n", "not a name that Linux"),
        (["--role", "hardworker", "--interface", "eth0"], "", "no answer, and nothing was written"),
        (["--role", "hardworker", "--interface", "eth0"], "key\n", "no answer, and nothing was written"),
    ],
)
def test_nothing_is_written(tmp_path: Path, arguments: list[str], typed: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        init(tmp_path, *arguments, typed=typed)
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("# mine")
    with pytest.raises(ConfigError, match="exists already, and is not replaced"):
        init(tmp_path, "--yes", "--role", "sensor")
    assert (tmp_path / "config.toml").read_text() == "# mine"


def test_a_folder_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written .*name another file"):
        init(tmp_path / "file", "--yes", "--role", "sensor")


def checked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[object, str, str]:
    monkeypatch.setattr(sys, "argv", ["midstream", "config", "check", "--config", f"{folder}/config.toml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('name = "gps"', "const.toml names imu"),
        ('name = "imu"\nsize = 32', "const.toml says 64"),
    ],
)
def test_check_compares_each_stream(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    table: str,
    words: str,
) -> None:
    topology = replace(hosts.topology(), size=64, streams=(SensorStream("imu", 12345, "fixed", 64),))
    network.write(tmp_path / "const.toml", topology, "a test")
    (tmp_path / "config.toml").write_text("")
    assert checked(tmp_path, monkeypatch, capsys)[0] == 0
    (tmp_path / "config.toml").write_text(f"[[stream]]\n{table}\n")
    code, out, err = checked(tmp_path, monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert words in err


def test_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file, const = tmp_path / "config.toml", tmp_path / "const.toml"
    file.write_text('role = "logger"\n')
    assert checked(tmp_path, monkeypatch, capsys) == (0, f"{file}: right\n{const}: not there yet\n", "")
    const.write_text(CONST)
    assert checked(tmp_path, monkeypatch, capsys) == (0, f"{file}: right\n{const}: right, and fits\n", "")
    file.write_text("[data]\nsize = 8\n")
    code, out, err = checked(tmp_path, monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert "must equal [data] size = 1024" in err
    file.write_text("[data]\nsise = 8\n")
    code, out, err = checked(tmp_path, monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert "did you mean data.size?" in err


def test_the_schema_in_the_wheel_is_that_of_the_code() -> None:
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == config.schema()


def test_the_schema_takes_what_the_code_takes() -> None:
    found = config.schema()
    jsonschema.Draft202012Validator.check_schema(found)
    validator = jsonschema.Draft202012Validator(found)
    validator.validate(tomllib.loads(EXAMPLE.read_text()))
    validator.validate(json.loads(Config().model_dump_json(exclude_none=True)))
    for wrong in (
        {"hardworker": {"ring_size": "4 bytes"}},
        {"hardworker": {"ring_sise": 4096}},
        {"role": "chief"},
        {"data": {"freq": -1}},
        {"data": {"field": [{"name": "t"}]}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(wrong)
