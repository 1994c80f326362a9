"""The mixes, and what is sent of the streams that the files name."""

import re
import tomllib
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
import pytest

from midstream import config as configuration
from midstream import fields
from midstream.config import Config
from midstream.errors import ConfigError
from midstream.lab import state
from midstream.load import Phase
from midstream.load.message import carried, payload
from midstream.load.mix import (
    MIXES,
    ROBOT,
    configured_sendings,
    connections,
    counted,
    find_mix,
    joint_plan,
    mixed_sendings,
)
from midstream.network import Host, Topology
from midstream.streams import decide, resolved

NAMES = ["imu", "joints", "lidar", "camera", "gps"]


def files(text: str) -> tuple[Config, Topology]:
    config = configuration.parse(text, Path("/x/config.toml"))
    host = Host(IPv4Address("10.83.0.11"), "02:00:00:00:00:11")
    streams = decide(config, ())
    size = streams[0].size if streams else 1024
    return config, Topology((host,), host, host, 104, 12345, 1500, size, streams=streams)


@pytest.fixture
def robot() -> tuple[Config, Topology]:
    return files(state.toml({"stream": ROBOT.tables}))


def test_the_robot_has_all_framings_and_several_sensors(robot: tuple[Config, Topology]) -> None:
    streams = resolved(*robot)
    assert list(streams) == NAMES
    assert {stream.config.data.framing for stream in streams.values()} == {"fixed", "length", "line"}
    assert ROBOT.sensors == 3
    assert [(each.port, each.size, each.framing) for each in ROBOT.incoming] == [
        (12345, 64, "fixed"),
        (12355, 128, "fixed"),
        (12365, 1 << 20, "fixed"),
        (12375, 1 << 17, "length"),
        (12385, 256, "line"),
    ]


def test_the_robot_sends_what_it_says(robot: tuple[Config, Topology]) -> None:
    sendings = configured_sendings(*robot, mix=ROBOT, seconds=2)
    assert sendings == mixed_sendings(ROBOT, 2)
    events = np.concatenate(list(joint_plan(sendings).events()))
    counts = np.bincount(events["connection"]).tolist()
    assert counted(sendings, counts) == dict(zip(NAMES, [2000, 1000, 20, 60, 20], strict=True))
    camera = events["size"][events["connection"] == 3]
    assert 81920 <= camera.min() < camera.max() <= 122880
    slower = mixed_sendings(ROBOT, 2, slow=4)
    assert [sending.plan.messages for sending in slower] == [500, 250, 5, 15, 5]


def test_the_fields_of_its_streams_lie_in_its_messages(robot: tuple[Config, Topology]) -> None:
    for name in ("imu", "joints"):
        config, topology = resolved(*robot)[name]
        layout = fields.layout(config, topology.size)
        assert layout is not None
        assert len(payload("fixed", 0, 0, 0, topology.size)) == topology.size


def test_each_message_has_room_for_what_shows_its_fate() -> None:
    for sending in mixed_sendings(ROBOT, 1):
        plan = sending.plan
        one = payload(plan.framing, 4, 7, 8, plan.size)
        assert len(one) == plan.size
        assert len(carried(plan.framing, one)) >= 32


def test_connections_leave_from_the_hosts_of_their_sensors() -> None:
    made = connections(mixed_sendings(ROBOT, 1), "10.83.0.2", 104, ["a", "b", "c"])
    assert [(each.port, each.namespace) for each in made] == [
        (12345, "a"),
        (12355, "a"),
        (12365, "b"),
        (12375, "c"),
        (12385, "c"),
    ]


def test_all_streams_of_the_files_are_sent() -> None:
    text = """
[[stream]]
name = "a"
size = 64
freq = 20

[[stream]]
name = "b"
framing = "line"
max_size = 200

[[stream]]
name = "c"
framing = "length"
freq = 0
"""
    sendings = configured_sendings(*files(text), seconds=2, sensors=2, phase=Phase.ALIGNED)
    found = [(s.name, s.plan.rate, s.plan.size, s.plan.framing, s.plan.sensors) for s in sendings]
    assert found == [
        ("a", 20, 64, "fixed", 2),
        ("b", 1000, 79, "line", 2),
        ("c", 0, 1024, "length", 2),
    ]
    assert [s.name for s in configured_sendings(*files(text), names=["c", "a"], seconds=2)] == ["c", "a"]
    with pytest.raises(ConfigError, match='no stream "d"; there are a, b, c'):
        configured_sendings(*files(text), names=["d"], seconds=2)


def test_the_only_stream_needs_no_name() -> None:
    (sending,) = configured_sendings(*files(""), seconds=2, rate=5)
    assert (sending.name, sending.port, sending.plan.rate, sending.plan.size) == ("data", 12345, 5, 1024)


def test_a_mix_that_the_files_do_not_have() -> None:
    with pytest.raises(ConfigError, match='no stream "imu"; there are data'):
        configured_sendings(*files(""), mix=ROBOT, seconds=1)
    other = [{**table, "size": 65} if table["name"] == "imu" else table for table in ROBOT.tables]
    with pytest.raises(ConfigError, match='stream "imu": its size is 65, and the mix needs 64'):
        configured_sendings(*files(state.toml({"stream": other})), mix=ROBOT, seconds=1)
    other[0] = {"name": "imu", "framing": "length"}
    with pytest.raises(ConfigError, match='stream "imu": framing is "length"'):
        configured_sendings(*files(state.toml({"stream": other})), mix=ROBOT, seconds=1)


def test_mixes_are_found_by_name() -> None:
    assert find_mix("robot") is ROBOT is MIXES["robot"]
    with pytest.raises(ConfigError, match="no such mix; there are: robot"):
        find_mix("car")


def test_the_documentation_has_its_tables() -> None:
    page = Path(__file__).parents[3] / "docs/how-to/mix.md"
    (told,) = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    assert tomllib.loads(told)["stream"] == ROBOT.tables
