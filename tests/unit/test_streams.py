"""Streams: what the hardworker decides, what others may leave out, and what contradicts it."""

import base64
import json
import zlib
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream import config, network, streams
from midstream.config import Config
from midstream.daemon.announcement import pack, unpack
from midstream.errors import ConfigError
from midstream.network import Host, SensorStream, Topology

ROBOT = """
[hardworker]
period = 0.02
ring_size = "8MiB"

[[stream]]
name = "imu"
size = 64
freq = 1000
period = 0.002
deadline = 0.1
field = [{ name = "time", type = "u64" }, { name = "gyro", type = "f32", count = 3, unit = "rad/s" }]

[[stream]]
name = "camera"
port = 12346
framing = "length"
max_size = 200000
ring_size = "16MiB"
quota = 0.9
period = 0

[[stream]]
name = "gps"
framing = "line"
max_size = 100
"""


def parsed(text: str) -> Config:
    return config.parse(text, Path("/etc/robot/config.toml"))


def topology(*decided: SensorStream) -> Topology:
    hosts = [Host(IPv4Address(f"10.0.0.{n}"), f"02:00:00:00:00:0{n}") for n in (1, 2, 3)]
    first = decided[0] if decided else SensorStream("data", 12345, "fixed", 1024)
    return Topology((hosts[0],), hosts[1], hosts[2], 104, first.port, 1500, first.size, streams=decided)


def decided(text: str = ROBOT, before: tuple[SensorStream, ...] = ()) -> tuple[SensorStream, ...]:
    return streams.decide(parsed(text), before)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    return str(caught.value).removeprefix("/etc/robot/config.toml: ")


def test_the_hardworker_decides_ports_that_nobody_has() -> None:
    imu, camera, gps = decided()
    assert (imu.port, camera.port, gps.port) == (12345, 12346, 12348), "12347 is logger.replay_port"
    assert (imu.size, camera.size, gps.size) == (64, 200000, 100)
    assert (imu.freq, gps.freq) == (1000.0, None)


@pytest.mark.parametrize(
    "wanted", ["[logger]\nreplay_port = 12345\n", '[[stream]]\nname = "gps"\nport = 12345\n']
)
def test_a_port_that_somebody_else_names_is_not_kept(wanted: str) -> None:
    before = (SensorStream("imu", 12345, "fixed", 64),)
    found = {stream.name: stream.port for stream in decided(wanted + '[[stream]]\nname = "imu"\n', before)}
    assert found.pop("imu") == 12346
    assert set(found.values()) <= {12345}


def test_what_was_decided_stays() -> None:
    imu, _, gps = decided()
    before = (SensorStream("gps", 700, "line", 5), SensorStream("imu", 800, "fixed", 32))
    changed = ROBOT.replace("size = 64\n", "")
    again = decided(changed, before)
    assert [(each.name, each.port, each.size) for each in again] == [
        ("imu", 800, 32),
        ("camera", 12346, 200000),
        ("gps", 700, 100),
    ]
    assert decided(ROBOT, (gps, imu)) == decided()


def test_a_file_without_streams_decides_none() -> None:
    assert decided("[data]\nsize = 100") == ()


def test_each_is_seen_as_if_it_were_the_only_one() -> None:
    told = topology(*decided())
    found = streams.resolved(parsed(ROBOT), told)
    assert list(found) == ["imu", "camera", "gps"]
    imu, camera, gps = found.values()
    assert (imu.name, imu.topology.port, imu.topology.size, imu.topology.streams) == ("imu", 12345, 64, ())
    assert (imu.config.data.size, imu.config.data.freq, imu.config.data.deadline) == (64, 1000.0, 0.1)
    assert [field.name for field in imu.config.data.field] == ["time", "gyro"]
    assert imu.config.message_size(imu.topology.size) == 64
    hardworkers = [each.config.hardworker for each in (imu, camera, gps)]
    assert [each.period for each in hardworkers] == [0.002, 0.0, 0.02]
    assert [each.ring_size for each in hardworkers] == [8 << 20, 16 << 20, 8 << 20]
    assert [each.quota for each in hardworkers] == [0.5, 0.9, 0.5]
    assert (camera.config.data.framing, camera.config.data.max_size) == ("length", 200000)
    assert gps.config.named("size") == 'stream "gps": size'


