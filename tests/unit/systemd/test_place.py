"""Where services can run midstream from, where they cannot, and which config.toml they can work with."""

import os
from pathlib import Path

import pytest

from midstream import config as configuration
from midstream.config import Role
from midstream.errors import ConfigError
from midstream.systemd import installation, place

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of other users")


@pytest.fixture
def opt(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of root's that the services may see, as /opt/midstream."""
    monkeypatch.setattr(place, "_HIDDEN", (Path("/home"), Path("/root")))
    folder = open_folder / "opt"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/midstream").write_text("")
    for path in (folder, folder / "bin", folder / "bin/midstream"):
        path.chmod(0o755)
    return folder


@needs_root
def test_a_place_of_roots_that_others_may_read(opt: Path) -> None:
    place.check(opt / "bin/midstream")


@needs_root
@pytest.mark.parametrize(
    ("which", "mode", "words"),
    [
        ("bin", 0o700, "`chmod a+rX "),
        ("bin/midstream", 0o600, "`chmod a+rX "),
        ("bin", 0o775, "`chmod go-w "),
        ("bin/midstream", 0o757, "`chmod go-w "),
        (".", 0o777, "`chmod go-w "),
    ],
)
def test_one_that_is_closed_or_open_to_others(opt: Path, which: str, mode: int, words: str) -> None:
    (opt / which).chmod(mode)
    with pytest.raises(ConfigError) as caught:
        place.check(opt / "bin/midstream")
    assert f"{words}{opt / which}`" in str(caught.value) and "/opt/midstream/bin/pip" in str(caught.value)


@needs_root
def test_one_that_an_ordinary_user_could_change(opt: Path) -> None:
    os.chown(opt / "bin", 1000, 1000)
    with pytest.raises(ConfigError, match="belongs to another than root") as caught:
        place.check(opt / "bin/midstream")
    assert f"`chown -R root:root {opt}/bin`" in str(caught.value)


@pytest.mark.parametrize("folder", ["/root/.venv", "/home/pi/.local", "/tmp/x", "/var/tmp/x", "/run/user/1"])
def test_one_that_services_do_not_see(folder: str) -> None:
    with pytest.raises(ConfigError, match="services see nothing below"):
        place.check(Path(folder, "bin/midstream"))


WORKS = 'const = "/var/lib/midstream/const.toml"\n'


@pytest.mark.parametrize(
    ("role", "text", "faults"),
    [
        ("sensor", f'role = "sensor"\n{WORKS}', []),
        ("sensor", WORKS, ["role: missing"]),
        ("sensor", f'role = "logger"\n{WORKS}', ['role = "logger"']),
        ("sensor", 'role = "sensor"\n', ['const = "const.toml"']),
        ("sensor", 'role = "sensor"\n[daemon]\nexplore = false\n', []),
        ("logger", f'role = "logger"\n{WORKS}', ["logger.database"]),
        ("logger", f'role = "logger"\n{WORKS}[logger]\ndatabase = "nats://localhost/x"\n', []),
        ("hardworker", f'role = "hardworker"\n{WORKS}', ["hardworker.socket: missing", "hardworker.spool"]),
        ("hardworker", f'role = "hardworker"\n{WORKS}[hardworker]\nreceiver = "socket"\nspool = ""\n', []),
    ],
)
def test_a_config_that_a_person_wrote(role: Role, text: str, faults: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text)
    found = list(installation._faults(configuration.load(tmp_path / "config.toml"), role))
    assert len(found) == len(faults)
    assert all(one.startswith(words) for one, words in zip(found, faults, strict=True))


@pytest.mark.parametrize("role", ["sensor", "hardworker", "logger"])
def test_the_config_that_is_written_is_one_to_work_with(
    role: Role, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "etc" / "config.toml"
    monkeypatch.setattr(installation, "SYSTEM_CONFIG", path)
    said: list[str] = []
    installation._configure(role, said.append)
    assert said == [f"{path}: written"]
    assert list(installation._faults(configuration.load(path), role)) == []
    text = path.read_text()
    installation._configure(role, said.append)
    assert (len(said), path.read_text()) == (1, text)
