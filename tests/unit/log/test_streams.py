"""A log of several streams: two streams of one sensor have nothing in common but its address."""

import csv
import json
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mcap.reader
import pyarrow.parquet
import pytest
from sqlalchemy import create_engine
from tests.support import version_3
from tests.support.hosts import configure
from tests.support.logs import SECOND, START, LogFile

from midstream import network
from midstream.cli import main
from midstream.cli.log import HOLE
from midstream.config import parse
from midstream.errors import ConfigError
from midstream.fields import Field, Layout
from midstream.log import table
from midstream.log.account import Accounts, accounts, summary
from midstream.log.export import export
from midstream.log.location import opened
from midstream.log.messages import LogReader
from midstream.log.selection import Selection
from midstream.log.verify import verify
from midstream.network import SensorStream
from midstream.storage.run import new_name
from midstream.storage.sql_log import SqlLog
from midstream.storage.stored import Log
from midstream.told import CLOSED, OPEN, Forgotten, HeldConnection, Knowledge, Pending

SENSOR = "10.83.0.11"
IMU = Layout(12, (Field("seq", "<u4", 0), Field("gyro", "<i2", 4, count=3, unit="rad/s", scale=0.5)))
JOINTS = Layout(8, (Field("seq", "<u4", 0), Field("angle", "<f4", 4, unit="rad")))

Said = Callable[..., tuple[int, str, str]]


def imu(number: int) -> bytes:
    return struct.pack("<I3h2x", number, number, -number, 2 * number)


def joints(number: int) -> bytes:
    return struct.pack("<If", number, number / 4)


def fill(log: LogFile) -> None:
    """Three messages of each of three streams, from one port of one sensor."""
    log.add(map(imu, range(3)), stream="imu", layout=IMU, port=4000, first=7)
    log.add(map(joints, range(3)), stream="joints", layout=JOINTS, port=4000, first=7, start_ns=START + 1)
    lines = [b"$GPGGA,%d" % number for number in range(3)]
    log.add(lines, stream="gps", framing="line", port=4000, first=7, start_ns=START + 2)


