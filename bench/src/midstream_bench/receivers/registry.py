"""The list of the receivers: ordinary sockets, midstream in all its forms, and the floor."""

import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from midstream import config as configuration
from midstream import network
from midstream.ebpf import compiler, irq_mitigation, pins
from midstream.load import load
from midstream.streams import resolved
from midstream_bench.receiver import Family, Job, Receiver, Setting
from midstream_bench.receivers.arrangement import Arrangement

HERE = Path(__file__).parent
PERIOD = 0.01
"""Seconds, of every receiver that looks instead of being woken and does not say otherwise."""
LONG_PERIOD = 0.02
"""Seconds, of the receivers that show what is saved by looking half as often."""

_DEFERRED = (
    ("", "looks once a period, interrupts deferred", PERIOD),
    ("-20ms", "looks every 20 ms, interrupts deferred", LONG_PERIOD),
)
"""For the name, the title, and the period."""

_TOS = "104"
_BUSY_POLL = 50  # microseconds


def _matched(period: float) -> Arrangement:
    return Arrangement(irq_mitigation=irq_mitigation.matched(period))


def _executable(name: str) -> str:
    return str(compiler.compile_executable(HERE / f"{name}.c", headers=load.SOURCE.parent))


def _places(job: Job, setting: Setting) -> list[str]:
    """The words that all handlers begin with: where they listen, and where they send on to."""
    return [setting.address, setting.logger if job == Job.RELAY else "-", _TOS]


def _in_c(name: str, job: Job, *more: str) -> Callable[[Setting], list[str]]:
    def command(setting: Setting) -> list[str]:
        return [_executable(name), *_places(job, setting), *more, *setting.ports]

    return command


def _in_python(name: str, job: Job) -> Callable[[Setting], list[str]]:
    def command(setting: Setting) -> list[str]:
        module = f"midstream_bench.receivers.{name}"
        return [sys.executable, "-m", module, *_places(job, setting), *setting.ports]

    return command


def _application(form: str) -> Callable[[Setting], list[str]]:
    def command(setting: Setting) -> list[str]:
        return [sys.executable, "-m", "midstream_bench.receivers.python", str(setting.config), form]

    return command


def _consumer(setting: Setting) -> list[str]:
    config = configuration.load(setting.config)
    settings = config.hardworker
    period, follow = (
        str(round(settings.period * 1e6)),
        str(int(settings.irq_mitigation and settings.period > 0)),
    )
    rings = []
    for stream in resolved(config, network.load(setting.const)).values():
        own, topology = stream
        folder = pins.stream_folder(pins.default_folder("hardworker", config), own)
        rings += [str(folder), own.data.framing, str(topology.size)]
    return [_executable("ring"), period, follow, *rings]


def _spooled(command: Callable[[Setting], list[str]]) -> Callable[[Setting], list[str]]:
    def spooled(setting: Setting) -> list[str]:
        module = "midstream_bench.receivers.spooled"
        return [sys.executable, "-m", module, str(setting.config), *command(setting)]

    return spooled


def _without_uvloop() -> str:
    install = "uvloop is missing; install it with `pip install 'midstream-bench[receivers]'`"
    return "" if find_spec("uvloop") else install


def _handlers() -> Iterator[Receiver]:
    # The card's timer is to come only if the program does not poll the card itself, once a period.
    polled = Arrangement(irq_mitigation=irq_mitigation.IrqMitigation(1000, round(2 * PERIOD * 1e9)))
    kind = Family.HANDLER
    for job in (Job.RECEIVE, Job.RELAY):
        yield Receiver(f"c-epoll-{job}", "C, epoll", kind, job, "C", _in_c("epoll", job))
        tuned = [(f"c-tuned{suffix}", how, _matched(period), period, 0) for suffix, how, period in _DEFERRED]
        busy = ("c-busy", "polls the card once a period", polled, PERIOD, _BUSY_POLL)
        for name, how, arrangement, period, poll in (*tuned, busy):
            command = _in_c("polling", job, str(round(period * 1e6)), str(poll))
            yield Receiver(f"{name}-{job}", f"C, {how}", kind, job, "C", command, attach=arrangement)
        for name, title, module in (
            ("python", "Python, blocking sockets", "threads"),
            ("asyncio", "Python, asyncio streams", "streams"),
            ("uvloop", "Python, uvloop and a Protocol", "protocol"),
        ):
            missing = _without_uvloop if name == "uvloop" else lambda: ""
            yield Receiver(
                f"{name}-{job}", title, kind, job, "Python", _in_python(module, job), missing=missing
            )


def _joined() -> Iterator[Receiver]:
    for suffix, how, period in _DEFERRED:
        yield Receiver(
            f"c-joined{suffix}-{Job.RELAY}",
            f"C, {how}, one connection to the logger",
            Family.HANDLER,
            Job.RELAY,
            "C",
            _in_c("joined", Job.RELAY, str(round(period * 1e6))),
            attach=_matched(period),
            joined=True,
            note="the logger gets all sensors' streams in one connection and has to take them apart",
        )


def _midstream() -> Iterator[Receiver]:
    for form, title, settings in (
        ("epoll", "woken by epoll", {"period": 0.0}),
        ("period", "looks once a period", {"period": PERIOD, "irq_mitigation": False}),
        *(
            (f"deferred{suffix}", how, {"period": period, "irq_mitigation": True})
            for suffix, how, period in _DEFERRED
        ),
    ):
        for name, language, command in (
            ("c", "C", _consumer),
            ("numpy", "Python", _application("columns")),
            ("python", "Python", _application("messages")),
        ):
            application = {"c": "C", "numpy": "NumPy", "python": "a Python loop"}[name]
            yield Receiver(
                f"midstream-{form}-{name}",
                f"midstream, {title}; {application}",
                Family.MIDSTREAM,
                Job.RELAY,
                language,
                command,
                tables={"hardworker": settings},
                attach=Arrangement("midstream"),
                one_stream=name == "numpy",
            )


def _spool() -> Iterator[Receiver]:
    for name, language, command in (("c", "C", _consumer), ("numpy", "Python", _application("columns"))):
        application = {"c": "C", "numpy": "NumPy"}[name]
        yield Receiver(
            f"midstream-spool-{name}",
            f"midstream without a logger, stored in the spool; {application}",
            Family.MIDSTREAM,
            Job.STORE,
            language,
            _spooled(command),
            tables={"hardworker": {"period": PERIOD, "irq_mitigation": True}},
            attach=Arrangement("midstream"),
            one_stream=name == "numpy",
            note="the logger is away: the hardworker's own TCP receives, and its spool stores",
        )


def _floors() -> Iterator[Receiver]:
    for name, title, wanted in (
        ("floor", "XDP_TX and nothing else", None),
        ("floor-deferred", "XDP_TX and nothing else, interrupts deferred", irq_mitigation.matched(PERIOD)),
    ):
        yield Receiver(
            name,
            title,
            Family.FLOOR,
            Job.FORWARD,
            "eBPF",
            None,
            attach=Arrangement("floor", wanted),
            one_stream=True,
        )


RECEIVERS: tuple[Receiver, ...] = (*_floors(), *_midstream(), *_spool(), *_handlers(), *_joined())
"""All of them."""
