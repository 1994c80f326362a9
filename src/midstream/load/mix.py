"""Streams at once: the mixes that load, demo and benchmark know, and those of a config.toml.

A mix is described here alone: what config.toml says of its streams, and which sensor sends which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from midstream.config import Config, StreamSection
from midstream.errors import ConfigError
from midstream.framing import Framing
from midstream.load.load import Connection
from midstream.load.message import sizes
from midstream.load.schedule import JointPlan, Plan
from midstream.load.sink import Incoming
from midstream.network import Topology
from midstream.streams import DEFAULT_SIZE, ResolvedStream, resolved

_TYPICAL: Mapping[Framing, int] = {"length": DEFAULT_SIZE, "line": 79}
"""Bytes of a message, of a stream that only says how long the longest is."""


@dataclass(frozen=True)
class MixedStream:
    """A stream of a mix. table: as in config.toml. sensor: who sends it, from 0. size: bytes of a message
    without the frame. varies: messages differ from that by up to this part of it."""

    table: Mapping[str, Any]
    sensor: int
    size: int
    varies: float = 0.0

    @property
    def section(self) -> StreamSection:
        """The table as it is read."""
        return StreamSection.model_validate(dict(self.table))


@dataclass(frozen=True)
class Mix:
    """Streams that are sent at once, and what they are good for."""

    name: str
    title: str
    streams: tuple[MixedStream, ...] = field(repr=False)

    @property
    def sensors(self) -> int:
        """Hosts that send."""
        return 1 + max(stream.sensor for stream in self.streams)

    @property
    def tables(self) -> list[dict[str, Any]]:
        """The `[[stream]]` tables of config.toml."""
        return [dict(stream.table) for stream in self.streams]

    @property
    def incoming(self) -> list[Incoming]:
        """What comes to the hardworker's ports, and to the logger's."""
        sections = [stream.section for stream in self.streams]
        return [Incoming(s.port or 0, s.size or s.max_size, s.framing) for s in sections]


_STAMP = ({"name": "number", "type": "u64"}, {"name": "time", "type": "u64", "unit": "ns"})
_AXES = {"type": "i16", "count": 3}

ROBOT = Mix(
    "robot",
    "imu 1000 Hz × 64 B, joints 500 Hz × 128 B, lidar 10 Hz × 1 MiB, camera 30 Hz × 100 KiB, gps 10 lines/s",
    (
        MixedStream(
            {
                "name": "imu",
                "port": 12345,
                "framing": "fixed",
                "size": 64,
                "freq": 1000.0,
                "period": 0.002,
                "field": [
                    *_STAMP,
                    {"name": "gyro", **_AXES, "scale": 0.001, "unit": "rad/s"},
                    {"name": "acceleration", **_AXES, "scale": 0.01, "unit": "m/s²"},
                    {"name": "magnetic", **_AXES, "scale": 0.01, "unit": "µT"},
                    {"name": "temperature", "type": "i16", "scale": 0.01, "bias": 25.0, "unit": "°C"},
                ],
            },
            sensor=0,
            size=64,
        ),
        MixedStream(
            {
                "name": "joints",
                "port": 12355,
                "framing": "fixed",
                "size": 128,
                "freq": 500.0,
                "field": [
                    *_STAMP,
                    {"name": "position", "type": "i32", "count": 7, "scale": 1e-8, "unit": "rad"},
                    {"name": "velocity", "type": "i32", "count": 7, "scale": 1e-7, "unit": "rad/s"},
                    {"name": "torque", "type": "i32", "count": 7, "scale": 1e-6, "unit": "N m"},
                ],
            },
            sensor=0,
            size=128,
        ),
        MixedStream(
            {
                "name": "lidar",
                "port": 12365,
                "framing": "fixed",
                "size": 1048576,
                "freq": 10.0,
                "field": [*_STAMP],
            },
            sensor=1,
            size=1048576,
        ),
        MixedStream(
            {"name": "camera", "port": 12375, "framing": "length", "max_size": 131072, "freq": 30.0},
            sensor=2,
            size=102400,
            varies=0.2,
        ),
        MixedStream(
            {"name": "gps", "port": 12385, "framing": "line", "max_size": 256, "freq": 10.0},
            sensor=2,
            size=79,
        ),
    ),
)

MIXES = {mix.name: mix for mix in (ROBOT,)}


def find_mix(name: str) -> Mix:
    """The mix of that name. Raises ConfigError."""
    if name not in MIXES:
        raise ConfigError(f"--mix {name}: there is no such mix; there are: {', '.join(MIXES)}")
    return MIXES[name]


@dataclass(frozen=True)
class Sending:
    """What is sent of a stream: to which port, and when. sensor: who has the plan's first connection, from 0;
    the next are those of the next sensors."""

    name: str
    port: int
    plan: Plan
    sensor: int = 0


def mixed_sendings(mix: Mix, seconds: float, *, slow: int = 1) -> list[Sending]:
    """Of a mix, from one sensor each stream, for `seconds`; at rates that are `slow` times lower."""
    found = []
    for number, stream in enumerate(mix.streams):
        section = stream.section
        assert section.port is not None
        plan = Plan(
            rate=section.freq / slow,
            size=stream.size,
            seconds=seconds,
            framing=section.framing,
            varies=stream.varies,
            seed=number,
        )
        found.append(Sending(section.name, section.port, plan, stream.sensor))
    return found


def configured_sendings(
    config: Config,
    topology: Topology,
    *,
    mix: Mix | None = None,
    names: Sequence[str] = (),
    seconds: float,
    seed: int = 0,
    **plan: Any,
) -> list[Sending]:
    """Of the streams that the two files name, or those `names` of them, at their own rates and sizes.

    mix: only its streams, which the files have to name as it does; where a message is not always as long as
    the longest, the mix says how long. plan: more of each Plan. Raises ConfigError.
    """
    streams = resolved(config, topology)
    known = {stream.section.name: stream for stream in mix.streams} if mix else {}
    wanted = list(names) or list(known) or list(streams)
    for name in wanted:
        if name not in streams or (mix and name not in known):
            there = ", ".join(known if mix and name not in known else streams)
            raise ConfigError(
                f'{config.const_path}: there is no stream "{name}"; there are {there}. What to do: name it '
                "in [[stream]] of the hardworker's config.toml (docs/how-to/mix.md has the tables of the mix)"
            )
    found = []
    for number, name in enumerate(wanted):
        stream, mixed = streams[name], known.get(name)
        if mixed:
            _need_alike(stream, mixed)
        given = {
            "rate": stream.config.data.freq,
            "size": mixed.size if mixed else _typical_size(stream),
            "framing": stream.config.data.framing,
            "varies": mixed.varies if mixed else 0.0,
        }
        made = Plan(seconds=seconds, seed=seed + number, **{**given, **plan})
        found.append(Sending(name, stream.topology.port, made, mixed.sensor if mixed else 0))
    return found


def joint_plan(sendings: Sequence[Sending]) -> JointPlan:
    """All of them at once."""
    return JointPlan([sending.plan for sending in sendings])


def connections(
    sendings: Sequence[Sending], peer: str, tos: int, namespaces: Sequence[str]
) -> list[Connection]:
    """Those of a joint plan: to the ports of a peer, out of the sensors' network namespaces."""
    return [
        Connection(peer, sending.port, tos, namespaces[(sending.sensor + number) % len(namespaces)])
        for sending in sendings
        for number in range(sending.plan.sensors)
    ]


