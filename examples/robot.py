"""A robot with two kinds of sensors. Each is read in a process of its own, and neither waits for the other.

    python robot.py control [CONFIG]         every 2 ms: what the IMU has measured
    python robot.py mapping [CONFIG]         each scan of the LiDAR, as it comes

config.toml names the streams, as robot.toml does. Either process may be killed, and goes on where it was.
"""

import json
import sys

import numpy as np

from midstream import Hardworker

REPORT = 500  # cycles, a second


def control(config: str) -> None:
    fastest, count, cycles = 0.0, 0, 0
    with Hardworker(config) as hardworker:
        imu = hardworker.stream("imu")
        for seq, angular_rate in imu.columns("seq", "angular_rate"):  # shapes (n,) and (n, 3), maybe n = 0
            count += len(seq)
            fastest = max(fastest, float(np.abs(angular_rate).max(initial=0.0)))
            cycles += 1
            if cycles == REPORT:
                said = {"messages": count, "fastest_turn": fastest, "silent": imu.silent}
                print(json.dumps(said), flush=True)
                fastest, count, cycles = 0.0, 0, 0


def mapping(config: str) -> None:
    with Hardworker(config) as hardworker:
        for scan in hardworker.stream("lidar"):
            said = {"sensor": scan.sensor, "scan": scan.sequence, "bytes": len(scan.payload)}
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["control", *given]:
            control(given[0] if given else "config.toml")
        case ["mapping", *given]:
            mapping(given[0] if given else "config.toml")
        case _:
            sys.exit(__doc__)