@pytest.fixture
def said(
    log: LogFile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Said:
    """`midstream log …` on the log: exit code, standard output and error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["midstream", "log", *arguments, "--database", log.url])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    monkeypatch.chdir(tmp_path)
    return run


def of(log: LogFile) -> Accounts:
    with SqlLog(log.url) as found:
        return accounts(found, found.told(), found.connections(), found.extents())


def test_each_command_names_the_stream(log: LogFile, said: Said) -> None:
    fill(log)
    header, *rows = said("list")[1].splitlines()
    assert header.split()[5:7] == ["stream", "sensor"]
    assert [row.split()[5:7] for row in rows[:3]] == [[name, SENSOR] for name in ("imu", "joints", "gps")]
    assert [row["stream"] for row in json.loads(said("list", "--json")[1])] == ["imu", "joints", "gps"]
    assert [line.split()[1:3] for line in said("show", "-n", "3")[1].splitlines()] == [
        [f"imu/{SENSOR}", "1:2"],
        [f"joints/{SENSOR}", "2:2"],
        [f"gps/{SENSOR}", "3:2"],
    ]
    assert json.loads(said("show", "-n", "1", "--json")[1])["stream"] == "gps"
    code, out, _ = said("verify")
    assert (code, f"connection 2 of joints/{SENSOR} (closed): 3 messages" in out) == (0, True)
    assert [row["stream"] for row in json.loads(said("verify", "--json")[1])] == ["imu", "joints", "gps"]


def test_each_command_takes_a_stream(log: LogFile, said: Said, tmp_path: Path) -> None:
    fill(log)
    chosen = ("--stream", "imu", "--stream", "gps")
    assert [row["connection"] for row in json.loads(said("list", *chosen, "--json")[1])] == [1, 3]
    assert len(said("show", *chosen)[1].splitlines()) == 6
    assert len(said("show", "--stream", "imu", "--where", "gyro_2>0")[1].splitlines()) == 2
    assert json.loads(said("export", *chosen, "-o", "x.jsonl", "--json")[1])["messages"] == 6
    assert [row["connection"] for row in json.loads(said("verify", *chosen, "--json")[1])] == [1, 3]
    assert said("verify", "--stream", "gps")[2].startswith("log verify: 3 messages of 1 connections")


@pytest.mark.slow
def test_a_picture_has_a_curve_for_each_stream(log: LogFile, said: Said, tmp_path: Path) -> None:
    fill(log)
    assert json.loads(said("plot", "seq", "-o", "x.svg", "--json")[1])["values"] == 6
    drawn = (tmp_path / "x.svg").read_text()
    assert f"imu/{SENSOR}" in drawn and f"joints/{SENSOR}" in drawn
    assert json.loads(said("plot", "seq", "--stream", "imu", "-o", "y.svg", "--json")[1])["values"] == 3


@pytest.mark.parametrize("command", [["list"], ["show"], ["export", "-o", "x.csv"], ["verify"]])
def test_a_stream_that_is_not_there(log: LogFile, said: Said, command: list[str]) -> None:
    fill(log)
    code, _, err = said(*command, "--stream", "lidar")
    assert (code, "--stream lidar: not in the log; there are gps, imu, joints" in err) == (2, True)


def test_connections_of_one_port_are_told_apart(log: LogFile) -> None:
    """The later one of another stream does not say that the first has ended."""
    log.add([imu(0)], stream="imu", port=4000, closed=False)
    log.add([joints(0)], stream="joints", port=4000, closed=False, start_ns=START + SECOND)
    log.execute(f"UPDATE connections SET token = '{new_name()}.' || id")
    with SqlLog(log.url) as found:
        assert [each.state for each in found.connections()] == ["open", "open"]
    log.add([imu(1)], stream="imu", port=4000, start_ns=START + 2 * SECOND)
    with SqlLog(log.url) as found:
        assert [each.state for each in found.connections()] == ["lost", "open", "closed"]


def test_each_stream_is_numbered_for_itself(log: LogFile, said: Said) -> None:
    log.add(map(imu, range(3)), stream="imu", layout=IMU)
    log.add(map(joints, range(3, 6)), stream="joints", layout=JOINTS, start_ns=START + 60 * SECOND)
    log.add(map(imu, range(5, 8)), stream="imu", layout=IMU, start_ns=START + 120 * SECOND)
    words = f"2 messages of imu/{SENSOR} are missing between connections 1 and 3: seq 3 to 4"
    assert words in said("list")[1]
    code, out, _ = said("verify")
    assert (code, out.count("are missing")) == (6, 1)


def held(stream: str, size: int, state: str = CLOSED) -> HeldConnection:
    return HeldConnection(SENSOR, 4000, 7, START, size, state, False, stream)


def test_what_was_held_is_judged_by_stream(log: LogFile, said: Said) -> None:
    fill(log)
    log.tell(Knowledge([held("imu", 36), held("joints", 24), held("gps", 27), held("lidar", 80)]))
    found = of(log)
    assert [(each.held.stream, [row.id for row in each.connections]) for each in found.all] == [
        ("imu", [1]),
        ("joints", [2]),
        ("gps", [3]),
        ("lidar", []),
    ]
    assert [each.verdict for each in found.all] == ["complete", "complete", "complete", "hole"]
    code, out, _ = said("verify")
    assert (code, f"port 4000 of lidar/{SENSOR} (closed): no connection in the log; hole" in out) == (
        HOLE,
        True,
    )
    assert said("verify", "--stream", "joints")[0] == 0
    out = said("list", "--stream", "imu")[1]
    assert f"imu/{SENSOR}: complete" in out and "joints" not in out
    lost = json.loads(said("list", "--json")[1])[-1]
    assert (lost["stream"], lost["connection"]) == ("lidar", None)


def test_what_is_pending_or_forgotten_is_of_a_stream(log: LogFile) -> None:
    log.add([imu(0)], stream="imu", layout=IMU, port=4000, first=7)
    log.add([joints(0)], stream="joints", layout=JOINTS, port=4000, first=7)
    log.tell(
        Knowledge(
            [held("imu", 36), held("joints", 24)],
            [Pending(SENSOR, 4000, 7, START, 12, 36, 2, START, "imu")],
            [Forgotten(SENSOR, START, START, 2, 16, "joints")],
        )
    )
    lacks = {each.held.stream: [(lack.kind, lack.messages) for lack in each.lacks] for each in of(log).all}
    assert lacks == {"imu": [("pending", 2)], "joints": [("forgotten", 2)]}
    with SqlLog(log.url) as found:
        assert summary(found)[SENSOR] == {
            "verdict": "forgotten",
            "connections": 2,
            "pending_bytes": 24,
            "lost_bytes": 16,
            "lost_messages": 2,
            "oldest_pending_ns": START,
        }


def test_a_hole_explains_no_other_streams_numbers(log: LogFile) -> None:
    for minute, numbers in enumerate((range(3), range(5, 8))):
        start = START + 60 * minute * SECOND
        log.add(map(imu, numbers), stream="imu", layout=IMU, start_ns=start, port=4000 + minute, first=7)
    log.tell(Knowledge([HeldConnection(SENSOR, 4000, 7, START, 60, CLOSED, False, "joints")]))
    assert [hole.messages for hole in of(log).holes.values()] == [2]
    log.tell(Knowledge([HeldConnection(SENSOR, 4000, 7, START, 60, CLOSED, False, "imu")]))
    assert of(log).holes == {}


def test_only_pending_connections_are_told_apart(log: LogFile) -> None:
    waiting = [Pending(SENSOR, 4000, 7, START, 0, 24, 2, START, stream) for stream in ("imu", "joints")]
    log.tell(Knowledge([], waiting))
    assert [(each.held.stream, each.held.state, each.verdict) for each in of(log).all] == [
        (stream, OPEN, "pending") for stream in ("imu", "joints")
    ]


def test_typed_columns_are_those_of_the_stream(log: LogFile) -> None:
    fill(log)
    log.execute("UPDATE readings_joints SET angle = 7 WHERE sequence = 1")
    with SqlLog(log.url) as found:
        faults = [fault for verdict in verify(found, found.connections()) for fault in verdict.faults]
    assert faults == ["message 1: the table readings_joints says something else"]


def test_json_lines_and_mcap_hold_all_streams(log: LogFile, said: Said, tmp_path: Path) -> None:
    fill(log)
    said("export", "-o", "x.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [row["stream"] for row in rows] == ["imu", "joints", "gps"] * 3
    said("export", "-o", "x.mcap")
    with (tmp_path / "x.mcap").open("rb") as file:
        found = list(mcap.reader.make_reader(file).iter_messages())
    described = {
        channel.topic: (schema.name, set(json.loads(schema.data)["properties"]))
        for schema, channel, _ in found
        if schema
    }
    assert described == {
        f"/imu/{SENSOR}": ("midstream.imu", {"seq", "gyro"}),
        f"/joints/{SENSOR}": ("midstream.joints", {"seq", "angle"}),
        f"/gps/{SENSOR}": ("midstream.gps", set()),
    }
    assert [channel.metadata["stream"] for _, channel, _ in found[:3]] == ["imu", "joints", "gps"]


def test_parquet_is_a_file_for_each_stream(log: LogFile, said: Said, tmp_path: Path) -> None:
    fill(log)
    shown = json.loads(said("export", "-o", "x.parquet", "--json")[1])
    assert (shown["messages"], shown["files"]) == (
        9,
        [f"x-{name}.parquet" for name in ("imu", "joints", "gps")],
    )
    assert not (tmp_path / "x.parquet").exists() and not list(tmp_path.glob("*.part"))
    tables = {name: pyarrow.parquet.read_table(tmp_path / f"x-{name}.parquet") for name in ("imu", "gps")}
    assert {name: table.schema.metadata[b"stream"] for name, table in tables.items()} == {
        "imu": b"imu",
        "gps": b"gps",
    }
    assert (
        tables["imu"]["gyro_0"].to_pylist() == [0.0, 0.5, 1.0] and "angle" not in tables["imu"].schema.names
    )
    assert tables["gps"]["payload"].to_pylist() == [b"$GPGGA,0", b"$GPGGA,1", b"$GPGGA,2"]
    assert said("export", "-o", "x.parquet")[0] == 2, "x-imu.parquet is there"
    shown = json.loads(said("export", "-o", "x.parquet", "--stream", "joints", "--json")[1])
    assert (shown["messages"], shown["file"]) == (3, "x.parquet")
    assert "x-imu.parquet, x-joints.parquet" in said("export", "-o", "y.parquet")[1].replace("y-", "x-")


def test_an_export_of_several_files_that_is_broken_off_leaves_nothing(log: LogFile, tmp_path: Path) -> None:
    fill(log)
    (tmp_path / "x-gps.parquet").touch()

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with SqlLog(log.url) as found:
        with pytest.raises(ConfigError, match=r"x-gps\.parquet: there already"):
            export(LogReader(found, Selection()), "parquet", tmp_path / "x.parquet")
        (tmp_path / "x-gps.parquet").unlink()
        with pytest.raises(KeyboardInterrupt):
            export(LogReader(found, Selection()), "parquet", tmp_path / "x.parquet", looked_at=interrupt)
    assert not list(tmp_path.glob("x*"))


def test_one_table_cannot_hold_other_fields(log: LogFile, said: Said, tmp_path: Path) -> None:
    fill(log)
    words = "one csv file cannot hold the streams imu, joints, each with fields of its own; name one of them"
    code, _, err = said("export", "-o", "x.csv")
    assert (code, words in err, "--stream imu" in err) == (2, True, True)
    code, _, err = said("export", "-o", "-", "--format", "parquet")
    assert (code, "one parquet file cannot hold the streams imu, joints, gps" in err) == (2, True)
    assert not list(tmp_path.glob("x*"))
    assert said("export", "-o", "x.csv", "--stream", "imu", "--stream", "gps")[0] == 0
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["stream"], row["gyro_1"], row["payload"]) for row in rows[:2]] == [
        ("imu", "0.0", ""),
        ("gps", "", "$GPGGA,0"),
    ]


def test_streams_of_the_same_fields_share_a_table(log: LogFile, said: Said, tmp_path: Path) -> None:
    for stream in ("left", "right"):
        log.add(map(imu, range(2)), stream=stream, layout=IMU)
    assert said("export", "-o", "x.csv")[0] == 0
    with (tmp_path / "x.csv").open(newline="") as file:
        assert sorted(row["stream"] for row in csv.DictReader(file)) == ["left"] * 2 + ["right"] * 2


def test_a_log_of_one_stream_looks_as_ever(log: LogFile, said: Said) -> None:
    log.add([b"x"], first=7, port=4000)
    log.tell(Knowledge([HeldConnection(SENSOR, 4000, 7, START, 1, CLOSED, False)]))
    assert "stream" not in said("list")[1] and f"\n{SENSOR}: complete" in said("list")[1]
    assert said("show")[1].split()[1] == SENSOR


def test_a_log_of_a_version_before_is_of_the_stream_data(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    engine = create_engine(url)
    version_3.make(engine)
    engine.dispose()
    with SqlLog(url) as old:
        first, second = old.connections()
        assert {old.readings_table(each) for each in (first, second)} == {"readings"}
        found = accounts(old, old.told(), [first, second], old.extents())
        assert [(each.held.stream, each.verdict) for each in found.all] == [
            ("data", "complete"),
            ("data", "complete"),
        ]
        assert all(verdict.right for verdict in verify(old, [first, second]))
    read = table("data", database=url)
    assert read["level"].to_pylist() == [0.0, 0.5, 1.0] and read["arrived"].null_count == 0


def read_all(log: Log) -> dict[str, list[str] | None]:
    """The names of the fields of each stream."""
    return {
        each.stream: [field.name for field in each.layout.fields] if each.layout else None
        for each in log.connections()
    }


def test_fields_of_const_toml_serve_older_messages(log: LogFile, tmp_path: Path) -> None:
    """Of each stream its own, whatever config.toml of this host says of it."""
    log.add([imu(1)], stream="imu")
    log.add([joints(1)], stream="joints")
    path = configure(tmp_path)
    path.write_text("")
    text = '[[stream]]\nname = "imu"\nsize = 12\n[[stream.field]]\nname = "level"\ntype = "u32"\n'
    fields = parse(text, tmp_path / "other.toml").stream[0].field
    topology = network.load(tmp_path / "const.toml")
    streams = (SensorStream("imu", 5001, "fixed", 12, None, fields), SensorStream("joints", 5002, "fixed", 8))
    network.write(tmp_path / "const.toml", replace(topology, streams=streams), "a test")
    with opened(path, log.url) as found:
        assert read_all(found) == {"imu": ["level"], "joints": None}
