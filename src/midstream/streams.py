"""Streams: the kinds of messages that sensors send, each with a port and a ring of its own.

The hardworker's config.toml names them, and its daemon tells all others, in const.toml. What works with one
stream is given the two files as if they spoke of that one alone: `resolved`.
"""

from itertools import count
from typing import NamedTuple

from midstream.config import DATA, Config, DataSection, StreamSection
from midstream.errors import ConfigError
from midstream.network import SensorStream, Topology

FIRST_PORT, DEFAULT_SIZE = 12345, 1024


class ResolvedStream(NamedTuple):
    """What config.toml and const.toml say of one stream, as if there were no other."""

    config: Config
    topology: Topology

    @property
    def name(self) -> str:
        return self.config.stream_name


def resolved(config: Config, topology: Topology) -> dict[str, ResolvedStream]:
    """All streams by name, in const.toml's order. Raises ConfigError if the files contradict each other."""
    if fault := contradiction(config, topology.streams, who=str(config.const_path)):
        raise ConfigError(f"{config.path}: {fault}")
    if not topology.streams:
        return {DATA: ResolvedStream(config, topology)}
    own = {section.name: section for section in config.stream}
    return {
        stream.name: ResolvedStream(
            config.only(stream.name, _messages(stream, own.get(stream.name)), stream.port),
            topology.only(stream),
        )
        for stream in topology.streams
    }


def only(config: Config, topology: Topology, name: str) -> ResolvedStream:
    """The stream of that name; "" for the only one. Raises ConfigError, which names those that there are."""
    found = resolved(config, topology)
    if name in found:
        return found[name]
    if not name and len(found) == 1:
        return next(iter(found.values()))
    wrong = f'there is no stream "{name}"' if name else "there are several streams: say which one"
    raise ConfigError(f"{config.const_path}: {wrong}; there are {', '.join(found)}")


def decide(config: Config, previous: tuple[SensorStream, ...]) -> tuple[SensorStream, ...]:
    """What the hardworker decides for all: config.toml, else const.toml as it was, else the default. None
    where no [[stream]] is named."""
    claimed = {section.port for section in config.stream} | {config.logger.replay_port}
    before = {stream.name: stream for stream in previous}
    kept = {name: stream.port for name, stream in before.items() if stream.port not in claimed}
    taken = claimed | {kept[section.name] for section in config.stream if section.name in kept}
    free = (port for port in count(FIRST_PORT) if port not in taken)
    return tuple(
        _decided(section, before.get(section.name), section.port or kept.get(section.name) or next(free))
        for section in config.stream
    )


def contradiction(config: Config, decided: tuple[SensorStream, ...], who: str = "the hardworker") -> str:
    """What this host's config.toml says otherwise than `who` has decided; "" if nothing."""
    names = ", ".join(stream.name for stream in decided)
    if decided and (said := sorted(config.data.model_fields_set - {"deadline"})):
        return (
            f"data.{said[0]}: {who} names the streams {names}, each with messages of its own; "
            "leave [data] out here, or say it in a [[stream]] table"
        )
    by_name = {stream.name: stream for stream in decided}
    for index, section in enumerate(config.stream):
        stream, place = by_name.get(section.name), f"stream[{index}]"
        if stream is None:
            there = f"names {names}" if decided else "names no streams"
            return (
                f'{place}.name = "{section.name}": {who} {there}; correct one of them, or leave it out here'
            )
        for key, theirs in _comparable(stream).items():
            mine = getattr(section, key)
            if key in section.model_fields_set and mine != theirs:
                shown, decided_so = ("", "otherwise") if key == "field" else (f" = {mine}", f"{theirs}")
                advice = "make them equal, or leave it out here"
                return f"{place}.{key}{shown}: {who} says {decided_so}; {advice}"
    return ""


def _comparable(stream: SensorStream) -> dict[str, object]:
    size = "size" if stream.framing == "fixed" else "max_size"
    return {"port": stream.port, "framing": stream.framing, size: stream.size, "field": stream.fields}


def _messages(stream: SensorStream, own: StreamSection | None) -> DataSection:
    """[data] of a file that knows this stream alone. A sensor may send at another rate."""
    said: dict[str, object] = {"framing": stream.framing, "field": stream.fields}
    said["size" if stream.framing == "fixed" else "max_size"] = stream.size
    if own and "freq" in own.model_fields_set:
        said["freq"] = own.freq
    elif stream.freq is not None:
        said["freq"] = stream.freq
    if own and "deadline" in own.model_fields_set:
        said["deadline"] = own.deadline
    return DataSection.model_validate(said)


def _decided(section: StreamSection, before: SensorStream | None, port: int) -> SensorStream:
    if section.framing != "fixed":
        size = section.max_size
    else:
        kept = before.size if before and before.framing == "fixed" else DEFAULT_SIZE
        size = kept if section.size is None else section.size
    freq = section.freq if "freq" in section.model_fields_set else None
    return SensorStream(section.name, port, section.framing, size, freq, section.field)
