"""Whatever the logger can store is shown, exported and read back, and every command ends well."""

import base64
import contextlib
import csv
import io
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from tests.support.logs import SECOND, START, LogFile

from midstream.cli import main
from midstream.errors import ConfigError
from midstream.fields import Field, Layout
from midstream.log import mcap as mcap_module
from midstream.log.conditions import MISSING
from midstream.log.decoding import parse, printable
from midstream.log.export import Format, export
from midstream.log.messages import LogReader
from midstream.log.selection import Selection
from midstream.storage.sql_log import SqlLog

LAYOUT = Layout(
    46,
    (
        Field("f32", "<f4", 0, unit="°C"),
        Field("f64", ">f8", 4, unit="$\\frac"),
        Field("big", "<f8", 12, scale=1e300, bias=-1e300),
        Field("u64", ">u8", 20),
        Field("i64", "<i8", 28),
        Field("flags", "?", 36, count=2),
        Field("pair", "<u2", 38, count=2, unit="\x1b[2J\n"),
        Field("scaled", "<i2", 42, scale=0.1),
        Field("raw", "V2", 44),
    ),
)

NASTY = [
    b"",
    b" ",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'\xef\xbb\xbf{"speed": 4}',
    b' \t{"speed": 5}\r',
    b'\r\n[1, {"speed": 6}]\n',
    b'{"speed": 1e999}',
    b'{"speed": ' + b"9" * 400 + b"}",
    b'{"speed": ' + b"9" * 5000 + b"}",
    b'{"speed": -0, "x": -0.0, "y": 1e-999}',
    b'{"speed": NaN}',
    b'{"speed": 1, "speed": 2}',
    b'{"a": "\\ud800"}',
    b'{"\\udfff": 1}',
    b'{"a": "\\ud83d\\ude00\\u0000\\u001b[2J"}',
    '{"a": "\u2028\u2029\x85\x7f\x9b2J"}'.encode(),
    b"[" * 99 + b"]" * 99,
    b"[" * 500 + b"]" * 500,
    b"[" * 100_000,
    b'{"payload": 1, "payload__": 2, "connection": 3, "sensor": 4, "text": 5, "": 6}',
    b'{"payload": "AA=="}',
    b"\x1b]0;title\x07\x1b[2J",
    b"a\n2025-11-24T16:00:00.000000000Z 10.83.0.11 1:0 forged",
    "\u202e\u2028\u0085".encode(),
    b'=HYPERLINK("x"),"a\nb",\'',
    b"ff00",
    "x\ud800".encode("utf-8", "surrogatepass"),
    b'{"a": "\xed\xa0\x80"}',
    b"x" * 200_000,
    '"text"'.encode("utf-16"),
]

documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
    max_leaves=8,
)
payloads = st.one_of(
    st.binary(max_size=60),
    st.text().map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.tuples(st.sampled_from(["", "\ufeff", " ", "\n\t"]), documents, st.booleans()).map(
        lambda each: (each[0] + json.dumps(each[1], ensure_ascii=each[2])).encode("utf-8", "surrogatepass")
    ),
    st.sampled_from(NASTY),
)
quick = settings(
    max_examples=3,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log")


@contextlib.contextmanager
def stored(folder: Path, messages: list[bytes], readings: list[bytes]) -> Iterator[LogFile]:
    """A log with these messages of any size, and these of LAYOUT."""
    for path in folder.iterdir():
        path.unlink()
    log = LogFile(folder / "log.db")
    try:
        log.add(messages, framing="length")
        log.add(readings, start_ns=START + SECOND // 2, layout=LAYOUT)
        yield log
    finally:
        log.close()


def exported(log: LogFile, kind: Format, payload: bool) -> bytes:
    path = log.path.with_name(f"out-{payload}.{kind}")
    with SqlLog(log.url) as database:
        export(LogReader(database, Selection()), kind, path, payload=payload)
    return path.read_bytes()


def loads(text: str | bytes) -> Any:
    """As a reader does that knows JSON only."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def meant(payload: bytes) -> Any:
    return json.loads(payload.decode("utf-8-sig"))


def check_said(said: dict[str, Any], payload: bytes) -> None:
    """{"json": …}, {"text": …} or {"hex": …} says exactly this payload."""
    (kind,) = said
    if kind == "json":
        assert said["json"] == meant(payload)
        assert isinstance(said["json"], dict | list)
    elif kind == "text":
        assert said["text"].encode() == payload
    else:
        assert bytes.fromhex(said["hex"]) == payload


anything = given(st.lists(payloads, max_size=12), st.lists(st.binary(min_size=46, max_size=46), max_size=6))


@pytest.mark.slow
@quick
@example(NASTY, [bytes(46), b"\xff" * 46])
@anything
def test_exports_are_read_back(folder: Path, messages: list[bytes], readings: list[bytes]) -> None:
    with stored(folder, messages, readings) as log:
        check_json_lines(log, messages, readings)
        check_csv(log, messages, readings)
        check_parquet(log, messages, readings)
        check_mcap(log, messages, readings)


@pytest.mark.slow
@settings(quick, max_examples=300)
@anything
def test_many_exports_are_read_back(folder: Path, messages: list[bytes], readings: list[bytes]) -> None:
    with stored(folder, messages, readings) as log:
        check_json_lines(log, messages, readings)
        check_csv(log, messages, readings)
        check_parquet(log, messages, readings)
        check_mcap(log, messages, readings)


def check_json_lines(log: LogFile, messages: list[bytes], readings: list[bytes]) -> None:
    head = {"stream", "sensor", "port", "connection", "sequence", "received", "received_ns"}
    head |= {"arrived", "arrived_ns", "delay_ns", "delay_error_ns"}
    for payload in (False, True):
        text = exported(log, "jsonl", payload).decode("ascii")
        rows = [loads(line) for line in text.splitlines()]
        assert len(rows) == len(messages) + len(readings)
        for row in rows:
            stored = (messages, readings)[row["connection"] - 1][row["sequence"]]
            said = {key: value for key, value in row.items() if key not in head}
            if payload:
                assert bytes.fromhex(row["hex"]) == stored
                if len(said) > 1:
                    del said["hex"]
            if row["connection"] == 1:
                check_said(said, stored)
            else:
                check_fields(said["fields"], stored)


def check_fields(said: dict[str, Any], stored: bytes) -> None:
    row = np.frombuffer(stored, LAYOUT.dtype)[0]
    assert list(said) == [column.name for column in LAYOUT.columns]
    for name in ("f32", "f64"):
        value = float(row[name])
        assert (
            said[name] is None
            if not math.isfinite(value)
            else np.float64(said[name]).astype(LAYOUT.dtype[name].newbyteorder("=")) == row[name]
        )
    assert (said["u64"], said["i64"]) == (int(row["u64"]), int(row["i64"]))
    assert [said["pair_0"], said["pair_1"]] == row["pair"].tolist()
    assert [said["flags_0"], said["flags_1"]] == [stored[36] != 0, stored[37] != 0]
    assert bytes.fromhex(said["raw"]) == stored[44:]


def check_csv(log: LogFile, messages: list[bytes], readings: list[bytes]) -> None:
    csv.field_size_limit(1 << 24)
    for payload in (False, True):
        text = exported(log, "csv", payload).decode()
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        assert len(rows) == len(messages) + len(readings)
        for row in rows:
            stored = (messages, readings)[int(row["connection"]) - 1][int(row["sequence"])]
            assert None not in row
            if payload:
                assert bytes.fromhex(row["payload"]) == stored
            elif row["connection"] == "2":
                assert row["payload"] == ""
            else:
                said = row["payload"]
                assert any(
                    (
                        said.encode("utf-8") == stored,
                        re.fullmatch("([0-9a-f]{2})*", said) and bytes.fromhex(said) == stored,
                        parse(stored) is not MISSING and loads(said) == meant(stored),
                    )
                )


def check_parquet(log: LogFile, messages: list[bytes], readings: list[bytes]) -> None:
    for payload in (False, True):
        table = pyarrow.parquet.read_table(io.BytesIO(exported(log, "parquet", payload)))
        rows = table.drop_columns(["received"]).to_pylist()
        assert len(rows) == len(messages) + len(readings)
        for row in rows:
            stored = (messages, readings)[row["connection"] - 1][row["sequence"]]
            assert row["payload"] == (stored if payload or row["connection"] == 1 else None)
            if row["connection"] == 2:
                values = np.frombuffer(stored, LAYOUT.dtype)[0]
                for name in ("f32", "f64", "u64", "i64"):
                    assert row[name] == values[name] or math.isnan(values[name])
                assert row["raw"] == stored[44:]


def check_mcap(log: LogFile, messages: list[bytes], readings: list[bytes]) -> None:
    for payload in (False, True):
        found = list(make_reader(io.BytesIO(exported(log, "mcap", payload))).iter_messages())
        assert len(found) == len(messages) + len(readings)
        for schema, channel, message in found:
            document = loads(message.data)
            assert schema
            assert loads(schema.data)["type"] == "object"
            number = int(channel.metadata["connection"])
            stored = (messages, readings)[number - 1][message.sequence]
            if payload:
                key = max((key for key in document if re.fullmatch("payload_*", key)), key=len)
                assert base64.b64decode(document.pop(key), validate=True) == stored
            if number == 2:
                assert list(document) == [field.name for field in LAYOUT.fields]
            elif isinstance(parse(stored), dict):
                assert document == meant(stored)
            elif "text" in document:
                assert document == {"text": stored.decode()}
            else:
                assert payload or base64.b64decode(document["payload"]) == stored


COMMANDS = [
    ["list"],
    ["list", "--json"],
    ["show"],
    ["show", "--json"],
    ["show", "-n", "3"],
    ["show", "--where", "speed>3"],
    ["show", "--where", "f32<1e300", "--where", "f64!=" + "9" * 400],
    ["show", "--where", "flags_0<" + "9" * 400, "--connection", "2"],
    ["show", "--where", "raw=0000", "--connection", "2"],
    ["show", "--where", "x=" + "[" * 100_000],
    ["show", "--where", '"a b\\"=>"=1'],
    ["plot", "speed", "big", "x\x1b$a$", "-o", "x.png"],
    ["plot", "f64", "-o", "x.svg"],
    *(["export", "-o", "-", "--format", kind] for kind in ("csv", "jsonl", "parquet", "mcap")),
    ["verify"],
    ["verify", "--json"],
    ["prune", "--keep-size", "1", "--dry-run"],
]


def run(log: LogFile, arguments: list[str], encoding: str = "utf-8") -> tuple[int, bytes]:
    """Exit code and standard output, in this process."""
    out = io.TextIOWrapper(io.BytesIO(), encoding, "strict")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(log.path.parent)
        patch.setattr(sys, "argv", ["midstream", "log", *arguments, "--database", log.url])
        with pytest.raises(SystemExit) as ended, contextlib.redirect_stderr(io.StringIO()):
            main()
    out.flush()
    data: bytes = out.buffer.getvalue()
    return int(ended.value.code or 0), data


@pytest.mark.slow
@settings(quick, max_examples=20)
@anything
def test_every_command_ends_well_with_anything(
    folder: Path, messages: list[bytes], readings: list[bytes]
) -> None:
    test_every_command_ends_well(folder, messages, readings)


@pytest.mark.parametrize(("messages", "readings"), [(NASTY, [bytes(46), b"\xff" * 46]), ([], [])])
def test_every_command_ends_well(folder: Path, messages: list[bytes], readings: list[bytes]) -> None:
    with stored(folder, messages, readings) as log:
        for arguments in COMMANDS:
            code, out = run(log, arguments)
            assert code in (0, 2), arguments
            if arguments[0] in ("list", "show"):
                lines = out.decode().split("\n")
                assert all(line.isprintable() for line in lines), arguments  # nothing for a terminal to obey
                if code == 0 and arguments[:2] in (["show"], ["show", "--json"]) and len(arguments) < 3:
                    assert len(lines) == len(messages) + len(readings) + 1
            if arguments[-1] == "--json":
                for line in out.decode("ascii").splitlines():
                    loads(line)


@pytest.mark.parametrize(
    "payload",
    [
        b'\xef\xbb\xbf{"speed": 4}',
        b' \t{"speed": 4}',
        b'{"speed": 4}\r',
        b'\n{"speed":\n4}',
        b'[{"speed": 4}]',
    ],
)
def test_what_where_finds_is_shown_as_json(folder: Path, payload: bytes) -> None:
    with stored(folder, [payload], []) as log:
        key = "0.speed" if payload.startswith(b"[") else "speed"
        code, out = run(log, ["show", "--json", "--where", f"{key}>3"])
        assert (code, [loads(line)["json"] for line in out.splitlines()]) == (0, [meant(payload)])
        assert run(log, ["show", "--where", f"{key}>3"])[1].count(b"\n") == 1


@pytest.mark.parametrize(
    "payload",
    [
        b'{"speed": 1e999}',
        b'{"speed": -1' + b"0" * 400 + b"}",
        b'{"speed": 4, "speed": 4}',
        b'{"speed": 4, "a": "\\uDc00"}',
        b'{"speed": 4, "a": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"speed": Infinity}',
        '{"speed": 4}'.encode("utf-16"),
    ],
)
def test_what_readers_of_json_would_not_agree_on_is_not_json(folder: Path, payload: bytes) -> None:
    """RFC 7493: it stays text, or digits, in which nothing is lost; and --where says the same."""
    assert parse(payload) is MISSING
    with stored(folder, [payload], []) as log:
        (row,) = map(loads, run(log, ["show", "--json"])[1].splitlines())
        check_said({key: row[key] for key in ("text", "hex") if key in row}, payload)
        assert run(log, ["show", "--where", "speed=4"]) == (0, b"")
        assert run(log, ["plot", "speed", "-o", "x.png"])[0] == 2


def test_json_that_is_nested_as_deeply_as_it_may() -> None:
    assert parse(b"[" * 100 + b"]" * 100) is not MISSING
    assert parse(b"[" * 101 + b"]" * 101) is MISSING
    assert parse(b"[" + b"[]," * 200 + b"[]]") is not MISSING


def test_a_field_is_as_large_as_it_is(folder: Path) -> None:
    """No column holds unsigned and signed 64-bit integers, or one of them and real numbers, exactly."""
    with stored(folder, [b"12345678"], [bytes(46)]) as log:
        for other in ("<u8", "<f4"):
            layout = Layout(8, (Field("i64", other, 0),)).describe()
            log.execute(f"UPDATE connections SET framing = 'fixed', layout = '{layout}' WHERE id = 1")
            with pytest.raises(ConfigError, match=r"field i64: of type .* export them one by one"):
                exported(log, "parquet", False)


def test_messages_that_do_not_fit_the_fields_are_in_the_export(folder: Path) -> None:
    """Fields of config.toml serve what was stored without; a message of another size is shown whole."""
    with stored(folder, [], [bytes(46)] * 3) as log:
        log.execute("UPDATE messages SET payload = CAST('short' AS BLOB) WHERE sequence = 1")
        assert check_rows(exported(log, "csv", False)) == ["", "short", ""]
        table = pyarrow.parquet.read_table(io.BytesIO(exported(log, "parquet", False)))
        rows = sorted(
            table.select(["sequence", "payload", "u64"]).to_pylist(), key=lambda row: row["sequence"]
        )
        assert [(row["payload"], row["u64"]) for row in rows] == [(None, 0), (b"short", None), (None, 0)]
        found = list(make_reader(io.BytesIO(exported(log, "mcap", False))).iter_messages())
        assert [min(loads(message.data)) for _, _, message in found] == ["big", "text", "big"]


def check_rows(data: bytes) -> list[str]:
    return [row["payload"] for row in csv.DictReader(io.StringIO(data.decode(), newline=""))]


def test_names_of_ours_give_way_to_the_users(folder: Path) -> None:
    """config.toml refuses these names today; what a database has is shown all the same."""
    names = ("payload", "sensor", "sequence", "sequence_", 'Ünït "x", y', "received")
    fields = tuple(Field(name, "<i2", 2 * index) for index, name in enumerate(names))
    layout = Layout(12, fields)
    payload = bytes(range(12))
    values = {name: 256 * (2 * index + 1) + 2 * index for index, name in enumerate(names)}
    with stored(folder, [payload], []) as log:
        log.execute(f"UPDATE connections SET framing = 'fixed', layout = '{layout.describe()}' WHERE id = 1")
        (row,) = csv.DictReader(io.StringIO(exported(log, "csv", True).decode(), newline=""))
        assert {name: int(row[name]) for name in names} == values
        assert (row["payload_"], row["sensor_"], row["sequence__"]) == (payload.hex(), "10.83.0.11", "0")
        table = pyarrow.parquet.read_table(io.BytesIO(exported(log, "parquet", True)))
        (row,) = table.drop_columns(["received_"]).to_pylist()
        assert {name: row[name] for name in names} == values
        assert (row["payload_"], row["sensor_"], row["sequence__"]) == (payload, "10.83.0.11", 0)
        ((_, _, message),) = make_reader(io.BytesIO(exported(log, "mcap", True))).iter_messages()
        document = loads(message.data)
        assert base64.b64decode(document.pop("payload_")) == payload
        assert document == values
        row = loads(exported(log, "jsonl", True))
        assert (row["fields"], row["hex"], row["sequence"]) == (values, payload.hex(), 0)


def test_more_connections_than_mcap_has_channels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcap_module, "_OWN_CHANNELS", 2)
    log = LogFile(folder / "log.db")
    for number in range(5):
        log.add([b"%d" % number], start_ns=START + number * SECOND)
    found = list(make_reader(io.BytesIO(exported(log, "mcap", False))).iter_messages())
    log.close()
    assert [loads(message.data)["text"] for _, _, message in found] == list("01234")
    assert [channel.metadata.get("connection") for _, channel, _ in found] == ["1", "2", None, None, None]


def test_a_picture_has_room_for_so_many(folder: Path) -> None:
    with stored(folder, [], [bytes(46)]) as log:
        assert run(log, ["plot", *["f32"] * 101, "-o", "x.png"])[0] == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", ["parquet", "mcap"])
def test_a_terminal_is_not_sent_a_binary_file(
    folder: Path, kind: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stored(folder, [b"x"], []) as log, SqlLog(log.url) as database:
        monkeypatch.setattr(sys, "stdout", Terminal())
        with pytest.raises(ConfigError, match=f"a terminal cannot show {kind}; redirect it"):
            export(LogReader(database, Selection()), kind, Path("-"))


def test_numbers_are_looked_for_in_what_is_shown_as_json(folder: Path) -> None:
    """Between connections, whatever their messages are: the same decoder says what they say."""
    log = LogFile(folder / "log.db")
    forms = [b'\xef\xbb\xbf{"seq": %d}', b' {"seq": %d}', b'{"seq": %d}']
    numbered = [[form % (10 * number), form % (10 * number + 1)] for number, form in enumerate(forms)]
    for number, payloads in enumerate([*numbered, *([payload] for payload in NASTY)]):
        log.add(payloads, framing="length", start_ns=START + 10 * number * SECOND)
    code, out = run(log, ["verify", "--json"])
    log.close()
    assert (code, [row["right"] for row in loads(out)]) == (6, [True, False, False, *([True] * len(NASTY))])


def test_what_is_printable_stays() -> None:
    assert printable("21 °C 中 😀 \\n") == "21 °C 中 😀 \\n"
    assert printable("\x1b[2J\x7f\x9b\u2028\ud800\n") == "\\u001b[2J\\u007f\\u009b\\u2028\\ud800\\n"
