"""What a daemon might announce."""

from typing import Any

from midstream.daemon.announcement import Announcement, Word
from midstream.daemon.freshness import StampJudge, Voice


def announcement(**fields: Any) -> Announcement:
    """Of a sensor, but for these fields."""
    facts: dict[str, Any] = {
        "role": "sensor",
        "name": "arm-sensor",
        "ip": "192.0.2.11",
        "mac": "02:00:00:00:00:11",
        "mtu": 1500,
        "port": 12346,
        "version": "0.1",
        "time": 2000.0,
    }
    return Announcement(**facts | fields)


def word(voice: Voice | None = None, ear: StampJudge | None = None, **fields: Any) -> Word:
    """What a host says, in answer to what `ear` asks."""
    voice = voice or Voice()
    if ear:
        voice.answer(ear.challenge())
    return Word(said=announcement(**fields), stamp=voice.stamp())
