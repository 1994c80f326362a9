"""What goes wrong with the three programs: each says what, in one message, with the exit code of its kind."""

from pathlib import Path

import pytest
from tests.lab.ends import running, sensor
from tests.lab.triangle import command, messages_logged, started, variant, wait_until

from midstream.lab import Lab

LAB = {"sensors": 1}


@pytest.mark.slow
def test_a_logger_that_is_killed(attached: Lab, tmp_path: Path) -> None:
    """The sensor is told by TCP and says so; nothing of the stream is missing at the hardworker."""
    with running(attached, tmp_path) as ends:
        arguments = ("sensor", "--config", ends.config, "--rate", "500", "--json")
        with started(attached, "sensor", tmp_path, *arguments, ready="connected") as client:
            wait_until(lambda: messages_logged(ends.database) > 20)
            ends.logger.process.kill()
            sent = client.result()
        hardworker = ends.hardworker.end()
    assert (sent.code, sent.out) == (5, "")
    assert "the connection to the hardworker at 10.83.0.2 port 12345 was lost after" in sent.err
    assert "Traceback" not in sent.err
    assert hardworker.object["messages"] >= messages_logged(ends.database)


@pytest.mark.slow
def test_nobody_listens(attached: Lab) -> None:
    result = sensor(attached, attached.config, "--messages", "1")
    assert (result.code, result.out) == (5, "")
    assert "cannot connect to the hardworker at 10.83.0.2 port 12345: Connection refused" in result.err
    assert "midstream logger" in result.err


@pytest.mark.slow
def test_an_address_in_use(attached: Lab, tmp_path: Path) -> None:
    with running(attached, tmp_path) as ends:
        second = command(attached, "logger", "logger", "--config", ends.config)
    assert (second.code, second.out) == (5, "")
    assert "10.83.0.3 port 12345: Address already in use" in second.err


@pytest.mark.slow
def test_the_wrong_host(attached: Lab) -> None:
    for role, receiver in (("logger", "ebpf"), ("hardworker", "socket")):
        config = variant(attached, "wrong-host.toml", hardworker={"receiver": receiver})
        result = command(attached, "sensor", role, "--config", config)
        assert (result.code, result.out) == (5, "")
        assert "cannot listen" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "nowhere.toml"], "nowhere.toml: no such file"),
        (["--rate", "-1"], "--rate"),
        (["--rate", "fast"], "--rate"),
        (["--messages", "0"], "--messages"),
        (["--input", "nowhere"], "--input nowhere: cannot be read (No such file or directory)"),
        (["--input", "/"], "--input /: cannot be read (Is a directory)"),
        (["--unknown"], "--unknown"),
    ],
)
def test_bad_arguments(attached: Lab, arguments: list[str], words: str) -> None:
    config = [] if "--config" in arguments else ["--config", str(attached.config)]
    result = command(attached, "sensor", "sensor", *config, *arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("role", ["sensor", "hardworker", "logger"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("timeout = -1", "timeout"),
        ("[data]\nframing = 'xml'", "framing"),
        ("[data]\nsiez = 3", "siez"),
        ("timeout =", "not valid TOML"),
        ("[data]\nsize = 25", "size"),
    ],
)
def test_a_bad_file(attached: Lab, role: str, text: str, words: str) -> None:
    config = attached.run_dir / "bad.toml"
    config.write_text(text)
    result = command(attached, role, role, "--config", config)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert str(config) in result.err


@pytest.mark.slow
def test_a_database_that_is_none(attached: Lab, tmp_path: Path) -> None:
    database = tmp_path / "notes.txt"
    database.write_text("Buy more oscilloscopes.\n" * 100)
    config = variant(attached, "none.toml", logger={"database": f"sqlite:///{database}"})
    result = command(attached, "logger", "logger", "--config", config)
    assert (result.code, result.out) == (6, "")
    assert str(database) in result.err


@pytest.mark.slow
def test_a_database_that_cannot_be_opened_is_waited_for(attached: Lab, tmp_path: Path) -> None:
    config = variant(attached, "late.toml", logger={"database": f"sqlite:///{tmp_path}/late/logged.db"})
    arguments = ("logger", "--config", config)
    with started(attached, "logger", tmp_path, *arguments, ready=f"{tmp_path}/late/logged.db") as logger:
        (tmp_path / "late").mkdir()
        logger.wait_for("listening")
        assert logger.end().code == 0


def test_a_record_that_cannot_be_written(attached: Lab) -> None:
    arguments = ("--config", attached.config, "--record", "/nowhere/record")
    result = command(attached, "hardworker", "hardworker", *arguments)
    assert (result.code, result.out) == (2, "")
    assert "/nowhere/record" in result.err
