"""A LiDAR: ten scans per second, each a message of its own length. The sensor and the application.

    python lidar.py sensor [CONFIG [SCANS]]         on the sensor
    python lidar.py application [CONFIG]            on the hardworker

config.toml needs `framing = "length"`, and `max_size` above the longest scan. A scan is its number (u32), how
many points it has (u32), and the points: x, y, z in metres and intensity, 16 bytes each, little-endian.
"""

import json
import struct
import sys
from collections.abc import Iterator

import numpy as np

from midstream import Hardworker, Sensor

HEAD = struct.Struct("<II")
POINT = np.dtype([("place", "<f4", 3), ("intensity", "<f4")])
RATE = 10.0  # scans per second
BEAMS = 16


def scans(count: int) -> Iterator[bytes]:
    """What a scanner sees that turns in a round room: the walls are 5 m away, and some rays find none."""
    random = np.random.default_rng(1)
    for number in range(count):
        angles = np.arange(0, 2 * np.pi, np.radians(0.2))
        azimuth, elevation = np.meshgrid(angles, np.radians(np.linspace(-15, 15, BEAMS)))
        seen = random.random(azimuth.shape) < 0.9
        azimuth, elevation = azimuth[seen], elevation[seen]
        points = np.zeros(len(azimuth), POINT)
        points["place"] = 5.0 * np.stack([np.cos(azimuth), np.sin(azimuth), np.tan(elevation)], axis=1)
        points["intensity"] = random.random(len(points))
        yield HEAD.pack(number, len(points)) + points.tobytes()


def points_of(payload: bytes) -> tuple[int, np.ndarray]:
    """A scan's number, and its points: shape (n,), with the fields of POINT. Nothing is copied."""
    number, count = HEAD.unpack_from(payload)
    return number, np.frombuffer(payload, POINT, count, HEAD.size)


def sensor(config: str, count: int) -> None:
    with Sensor(config) as connection:
        sent = connection.run(scans(count), rate=RATE)
    print(json.dumps({"scans": sent.messages, "bytes": sent.bytes, "clean": sent.clean}))


def application(config: str) -> None:
    with Hardworker(config) as hardworker:
        for message in hardworker:
            number, points = points_of(message.payload)
            nearest = float(np.linalg.norm(points["place"], axis=1).min())
            print(json.dumps({"scan": number, "points": len(points), "nearest": nearest}), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["sensor", *given]:
            sensor(given[0] if given else "config.toml", int(given[1]) if len(given) > 1 else 100)
        case ["application", *given]:
            application(given[0] if given else "config.toml")
        case _:
            sys.exit(__doc__)
