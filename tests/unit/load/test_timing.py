"""The timing of a capture: pcap, pcapng and CSV."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap, wrpcapng

from midstream.errors import ConfigError
from midstream.load import Plan, Timing, read_timing, write_timing

SECOND = 10**9


def segment(time: float, sequence: int, length: int, *, sport: int = 4000, flags: str = "PA") -> Packet:
    packet = Ether() / IP(src="10.0.0.1", dst="10.0.0.2")
    packet /= TCP(sport=sport, dport=12345, seq=sequence, flags=flags) / Raw(b"x" * length)
    packet.time = time
    return packet


CAPTURE = [
    segment(100.0, 1000, 0, flags="S"),
    segment(100.5, 1001, 100),
    segment(100.6, 1101, 1448, flags="A"),  # a message of two segments
    segment(100.601, 2549, 52),
    segment(100.602, 1101, 1448, flags="A"),  # sent again
    segment(100.7, 2601, 0, flags="A"),
    segment(100.75, (1 << 32) - 50, 100, sport=4001),  # across the end of the sequence numbers
    segment(100.85, 50, 100, sport=4001),
    segment(100.9, 1, 10, sport=4002).copy(),
]
CAPTURE[-1].time = 100.9
CAPTURE[-1][TCP].dport = 80


@pytest.mark.parametrize("write", [wrpcap, wrpcapng])
def test_a_message_begins_with_its_first_segment_and_ends_with_a_push(tmp_path: Path, write: object) -> None:
    path = tmp_path / "capture"
    write(str(path), CAPTURE)  # type: ignore[operator]  # one of scapy's, which have no types
    timing = read_timing(path, port=12345)
    assert list(timing.flows) == ["10.0.0.1:4000>10.0.0.2:12345", "10.0.0.1:4001>10.0.0.2:12345"]
    first, second = timing.flows.values()
    assert np.allclose(first / SECOND, [0, 0.1], atol=2e-6)
    assert np.allclose(second / SECOND, [0.25, 0.35], atol=2e-6)
    assert len(read_timing(path).flows) == 3


def test_csv_reads_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    timing = Timing({"a": np.array([0, 1_000_001, 2_000_000]), "b": np.array([500])})
    write_timing(path, timing)
    assert path.read_text().splitlines()[:2] == ["flow,time", "a,0.000000000"]
    again = read_timing(path)
    assert {name: times.tolist() for name, times in again.flows.items()} == {
        "a": [0, 1_000_001, 2_000_000],
        "b": [500],
    }


def test_a_column_of_times_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    path.write_text("time\n5.0\n5.25\n")
    assert [times.tolist() for times in read_timing(path).flows.values()] == [[0, SECOND // 4]]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.csv", "flow,time\na,soon\n", r"x\.csv: line 2: expected the columns flow and time"),
        ("x.csv", "a,b\n1,2\n", r"x\.csv: line 1: expected the columns"),
        ("x.csv", "flow,time\n", r"x\.csv: no TCP segment with data"),
        ("x.csv", "flow,when\na,1\n", r"x\.csv: line 1: expected the columns"),
        ("x.csv", "Flow name,time\na,1\n", r"x\.csv: line 1: expected the columns"),
        ("x.csv", "flow,time\na,1\na\n", r"x\.csv: line 3: expected the columns"),
        ("x.csv", "flow,time\na,2\na,1\n", r"x\.csv: line 3: .* ascending"),
        ("x.csv", "time\n1e99\n", r"x\.csv: line 2: expected"),
        ("x.csv", "time\nnan\n", r"x\.csv: line 2: expected"),
        ("x.csv", 'time\n"1\n', r"x\.csv: line 2: .*expected"),
        ("x.pcap", "no capture at all", r"x\.pcap: no pcap or pcapng file"),
        ("x.pcap", "", r"x\.pcap: no pcap or pcapng file"),
    ],
)
def test_mistakes_name_the_file(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=says):
        read_timing(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_a_spreadsheet_writes(tmp_path: Path, encoding: str, end: str) -> None:
    """A byte-order mark stood before the first heading, so that all flows became one."""
    path = tmp_path / "x.CSV"
    rows = ["Flow, Time", "a,1764450000.000001", "b,1764450000.000002", "", "a,1764450000.000003"]
    path.write_bytes(end.join(rows).encode(encoding))
    assert {name: times.tolist() for name, times in read_timing(path).flows.items()} == {
        "a": [0, 2000],
        "b": [1000],
    }


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\r")),
        st.lists(st.integers(0, 10**18), min_size=1, max_size=4),
        min_size=1,
        max_size=4,
    )
)
def test_any_timing_comes_back_to_the_nanosecond(tmp_path: Path, flows: dict[str, list[int]]) -> None:
    timing = Timing({name: np.array(sorted(times)) for name, times in flows.items()})
    first = min(min(times) for times in flows.values())
    write_timing(tmp_path / "x.csv", timing)
    again = read_timing(tmp_path / "x.csv")
    assert {name: times.tolist() for name, times in again.flows.items()} == {
        name: [time - first for time in sorted(times)] for name, times in flows.items()
    }


@given(st.binary(max_size=60), st.sampled_from([b"", b"flow,time\n", b"time\n"]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_times_or_an_error(tmp_path: Path, data: bytes, start: bytes) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(start + data)
    with suppress(ConfigError):
        assert read_timing(path).messages > 0


def test_a_recording_too_short_to_repeat(tmp_path: Path) -> None:
    """One message was repeated every nanosecond until the memory was full."""
    alone = Timing({"a": np.array([0])})
    assert Plan(seconds=10, timing=alone).messages == 10
    with pytest.raises(ConfigError, match="too short to begin anew so often"):
        Plan(seconds=10, timing=Timing({"a": np.array([0, 1])}))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: cannot be read"):
        read_timing(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_timing(tmp_path / "no" / "where", Timing({"a": np.array([0])}))
