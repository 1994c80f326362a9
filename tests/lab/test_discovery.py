"""When a daemon announces its host, as another host hears it."""

import asyncio
import time
from ipaddress import IPv4Address
from pathlib import Path

from tests.lab.triangle import HARDWORKER, SENSOR, wait_until
from tests.unit.announcements import announcement

from midstream.daemon.announcement import Announcement
from midstream.daemon.discovery import ANSWER, Discovery
from midstream.daemon.seal import Key
from midstream.lab import Lab, daemons

LAB = {"sensors": 1, "bare": True}
SETTLED = 1.5  # seconds after which all has been answered that the newcomer's own start asked for
TIMES = 2


def test_a_newcomer_is_answered_soon(lab: Lab) -> None:
    """Who starts a moment later than another has missed that one's first announcement, and a question that
    was answered a moment ago is not answered again (RFC 6762, section 6): the next one came 4 s later."""
    daemons.launch(lab, "sensor")
    wait_until(lambda: daemons.state(lab, "sensor") is not None)
    for seconds in lab.call("hardworker", told_after, lab.run_dir / "key"):
        assert seconds < ANSWER + 0.5


def told_after(key: Path) -> list[float]:
    """Announce a host that has just started, several times; the seconds until the sensor's next word."""

    async def announce() -> list[float]:
        words: asyncio.Queue[IPv4Address] = asyncio.Queue()
        own = Discovery(
            IPv4Address(HARDWORKER),
            Key.load(key),
            heard=lambda said: words.put_nowait(said.ip),
            rejected=lambda _: None,
        )
        await own.start(newcomer())
        found = []
        for _ in range(TIMES):
            await asyncio.sleep(SETTLED)
            while not words.empty():
                words.get_nowait()
            said = time.monotonic()
            await own.announce(newcomer())
            while await words.get() != IPv4Address(SENSOR):
                pass
            found.append(time.monotonic() - said)
        await own.close(newcomer())
        return found

    return asyncio.run(announce())


def newcomer() -> Announcement:
    return announcement(role="hardworker", ip=HARDWORKER, started=time.time())
