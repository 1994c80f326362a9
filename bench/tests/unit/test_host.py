"""Sampling a real host."""

import csv
from pathlib import Path

import pytest

from midstream.errors import ConfigError
from midstream_bench import host

STAT = """\
cpu  {user} 0 200 9000 50 10 {softirq} 0 0 0
cpu0 50 0 100 4500 25 5 15 0 0 0
intr {intr} 5 6
ctxt 70000
btime 1
processes 300
"""
MEMINFO = "MemTotal:       1000 kB\nMemFree:   1 kB\nMemAvailable:    400 kB\n"
DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs
    lo: 9 9 0 0 0 0 0 0 9 9 0
  eth0: {bytes} {rx} 0 0 0 0 0 0 500 {tx} 0
  eth1: 1000 100 0 0 0 0 0 0 100 10 0
"""


def counters(now: float, interface: str = "", **changed: int) -> host.Counters:
    values = {"user": 100, "softirq": 30, "intr": 5000, "bytes": 10_000, "rx": 200, "tx": 300} | changed
    return host.parse(STAT.format(**values), MEMINFO, DEV.format(**values), interface, 0.01, now)


def test_a_sample_is_the_difference_of_two_readings() -> None:
    found = host.difference(
        counters(10.0), counters(10.1, user=105, softirq=31, intr=5200, bytes=30_000, rx=220, tx=310)
    )
    assert found == pytest.approx(
        {
            "busy": 0.6,
            "user": 0.5,
            "system": 0.0,
            "softirq": 0.1,
            "interrupts": 2000,
            "switches": 0,
            "forks": 0,
            "rx_packets": 200,
            "tx_packets": 100,
            "rx_bytes": 200_000,
            "memory": 600 * 1024,
        },
        abs=1e-6,
    )
    assert found.keys() == host.FIELDS.keys()


def test_packets_are_those_of_the_interface() -> None:
    assert counters(0.0).counts["rx_packets"] == 300
    assert counters(0.0, "eth0").counts["rx_packets"] == 200
    assert counters(0.0, "none").counts["rx_packets"] == 0


def test_line_protocol() -> None:
    line = host.line_protocol("a", "my host", 1.5, dict.fromkeys(host.FIELDS, 2.0))
    assert line.startswith(r"midstream_host,host=my\ host,receiver=a busy=2,user=2,")
    assert line.endswith(",memory=2 1500000000")


def test_samples_are_kept_and_compared(tmp_path: Path) -> None:
    def take(label: str) -> int:
        samples = host.sample(
            label, tmp_path, seconds=0.2, interval=0.05, interface="", tick=0.01, stop=lambda: False
        )
        return len(samples)

    assert take("a") == take("b") == take("a") == 4
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert len(rows) == 8 == len((tmp_path / "a.lp").read_text().splitlines())
    assert float(rows[-1]["time"]) > float(rows[0]["time"])
    found = host.compare(tmp_path)
    assert list(found) == ["a", "b"] and found["a"]["busy"].count == 8
    assert found["a"]["memory"].low <= found["a"]["memory"].typical <= found["a"]["memory"].high
    assert host.mean([]) == {}


def test_it_ends_when_it_is_asked(tmp_path: Path) -> None:
    asked = iter([False, True])
    found = host.sample(
        "a", tmp_path, seconds=60, interval=0.01, interface="", tick=0.01, stop=lambda: next(asked)
    )
    assert len(found) == 1


def test_mistakes_are_told(tmp_path: Path) -> None:
    options = {"seconds": 0.1, "interval": 0.05, "interface": "", "tick": 0.01, "stop": lambda: False}
    with pytest.raises(ConfigError, match="--label 'a/b'"):
        host.sample("a/b", tmp_path, **options)  # type: ignore[arg-type]  # the options are above
    with pytest.raises(ConfigError, match="no samples there"):
        host.compare(tmp_path)
    (tmp_path / "x.csv").write_text("time\n1\n")
    with pytest.raises(ConfigError, match=r"x\.csv: expected the columns"):
        host.compare(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        host.sample("a", tmp_path / "file", **options)  # type: ignore[arg-type]