@pytest.mark.parametrize(
    "text", ["", '[[stream]]\nname = "gps"', "[data]\ndeadline = 3", "[logger]\nbatch_size = 5"]
)
def test_another_host_may_leave_them_out(text: str) -> None:
    found = streams.resolved(parsed(text), topology(*decided()))
    assert (found["imu"].config.data.size, found["gps"].config.data.framing) == (64, "line")
    assert [field.name for field in found["imu"].config.data.field] == ["time", "gyro"]


def test_a_sensor_may_send_at_another_rate() -> None:
    found = streams.resolved(parsed('[[stream]]\nname = "imu"\nfreq = 5'), topology(*decided()))
    assert found["imu"].config.data.freq == 5


def test_todays_form_is_one_stream_called_data() -> None:
    (found,) = streams.resolved(parsed('[data]\nframing = "line"'), topology()).values()
    assert (found.name, found.config.data.framing, found.topology.port) == ("data", "line", 12345)
    assert found.config.named("size") == "data.size"
    assert topology().ports == {12345: "data"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[data]\nsize = 3", "data.size: /etc/robot/const.toml names the streams imu, camera, gps"),
        ('[[stream]]\nname = "odo"', 'stream[0].name = "odo": /etc/robot/const.toml names imu, camera, gps'),
        (
            '[[stream]]\nname = "imu"\nport = 9',
            "stream[0].port = 9: /etc/robot/const.toml says 12345; make them",
        ),
        ('[[stream]]\nname = "imu"\nsize = 9', "stream[0].size = 9: /etc/robot/const.toml says 64"),
        (
            '[[stream]]\nname = "imu"\nframing = "line"',
            "stream[0].framing = line: /etc/robot/const.toml says fixed",
        ),
        ('[[stream]]\nname = "gps"\nmax_size = 9', "stream[0].max_size = 9: /etc/robot/const.toml says 100"),
        (
            '[[stream]]\nname = "imu"\nfield = [{ name = "x", type = "u8" }]',
            "stream[0].field: /etc/robot/const.toml says otherwise",
        ),
    ],
)
def test_a_contradiction_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        streams.resolved(parsed(text), topology(*decided()))
    assert words in str(caught.value)
    assert str(caught.value).startswith("/etc/robot/config.toml: ")


def test_names_where_there_are_none() -> None:
    assert streams.contradiction(parsed(ROBOT), ()).startswith(
        'stream[0].name = "imu": the hardworker names no streams; correct one of them'
    )


def test_one_of_several_has_to_be_named() -> None:
    told = topology(*decided())
    assert streams.only(parsed(ROBOT), told, "gps").name == "gps"
    with pytest.raises(ConfigError, match=r'no stream "odo"; there are imu, camera, gps'):
        streams.only(parsed(ROBOT), told, "odo")
    with pytest.raises(ConfigError, match=r"several streams: say which one; there are imu, camera, gps"):
        streams.only(parsed(ROBOT), told, "")
    assert streams.only(parsed(""), topology(), "").name == "data"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[stream]]\nname = "Imu"', 'stream[0].name = "Imu": not a name for a table, a topic and a folder'),
        ("[[stream]]\nsize = 3", "stream[0].name: missing; must be a name"),
        ('[[stream]]\nname = "a"\n[[stream]]\nname = "a"', 'stream[1].name = "a": that of stream[0] already'),
        (
            '[[stream]]\nname = "a"\nport = 5\n[[stream]]\nname = "b"\nport = 5',
            "stream[1].port = 5: that of stream[0] already",
        ),
        ('[data]\nfreq = 3\n[[stream]]\nname = "a"', "data.freq = 3: each [[stream]] says it for itself"),
        ('[network]\nport = 3\n[[stream]]\nname = "a"', "network.port = 3: each [[stream]] says it"),
        (
            '[logger]\nreplay_port = 5\n[[stream]]\nname = "a"\nport = 5',
            "logger.replay_port = 5: that of stream[0].port already",
        ),
        ('[[stream]]\nname = "a"\nquota = 0', "stream[0].quota = 0: must be a number above 0"),
        ('[[stream]]\nname = "a"\nsise = 9', "stream[0].sise = 9: no such key; did you mean size?"),
        (
            "".join(f'[[stream]]\nname = "s{n}"\n' for n in range(33)),
            "stream = [",
        ),
    ],
)
def test_what_config_toml_may_not_say(text: str, words: str) -> None:
    assert refusal(text).startswith(words)


