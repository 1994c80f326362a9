"""config.toml: what is read, what is refused, and whether the refusal helps."""

import mmap
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from midstream.config import Config, load
from midstream.ebpf.sizing import LEAST_RING
from midstream.errors import ConfigError

ROOT = Path(__file__).parents[2]


def read(folder: Path, text: str) -> Config:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def refusal(folder: Path, text: str) -> str:
    """The error's text without the file, which every line must begin with."""
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    lines = str(caught.value).splitlines()
    prefix = f"{folder / 'config.toml'}: "
    assert all(line.startswith(prefix) for line in lines)
    return "\n".join(line.removeprefix(prefix) for line in lines)


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    assert config.model_dump() == {
        "role": None,
        "timeout": 0.0,
        "stream": (),
        "const": "const.toml",
        "network": {
            "interface": "",
            "restore": "logger",
            "pins": "/sys/fs/bpf/midstream",
            "tos": None,
            "port": None,
        },
        "data": {
            "framing": "fixed",
            "size": None,
            "freq": 1000.0,
            "deadline": 0.0,
            "max_size": 1048576,
            "field": (),
        },
        "sensor": {"target": "hardworker", "reconnect": 0.0},
        "hardworker": {
            "receiver": "ebpf",
            "ring_size": None,
            "connections": 4096,
            "period": 0.0,
            "irq_mitigation": True,
            "socket": "",
            "socket_group": "",
            "socket_mode": "0660",
            "checksums": True,
            "retain": True,
            "quota": 0.5,
            "spool": "spool.db",
            "spool_size": 2**30,
            "spool_free": 2**28,
            "spool_full": "forget",
            "backfill_rate": 2**23,
        },
        "logger": {
            "database": "sqlite:///midstream.db",
            "batch_interval": 0.1,
            "batch_size": 4096,
            "keep_age": 0.0,
            "keep_size": 0,
            "replay_port": 12347,
        },
        "daemon": {
            "explore": True,
            "key": "/etc/midstream/key",
            "name": "",
            "timeout": 30.0,
            "sensors": 1,
            "clock": 10.0,
            "silence": 2.0,
            "stall": 2.0,
            "port": 12346,
            "rewrite_const": True,
            "standby": False,
            "socket": "/run/midstream/daemon.sock",
        },
    }


def test_the_example_names_every_key_with_its_default() -> None:
    text = (ROOT / "src/midstream/config.example.toml").read_text(encoding="utf-8")
    document = tomllib.loads(text)
    defaults = Config().model_dump()
    assert {k: set(v) for k, v in document.items() if isinstance(v, dict)} == {
        k: set(v) for k, v in defaults.items() if isinstance(v, dict)
    }
    assert set(document) == set(defaults)
    example = load(ROOT / "src/midstream/config.example.toml").model_dump()
    assert example.pop("role") == "hardworker"
    assert example["data"].pop("size") == 1024
    assert (example["network"].pop("tos"), example["network"].pop("port")) == (104, 12345)
    assert example["hardworker"].pop("ring_size") == LEAST_RING
    del defaults["role"], defaults["data"]["size"], defaults["network"]["tos"], defaults["network"]["port"]
    del defaults["hardworker"]["ring_size"]
    assert example == defaults


def test_the_guide_has_every_key() -> None:
    guide = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    for name, value in Config().model_dump().items():
        for key in [f"{name}.{below}" for below in value] if isinstance(value, dict) else [name]:
            assert f"| `{key}` |" in guide, key


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    read(tmp_path / "etc", 'const = "../net/const.toml"')
    monkeypatch.chdir(tmp_path)
    config = load("etc/config.toml")
    assert config.path == tmp_path / "etc/config.toml"
    assert config.const_path.resolve() == tmp_path / "net/const.toml"
    assert config.database_url == f"sqlite:///{tmp_path}/etc/midstream.db"
    assert config.spool_path == tmp_path / "etc/spool.db"
    assert read(tmp_path, '[hardworker]\nspool = ""').spool_path is None
    assert read(tmp_path, 'const = "/x/const.toml"').const_path == Path("/x/const.toml")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sqlite:///a/b.db?timeout=5", "sqlite:///{folder}/a/b.db?timeout=5"),
        ("sqlite+pysqlite:///b.db", "sqlite+pysqlite:///{folder}/b.db"),
        ("sqlite:////var/lib/b.db", "sqlite:////var/lib/b.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("sqlite://", "sqlite://"),
        ("postgresql+psycopg://u:p%40w@host/db", "postgresql+psycopg://u:p%40w@host/db"),
    ],
)
def test_database_url(tmp_path: Path, given: str, expected: str) -> None:
    config = read(tmp_path, f'[logger]\ndatabase = "{given}"')
    assert config.database_url == expected.format(folder=tmp_path)