def counted(sendings: Sequence[Sending], counts: Sequence[int]) -> dict[str, int]:
    """The messages of each stream, from those of each connection."""
    each = iter(counts)
    return {s.name: sum(islice(each, s.plan.sensors)) for s in sendings}


def _typical_size(stream: ResolvedStream) -> int:
    """Bytes of a message of the load."""
    config, topology = stream
    framing = config.data.framing
    if framing == "fixed":
        return config.message_size(topology.size)
    most = min(_TYPICAL[framing], config.data.max_size)
    return most - (most - sizes(framing)[0]) % sizes(framing).step


def _need_alike(stream: ResolvedStream, mixed: MixedStream) -> None:
    """Raise ConfigError if what the files say of a stream has no room for the mix's messages."""
    config, section = stream.config, mixed.section
    if config.data.framing != section.framing:
        raise ConfigError(
            f'{config.const_path}: stream "{section.name}": framing is "{config.data.framing}", and the mix '
            f'sends with "{section.framing}"; make it equal, or send with --stream alone'
        )
    size, needed = stream.topology.size, section.size or section.max_size
    if size != needed if section.framing == "fixed" else size < mixed.size * (1 + mixed.varies):
        raise ConfigError(
            f'{config.const_path}: stream "{section.name}": its size is {size}, and the mix needs {needed} '
            "bytes; make it equal, or send with --stream alone"
        )
