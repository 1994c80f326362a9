"""Fields: where they lie, what they are worth, and what a database or a file gets of them."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.hosts import configure

from midstream.config import load
from midstream.errors import ConfigError
from midstream.fields import Field, Layout, layout
from midstream.hardworker import Hardworker, batch_dtype

TABLES = """
[[data.field]]
name = "number"
type = "u64"
[[data.field]]
name = "temperature"
type = "i16"
byte_order = "big"
unit = "°C"
scale = 0.01
bias = -40
[[data.field]]
name = "acceleration"
type = "f32"
count = 3
offset = 12
unit = "m/s²"
[[data.field]]
name = "armed"
type = "bool"
[[data.field]]
name = "tag"
type = "bytes"
size = 3
"""
PACKED = struct.Struct("<Q")


def message(number: int, temperature: int, acceleration: tuple[float, ...], armed: int, tag: bytes) -> bytes:
    return (
        struct.pack("<Q", number)
        + struct.pack(">h", temperature)
        + b"\xee\xee"  # no field's
        + struct.pack("<3f", *acceleration)
        + bytes([armed])
        + tag
        + b"\xee\xee\xee\xee"
    )


MESSAGES = [
    message(1, 6500, (0.5, -1.0, 9.75), 1, b"abc"),
    message(2**64 - 1, -1, (float("nan"), float("inf"), 0.0), 0, b"\0\0\0"),
    message(3, 0, (1.0, 2.0, 3.0), 2, b"xyz"),
]
SIZE = len(MESSAGES[0])


@pytest.fixture
def described(tmp_path: Path) -> Layout:
    path = tmp_path / "config.toml"
    path.write_text(TABLES, encoding="utf-8")
    result = layout(load(path), SIZE)
    assert result
    return result


def test_fields_lie_behind_one_another_or_where_they_say(described: Layout) -> None:
    assert [(field.name, field.offset) for field in described.fields] == [
        ("number", 0),
        ("temperature", 8),
        ("acceleration", 12),
        ("armed", 24),
        ("tag", 25),
    ]
    assert described.dtype.itemsize == SIZE
    assert [(column.name, column.kind, column.unit) for column in described.columns] == [
        ("number", "integer", ""),
        ("temperature", "real", "°C"),
        ("acceleration_0", "real", "m/s²"),
        ("acceleration_1", "real", "m/s²"),
        ("acceleration_2", "real", "m/s²"),
        ("armed", "integer", ""),
        ("tag", "bytes", ""),
    ]


def test_a_view_has_what_was_sent_and_copies_nothing(described: Layout) -> None:
    batch = np.zeros(3, batch_dtype(SIZE))
    batch["payload"] = np.frombuffer(b"".join(MESSAGES), np.uint8).reshape(3, SIZE)
    rows = described.view(batch)
    assert np.shares_memory(rows, batch)
    assert rows["number"].tolist() == [1, 2**64 - 1, 3]
    assert rows["temperature"].tolist() == [6500, -1, 0]
    assert rows["acceleration"][0].tolist() == [0.5, -1.0, 9.75]
    assert rows["tag"].tolist() == [b"abc", b"\0\0\0", b"xyz"]
    assert described.view(batch[:0]).shape == (0,)
    assert described.view(b"".join(MESSAGES))["number"].tolist() == rows["number"].tolist()


def test_values_are_in_units_and_fit_a_database(described: Layout) -> None:
    assert described.values(MESSAGES) == [
        (1, pytest.approx(25.0), 0.5, -1.0, 9.75, 1, b"abc"),
        (None, pytest.approx(-40.01), None, float("inf"), 0.0, 0, b"\0\0\0"),
        (3, -40.0, 1.0, 2.0, 3.0, 1, b"xyz"),
    ]
    assert described.values([]) == []


def test_arrays_keep_the_types_of_the_message(described: Layout) -> None:
    arrays = described.arrays(MESSAGES)
    assert list(arrays) == [column.name for column in described.columns]
    assert {name: array.dtype.str for name, array in arrays.items()} == {
        "number": "<u8",
        "temperature": "<f8",
        "acceleration_0": "<f4",
        "acceleration_1": "<f4",
        "acceleration_2": "<f4",
        "armed": "|b1",
        "tag": "|V3",
    }
    assert arrays["armed"].tolist() == [True, False, True]
    assert all(len(array) == 0 for array in described.arrays([]).values())


def test_a_description_makes_the_same_layout(described: Layout) -> None:
    assert Layout.parse(described.describe()) == described
    for wrong in ("{", "[]", '{"size": 1}', '{"size": 1, "fields": [{"nam": "x"}]}'):
        with pytest.raises((ValueError, KeyError, TypeError)):
            Layout.parse(wrong)


@given(
    st.sampled_from("bBhHiIqQfd"),
    st.sampled_from("<>"),
    st.integers(0, 9),
    st.lists(st.binary(min_size=8, max_size=8), max_size=5),
)
def test_every_type_reads_as_struct_does(code: str, order: str, offset: int, raw: list[bytes]) -> None:
    kind = {"f": "f", "d": "f"}.get(code, "i" if code.islower() else "u")
    width = struct.calcsize(order + code)
    described = Layout(20, (Field("x", f"{order}{kind}{width}", offset),))
    payloads = [bytes(offset) + data + bytes(12 - offset) for data in raw]
    expected = [struct.unpack_from(order + code, payload, offset)[0] for payload in payloads]
    read = described.view(b"".join(payloads))["x"].tolist()
    assert np.array_equal(read, expected, equal_nan=True)


def test_no_fields_no_layout(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("", encoding="utf-8")
    assert layout(load(path), 8) is None


def test_a_field_beyond_the_size_of_const_toml(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(TABLES, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        layout(load(path), 20)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "data.field[2] (acceleration)",
        "data.field[3] (armed)",
        "data.field[4] (tag)",
    ]
    assert "its bytes 12 to 23 reach beyond the message's 20" in lines[0]
    assert "const.toml" in lines[0]


def test_the_hardworker_gives_fields_of_its_batches(tmp_path: Path) -> None:
    path = configure(tmp_path, framing="fixed", size=SIZE)
    path.write_text(path.read_text(encoding="utf-8") + TABLES, encoding="utf-8")
    hardworker = Hardworker(path)
    batch = np.zeros(1, batch_dtype(SIZE))
    batch["payload"] = np.frombuffer(MESSAGES[0], np.uint8)
    rows = hardworker.fields(batch)
    assert np.shares_memory(rows, batch)
    assert rows["temperature"][0] == 6500
    with pytest.raises(ConfigError, match=r"data\.field = \[\]: no fields are described"):
        Hardworker(configure(tmp_path, framing="fixed", size=SIZE)).fields(batch)