def test_a_folder_with_url_characters_stays_one_path(tmp_path: Path) -> None:
    folder = tmp_path / "50% a?b#c"
    folder.mkdir()
    url = make_url(read(folder, "").database_url)
    assert url.database == str(folder / "midstream.db")
    assert not url.query


@given(st.integers(0, 31 - mmap.PAGESIZE.bit_length() + 1))
def test_ring_sizes_with_units(tmp_path_factory: pytest.TempPathFactory, power: int) -> None:
    size = mmap.PAGESIZE << power
    folder = tmp_path_factory.getbasetemp()
    for unit, factor in (("", 1), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30)):
        if size % factor == 0:
            value = f'"{size // factor}{unit}"' if unit else f"{size}"
            assert read(folder, f"[hardworker]\nring_size = {value}").hardworker.ring_size == size


@pytest.mark.parametrize(
    "value", ["0", "-4096", "2048", "12288", '"3MiB"', '"4GiB"', '"4MB"', '"4096"', "true", "4e6"]
)
def test_ring_sizes_refused(tmp_path: Path, value: str) -> None:
    text = refusal(tmp_path, f"[hardworker]\nring_size = {value}")
    shown = "4000000.0" if value == "4e6" else value
    assert text.startswith(f"hardworker.ring_size = {shown}: ")
    assert "a power of two" in text and "leave it out" in text


