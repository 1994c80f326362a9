"""Exports, read back with other programs' libraries."""

import base64
import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from mcap.reader import make_reader
from tests.support.logs import LAYOUT, SECOND, START, LogFile, reading

from midstream.errors import ConfigError
from midstream.log.export import Format, export
from midstream.log.messages import LogReader
from midstream.log.selection import Selection
from midstream.storage.sql_log import SqlLog

LINES = [b'{"speed": 1.5}', b"$GPGGA,4807", b"[1, 2]"]


def fill(log: LogFile) -> None:
    log.add([reading(0), reading(1), reading(2, math.nan)], layout=LAYOUT)
    log.add(LINES, sensor="10.83.0.12", framing="line", start_ns=START + SECOND // 2)
    log.add([b"\xff\0"], sensor="10.83.0.13", framing="length", start_ns=START + 9 * SECOND)


def exported(
    log: LogFile, kind: Format, *, payload: bool = False, selection: Selection | None = None
) -> Path:
    path = log.path.with_name(f"out.{kind}")
    with SqlLog(log.url) as database:
        looked_at: list[int] = []
        reader = LogReader(database, selection or Selection())
        export(reader, kind, path, payload=payload, looked_at=looked_at.append)
        assert sum(looked_at) == reader.total
    assert not list(log.path.parent.glob("*.part"))
    return path


def test_csv(log: LogFile) -> None:
    fill(log)
    with exported(log, "csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["payload"] for row in rows] == [
        "",
        LINES[0].decode(),
        "",
        "$GPGGA,4807",
        "",
        "[1, 2]",
        "ff00",
    ]
    assert rows[2] == {
        "stream": "data",
        "sensor": "10.83.0.11",
        "port": "40001",
        "connection": "1",
        "sequence": "1",
        "received": "2025-11-24T16:00:01.000000000Z",
        "arrived": "",
        "delay_ns": "",
        "delay_error_ns": "",
        "temperature": "20.125",
        "position_0": "0.01",
        "position_1": "-0.01",
        "armed": "True",
        "tag": "616263",
        "payload": "",
    }
    assert rows[4]["temperature"] == ""


def test_json_lines(log: LogFile) -> None:
    fill(log)
    rows = [json.loads(line) for line in exported(log, "jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0]["fields"] == {
        "temperature": 20.0,
        "position_0": 0.0,
        "position_1": 0.0,
        "armed": False,
        "tag": "616263",
    }
    assert rows[4]["fields"]["temperature"] is None
    assert rows[0]["received_ns"] == START
    assert [row.get("json", row.get("text", row.get("hex"))) for row in rows if "fields" not in row] == [
        {"speed": 1.5},
        "$GPGGA,4807",
        [1, 2],
        "ff00",
    ]


def test_what_json_cannot_hold_stays_text(log: LogFile) -> None:
    log.add([b'{"speed": NaN}', b"[" * 100_000], framing="line")
    rows = [json.loads(line) for line in exported(log, "jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"][:9] for row in rows] == ['{"speed":', "[" * 9]


def test_parquet(log: LogFile) -> None:
    fill(log)
    file = pyarrow.parquet.ParquetFile(exported(log, "parquet"))
    schema = file.schema_arrow
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "sensor": "dictionary<values=string, indices=int32, ordered=0>",
        "port": "int32",
        "connection": "int64",
        "sequence": "int64",
        "received": "timestamp[ns, tz=UTC]",
        "arrived": "timestamp[ns, tz=UTC]",
        "delay_ns": "int64",
        "delay_error_ns": "int64",
        "temperature": "float",
        "position_0": "double",
        "position_1": "double",
        "armed": "bool",
        "tag": "fixed_size_binary[3]",
        "payload": "binary",
    }
    assert schema.field("temperature").metadata == {b"unit": "°C".encode()}
    rows: list[dict[str, Any]] = file.read().to_pylist()
    rows.sort(key=lambda row: (row["connection"], row["sequence"]))
    assert [row["sensor"] for row in rows] == ["10.83.0.11"] * 3 + ["10.83.0.12"] * 3 + ["10.83.0.13"]
    assert [row["temperature"] for row in rows[:2]] == [20.0, 20.125]
    assert math.isnan(rows[2]["temperature"])
    assert [row["tag"] for row in rows] == [b"abc"] * 3 + [None] * 4
    assert [row["payload"] for row in rows] == [None] * 3 + LINES + [b"\xff\0"]
    assert rows[1]["received"].value == START + SECOND if hasattr(rows[1]["received"], "value") else True


def test_mcap(log: LogFile) -> None:
    fill(log)
    with exported(log, "mcap").open("rb") as stream:
        reader = make_reader(stream)
        found = list(reader.iter_messages())
        summary = reader.get_summary()
    assert summary and summary.statistics and summary.statistics.message_count == 7
    assert [message.log_time - START for _, _, message in found[:3]] == [0, SECOND // 2, SECOND]
    assert {channel.topic for _, channel, _ in found} == {"/10.83.0.11", "/10.83.0.12", "/10.83.0.13"}
    schema, channel, message = found[2]
    assert schema and (schema.encoding, channel.message_encoding) == ("jsonschema", "json")
    assert json.loads(schema.data) == {
        "type": "object",
        "properties": {
            "temperature": {"type": "number", "description": "°C"},
            "position": {"type": "array", "items": {"type": "number"}, "description": "m"},
            "armed": {"type": "boolean"},
            "tag": {"type": "string", "contentEncoding": "base64"},
        },
    }
    assert json.loads(message.data) == {
        "temperature": 20.125,
        "position": [0.01, -0.01],
        "armed": True,
        "tag": base64.b64encode(b"abc").decode(),
    }
    assert channel.metadata == {"stream": "data", "sensor": "10.83.0.11", "port": "40001", "connection": "1"}
    assert message.sequence == 1
    others = [json.loads(message.data) for _, channel, message in found if channel.topic != "/10.83.0.11"]
    assert others == [{"speed": 1.5}, {"text": "$GPGGA,4807"}, {"text": "[1, 2]"}, {"payload": "/wA="}]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "mcap"])
