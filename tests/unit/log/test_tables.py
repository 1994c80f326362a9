"""midstream.log.table: a stream as an Arrow table."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from tests.support.hosts import configure
from tests.support.logs import LAYOUT, SECOND, START, LogFile, reading

from midstream.errors import ConfigError, StoreError
from midstream.fields import Field, Layout
from midstream.log import arrow, table
from midstream.storage.sql import SqlStore
from midstream.told import STEP, ArrivalTimes

HEAD = ["sensor", "port", "connection", "sequence", "received", "arrived", "delay_ns", "delay_error_ns"]
OTHER = "10.83.0.12"


def fill(log: LogFile) -> None:
    """Two sensors' messages, one after the other in turn, and a stream without fields."""
    log.add([reading(number) for number in range(3)], stream="imu", layout=LAYOUT, port=1, first=7)
    times = [START + number * SECOND + 1 for number in range(3)]
    others = [reading(10 + number) for number in range(3)]
    log.add(others, stream="imu", layout=LAYOUT, sensor=OTHER, times=times)
    log.add([b"$GPGGA", b"\xff"], stream="gps", framing="line")


def test_the_fields_of_a_stream(log: LogFile) -> None:
    fill(log)
    found = table("imu", database=log.url)
    assert found.column_names == [*HEAD, "temperature", "position", "armed", "tag"]
    assert found["sensor"].to_pylist() == ["10.83.0.11", OTHER] * 3, "in the order of time"
    assert found["sequence"].to_pylist() == [0, 0, 1, 1, 2, 2]
    assert found["received"].type == pa.timestamp("ns", tz="UTC")
    assert found["received"].cast("int64").to_pylist()[:3] == [START, START + 1, START + SECOND]
    assert found["temperature"].to_pylist() == [20.0, 21.25, 20.125, 21.375, 20.25, 21.5]
    assert found["position"].type == pa.list_(pa.float64(), 2)
    assert found["position"].to_pylist()[1] == [0.1, -0.1]
    assert found["armed"].to_pylist() == [False, False, True, True, False, False]
    assert found["tag"].to_pylist() == [b"abc"] * 6
    assert [found.schema.field(name).metadata for name in ("temperature", "position", "armed")] == [
        {b"unit": "°C".encode()},
        {b"unit": b"m"},
        None,
    ]
    assert found.schema.metadata == {b"stream": b"imu"}
    assert found["arrived"].null_count == 6


def test_what_no_fields_describe_is_payload(log: LogFile) -> None:
    fill(log)
    assert table("gps", database=log.url).column_names == [*HEAD, "payload"]
    assert table("gps", database=log.url)["payload"].to_pylist() == [b"$GPGGA", b"\xff"]
    log.add([b"short"], stream="imu", start_ns=START + 60 * SECOND)
    found = table("imu", database=log.url)
    assert found["payload"].to_pylist() == [None] * 6 + [b"short"]
    assert found["position"].to_pylist()[-1] is None and found["temperature"].to_pylist()[-1] is None


def test_when_they_arrived(log: LogFile) -> None:
    fill(log)
    steps = STEP.pack(16, 0) + STEP.pack(16, 1000)
    told = ArrivalTimes("10.83.0.11", 1, 7, START, 0, 32, START - 2000, 500, 20, steps, "imu")
    with SqlStore(log.url, batch_size=10) as store:
        store.note_held([], None, [told])
    found = table("imu", sensors=["10.83.0.11"], database=log.url)
    assert found["arrived"].cast("int64").to_pylist() == [START - 2000, START - 1000, None]
    assert found["delay_ns"].to_pylist() == [1500, SECOND + 500, None]
    assert found["delay_error_ns"].to_pylist() == [20, 20, None]


def test_a_part_of_it(log: LogFile) -> None:
    fill(log)
    second = datetime.fromtimestamp(START // SECOND + 1, UTC)
    rows = [
        table("imu", database=log.url, since=second)["sequence"].to_pylist(),
        table("imu", database=log.url, until=second.isoformat())["sequence"].to_pylist(),
        table("imu", database=log.url, since=second, until="2025-11-24T16:00:02Z")["sequence"].to_pylist(),
        table("imu", database=log.url, sensors=[OTHER])["sensor"].to_pylist(),
        table("imu", database=log.url, connections=[1])["connection"].to_pylist(),
    ]
    assert rows == [[1, 1, 2, 2], [0, 0], [1, 1], [OTHER] * 3, [1] * 3]
    nothing = table("imu", database=log.url, since="now")
    assert (nothing.num_rows, nothing.column_names[-4:]) == (0, ["temperature", "position", "armed", "tag"])


def test_several_pieces_are_one_table(log: LogFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "ROWS", 100)
    monkeypatch.setattr("midstream.storage.sql_log.MAX_ROWS", 7)
    for number in range(3):
        log.add([reading(each) for each in range(200)], sensor=f"10.83.0.{11 + number}", layout=LAYOUT)
    found = table("data", database=log.url)
    assert found.num_rows == 600 and found["temperature"].num_chunks > 3
    assert found["received"].to_pylist() == sorted(found["received"].to_pylist())
    assert sorted(found.combine_chunks()["sensor"].to_pylist()) == sorted(
        f"10.83.0.{11 + number}" for number in range(3) for _ in range(200)
    )


def test_connections_with_other_types_share_a_column(log: LogFile) -> None:
    log.add([b"\x01\x02\x03\x04"], stream="imu", layout=Layout(4, (Field("gyro", ">u2", 0, count=2),)))
    log.add([b"\x01\x02"], stream="imu", layout=Layout(2, (Field("gyro", "u1", 0, count=2),)))
    assert table("imu", database=log.url)["gyro"].to_pylist() == [[258, 772], [1, 2]]
    log.execute("UPDATE connections SET layout = replace(layout, 't\": 2', 't\": 1') WHERE id = 2")
    with pytest.raises(ConfigError, match="field gyro: of type 2 × uint16 in one connection and uint8 in"):
        table("imu", database=log.url)
    assert table("imu", connections=[2], database=log.url)["gyro"].to_pylist() == [1]


def test_the_configuration_names_the_database(
    log: LogFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(log)
    path = configure(tmp_path)
    path.write_text(path.read_text() + f'[logger]\ndatabase = "{log.url}"\n')
    assert table("gps", config=path).num_rows == 2
    monkeypatch.chdir(tmp_path)
    assert table("gps").num_rows == 2
    monkeypatch.setattr("midstream.config.SYSTEM_CONFIG", path.rename(tmp_path / "system.toml"))
    assert table("gps").num_rows == 2


def test_mistakes(log: LogFile, tmp_path: Path) -> None:
    fill(log)
    with pytest.raises(ConfigError, match=r"^stream lidar: not in the log; there are gps, imu"):
        table("lidar", database=log.url)
    with pytest.raises(ConfigError, match=r"^sensors 10\.0\.0\.1: not in the log; there are 10\.83\.0\.11"):
        table("imu", sensors=["10.0.0.1"], database=log.url)
    with pytest.raises(ConfigError, match="since soon: must be a time"):
        table("imu", since="soon", database=log.url)
    with pytest.raises(StoreError, match="no such file"):
        table("imu", database=f"sqlite:///{tmp_path}/none.db")


def test_without_pyarrow(log: LogFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"midstream\.log\.table: needs the Python package pyarrow; pip"):
        table("imu", database=log.url)