@pytest.mark.parametrize(
    ("table", "key", "value", "allowed"),
    [
        ("", "role", '"loger"', '"sensor", "hardworker" or "logger"'),
        ("", "timeout", "-1", "0 or more"),
        ("", "timeout", '"5"', "a number of seconds"),
        ("", "timeout", "true", "a number of seconds"),
        ("", "const", '""', "the path of const.toml"),
        ("network", "interface", '"an-interface-name"', "1 to 15 characters"),
        ("network", "interface", '"eth/0"', "the name of an interface"),
        ("network", "interface", '".."', "the name of an interface"),
        ("network", "restore", '"hardworker"', '"logger" or "sensor"'),
        ("network", "pins", '"midstream"', "an absolute path"),
        ("network", "pins", '"/sys/fs/bpf/mid.stream"', "bpffs refuses names with dots"),
        ("network", "pins", '"/sys/fs/bpf/../x"', "without dots"),
        ("network", "pins", '"/"', "an absolute path"),
        ("data", "framing", '"Fixed"', '"fixed", "length" or "line"'),
        ("data", "size", "0", "from 1 to 1048576"),
        ("data", "size", "1048577", "from 1 to 1048576"),
        ("data", "size", "1024.0", "an integer"),
        ("data", "freq", "-0.5", "0 or more"),
        ("data", "max_size", "0", "from 1 to 536870912"),
        ("data", "max_size", "536870913", "from 1 to 536870912"),
        ("sensor", "target", '"sensor"', '"hardworker" or "logger"'),
        ("hardworker", "receiver", '"tcp"', '"ebpf" or "socket"'),
        ("hardworker", "connections", "0", "from 1 to 1048576"),
        ("hardworker", "connections", "1048577", "from 1 to 1048576"),
        ("hardworker", "period", "-1", "0 or more"),
        ("hardworker", "socket", '"ring.sock"', "an absolute path"),
        ("hardworker", "socket", '"/run/midstream/"', "an absolute path"),
        ("hardworker", "socket", '"/run//ring.sock"', "an absolute path"),
        ("hardworker", "socket", f'"/{54 * "é"}"', "longer than 107 bytes"),
        ("hardworker", "socket_group", "0", "a group of this host"),
        ("hardworker", "socket_mode", "660", "octal digits"),
        ("hardworker", "socket_mode", '"0668"', "three octal digits"),
        ("hardworker", "socket_mode", '"66"', "three octal digits"),
        ("hardworker", "socket_mode", '"4660"', "three octal digits"),
        ("hardworker", "retain", "1", "true or false"),
        ("hardworker", "spool_size", "1048575", "at least 1 MiB"),
        ("hardworker", "spool_size", '"1GB"', "a string such as"),
        ("hardworker", "spool_free", "-1", "0 or more"),
        ("hardworker", "spool_full", '"drop"', '"forget" or "wait"'),
        ("hardworker", "backfill_rate", "1023", "at least 1 KiB"),
        ("daemon", "silence", "0", "above 0"),
        ("daemon", "stall", "3601", "at most 3600"),
        ("logger", "database", '"midstream.db"', "an SQLAlchemy URL"),
        ("logger", "database", '"sqlite://midstream.db"', "three slashes"),
        ("logger", "database", '"sqlite:///file:midstream.db"', "without file:"),
        ("logger", "batch_interval", "0", "above 0"),
        ("logger", "batch_interval", "61", "at most 60"),
        ("logger", "batch_size", "0", "from 1 to 1048576"),
        ("logger", "keep_age", "-1", "a number of seconds, 0 or more"),
        ("logger", "keep_size", '"10GB"', "a string such as"),
    ],
)
def test_values_refused(tmp_path: Path, table: str, key: str, value: str, allowed: str) -> None:
    text = refusal(tmp_path, f"[{table}]\n{key} = {value}" if table else f"{key} = {value}")
    assert text.startswith(f"{table + '.' if table else ''}{key} = {value}: ")
    assert allowed in text
    assert "correct it, or leave it out" in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ('name = "x"\ntype = "f16"', 'data.field[0].type = "f16": must be "i8" or '),
        ('name = "x"', "data.field[0].type: missing; must be"),
        ('name = "9x"\ntype = "i8"', 'data.field[0].name = "9x": not a name for a column'),
        ('name = "payload"\ntype = "i8"', 'data.field[0].name = "payload": the logger\'s own name'),
        (
            'name = "x"\ntype = "i8"\nunits = "V"',
            'data.field[0].units = "V": no such key; did you mean unit?',
        ),
        ('name = "x"\ntype = "i8"\nscale = 0', "data.field[0].scale = 0: every value would be the same"),
        (
            'name = "x"\ntype = "bool"\nscale = 2',
            'data.field[0].scale = 2: its type is "bool"; must be a number',
        ),
        (
            'name = "x"\ntype = "bytes"',
            'data.field[0].size: missing; its type is "bytes"; must be the number of bytes',
        ),
        (
            'name = "x"\ntype = "i8"\nsize = 4',
            'data.field[0].size = 4: its type is "i8"; must be the number of',
        ),
        ('name = "x"\ntype = "i8"\ncount = 0', "data.field[0].count = 0: must be an integer from 1 to 1000"),
        ('name = "x"\ntype = "i8"\noffset = -1', "data.field[0].offset = -1: must be an integer, 0 or more"),
        (
            'name = "x"\ntype = "i32"\n[[data.field]]\nname = "y"\ntype = "i16"\noffset = 3',
            'data.field[1].offset = 3: its bytes 3 to 4 overlap bytes 0 to 3, which are "x"; must',
        ),
        (
            'name = "x"\ntype = "i32"\n[[data.field]]\nname = "X"\ntype = "i16"',
            'data.field[1].name = "X": field[0] is called X too; must be a name',
        ),
        (
            'name = "x"\ntype = "i8"\ncount = 2\n[[data.field]]\nname = "x_1"\ntype = "i8"',
            'data.field[1].name = "x_1": field[0] is called x_1 too',
        ),
        (
            'name = "x"\ntype = "i8"\n[[data.field]]\nname = "x"\ntype = "i8"\ncount = 2',
            'data.field[1].name = "x": field[0] is called x too',
        ),
        (
            'name = "x"\ntype = "i32"\ncount = 600\n[[data.field]]\nname = "y"\ntype = "i8"\ncount = 500',
            "data.field = [",
        ),
    ],
)
def test_fields_refused(tmp_path: Path, tables: str, expected: str) -> None:
    text = refusal(tmp_path, f"[[data.field]]\n{tables}")
    assert text.startswith(expected)
    assert len(text.splitlines()) == 1


def test_fields_that_fit_neither_framing_nor_size(tmp_path: Path) -> None:
    tables = '[[data.field]]\nname = "x"\ntype = "f64"'
    assert "its bytes 0 to 7 reach beyond the message's 4" in refusal(tmp_path, f"[data]\nsize = 4\n{tables}")
    assert 'framing is "line"; must be tables (name, type, …) for fixed framing' in refusal(
        tmp_path, f'[data]\nframing = "line"\n{tables}'
    )
    assert refusal(tmp_path, "[data]\nfield = 3").startswith("data.field = 3: must be tables (name, type, …)")


@pytest.mark.parametrize("path", ["", "/ring", "/run/midstream/ring.sock", f"/{'x' * 106}"])
@pytest.mark.parametrize("mode", ["0660", "660", "0000", "777"])
def test_sockets_and_modes(tmp_path: Path, path: str, mode: str) -> None:
    text = f'[hardworker]\nsocket = "{path}"\nsocket_group = "wheel"\nsocket_mode = "{mode}"'
    hardworker = read(tmp_path, text).hardworker
    assert (hardworker.socket, hardworker.socket_group, hardworker.socket_mode) == (path, "wheel", mode)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("key", ["timeout", "data.freq", "hardworker.period", "logger.batch_interval"])