def test_the_payload_too(log: LogFile, kind: Format) -> None:
    log.add([reading(5)], layout=LAYOUT)
    path = exported(log, kind, payload=True)
    wanted = reading(5)
    if kind == "parquet":
        assert pyarrow.parquet.read_table(path).column("payload").to_pylist() == [wanted]
    elif kind == "mcap":
        with path.open("rb") as stream:
            ((_, _, message),) = make_reader(stream).iter_messages()
        assert base64.b64decode(json.loads(message.data)["payload"]) == wanted
    else:
        assert wanted.hex() in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "mcap"])
def test_nothing_selected_is_an_empty_file(log: LogFile, kind: Format) -> None:
    log.add([reading(5)], layout=LAYOUT)
    path = exported(log, kind, selection=Selection(since_ns=START + SECOND))
    if kind == "parquet":
        assert pyarrow.parquet.read_table(path).num_rows == 0
    elif kind == "mcap":
        with path.open("rb") as stream:
            assert not list(make_reader(stream).iter_messages())
    else:
        assert len(path.read_text(encoding="utf-8").splitlines()) == (kind == "csv")


def test_connections_with_other_fields_share_columns(log: LogFile) -> None:
    from midstream.fields import Field, Layout

    log.add([b"\x01\x02"], layout=None)
    log.add([reading(8)], layout=LAYOUT)
    log.execute(
        "UPDATE connections SET layout = '"
        + Layout(2, (Field("temperature", ">i2", 0),)).describe()
        + "' WHERE id = 1"
    )
    table = pyarrow.parquet.read_table(exported(log, "parquet"))
    assert str(table.schema.field("temperature").type) == "float"
    assert sorted(table.column("temperature").to_pylist()) == [21.0, 258.0]
    log.execute(
        "UPDATE connections SET layout = '"
        + Layout(2, (Field("tag", "<u2", 0),)).describe()
        + "' WHERE id = 1"
    )
    (log.path.with_name("out.parquet")).unlink()
    with pytest.raises(ConfigError, match=r"field tag: of type .* export them one by one"):
        exported(log, "parquet")
    assert not list(log.path.parent.glob("out*"))


@pytest.mark.parametrize(("kind", "package"), [("parquet", "pyarrow"), ("mcap", "mcap")])
def test_a_missing_package_is_named(
    log: LogFile, kind: Format, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package}; pip install 'midstream\[{kind}\]'"):
        exported(log, kind)
    assert not list(log.path.parent.glob("out*"))


def test_files_that_cannot_be_written(log: LogFile, tmp_path: Path) -> None:
    log.add([b"x"])
    path = exported(log, "csv")
    with pytest.raises(ConfigError, match="there already"):
        exported(log, "csv")
    path.unlink()
    with SqlLog(log.url) as database:
        reader = LogReader(database, Selection())
        with pytest.raises(ConfigError, match=r"cannot be written \(No such file"):
            export(reader, "csv", tmp_path / "no" / "x.csv")
        path.with_name("out.csv.part").touch()
        with pytest.raises(ConfigError, match="another export writes here"):
            export(reader, "csv", path)
    assert path.with_name("out.csv.part").exists()


def test_an_export_that_is_broken_off_leaves_nothing(log: LogFile) -> None:
    log.add([b"x"])

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with SqlLog(log.url) as database, pytest.raises(KeyboardInterrupt):
        export(LogReader(database, Selection()), "jsonl", log.path.with_name("out"), looked_at=interrupt)
    assert not list(log.path.parent.glob("out*"))
