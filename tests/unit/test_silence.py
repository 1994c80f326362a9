"""Who has missed a deadline, by a clock that the test sets."""

import numpy as np

from midstream.silence import Silence

SECOND = 10**9


class Clock:
    def __init__(self) -> None:
        self.ns = 50 * SECOND
        self.heard = np.zeros(8, "<u8")
        self.sensors = 3

    def hear(self, *sensors: int) -> None:
        self.heard[list(sensors)] = self.ns

    def made(self, deadline: float = 2.0) -> Silence:
        return Silence(deadline, lambda: self.sensors, lambda: self.ns)


def test_a_sensor_is_silent_after_its_deadline_and_until_it_speaks() -> None:
    clock = Clock()
    silence = clock.made()
    clock.ns += SECOND
    clock.hear(0, 1)
    assert silence.silent(silence.left(clock.heard)) == set()
    assert silence.until_next(silence.left(clock.heard)) == 1.0, "sensor 2 has not been heard since it began"
    clock.ns += SECOND
    assert silence.silent(silence.left(clock.heard)) == {2}
    assert silence.until_next(silence.left(clock.heard)) == 1.0
    clock.hear(1)
    clock.ns += SECOND
    assert silence.silent(silence.left(clock.heard)) == {0, 2}
    clock.hear(2)
    assert silence.silent(silence.left(clock.heard)) == {0}
    clock.sensors = 4
    assert silence.silent(silence.left(clock.heard)) == {0, 3}


def test_each_silence_is_news_once() -> None:
    clock = Clock()
    silence = clock.made()
    assert not silence.is_news(silence.left(clock.heard))
    clock.ns += 3 * SECOND
    clock.hear(0)
    assert [silence.is_news(silence.left(clock.heard)), silence.is_news(silence.left(clock.heard))] == [
        True,
        False,
    ]
    clock.hear(1)
    assert not silence.is_news(silence.left(clock.heard)), "that one speaks again is none"
    clock.ns += 3 * SECOND
    assert [silence.is_news(silence.left(clock.heard)), silence.is_news(silence.left(clock.heard))] == [
        True,
        False,
    ]
    assert silence.until_next(silence.left(clock.heard)) == float("inf")
    silence.begin()
    assert silence.silent(silence.left(clock.heard)) == set()
    clock.ns += 3 * SECOND
    assert silence.is_news(silence.left(clock.heard))


def test_without_a_deadline_nobody_is_silent() -> None:
    clock = Clock()
    silence = clock.made(0.0)
    clock.ns += 10**6 * SECOND
    assert silence.silent(silence.left(clock.heard)) == set()
    assert not silence.is_news(silence.left(clock.heard))


def test_a_stream_that_not_every_sensor_sends() -> None:
    """Nobody else is expected to send it, once one has; before that it is missed as a whole."""
    clock = Clock()
    silence = Silence(1.0, lambda: 3, lambda: clock.ns, all_send=False)
    clock.ns += SECOND
    assert silence.silent(silence.left(clock.heard)) == {0, 1, 2}
    clock.hear(1)
    assert silence.silent(silence.left(clock.heard)) == set()
    assert silence.until_next(silence.left(clock.heard)) == 1.0
    clock.ns += SECOND
    assert silence.silent(silence.left(clock.heard)) == {1}
