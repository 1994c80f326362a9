"""The timing of a capture: pcap, pcapng and CSV."""

from pathlib import Path

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap, wrpcapng

from midstream.bench.load import Timing, read_timing, write_timing
from midstream.errors import ConfigError

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
        ("x.pcap", "no capture at all", r"x\.pcap: no pcap or pcapng file"),
        ("x.pcap", "", r"x\.pcap: no pcap or pcapng file"),
    ],
)
def test_mistakes_name_the_file(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=says):
        read_timing(tmp_path / name)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: cannot be read"):
        read_timing(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_timing(tmp_path / "no" / "where", Timing({"a": np.array([0])}))
