"""Verifying: what is right passes, and every kind of damage is found and named."""

from pathlib import Path

import pytest
from tests.support.logs import LAYOUT, LogFile, reading

from midstream.framing import Framing
from midstream.log.verify import MAX_FAULTS, LogVerdict, verify
from midstream.storage.sql_log import SqlLog


def verdicts(log: LogFile) -> list[LogVerdict]:
    with SqlLog(log.url) as database:
        return list(verify(database, database.connections()))


def faults(log: LogFile) -> list[str]:
    return [fault for verdict in verdicts(log) for fault in verdict.faults]


@pytest.mark.parametrize("framing", ["fixed", "length", "line"])
def test_what_is_right(log: LogFile, framing: Framing) -> None:
    log.add([b"one", b"two", b"six"], framing=framing)
    log.add([b"one"], framing=framing, closed=False)
    log.add([], framing=framing)
    first, second, third = verdicts(log)
    assert (first.right, first.messages, first.bytes, first.digest) == (True, 3, 9, "right")
    assert (second.right, second.messages, second.digest) == (True, 1, "none")
    assert (third.right, third.messages, third.digest) == (True, 0, "right")


def test_typed_columns_are_compared(log: LogFile) -> None:
    log.add([reading(0), reading(1, float("nan")), reading(2)], layout=LAYOUT)
    assert faults(log) == []
    log.execute("UPDATE readings_data SET temperature = 1 WHERE sequence = 0")
    log.execute("UPDATE readings_data SET temperature = 1 WHERE sequence = 1")
    log.execute("DELETE FROM readings_data WHERE sequence = 2")
    assert faults(log) == [
        "message 0: the table readings_data says something else",
        "message 1: the table readings_data says something else",
        "message 2: not in the table readings_data",
    ]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DELETE FROM messages WHERE sequence = 1", ["messages 1 to 1: missing"]),
        ("DELETE FROM messages WHERE sequence = 0", ["messages 0 to 0: missing"]),
        ("DELETE FROM messages WHERE sequence = 2", ["its stream had 9 bytes, and 6 are stored"]),
        ("DELETE FROM messages", ["its stream had 9 bytes, and 0 are stored"]),
        (
            "UPDATE messages SET payload = x'6f6e66' WHERE sequence = 0",
            [
                "message 0: changed after it was stored (its checksum is wrong)",
                "the SHA-256 of its stream is another",
            ],
        ),
        (
            "UPDATE messages SET received_ns = 0 WHERE sequence = 0",
            ["message 0: changed after it was stored"],
        ),
        (
            "UPDATE messages SET stream_offset = 4 WHERE sequence = 1",
            [
                "message 1: changed after it was stored",
                "message 1: 1 bytes missing in front of it",
                "message 2: 1 bytes stored twice with it",
            ],
        ),
        ("UPDATE connections SET digest = 'ab'", ["the SHA-256 of its stream is another"]),
        ("UPDATE connections SET bytes = 10", ["its stream had 10 bytes, and 9 are stored"]),
        ("UPDATE connections SET pruned = 1", ["message 0: there, and noted as removed"]),
        ("UPDATE connections SET pruned = 4", ["message 0: ", "message 1: ", "message 2: "]),
        ("UPDATE messages SET sequence = sequence + 1", ["messages 0 to 0: missing"]),
    ],
)
def test_damage_is_found(log: LogFile, statement: str, expected: list[str]) -> None:
    log.add([b"one", b"two", b"six"])
    if statement.endswith("sequence + 1"):
        statement = "UPDATE messages SET sequence = sequence + 1000"
        expected = ["messages 0 to 999: missing"]
    log.execute(statement)
    found = faults(log)
    assert len([fault for fault in found if any(fault.startswith(start) for start in expected)]) >= len(
        expected
    )
    for start in expected:
        assert any(fault.startswith(start) for fault in found), (start, found)


def test_what_was_removed_is_no_gap(log: LogFile) -> None:
    log.add([b"one", b"two", b"six"])
    log.execute("DELETE FROM messages WHERE sequence < 2")
    log.execute("UPDATE connections SET pruned = 2")
    (verdict,) = verdicts(log)
    assert (verdict.right, verdict.messages, verdict.digest) == (True, 1, "none")


def test_version_1_has_no_checksums(log: LogFile) -> None:
    log.add([b"one", b"two"])
    log.execute("UPDATE messages SET stream_offset = NULL, crc = NULL")
    (verdict,) = verdicts(log)
    assert (verdict.right, verdict.digest) == (True, "right")
    log.execute("UPDATE messages SET payload = x'6f6e66' WHERE sequence = 0")
    assert [fault[:40] for fault in faults(log)] == ["the SHA-256 of its stream is another tha"]


def test_many_faults_are_counted(log: LogFile) -> None:
    log.add([b"x"] * 50, closed=False)
    log.execute("UPDATE messages SET crc = 0")
    (verdict,) = verdicts(log)
    assert (len(verdict.faults), verdict.more) == (MAX_FAULTS, 40)


def test_a_damaged_file(log: LogFile) -> None:
    log.add([bytes(2000)] * 200)
    log.close()
    content = bytearray(log.path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8192] = b"\xff" * 8192
    log.path.write_bytes(content)
    found = faults(log)
    assert any("SQLite: " in fault or "malformed" in fault for fault in found), found
    assert any("cannot be read after" in fault or "checksum is wrong" in fault for fault in found), found


def test_every_bit_counts(log: LogFile, tmp_path: Path) -> None:
    """Flip a bit of a payload in the file itself: the checksum tells."""
    log.add([b"remarkable payload"] * 3)
    log.close()
    content = log.path.read_bytes()
    place = content.rindex(b"remarkable payload")
    log.path.write_bytes(content[:place] + b"q" + content[place + 1 :])
    assert any("changed after it was stored" in fault for fault in faults(log))
