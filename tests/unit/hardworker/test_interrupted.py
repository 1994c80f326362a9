"""What a signal and its handler may do while a Hardworker reads or waits."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.fake_ring import FakeRing, RingSource
from tests.support.hosts import configure
from tests.support.reader import SIZE, Site, give_up, handled, interrupt, later, payload, unhurried

from midstream.errors import ConfigError
from midstream.hardworker import Hardworker
from midstream.hardworker.messages import Message
from midstream.hardworker.source import Cycle
from midstream.hardworker.views import View


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("paced", [False, True])
def test_a_signal_is_handled_in_a_turn(site: Site, paced: bool) -> None:
    hardworker = site.hardworker(period=unhurried() if paced else 0.0)
    with hardworker, handled(lambda *_: hardworker.stop()), later(interrupt):
        assert [len(batch) for batch in hardworker.batches()] == [0]


class InterruptedSource(RingSource):
    """Something raises KeyboardInterrupt, if it is to, once a turn or a step has read."""

    due = False

    def __init__(self, ring: FakeRing) -> None:
        super().__init__(ring)
        take = self.message

        def message() -> Message | None:
            found = take()
            if found:
                self._interrupt()
            return found

        self.message = message

    def prepare(self, view: View | None) -> Cycle:
        cycle = super().prepare(view)

        def run() -> Any:
            given = cycle.run()
            if given is not None and view is not None:
                self._interrupt()
            return given

        def batch() -> np.ndarray | None:
            found = cycle.batch()
            if found is not None and len(found):
                self._interrupt()
            return found

        return Cycle(run, batch, cycle.status)

    def rows(self) -> np.ndarray:
        found = super().rows()
        if len(found):
            self._interrupt()
        return found

    def _interrupt(self) -> None:
        if self.due:
            self.due = False
            raise KeyboardInterrupt


WAYS: dict[str, Callable[[Hardworker], object]] = {
    "batches": lambda hardworker: next(hardworker.batches()),
    "columns": lambda hardworker: next(hardworker.columns("sequence")),
    "read": lambda hardworker: hardworker.read(),
    "messages": lambda hardworker: next(hardworker.messages()),
    "iteration": lambda hardworker: next(iter(hardworker)),
    "latest": lambda hardworker: hardworker.latest(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pieces", [[SIZE, SIZE], [SIZE + 5, SIZE - 5]])
def test_what_was_read_when_a_handler_raised_is_given_to_the_next(
    site: Site, way: str, pieces: list[int]
) -> None:
    path = configure(site.folder)
    site.open(1)
    with Hardworker(path, source=RingSource(site.ring)) as first:
        first.read()
    source = InterruptedSource(site.ring)
    with Hardworker(path, source=source) as hardworker:  # it ends without an error, and commits nothing
        stored = 0
        for length in pieces:
            site.put(1, stored, (payload(0) + payload(1))[stored : stored + length])
            stored += length
        source.due = True
        with pytest.raises(KeyboardInterrupt):
            WAYS[way](hardworker)
        assert not hardworker.commit()
        for other in WAYS.values():
            with pytest.raises(ConfigError, match="came in the midst of reading: close this Hardworker"):
                other(hardworker)
    with Hardworker(path, source=RingSource(site.ring)) as last:
        assert last.read()["payload"].tobytes() == payload(0) + payload(1)


@pytest.mark.parametrize("way", ["batches", "columns", "iteration"])
@pytest.mark.parametrize("autocommit", [False, True])
def test_what_raises_while_nothing_is_read_does_no_harm(site: Site, way: str, autocommit: bool) -> None:
    path = configure(site.folder, period=unhurried())
    site.open(1)
    with Hardworker(path, source=site.source, autocommit=autocommit) as hardworker:
        site.put(1, 0, payload(0))
        assert len(hardworker.read()) == 1
        with handled(give_up), later(interrupt), pytest.raises(KeyboardInterrupt):
            WAYS[way](hardworker)
        site.put(1, SIZE, payload(1))
        assert hardworker.read()["offset"].tolist() == [SIZE]
        assert hardworker.commit()


@pytest.mark.parametrize("paced", [False, True])
def test_an_exception_ends_a_turn(site: Site, paced: bool) -> None:
    hardworker = site.hardworker(period=unhurried() if paced else 0.0)
    with hardworker, handled(give_up), later(interrupt), pytest.raises(KeyboardInterrupt):
        next(hardworker.columns("sequence"))


@pytest.mark.parametrize("paced", [False, True])
def test_a_signal_may_close_what_has_its_turn(site: Site, paced: bool) -> None:
    def close(*_: object) -> None:
        hardworker.close()
        gc.collect()
        descriptors.extend(os.pipe())  # they get the numbers that are free now

    descriptors: list[int] = []
    with site.hardworker(period=unhurried() if paced else 0.0) as hardworker:
        site.source = RingSource(site.ring)  # the hardworker has the only reference to its own
        try:
            with handled(close), later(interrupt), pytest.raises(ConfigError, match="closed; use it inside"):
                next(hardworker.columns("sequence"))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def test_a_signal_may_take_a_turn_of_another_form(site: Site) -> None:
    def take(*_: object) -> None:
        site.put(1, 0, payload(0))
        columns.append(next(hardworker.columns("sequence"))[0].tolist())
        site.put(1, SIZE, payload(1))

    columns: list[list[int]] = []
    with site.hardworker() as hardworker:
        site.open(1)
        hardworker.read()
        os.eventfd_read(site.ring.event)
        with handled(take), later(interrupt):
            assert next(hardworker.batches())["offset"].tolist() == [SIZE]
    assert columns == [[0]]
