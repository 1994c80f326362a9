"""What the log can tell by itself: which connections are still open, and what is missing between them."""

import json
import os
import struct
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from tests.support.logs import SECOND, START, LogFile

from midstream.cli import main
from midstream.errors import StoreError
from midstream.fields import Field, Layout
from midstream.log.continuity import Numbering
from midstream.log.verify import verify
from midstream.storage import run
from midstream.storage.run import Run, new_name
from midstream.storage.sql_log import SqlLog

COUNTED = Layout(8, (Field("frame_seq", "<u4", 0), Field("value", "<f4", 4)))


def of_sensor(numbers: Iterable[int]) -> list[bytes]:
    return [struct.pack("<QQ", number, START).ljust(32, b"x") for number in numbers]


def of_fields(numbers: Iterable[int]) -> list[bytes]:
    return [struct.pack("<If", number, 1.5) for number in numbers]


def of_json(numbers: Iterable[int]) -> list[bytes]:
    return [json.dumps({"seq": number, "speed": number / 3, "index": "x"}).encode() for number in numbers]


def add(log: LogFile, messages: list[bytes], minute: int, *, closed: bool = True) -> int:
    layout = COUNTED if len(messages[0]) == COUNTED.size else None
    start = START + minute * 60 * SECOND
    return log.add(messages, start_ns=start, step_ns=SECOND // 100, layout=layout, closed=closed)


def missing(log: LogFile) -> dict[int, tuple[int, int]]:
    with SqlLog(log.url) as opened:
        found = Numbering(opened, opened.connections(), opened.extents()).holes()
        verdicts = {
            each.connection.id: each for each in verify(opened, opened.connections()) if each.connection
        }
    told = {
        key for key, verdict in verdicts.items() if any("are missing" in fault for fault in verdict.faults)
    }
    assert told == found.keys()
    assert all(verdicts[key].gaps == hole.messages for key, hole in found.items())
    return {key: (hole.first, hole.last) for key, hole in found.items()}


@pytest.mark.parametrize("made", [of_sensor, of_fields, of_json])
def test_numbers_that_are_in_no_connection_are_missing(
    log: LogFile, made: Callable[[Iterable[int]], list[bytes]]
) -> None:
    add(log, made(range(100)), 0)
    add(log, made(range(100, 200)), 1)
    before = add(log, made(range(4547, 4600)), 2)
    add(log, made(range(4599, 4610)), 3)  # one was sent again
    add(log, made([4610]), 4)
    last = add(log, made([4620]), 5)
    assert missing(log) == {before: (200, 4546), last: (4611, 4619)}


@pytest.mark.parametrize(
    "runs",
    [
        [range(50), range(70)],  # it began anew
        [range(1000, 1050), range(400, 500)],  # what came before this log began
        [range(0, 50, 7), range(400, 450)],  # not numbers of messages
        [range(50), [7] * 10],
    ],
)
def test_what_may_be_right_is_not_called_missing(log: LogFile, runs: list[Iterable[int]]) -> None:
    for minute, numbers in enumerate(runs):
        add(log, of_fields(numbers), minute)
    assert missing(log) == {}


def test_two_programs_of_a_sensor_have_numbers_of_their_own(log: LogFile) -> None:
    log.add(of_sensor(range(100, 300)), start_ns=START, step_ns=SECOND)
    log.add(of_sensor(range(5000, 5100)), start_ns=START + 10 * SECOND, step_ns=SECOND)
    log.add(of_sensor(range(7000, 7100)), start_ns=START + 20 * SECOND, step_ns=SECOND, sensor="10.83.0.12")
    assert missing(log) == {}


def test_what_was_removed_to_make_room_is_not_missing(log: LogFile) -> None:
    add(log, of_sensor(range(100)), 0)
    key = add(log, of_sensor(range(100, 200)), 1)
    log.execute(f"DELETE FROM messages WHERE connection_id < {key}")
    log.execute(f"UPDATE connections SET pruned = 100 WHERE id < {key}")
    log.execute(f"DELETE FROM messages WHERE connection_id = {key} AND sequence < 50")
    log.execute(f"UPDATE connections SET pruned = 50 WHERE id = {key}")
    assert missing(log) == {}


def test_the_commands_name_it(
    log: LogFile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(log, of_sensor(range(100)), 0)
    add(log, of_sensor(range(4447, 4500)), 1)
    words = "4,347 messages of 10.83.0.11 are missing between connections 1 and 2: number 100 to 4446"

    def said(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["midstream", "log", *arguments, "--database", log.url])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().out

    code, out = said("list")
    assert (code, words in out) == (0, True)
    assert [row["missing_before"] for row in json.loads(said("list", "--json")[1])] == [0, 4347]
    code, out = said("verify")
    assert (code, words in out) == (StoreError.exit_code, True)


def states(log: LogFile) -> list[str]:
    with SqlLog(log.url) as opened:
        return [connection.state for connection in opened.connections()]


def test_a_connection_of_a_logger_that_runs_is_open(log: LogFile) -> None:
    add(log, of_sensor(range(3)), 0, closed=False)
    log.execute(f"UPDATE connections SET token = '{new_name()}.1'")
    assert states(log) == ["open"]


def test_a_connection_of_a_logger_that_has_ended_is_lost(log: LogFile) -> None:
    add(log, of_sensor(range(3)), 0, closed=False)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    mine = new_name()
    token = mine[:15] + f"{child:06x}" + str(run._start(child)) + mine[25:]
    log.execute(f"UPDATE connections SET token = '{token}.1'")
    try:
        assert states(log) == ["open"]
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert states(log) == ["lost"]
    other = "0000" if mine[21:25] != "0000" else "1111"
    log.execute(
        f"UPDATE connections SET token = '{mine[:21]}{other}{mine[25:]}.1'"
    )  # its number is used again
    assert states(log) == ["lost"]


def test_a_machine_that_was_started_anew(log: LogFile) -> None:
    """Also where nobody knows that machine, as the log has a newer boot of it."""
    mine = new_name()
    add(log, of_sensor(range(3)), 0, closed=False)
    log.execute(f"UPDATE connections SET token = '{mine[:6]}00000a{mine[12:]}.1'")
    assert states(log) == ["lost"]
    log.execute(f"UPDATE connections SET token = '00000b00000a{mine[12:]}.1'")
    assert states(log) == ["open"]
    add(log, of_sensor(range(3)), 1, closed=False)
    log.execute(f"UPDATE connections SET token = '00000b00000c{mine[12:]}.1' WHERE id = 2")
    assert states(log) == ["lost", "open"]


def test_a_connection_that_another_of_the_same_port_follows(log: LogFile) -> None:
    """Whatever logger has named them."""
    for minute in range(3):
        add(log, of_sensor(range(3)), minute, closed=False)
    log.execute("UPDATE connections SET port = 4711 WHERE id IN (1, 3)")
    assert states(log) == ["lost", "open", "open"]


def test_two_runs_have_two_names_that_fit_into_the_column() -> None:
    names = {new_name() for _ in range(100)}
    assert len(names) == 100
    for name in names:
        assert len(f"{name}.99999999") == 40
        parsed = Run.parse(f"{name}.17")
        assert parsed is not None and parsed.pid == os.getpid() and not parsed.ended
    assert Run.parse("0123456789abcdef.4") is None
    assert Run.parse("") is None


def test_the_log_of_a_version_without_names(tmp_path: Path, log: LogFile) -> None:
    add(log, of_sensor(range(3)), 0, closed=False)
    log.execute("UPDATE connections SET token = NULL")
    assert states(log) == ["open"]
