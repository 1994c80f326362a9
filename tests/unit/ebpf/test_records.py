"""What the program writes and user space reads is said in C and in Python: the compiler compares them."""

import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from midstream import network
from midstream.config import Config
from midstream.ebpf import compiler, irq_mitigation, objects, pins, records, sizing
from midstream.errors import CompileError
from midstream.framing import Framing
from midstream.hardworker import ring, spill
from midstream.hardworker.source import Status
from midstream.network import MAX_SENSORS, Host, Topology

TOPOLOGY = Topology(
    sensors=(Host(IPv4Address("10.83.0.11"), "02:00:00:00:00:11"),),
    hardworker=Host(IPv4Address("10.83.0.2"), "02:00:00:00:00:02"),
    logger=Host(IPv4Address("10.83.0.3"), "02:00:00:00:00:03"),
    tos=104,
    port=12345,
    mtu=1500,
    size=1024,
)

RING = Path(ring.__file__).with_name("ring.h")
COUNTERS = np.dtype([(outcome, "<u8") for outcome in records.OUTCOMES])

CONSTANTS = [
    f"RECORD_OPEN == {records.OPEN}",
    f"RECORD_FIN == {records.FIN}",
    f"RECORD_RESET == {records.RESET}",
    f"HERE == {records.HERE}",
    f"BPF_RB_NO_WAKEUP == {records.NO_WAKEUP}",
    f"BPF_RB_FORCE_WAKEUP == {records.FORCE_WAKEUP}",
]


KEY = {"ip": "key.ip", "port": "key.port", "unused": "key.zero"}