def test_const_toml_says_them(tmp_path: Path) -> None:
    told = topology(*decided())
    network.write(tmp_path / "const.toml", told, "a test")
    assert network.load(tmp_path / "const.toml") == told
    assert told.ports == {12345: "imu", 12346: "camera", 12348: "gps"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[data]\n", "[data]\nsize = 5\n"), "data.size = 5: each [[stream]] says it for itself"),
        (("tos = 104\n", "tos = 104\nport = 5\n"), "mark.port = 5: each [[stream]] says it for itself"),
        (('name = "gps"', 'name = "imu"'), 'stream[2].name = "imu": that of stream[0] already'),
        (("size = 64\n", ""), "stream[0].size: missing; its framing is fixed"),
        (("port = 12345\n", ""), "stream[0].port: missing"),
    ],
)
def test_what_const_toml_may_not_say(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    text = network.dumps(topology(*decided()))
    assert change[0] in text
    (tmp_path / "const.toml").write_text(text.replace(*change, 1))
    with pytest.raises(ConfigError) as caught:
        network.load(tmp_path / "const.toml")
    assert str(caught.value).removeprefix(f"{tmp_path}/const.toml: ").startswith(words)


NAMES = st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True), min_size=1, max_size=32, unique=True)


@given(names=NAMES, unit=st.text(max_size=32))
def test_all_that_is_decided_arrives(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], unit: str
) -> None:
    """By an announcement and by const.toml, whatever characters a unit has."""
    field = config.FieldSection(name="x", type="f32", unit=unit)
    every = tuple(
        SensorStream(name, 100 + n, "fixed", 64, float(n) if n else None, (field,))
        for n, name in enumerate(names)
    )
    assert unpack(pack(every)) == every
    path = tmp_path_factory.getbasetemp() / "const.toml"
    network.write(path, topology(*every), "a test")
    assert network.load(path).streams == every


def test_a_robot_of_thirty_two_streams_fits_into_an_announcement() -> None:
    fields = tuple(config.FieldSection(name=f"joint_{n}_torque", type="f32", unit="Nm") for n in range(12))
    every = tuple(SensorStream(f"sensor_{n}", 100 + n, "fixed", 64, 100.0, fields) for n in range(32))
    assert len(pack(every)) < 2000


def test_what_does_not_fit_is_refused() -> None:
    import random

    letters = random.Random(1)
    fields = tuple(
        config.FieldSection(
            name="x" + "".join(letters.choices("abcdefghijklmnop0123456789", k=40)), type="f32"
        )
        for _ in range(400)
    )
    with pytest.raises(ConfigError, match=r"takes \d+ bytes of an announcement, .* room for 5600"):
        pack((SensorStream("many", 1, "fixed", 2000, None, fields),))


IMU = SensorStream("imu", 1, "fixed", 8)


@pytest.mark.parametrize(
    "tables", [5, None, {}, [5], [IMU.table()] * 2, [{"name": "imu", "port": 1}], [{}] * 33]
)
def test_streams_that_make_no_sense(tables: object) -> None:
    with pytest.raises(ValueError, match=r"no streams|same name or port|validation error"):
        unpack(base64.b85encode(zlib.compress(json.dumps(tables).encode())).decode())


@pytest.mark.parametrize("said", ["0", "abcde", "é", "c$@)"])
def test_an_announcement_that_makes_no_sense(said: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack(said)
