"""The records of a mix: what the load and the applications wrote down is compared message by message."""

import io
from pathlib import Path

import numpy as np
import pytest

from midstream.demo import application
from midstream.demo.records import delivered_to_application, sent_by_load
from midstream.demo.verdict import DemoVerdict, Stream, judge
from midstream.framing import Framing
from midstream.hardworker.messages import Message
from midstream.load import SENT
from midstream.load import message as wire

STREAMS: list[Stream] = [("10.83.0.11", 40000), ("10.83.0.12", 40001)]
SIZES: dict[Framing, int] = {"fixed": 64, "length": 1000, "line": 79}
COUNT = 20
NS = 10**18


def payload(framing: Framing, connection: int, number: int) -> bytes:
    return wire.payload(framing, connection, number, NS + number, SIZES[framing])


@pytest.fixture(params=["fixed", "length", "line"])
def framing(request: pytest.FixtureRequest) -> Framing:
    kind: Framing = request.param
    return kind


@pytest.fixture
def sent(tmp_path: Path, framing: Framing) -> dict[Stream, np.ndarray]:
    """As the load writes it: the messages of its connections in the order of their times."""
    rows = [
        (number, NS + number, connection, SIZES[framing]) for number in range(COUNT) for connection in (0, 1)
    ]
    path = tmp_path / "sent"
    path.write_bytes(np.array(rows, SENT).tobytes())
    return dict(zip(STREAMS, sent_by_load(path, [framing] * 2), strict=True))


class FakeReceiver:
    """Gives these messages."""

    def __init__(self, messages: list[tuple[int, int, bytes]]) -> None:
        self._messages = messages

    def __iter__(self) -> object:
        for connection, number, content in self._messages:
            yield Message("", connection + 7, number, 0, content)


def found(
    tmp_path: Path,
    framing: Framing,
    sent: dict[Stream, np.ndarray],
    messages: list[tuple[int, int, bytes]],
) -> DemoVerdict:
    file = io.BytesIO()
    application.record(FakeReceiver(messages), file)  # type: ignore[arg-type]  # it has messages
    path = tmp_path / "record"
    path.write_bytes(file.getvalue())
    return judge(sent, delivered_to_application(path, sent, framing), [], framing)


def whole(framing: Framing) -> list[tuple[int, int, bytes]]:
    return [
        (connection, number, payload(framing, connection, number))
        for number in range(COUNT)
        for connection in (0, 1)
    ]


def test_all_that_the_load_sent_is_recognised(
    tmp_path: Path, framing: Framing, sent: dict[Stream, np.ndarray]
) -> None:
    verdict = found(tmp_path, framing, sent, whole(framing))
    assert (verdict.sent, verdict.delivered) == (2 * COUNT, 2 * COUNT)
    assert (verdict.missing, verdict.duplicates, verdict.corrupt, verdict.in_order) == (0, 0, 0, True)
    assert verdict.latency_us is not None and verdict.latency_us["p50"] <= verdict.latency_us["max"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows[:-1], (1, 0, 0, True)),
        (lambda rows: [*rows, rows[-1]], (0, 1, 0, True)),
        (lambda rows: [rows[2], rows[1], rows[0], *rows[3:]], (0, 0, 0, False)),
        (lambda rows: [*rows[:-1], (1, COUNT - 1, rows[-1][2][:-1] + b"x")], (0, 0, 1, True)),
        (lambda rows: [*rows[:-2], (0, COUNT - 1, b"\0" * 64), rows[-1]], (0, 0, 1, True)),
        (lambda rows: [], (2 * COUNT, 0, 0, True)),
    ],
    ids=["missing", "again", "out of order", "a bit of a line", "another message", "nothing"],
)
def test_every_fault_is_seen(
    tmp_path: Path,
    framing: Framing,
    sent: dict[Stream, np.ndarray],
    change: object,
    expected: tuple[int, int, int, bool],
) -> None:
    assert callable(change)
    verdict = found(tmp_path, framing, sent, change(whole(framing)))
    assert (verdict.missing, verdict.duplicates, verdict.corrupt, verdict.in_order) == expected


def test_the_time_in_a_message_is_compared_too(
    tmp_path: Path, framing: Framing, sent: dict[Stream, np.ndarray]
) -> None:
    rows = whole(framing)
    rows[0] = (0, 0, wire.payload(framing, 0, 0, NS + 1, SIZES[framing]))
    assert found(tmp_path, framing, sent, rows).corrupt == 1
