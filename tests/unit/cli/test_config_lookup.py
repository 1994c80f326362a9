"""Which config.toml a command reads: the one that is named, that of this folder, or that of the services."""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from midstream import cli, config
from midstream.cli import options


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The services' config.toml, and an empty folder to be in."""
    path = tmp_path / "etc" / "config.toml"
    path.parent.mkdir()
    path.write_text(
        f'timeout = 0.5\n[network]\npins = "/sys/fs/bpf/none"\n[daemon]\nsocket = "{tmp_path}/no"\n'
    )
    monkeypatch.setattr(config, "SYSTEM_CONFIG", path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return path


def asked(*arguments: str) -> tuple[str, str]:
    """What the command says of the file that it reads, and its error."""
    ended = CliRunner().invoke(cli.app(arguments[:1]), list(arguments))
    return ended.stderr, str(ended.exception)


def test_that_of_the_services_where_there_is_none_here(system: Path) -> None:
    said, error = asked("status")
    assert said == f"midstream: there is no config.toml here, so {system} is read\n"
    assert str(system.parent / "const.toml") in error, "const.toml is looked for beside it"


def test_that_of_this_folder_comes_first(system: Path) -> None:
    Path("config.toml").write_text(system.read_text())
    said, error = asked("status")
    assert said == "" and str(Path("const.toml").absolute()) in error


def test_the_one_that_is_named_and_no_other(system: Path) -> None:
    said, error = asked("status", "--config", "config.toml")
    assert said == "" and error.startswith("config.toml: no such file")


def test_with_neither_both_are_named(system: Path) -> None:
    system.unlink()
    _, error = asked("status")
    assert "config.toml: no such file" in error and str(system) in error


def commands() -> Iterator[tuple[str, object]]:
    for module in sorted({command.module for command in cli.COMMANDS.values()}):
        for command in import_module(module).app.registered_commands:
            yield f"{module.rpartition('.')[2]} {command.callback.__name__}", command.callback


@pytest.mark.parametrize(("name", "callback"), [pytest.param(*pair, id=pair[0]) for pair in commands()])
def test_every_command_looks_there(name: str, callback: object) -> None:
    """Each that takes a config.toml takes it by this option."""
    annotations = getattr(callback, "__annotations__", {})
    if "path" not in annotations or name.startswith(("init", "key", "packet")):
        return
    assert annotations["path"] is options.Config, name


def test_the_result_says_which_file_was_read(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = import_module("midstream.cli.kernel")
    monkeypatch.setattr(kernel, "_programs", lambda config: {"logger": {"attached": False}})
    ended = CliRunner().invoke(cli.app(["status"]), ["status", "--json"])
    assert json.loads(ended.stdout)["config"] == str(system)