def layout(struct: str, dtype: np.dtype) -> Iterator[str]:
    """The place and the size of each field, and of them all. NumPy has the parts of a key as fields."""
    assert dtype.fields is not None
    yield f"sizeof({struct}) == {dtype.itemsize}"
    for name, (field, offset, *_) in dtype.fields.items():
        member = KEY.get(name, name) if struct == "struct ended" else name
        yield f"offsetof({struct}, {member}) == {offset}"
        yield f"sizeof((({struct} *)0)->{member}) == {field.itemsize}"


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of midstream's headers, from which the compiler then takes its programs."""
    copy = tmp_path / "sources"
    shutil.copytree(compiler.SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    monkeypatch.setattr(compiler, "SOURCES", copy)
    monkeypatch.setenv("MIDSTREAM_CACHE", str(tmp_path / "cache"))
    return copy


def compile_assertions(sources: Path, *assertions: str) -> None:
    """Raises CompileError if one of them is false."""
    lines = [f'#include "{header}"' for header in ("record.h", "settings.h", "tables.h")]
    lines += [f'_Static_assert({assertion}, "{assertion}");' for assertion in assertions]
    (sources / "layout.bpf.c").write_text("\n".join(lines) + "\n")
    compiler.compile_program("layout", TOPOLOGY)


def test_layouts_and_constants(sources: Path) -> None:
    compile_assertions(
        sources,
        *layout("struct record", records.RECORD),
        *layout("struct counters", COUNTERS),
        *layout("struct settings", records.SETTINGS),
        *layout("struct connection", records.CONNECTION),
        *layout("struct ended", records.ENDED),
        *layout("struct beginning", records.BEGINNING),
        *layout("struct beginnings", records.BEGINNINGS),
        *layout("struct control", records.CONTROL),
        *layout("struct committed_head", records.COMMITTED_HEAD),
        *layout("struct committed_table", records.COMMITTED_TABLE),
        *layout("struct committed", records.COMMITTED),
        *layout("struct irq_mitigation", irq_mitigation.SAVED),
        f"MAX_SENSORS == {network.MAX_SENSORS} && MAX_LOGGERS == {network.MAX_LOGGERS}",
        f"offsetof(struct kept, bytes) == {spill._ENTRY.size}",
        *CONSTANTS,
    )


def test_the_constants_that_are_loaded(sources: Path) -> None:
    """What objects.py writes into loaded/const.h."""
    lines = ['#include "loaded/const.h"']
    lines += [f'_Static_assert({each}, "");' for each in layout("struct constants", objects.CONSTANTS)]
    (sources / "layout.bpf.c").write_text("\n".join(lines) + "\n")
    compiler.compile_program("layout", TOPOLOGY)


def compile_reader(folder: Path, *assertions: str) -> None:
    """Raises CompileError if one of them is false."""
    lines = ["#include <stddef.h>", f'#include "{RING}"']
    lines += [f'_Static_assert({assertion}, "{assertion}");' for assertion in assertions]
    (folder / "layout.c").write_text("\n".join(lines) + "\n")
    compiler.compile_library(folder / "layout.c")


def test_the_readers_layouts(tmp_path: Path) -> None:
    """What records.py, views.py and source.py say of ring.h."""
    compile_reader(
        tmp_path,
        *layout("struct record", records.RECORD),
        *layout("struct committed", records.COMMITTED),
        *layout("struct committed_table", records.COMMITTED_TABLE),
        *layout("struct committed_head", records.COMMITTED_HEAD),
        f"sizeof(struct copy) == {records.JOURNAL_HEAD} && sizeof(struct open) == {records.JOURNAL_ROW}",
        "sizeof(struct column) == 4 * 8",
        f"SENSORS == {MAX_SENSORS}",
        *(f"{status.name} == {status.value}" for status in Status),
        *(f"{framing.upper()} == {number}" for number, framing in enumerate(get_args(Framing))),
        *CONSTANTS[:3],
    )
    with pytest.raises(CompileError, match="static assertion failed"):
        compile_reader(tmp_path, "offsetof(struct record, time) == 0")


@pytest.mark.parametrize(
    "wrong",
    ["offsetof(struct record, time) == 0", f"RECORD_FIN == {records.RESET}", "sizeof(struct counters) == 8"],
)
def test_a_difference_is_found(sources: Path, wrong: str) -> None:
    with pytest.raises(CompileError, match="static assertion failed"):
        compile_assertions(sources, wrong)


def test_the_whole_counters_are_read(sources: Path) -> None:
    """A counter that is added in C, and not here, is found too."""
    header = sources / "record.h"
    header.write_text(header.read_text().replace("__u64 fragment;", "__u64 fragment;\n\t__u64 another;"))
    with pytest.raises(CompileError, match="sizeof"):
        compile_assertions(sources, *layout("struct counters", COUNTERS))


def test_settings_in_bytes() -> None:
    stamp = bytes(range(32))
    raw = records.settings(stamp, wakeup=False, check=True, ring_quota=5, open_quota=records.NO_QUOTA)
    value = np.frombuffer(raw, records.SETTINGS)[0]
    assert value["wakeup"] == records.NO_WAKEUP
    assert (value["check"], value["ring_quota"], value["open_quota"]) == (1, 5, 2**32 - 1)
    assert value["stamp"].tobytes() == stamp
    raw = records.settings(stamp, wakeup=True, check=False, ring_quota=5, open_quota=7)
    assert raw[:24] == (2).to_bytes(8, "little") + (5).to_bytes(8, "little") + (7).to_bytes(
        4, "little"
    ) + bytes(4)


@pytest.mark.parametrize("connections", [1, 3, 4096, 5000])
def test_half_of_what_is_committed_is_free(connections: int) -> None:
    slots = records.committed_slots(connections)
    assert slots & (slots - 1) == 0 and slots // 4 < connections <= slots // 2
    assert records.committed_size(connections) == 32 + 2 * (16 + 16 * slots)


@pytest.mark.parametrize("connections", [1, 3, 4096])
def test_a_journal_holds_two_copies(connections: int) -> None:
    copy = records.journal_copy_size(connections)
    assert copy == records.JOURNAL_HEAD + connections * records.JOURNAL_ROW
    size = records.journal_size(connections)
    assert size == records.JOURNAL_GENERATION + 2 * copy
    assert size % 8 == copy % 8 == 0


def test_each_outcome_has_one_verdict() -> None:
    assert len(set(records.OUTCOMES)) == len(records.OUTCOMES)
    assert set(records.OUTCOMES) == {*records.FORWARDED, *records.PASSED, *records.ANSWERED, *records.DROPPED}


def test_a_record_is_parsed_in_place() -> None:
    """A record's bytes, as the program writes them on every machine: little-endian."""
    raw = bytes(range(1, records.RECORD.itemsize + 1))
    record = np.frombuffer(raw, records.RECORD)[0]
    assert record["offset"] == 0x0807060504030201
    assert record["connection"] == 0x14131211
    assert record["sensor"] == 0x1A19
    assert record.tobytes() == raw


DESCRIBED = {2: "a5a1cadc1747c424"}
"""Of each ABI: the hash of what lies in the maps, comments aside."""


def structures_of(header: Path) -> list[str]:
    """Each struct and map that it declares."""
    bare = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
    return re.findall(r"^struct[^;(]*\{.*?^\}[^;]*;", bare, flags=re.DOTALL | re.MULTILINE)


def test_another_layout_is_another_abi() -> None:
    """What is wrong here is that something that programs share was changed: raise records.ABI, and say here
    what it is of. If nothing that lies in the maps is laid out or meant otherwise, only say here."""
    programs = [compiler.SOURCES / name for name in ("record.h", "connection.h", "tables.h", "settings.h")]
    readers = [each for each in structures_of(RING) if each.startswith(("struct open", "struct copy"))]
    structures = [*(each for path in programs for each in structures_of(path)), *readers]
    assert len(structures) == 32
    pinned = [name for names in (*pins.NEEDED.values(), pins.OF_STREAM) for name in sorted(names)]
    found = hashlib.sha256(" ".join(" ".join([*structures, *pinned]).split()).encode()).hexdigest()[:16]
    assert DESCRIBED[records.ABI] == found


def test_topology_is_no_part_of_the_layout(sources: Path) -> None:
    """Who is attached with another const.toml still reads the same records."""
    compile_assertions(sources, *layout("struct record", records.RECORD))
    first = compiler.key("layout", TOPOLOGY)
    assert compiler.key("layout", replace(TOPOLOGY, mtu=9000)) != first


@pytest.mark.parametrize(
    ("data", "size", "expected"),
    [
        ({}, 2**20, 4),  # nobody has said how often
        ({"freq": 0.0}, 1024, 4),
        ({"freq": 1000.0}, 1024, 4),
        ({"freq": 10.0}, 2**20, 32),
        ({"freq": 30.0}, 100 * 1024, 8),
        ({"freq": 10_000.0}, 1024, 32),
        ({"freq": 1e9}, 2**20, 64),
        ({"freq": 10.0, "framing": "length"}, 24, 4),  # nor how much
        ({"freq": 10.0, "framing": "length", "max_size": 2**20}, 24, 32),
    ],
)
def test_the_ring_follows_the_rate(data: dict[str, Any], size: int, expected: int) -> None:
    """Mebibytes, whatever the number of sensors; config.toml has the last word."""
    config = Config.model_validate({"data": data})
    found = [
        sizing.ring_size(config, replace(TOPOLOGY, size=size, sensors=TOPOLOGY.sensors * count))
        for count in (1, 2)
    ]
    assert found == [expected * 2**20] * 2
    config = Config.model_validate({"data": data, "hardworker": {"ring_size": "1MiB"}})
    assert sizing.ring_size(config, TOPOLOGY) == 2**20
