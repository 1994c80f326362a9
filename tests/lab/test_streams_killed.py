"""Whoever attaches the programs of several streams, or takes them away, may be killed at any moment."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.lab.test_streams_read import LAB as STREAMS
from tests.lab.triangle import PINS

from midstream import config, network
from midstream.config import Config
from midstream.ebpf import libbpf, loader, pins
from midstream.errors import LabError
from midstream.lab import Lab
from midstream.network import Topology

LAB = STREAMS
FOLDER = PINS / "hardworker"
PINNED = 56  # by an attach of these streams; about half of them where one is new
Files = tuple[Config, Topology]


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, marks=[] if place in (4, 25, 55) else [pytest.mark.slow])
        for place in range(1, PINNED, 3)
    ],
)
@pytest.mark.parametrize("before", ["nothing", "fewer"])
def test_an_attach(lab: Lab, before: str, place: int) -> None:
    """With the maps that are pinned it goes on, and with those of a new stream it begins again."""
    whole, fewer = files(lab)
    lab.call("hardworker", loader.detach, "hardworker", FOLDER)
    kept = None
    if before == "fewer":
        lab.call("hardworker", attach, *fewer)
        kept = ring("imu")
    killed(lab, libbpf, "pin", place, attach, *whole)
    lab.call("hardworker", attach, *whole)
    assert sorted(pins.stream_folders(FOLDER)) == ["gps", "imu", "lidar"]
    assert pins.is_whole("hardworker", FOLDER)
    assert not (FOLDER / pins.ASIDE).exists()
    assert kept in (None, ring("imu"))


@pytest.mark.parametrize("place", [1, 5, 11])
def test_a_detach(lab: Lab, place: int) -> None:
    whole, _ = files(lab)
    lab.call("hardworker", attach, *whole)
    killed(lab, Path, "unlink", place, loader.detach, "hardworker", FOLDER)
    lab.call("hardworker", attach, *whole)
    assert pins.is_whole("hardworker", FOLDER)


def files(lab: Lab) -> tuple[Files, Files]:
    """The lab's, and those that lack a stream."""
    settings, topology = config.load(lab.config), network.load(lab.const)
    fewer = settings.model_copy(update={"stream": settings.stream[:2]})
    return (settings, topology), (fewer, replace(topology, streams=topology.streams[:2]))


def attach(settings: Config, topology: Topology) -> None:
    loader.attach("hardworker", settings, topology, replace=True, self_test=False)


def ring(stream: str) -> int:
    """The kernel's number of a stream's ring."""
    fd = pins.open_map(pins.stream_folders(FOLDER)[stream], "ring")
    try:
        return libbpf.map_info(fd).id
    finally:
        os.close(fd)


def killed(lab: Lab, where: Any, name: str, place: int, does: Callable[..., object], *arguments: Any) -> None:
    """Whoever does that, at its call number `place` of this function; if it makes so many."""
    with dying(where, name, place), suppress(LabError):
        lab.call("hardworker", does, *arguments)


@contextmanager
def dying(where: Any, name: str, place: int) -> Iterator[None]:
    """Inside, a child of this process ends at that call."""
    original, calls = getattr(where, name), iter(range(1, place))

    def call(*arguments: Any, **more: Any) -> Any:
        if next(calls, None) is None:
            os._exit(9)
        return original(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, call)
        yield
