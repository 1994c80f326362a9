"""Fields that config.toml accepts are stored and read back by every store, or refused at once, by name."""

import os
import random
import sqlite3
import string
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from tests.database import servers
from tests.database.servers import patient
from tests.support.batches import batch_of, end, laid_out

from midstream import config as configuration
from midstream import fields
from midstream.config import DATA
from midstream.errors import ConfigError, StoreError
from midstream.fields import Field, Layout
from midstream.log.verify import verify
from midstream.storage.formats import StreamFormat
from midstream.storage.jetstream import JetStreamStore
from midstream.storage.jetstream_log import JetStreamLog
from midstream.storage.published import HEADERS_SIZE
from midstream.storage.sql import SqlStore
from midstream.storage.sql_log import SqlLog
from midstream.storage.store import Batch, ConnectionRow

SYSTEM = ("xmin", "xmax", "cmin", "cmax", "ctid", "tableoid", "oid", "rowid", "_rowid_")
WORDS = (
    "select",
    "order",
    "user",
    "system_user",
    "table",
    "column",
    "lateral",
    "values",
    "index",
    "all",
    "end",
)
NAMES = st.one_of(
    st.sampled_from([*SYSTEM, *WORDS, *map(str.upper, SYSTEM), *map(str.title, WORDS), "x" * 48]),
    st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=48),
)
KINDS = st.sampled_from(["i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f32", "f64", "bool", "bytes"])


@st.composite
def entries(draw: st.DrawFn) -> str:
    """A [[data.field]], right or wrong."""
    kind = draw(KINDS)
    size = f"size = {draw(st.integers(1, 40))}\n" if kind == "bytes" else ""
    count = draw(st.one_of(st.just(1), st.integers(1, 4), st.sampled_from([200, 450])))
    scale = (
        "" if kind in ("bool", "bytes") else draw(st.sampled_from(["", "scale = 0.5\n", "bias = 1e300\n"]))
    )
    order = draw(st.sampled_from(["", 'byte_order = "big"\n']))
    return f'[[data.field]]\nname = "{draw(NAMES)}"\ntype = "{kind}"\ncount = {count}\n{size}{scale}{order}'


def row(token: str = "a.1") -> ConnectionRow:
    return ConnectionRow(token=token, sensor="10.83.0.11", port=40000, opened_ns=1)


