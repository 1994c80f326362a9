"""An application for an IMU: of each value that it needs it gets an array per cycle, with a row per message.

    python imu.py [CONFIG]

config.toml describes the message, as imu.toml does. Each second of data gives a line of JSON.
"""

import json
import sys

import numpy as np

from midstream import Hardworker

RATE = 1000  # messages per second


def summary(seq: np.ndarray, acceleration: np.ndarray, angular_rate: np.ndarray) -> dict[str, float]:
    """Of n messages: seq has the shape (n,), the others (n, 3), in m/s² and rad/s."""
    return {
        "last": int(seq[-1]),
        "acceleration": float(np.linalg.norm(acceleration, axis=1).mean()),
        "fastest_turn": float(np.abs(angular_rate).max()),
    }


def main(config: str) -> None:
    waiting: list[tuple[np.ndarray, ...]] = []
    count = 0
    with Hardworker(config) as hardworker:
        for columns in hardworker.columns("seq", "acceleration", "angular_rate"):
            waiting.append(tuple(column.copy() for column in columns))  # the next cycle uses the arrays again
            count += len(columns[0])
            while count >= RATE:
                seq, acceleration, angular_rate = map(np.concatenate, zip(*waiting, strict=True))
                print(json.dumps(summary(seq[:RATE], acceleration[:RATE], angular_rate[:RATE])), flush=True)
                waiting = [(seq[RATE:], acceleration[RATE:], angular_rate[RATE:])]
                count -= RATE


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "config.toml")
