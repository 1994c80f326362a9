"""Any text as the URL of a database: it names what was meant, or is refused with file and key."""

import string
import sys
from ipaddress import IPv6Address
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from midstream.cli import main
from midstream.config import Config, load
from midstream.database_url import check
from midstream.errors import ConfigError
from midstream.nats_url import NatsUrl
from midstream.storage.databases import open_log
from midstream.storage.opening import fault
from midstream.storage.sql import SqlStore

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
PRINTABLE = st.text("aZ09 é@/:%?#[]&=+", max_size=8)
PIECES = st.sampled_from(
    ["nats://", "postgresql+psycopg://", "sqlite:///", "[", "]", "::1", "@", ":", "/", "%"]
)
URLS = st.lists(st.one_of(PIECES, st.text("?&=#,%0:a9é .", max_size=4)), max_size=12).map("".join)
NAMES = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=20)
HOSTS = st.one_of(
    st.text("az09", min_size=1, max_size=8).map(lambda label: f"h{label}.local"),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)


def configured(folder: Path, url: str) -> Config:
    path = folder / "config.toml"
    escaped = "".join(f"\\U{ord(letter):08x}" for letter in url)
    path.write_text(f'[logger]\ndatabase = "{escaped}"\n')
    return load(path)


@given(st.one_of(URLS, TEXT))
@example("nats://[::1/stream")
@example("nats://a:b:c/s")
@example("nats://a..b/s")
@example("nats://u:%ff@a/s")
@example("nats://a/s?replicas=1&replicas=2")
@example("postgresql+psycopg://[::1/x")
@example("postgresql+psycopg://h:99999/x")
@example("postgresql+psycopg://u:p@ss@h/x")
@example("postgresql+psycopg://h/x?nonsense=1")
@example("sqlite:///x.db?timeout=soon")
@example("sqlite:///x.db?nonsense=1")
@example("sqlite:///x\0.db")
def test_any_text_works_or_is_refused(tmp_path_factory: pytest.TempPathFactory, url: str) -> None:
    try:
        found = configured(tmp_path_factory.getbasetemp(), url).database_url
    except ConfigError as error:
        assert "config.toml: logger.database" in str(error)  # noqa: PT017  most texts are refused
    else:
        if found.startswith("nats://"):
            NatsUrl.parse(found)
        else:
            make_url(found)


@pytest.mark.parametrize(
    "url",
    [
        "nats://u:secret@[::1/stream",
        "nats://u:secret@h:70000/s",
        "nats://u:secret%zz@h/s",
        "nats://u:secret/@h/s",
        "nats://u:s@secret@h/s x",
        "nats://u:secret@h/s#x",
        "postgresql+psycopg://u:secret@h:x/s",
        "postgresql+psycopg://u:p@secret:5/x@h/s",
    ],
)
def test_no_password_is_repeated(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, url).database_url  # noqa: B018  the property raises
    monkeypatch.setattr(sys, "argv", ["midstream", "log", "list", "--database", url])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = f"{caught.value}{capsys.readouterr().err}"
    assert "secret" not in told
    assert "config.toml: logger.database = " in told and "--database " in told


@settings(max_examples=50)
@given(
    st.one_of(st.none(), st.tuples(PRINTABLE, st.one_of(st.none(), PRINTABLE))),
    st.lists(st.tuples(HOSTS, st.integers(1, 65535)), min_size=1, max_size=3),
    NAMES,
    st.integers(1, 5),
)
def test_what_is_meant_reaches_nats(
    login: tuple[str, str | None] | None, hosts: list[tuple[str, int]], stream: str, replicas: int
) -> None:
    user, password = login or (None, None)
    front = (
        ""
        if user is None
        else quote(user, safe="") + ("" if password is None else f":{quote(password, safe='')}")
    )
    where = ",".join(f"{host}:{port}" for host, port in hosts)
    url = f"nats://{front}{'@' if login else ''}{where}/{stream}?replicas={replicas}"
    check(url)
    found = NatsUrl.parse(url)
    assert (found.user, found.password) == (user, password)
    assert found.servers == tuple(f"nats://{host}:{port}" for host, port in hosts)
    assert (found.stream, found.replicas) == (stream, replicas)
    assert found.name == f"nats://{where}/{stream}"


def test_the_interface_of_a_link_local_address() -> None:
    assert NatsUrl.parse("nats://[fe80::1%25eth0]/s").servers == ("nats://[fe80::1%eth0]:4222",)
    assert IPv6Address("fe80::1%eth0").scope_id == "eth0"


@pytest.mark.parametrize(
    "name", ["my log.db", "50%.db", "a%20b.db", "a?b=c.db", "a#b.db", "é ü.db", "a@b:c.db"]
)
def test_any_file_name(tmp_path: Path, name: str) -> None:
    config = configured(tmp_path, f"sqlite:///{quote(name)}")
    SqlStore(config.database_url, batch_size=10).close()
    assert (tmp_path / name).exists()
    with open_log(config.database_url) as log:
        assert log.connections() == []


@pytest.mark.parametrize(
    "text", ['invalid port number: "99999"', 'invalid sslmode value: "x"', 'invalid connection option "x"']
)
def test_what_waiting_cannot_mend_is_not_waited_for(text: str) -> None:
    import psycopg

    assert not fault(psycopg.OperationalError(text)).passing
