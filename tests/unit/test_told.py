"""What is said of connections, on the line and in a file: also by a version that knew of no streams."""

import io
import json
from typing import Any

import pytest

from midstream.lost import Lost, Part, dump, load
from midstream.told import STEP, ArrivalTimes, Forgotten, HeldConnection, Pending

SENSOR = "10.83.0.11"
STEPS = STEP.pack(8, 0)
HELD = HeldConnection(SENSOR, 1, 7, 5, 80, "open", True, "imu")
PENDING = Pending(SENSOR, 1, 7, 5, 0, 80, 10, 6, "imu")
ARRIVALS = ArrivalTimes(SENSOR, 1, 7, 5, 0, 8, 6, -1, 2, STEPS, "imu")
FORGOTTEN = Forgotten(SENSOR, 1, 2, 3, 24, "imu")

WORDS: list[tuple[Any, list[Any]]] = [
    (HELD, list(HELD.values)),
    (PENDING, list(PENDING.values)),
    (FORGOTTEN, list(FORGOTTEN)),
]


@pytest.mark.parametrize(("told", "said"), WORDS)
def test_a_word_on_the_line(told: Any, said: list[Any]) -> None:
    kind, word = type(told), json.loads(json.dumps(said))
    assert kind.parse(word) == told
    assert kind.parse(word[:-1]).stream == "data", "of a version before"
    for wrong in ([*word, "more"], [*word[:-1], "a.*"], [*word[:-1], 5], word[:-2]):
        with pytest.raises(ValueError):  # noqa: PT011  whatever it says
            kind.parse(wrong)


def test_arrivals_on_the_line() -> None:
    said = json.loads(json.dumps(ARRIVALS.said))
    assert ArrivalTimes.parse((*said, STEPS)) == ARRIVALS
    assert ArrivalTimes.parse((*said[:-1], STEPS)).stream == "data", "of a version before"
    for wrong in ((*said[:-1], "a.*", STEPS), (*said, "more", STEPS), (*said[:-2], STEPS)):
        with pytest.raises(ValueError):  # noqa: PT011  whatever it says
            ArrivalTimes.parse(wrong)


def test_what_was_lost_in_a_file() -> None:
    lost = [Lost(SENSOR, 1, 7, 5, 0, True, [Part(0, 6, b"abc")], name) for name in ("imu", "gps")]
    file = io.BytesIO()
    dump(lost, file)
    file.seek(0)
    assert list(load(file)) == lost