def test_numbers_are_finite(tmp_path: Path, key: str, value: str) -> None:
    assert refusal(tmp_path, f"{key} = {value}").startswith(f"{key} = ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timout = 3", "timout = 3: no such key; did you mean timeout?"),
        ("[data]\nsise = 3", "data.sise = 3: no such key; did you mean data.size?"),
        ("freq = 3", "freq = 3: no such key; did you mean data.freq?"),
        ("[data]\nring_size = 3", "data.ring_size = 3: no such key; did you mean hardworker.ring_size?"),
        ("[data]\ntimeout = 3", "data.timeout = 3: no such key; did you mean daemon.timeout?"),
        ("[Network]\nrestore = 'logger'", "[Network]: no such key; did you mean [network]?"),
        (
            "[sensor]\nxyzzy = 1",
            "sensor.xyzzy = 1: no such key; allowed here: sensor.target, sensor.reconnect; remove it",
        ),
        ("path = 'x'", 'path = "x": no such key; allowed here: role, timeout, const, [network], '),
        ("'a.b\\n' = 1", '"a.b\\\\n" = 1: no such key'),
    ],
)
def test_unknown_keys_suggest_the_nearest(tmp_path: Path, text: str, expected: str) -> None:
    assert refusal(tmp_path, text).startswith(expected)


def test_all_faults_are_listed(tmp_path: Path) -> None:
    text = refusal(tmp_path, 'timout = 1\nrole = 2\n[data]\nsize = 0\nfreq = "x"\n[logger]\nbatch_size = -1')
    keys = [line.split(" = ")[0] for line in text.splitlines()]
    assert sorted(keys) == ["data.freq", "data.size", "logger.batch_size", "role", "timout"]


@pytest.mark.parametrize("text", ["network = 3", "[[network]]\ninterface = 'x'"])
def test_a_table_must_be_a_table(tmp_path: Path, text: str) -> None:
    fault = refusal(tmp_path, text)
    assert fault.startswith("network = ")
    assert fault.endswith("must be a table; write [network] and its keys below")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timeout = 1\nrole = logger\n", "line 2, column 8: role = logger: not valid TOML"),
        ("[data]\nsize = 1\nsize = 2\nfreq = 1", "line 3, column 9: size = 2: not valid TOML"),
        ("[data", "not valid TOML"),
        (f"x = {'[' * 5000}", "not valid TOML"),
        (f"x = {'1' * 5000}", "not valid TOML"),
    ],
)
def test_syntax_faults_name_the_line(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, text)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"timeout = 1\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"config\.toml: line 2: byte 0xe9: must be UTF-8 text"):
        load(path)
    path.write_bytes(b"\xef\xbb\xbftimeout = 1\r\n")
    assert load(path).timeout == 1.0


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: no such file; `midstream init` makes one"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    "url", ["postgres:/u:hunter2@host/db", "u:hunt er2@host", 'p://u:hunter2@h/\\"x', "p:/u:a@hunter2@h"]
)
def test_a_password_is_never_shown(tmp_path: Path, url: str) -> None:
    for text in (f'[logger]\ndatabase = "{url}"\nbatch_size = 0', f'[logger]\ndatabase = "{url}'):
        shown = refusal(tmp_path, text)
        assert "hunt" not in shown
        assert "er2" not in shown


def test_a_url_that_sqlalchemy_refuses(tmp_path: Path) -> None:
    config = read(tmp_path, '[logger]\ndatabase = "sqlite:///x"')
    broken = config.model_copy(update={"logger": config.logger.model_copy(update={"database": "sqlite"})})
    with pytest.raises(ConfigError, match=r'logger\.database = "sqlite": not a URL'):
        _ = broken.database_url


def test_long_values_are_shortened(tmp_path: Path) -> None:
    text = refusal(tmp_path, f'[data]\nframing = "{"x" * 9999}"')
    assert len(text) < 300
    assert "…" in text


def test_message_size_is_that_of_const_toml(tmp_path: Path) -> None:
    assert read(tmp_path, "").message_size(512) == 512
    assert read(tmp_path, "[data]\nsize = 512").message_size(512) == 512
    config = read(tmp_path, "[data]\nsize = 1024")
    with pytest.raises(ConfigError) as caught:
        config.message_size(512)
    assert str(caught.value).startswith(f"{config.path}: data.size = 1024: must equal [data] size = 512")
    assert str(config.const_path) in str(caught.value)


def test_a_config_does_not_change(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    with pytest.raises(ValidationError):
        config.data.freq = 1.0


def test_a_current_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(ConfigError, match=r"^config.toml: .* has been deleted; change to one that exists$"):
        Config()
