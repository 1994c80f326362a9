"""What users would pick instead: middlewares that do the same job, in Python as PyPI and Debian have them.

Each has a receiver on the hardworker, a sender for all sensors, and on the logger its broker, if it has one,
and whoever takes the logger's copy. `python -m midstream_bench.middlewares` runs each of the three.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec

from midstream.load import JointPlan
from midstream_bench.middlewares import programs
from midstream_bench.middlewares.middleware import Ends, Middleware
from midstream_bench.receiver import Family, Job, Receiver, Setting

_MADE_OF: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "zeromq-sub": ("zeromq", "PubSub", ()),
    "zeromq-push": ("zeromq", "PushPull", ()),
    "zenoh": ("zenoh", "Peers", ()),
    "nats": ("nats", "Core", ()),
    "mqtt-0": ("mqtt", "Mqtt", (0,)),
    "mqtt-1": ("mqtt", "Mqtt", (1,)),
    "dds": ("dds", "Reliable", ()),
}
"""Module, class, and what it is given."""

_PACKAGES = {
    "pyzmq": "zmq",
    "eclipse-zenoh": "zenoh",
    "nats-py": "nats",
    "paho-mqtt": "paho",
    "cyclonedds": "cyclonedds",
}
"""The module by which a package from PyPI is known."""


def load(name: str) -> Middleware:
    """The middleware of that name: imports its library."""
    module, kind, arguments = _MADE_OF[name]
    middleware: Middleware = getattr(import_module(f"midstream_bench.middlewares.{module}"), kind)(*arguments)
    return middleware


def _receiver(
    name: str, title: str, needs: tuple[str, ...], note: str, *, relays: bool = False, over_udp: bool = False
) -> Receiver:
    return Receiver(
        name=name,
        title=title,
        family=Family.MIDDLEWARE,
        job=Job.RELAY if relays else Job.RECEIVE,
        language="Python",
        command=_side(name, "receive"),
        missing=lambda: _missing(needs),
        sender=lambda setting, plan: [*_side(name, "send")(setting), json.dumps(_plans(plan))],
        partner=_side(name, "log"),
        over_udp=over_udp,
        one_stream=over_udp,
        note=note,
    )


def _side(name: str, side: str) -> Callable[[Setting], list[str]]:
    def command(setting: Setting) -> list[str]:
        slow = 1 if side == "receive" else setting.slow
        ends = Ends(
            setting.sensor,
            setting.address,
            setting.logger,
            setting.incoming[0].port,
            setting.sensors,
            max(each.size for each in setting.incoming),
            slow,
        )
        return [sys.executable, "-P", "-m", __name__, name, side, json.dumps(asdict(ends))]

    return command


def _plans(joint: JointPlan) -> list[dict[str, object]]:
    every = [asdict(plan) for plan in joint.plans]
    return [{name: value for name, value in plan.items() if name != "timing"} for plan in every]


def _missing(needs: tuple[str, ...]) -> str:
    absent = [name for name in needs if not _is_there(name)]
    return f"not installed: {', '.join(absent)}" if absent else ""


def _is_there(name: str) -> bool:
    if name in _PACKAGES:
        return find_spec(_PACKAGES[name]) is not None
    return programs.find(name) is not None


_COPIES = "each sensor sends a second copy to the logger"

MIDDLEWARES: tuple[Receiver, ...] = (
    _receiver("zeromq-sub", "ZeroMQ PUB/SUB", ("pyzmq",), _COPIES),
    _receiver(
        "zeromq-push",
        "ZeroMQ PUSH/PULL",
        ("pyzmq",),
        "the hardworker pushes each message on to the logger",
        relays=True,
    ),
    _receiver("zenoh", "Zenoh", ("eclipse-zenoh",), _COPIES),
    _receiver("nats", "NATS", ("nats-py", "nats-server"), "the server runs on the logger"),
    _receiver("mqtt-0", "MQTT, QoS 0", ("paho-mqtt", "mosquitto"), "the broker runs on the logger"),
    _receiver(
        "mqtt-1",
        "MQTT, QoS 1",
        ("paho-mqtt", "mosquitto"),
        "the broker runs on the logger; the hardworker acknowledges each message",
    ),
    _receiver("dds", "DDS (Cyclone)", ("cyclonedds",), f"reliable, over UDP; {_COPIES}", over_udp=True),
)

__all__ = ["MIDDLEWARES", "Ends", "Middleware", "load"]