def empty(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as database:
        for table in ("readings_data", "fragments", "messages", "connections", "schema_version"):
            database.execute(text(f"DROP TABLE IF EXISTS {table} CASCADE"))
    engine.dispose()


def stored_or_refused(url: str, layout: Layout) -> bool:
    """Was it stored, and is it read as it was? Else it was refused by a name."""
    noise = random.Random(7)
    payloads = [noise.randbytes(layout.size) for _ in range(3)] + [bytes(layout.size), b"\xff" * layout.size]
    refused = ""
    try:
        store = SqlStore(url, batch_size=3, streams=laid_out(layout))
    except StoreError as error:
        refused = str(error)
    if refused:
        names = [column.name for column in layout.columns] + [field.name for field in layout.fields]
        assert any(f"the field {name}" in refused for name in names), refused
        assert "What to do: " in refused
        return False
    with store:
        store.write(batch_of(row(), payloads))
    SqlStore(url, batch_size=3, streams=laid_out(layout)).close()  # again
    with SqlLog(url) as log:
        (verdict,) = verify(log, log.connections())
        assert (verdict.faults, verdict.messages) == ([], 5)
    return True


def check(url: str, folder: Path, text_of_fields: str) -> bool:
    file = folder / "config.toml"
    file.write_text(text_of_fields)
    layout = None
    try:
        config = configuration.load(file)
        layout = fields.layout(config, sum(entry.width for entry in config.data.field))
    except ConfigError:
        assume(False)
    assert layout is not None
    return stored_or_refused(url, layout)


LISTS = st.lists(entries(), min_size=1, max_size=4).map("".join)
FEW = settings(
    max_examples=4,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
)
MANY = settings(FEW, max_examples=300, derandomize=False)


def sqlite(folder: Path, text_of_fields: str) -> None:
    file = folder / "fields.db"
    file.unlink(missing_ok=True)
    assert check(f"sqlite:///{file}", folder, text_of_fields)  # it takes them all


@pytest.mark.parametrize("how", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_sqlite_takes_all_fields(tmp_path: Path, how: settings) -> None:
    how(given(LISTS)(lambda given_fields: sqlite(tmp_path, given_fields)))()


@pytest.mark.slow
@pytest.mark.parametrize("how", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_postgresql_takes_fields_or_names_one(
    tmp_path: Path, postgres: servers.Postgres, how: settings
) -> None:
    url = postgres.new_database("fields" + os.urandom(4).hex())

    def postgresql(given_fields: str) -> None:
        empty(url)
        check(url, tmp_path, given_fields)

    how(given(LISTS)(postgresql))()


@pytest.mark.parametrize("name", ["xmin", "ctid", "tableoid", "cmin", "cmax", "xmax"])
def test_postgresql_has_columns_of_its_own(postgres: servers.Postgres, name: str) -> None:
    url = postgres.new_database(f"own_{name}")
    layout = Layout(8, (Field("right", "<u4", 0), Field(name, "<u4", 4)))
    with pytest.raises(StoreError, match=rf"the field {name}: .*conflicts.*rename the field"):
        SqlStore(url, batch_size=1, streams=laid_out(layout))


@pytest.mark.slow
def test_a_row_that_postgresql_has_no_room_for(postgres: servers.Postgres) -> None:
    url = postgres.new_database("wide")
    layout = Layout(9600, tuple(Field(f"part_{number}", "V16", 16 * number) for number in range(600)))
    with pytest.raises(
        StoreError, match=r"no room for the field part_4\d\d .*row is too big.*fewer or shorter"
    ):
        SqlStore(url, batch_size=1, streams=laid_out(layout))
    assert stored_or_refused(url, Layout(9600, layout.fields[:400]))


def test_a_table_that_earlier_fields_fill(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    SqlStore(url, batch_size=1).close()
    old = ", ".join(f"old_{number} DOUBLE" for number in range(1990))
    with closing(sqlite3.connect(tmp_path / "log.db")) as database:
        database.execute(f"CREATE TABLE readings_data (connection_id INTEGER, sequence BIGINT, {old})")
    layout = Layout(800, tuple(Field(f"new_{each}", "<f8", 8 * each) for each in range(100)))
    with pytest.raises(StoreError, match=r"has 1992 columns, takes none for the field new_8: .*another data"):
        SqlStore(url, batch_size=1, streams=laid_out(layout))


def test_capitals_make_no_other_column_in_sqlite(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    SqlStore(url, batch_size=1, streams=laid_out(Layout(4, (Field("heat", "<u4", 0),)))).close()
    assert stored_or_refused(url, Layout(4, (Field("Heat", "<u4", 0),)))


@pytest.mark.slow
def test_messages_and_fields_that_a_jetstream_has_no_room_for(cluster: servers.Nats, stream: str) -> None:
    room = (1 << 20) - HEADERS_SIZE
    url = cluster.url(stream)
    patient(url, streams={DATA: StreamFormat("fixed", room)}).close()
    with pytest.raises(
        StoreError,
        match=rf"\(size\) of the stream data has {room + 1} bytes.*room for {room}.*max_payload",
    ):
        JetStreamStore(url, streams={DATA: StreamFormat("fixed", room + 1)})
    with pytest.raises(StoreError, match=rf"set max_size = {room}"):
        JetStreamStore(url, streams={DATA: StreamFormat("line", 1 << 20)})
    layout = Layout(1 << 20, tuple(Field(f"{'x' * 40}_{each}", "u1", each) for each in range(9000)))
    with pytest.raises(StoreError, match=r"description of the fields.*name fewer"):
        JetStreamStore(url, streams=laid_out(layout))


@pytest.mark.slow
def test_what_follows_a_broken_frame_may_be_longer_than_a_jetstream_takes(
    cluster: servers.Nats, stream: str
) -> None:
    rest = random.Random(1).randbytes((1 << 21) + 5)
    opened = row()
    with patient(cluster.url(stream), streams={DATA: StreamFormat("length", 1)}) as store:
        store.write(Batch(opened=[opened]))
        store.write(Batch(closed=[end(opened, len(rest), unfinished=rest)]))
    with JetStreamLog(cluster.url(stream)) as log:
        (connection,) = log.connections()
        assert connection.unfinished == rest
