"""Start the triangle, watch it, stop it, judge it, and leave nothing behind."""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy.engine import make_url

from midstream import config as configuration
from midstream import lab, network
from midstream.config import DATA, MAX_MESSAGE
from midstream.database_url import check
from midstream.demo import application, records
from midstream.demo.observer import Observer, View
from midstream.demo.programs import LabProgram
from midstream.demo.senders import MixLoad, Senders, SensorPrograms, Sent
from midstream.demo.verdict import DemoVerdict, judge, total
from midstream.errors import ConfigError, LabError, MidstreamError
from midstream.hardworker.recording import recorded_dtype
from midstream.lab import Lab, Meter, Usage, daemons, state
from midstream.lab.programs import attach
from midstream.load.mix import Mix, mixed_sendings
from midstream.nats_url import is_nats
from midstream.storage.store import FRAME
from midstream.streams import resolved
from midstream.toml import absolute, show

FOLDER = Path("/var/tmp")  # for large files: the records of a million messages need gigabytes
POLL = 0.1  # seconds between two looks at the programs
READY_TIMEOUT = 60.0  # seconds; more for many sensors, which start on one core
READY_TIMEOUT_EACH = 5.0
STALL_TIMEOUT = 30.0  # seconds without a new message
DRAIN_TIMEOUT = 10.0
STOP_TIMEOUT = 30.0


@dataclass(frozen=True)
class Settings:
    """`messages` and `rate` (a second; 0: as fast as TCP takes them) are those of each sensor. With a `mix`
    its streams are sent for `seconds` instead.

    database: a SQLAlchemy URL, a relative SQLite path being relative to the current folder; empty for one
    that is removed at the end. restore and receiver: as in config.toml. impair: as of
    `lab.parse_impairment`, empty for good wires. daemon: a daemon on each host finds the others and attaches;
    without, the lab tells every host what it needs.
    """

    messages: int = 5000
    rate: float = 1000.0
    size: int = 1024
    sensors: int = 1
    database: str = ""
    restore: str = "logger"
    receiver: str = "ebpf"
    impair: str = ""
    daemon: bool = False
    mix: Mix | None = None
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Messages that are to be sent."""
        if self.mix:
            return sum(sending.plan.messages for sending in mixed_sendings(self.mix, self.seconds))
        return self.messages * self.sensors

    @property
    def total_rate(self) -> float:
        """Messages a second of all sensors; 0: as fast as TCP takes them."""
        return self.total / self.seconds if self.mix else self.rate * self.sensors


@dataclass(frozen=True)
class DemoReport:
    """The verdict, and the facts beside it.

    streams: the verdict on each by itself, by name. ready_seconds: from the start of the first daemon until
    all had found each other; 0 without daemons. mode: how the hardworker's program hangs on its interface
    (native or generic), or socket. stopped: ended early, on request. unclean: sensors that did not see in
    time that everything was stored. rate: messages a second as achieved, of a sensor; of a mix that of all.
    connections and reset: as the hardworker's application counted them. cpu: of the hardworker, from when all
    was ready until the ring was empty.
    """

    verdict: DemoVerdict
    streams: dict[str, DemoVerdict]
    ready_seconds: float
    mode: str
    stopped: bool
    unclean: int
    rate: float
    seconds: float
    connections: int
    reset: int
    cpu: Usage
    counters: dict[str, int]
    hardworker_stack: dict[str, int]

    @property
    def cpu_us_per_message(self) -> float | None:
        """Microseconds of the hardworker's CPU a message: its NAPI thread and its application."""
        return round(self.cpu.total_us / self.verdict.delivered, 3) if self.verdict.delivered else None

    def as_json(self) -> dict[str, Any]:
        """One object, the verdict first."""
        facts = {
            name: value for name, value in vars(self).items() if name not in ("verdict", "cpu", "streams")
        }
        streams = {name: asdict(verdict) for name, verdict in self.streams.items()}
        cpu = {"hardworker_cpu_us_per_message": self.cpu_us_per_message}
        return {"good": self.verdict.good} | asdict(self.verdict) | cpu | facts | {"streams": streams}


class Audience(Protocol):
    """Who is told what happens."""

    def note(self, text: str) -> None:
        """Something that the user should know afterwards too."""

    def stage(self, text: str) -> None:
        """Something begins that takes a while."""

    def watch(self, view: View) -> None:
        """What there is to see now; called often."""


def run(settings: Settings, audience: Audience, stop: Callable[[], bool]) -> DemoReport:
    """The whole demonstration. When `stop()` turns true the sensors end early, and what they sent is judged.

    A lab that is up is replaced. Nothing is left behind, whatever happens. Raises LabError if a program ends
    on its own, if nothing moves any more, or if it is stopped before the sensors start; and what the lab and
    the loader raise.
    """
    run_dir = FOLDER / f"midstream-demo-{secrets.token_hex(8)}"
    cpus = os.sched_getaffinity(0)
    try:
        with ExitStack() as programs:
            triangle = _start(settings, run_dir, programs, audience, stop)
            outcome = _work(triangle, settings, audience, stop)
        audience.stage("comparing what the three programs wrote down")
        return _report(triangle, outcome, settings)
    finally:
        os.sched_setaffinity(0, cpus)
        found = state.load()
        if found and found.run_dir == run_dir:  # not the lab of another that replaced ours
            lab.down()


@dataclass(frozen=True)
class _Triangle:
    lab: Lab
    mode: str
    ready_seconds: float
    since_ns: int
    logger: LabProgram
    applications: tuple[LabProgram, ...]
    senders: Senders

    @property
    def record(self) -> Path:
        return _record(self.lab, "hardworker")


@dataclass(frozen=True)
class _Outcome:
    """What the programs said last, and what was measured."""

    sent: Sent
    applications: list[dict[str, Any]]
    cpu: Usage
    counters: dict[str, int]
    stack: dict[str, int]


def _start(
    settings: Settings, run_dir: Path, stack: ExitStack, audience: Audience, stop: Callable[[], bool]
) -> _Triangle:
    """Build, attach and start everything, up to sensors that are connected and wait."""
    configured = _lab_settings(settings)  # a mistake is told before anything is replaced
    try:
        if state.load() is not None:
            audience.note("the lab that was up is replaced")
        audience.stage("building the lab")
        built = lab.up(settings.sensors, run_dir, bare=settings.daemon, **configured)
        _refuse_if(stop)
        mode, ready_seconds = "socket", 0.0
        if settings.daemon:
            audience.stage("starting the daemons: they find each other, compile and attach")
            ready_seconds = daemons.start(built)
            if told := daemons.state(built, "hardworker"):
                mode = told["program"] or mode
        else:
            audience.stage("compiling and attaching the eBPF programs")
            mode = next((one.mode for one in attach(built) if one.role == "hardworker"), mode)
        if settings.impair:
            link, impairment = lab.parse_impairment(settings.impair)
            lab.impair(built, link, impairment)
            audience.note(f"impaired: {settings.impair}")
        _refuse_if(stop)
        os.sched_setaffinity(0, built.host("logger").cpus)  # the hardworker has its core for itself

        def start(host: str, *arguments: str) -> LabProgram:
            program = LabProgram(built, host, *arguments, "--config", str(built.config), "--json")
            stack.callback(program.end)
            return program

        audience.stage("starting logger and hardworker")
        since_ns = time.time_ns()
        logger = start("logger", "logger")
        if settings.mix:
            applications = tuple(_applications(built, stack))
        else:
            record = str(_record(built, "hardworker"))
            applications = (start("hardworker", "hardworker", "--record", record),)
        _await_ready(lambda: [each.name for each in (logger, *applications) if not each.is_ready()], stop)
        if settings.daemon:
            _await_destination(built, stop)
        audience.stage("connecting the sensors")
        senders: Senders
        if settings.mix:
            record_of_all = _record(built, "sensors")
            senders = stack.enter_context(MixLoad(built, settings.mix, settings.seconds, record_of_all))
        else:
            senders = SensorPrograms(built, start, settings.messages, settings.rate, partial(_record, built))
        _await_ready(lambda: senders.waiting, stop, len(built.sensors))
    except MidstreamError:
        if stop():  # Ctrl-C may also have reached the compiler: no error of its own
            raise LabError("stopped before the sensors started; everything was removed again") from None
        raise
    return _Triangle(built, mode, ready_seconds, since_ns, logger, applications, senders)


def _work(triangle: _Triangle, settings: Settings, audience: Audience, stop: Callable[[], bool]) -> _Outcome:
    """Let the sensors send until they are done, then end everything in the order of the data."""
    applications, logger = triangle.applications, triangle.logger
    frames, recorded = _observed(triangle, settings)
    observer = Observer(triangle.lab, applications[0].pid, logger.pid, frames, recorded)
    with Meter(triangle.lab, [each.pid for each in applications]) as meter:
        triangle.senders.go()
        _watch(triangle, observer, settings, audience, stop)
        sent = triangle.senders.result(STOP_TIMEOUT)
        _await_drained(observer)
    for program in (*applications, logger):
        program.check()
    counters, stack = observer.counters(), observer.stack()
    for each in applications:
        each.stop()
    received = [each.result(STOP_TIMEOUT) for each in applications]
    logger.stop()
    logger.result(STOP_TIMEOUT)
    return _Outcome(sent, received, meter.usage(), counters, stack)


def _applications(built: Lab, stack: ExitStack) -> Iterator[LabProgram]:
    """One on the hardworker for each stream."""
    for name in resolved(configuration.load(built.config), network.load(built.const)):
        own = f"hardworker-{name}"
        arguments = (name, str(_record(built, own)), str(built.config))
        program = LabProgram(built, "hardworker", *arguments, module=application.__name__, name=own)
        stack.callback(program.end)
        yield program


def _observed(triangle: _Triangle, settings: Settings) -> tuple[dict[str, float], list[tuple[Path, float]]]:
    """What the observer has to know of messages: their bytes on the wire, and in the records."""
    if not settings.mix:
        recorded = recorded_dtype(settings.size).itemsize
        return {DATA: float(settings.size)}, [(triangle.record, recorded)]
    sizes = {stream.section.name: stream.size for stream in settings.mix.streams}
    frames = {s.section.name: float(s.size + FRAME[s.section.framing]) for s in settings.mix.streams}
    return frames, [
        (_record(triangle.lab, f"hardworker-{name}"), size + application.HEAD.size)
        for name, size in sizes.items()
    ]


def _report(triangle: _Triangle, outcome: _Outcome, settings: Settings) -> DemoReport:
    sent, received = outcome.sent, outcome.applications
    addresses = [str(host.ip) for host in triangle.lab.sensors]
    database = configuration.load(triangle.lab.config).database_url
    relay = str(triangle.lab.host("hardworker").ip) if settings.receiver == "socket" else ""
    sections = (
        {stream.section.name: stream.section for stream in settings.mix.streams} if settings.mix else {}
    )
    verdicts = {}
    for name, rows in sent.streams.items():
        if name in sections:
            size, framing = MAX_MESSAGE, sections[name].framing
            record = _record(triangle.lab, f"hardworker-{name}")
            delivered = records.delivered_to_application(record, rows, framing)
        else:
            size, framing = settings.size, "fixed"
            delivered = records.delivered(triangle.record, size, addresses)
        logged = records.logged(database, name, rows, triangle.since_ns, size, relay=relay, framing=framing)
        verdicts[name] = judge(rows, delivered, logged, framing)
    verdict = total(list(verdicts.values()))
    return DemoReport(
        verdict=verdict,
        streams=verdicts,
        ready_seconds=round(triangle.ready_seconds, 3),
        mode=triangle.mode,
        stopped=verdict.sent < settings.total,
        unclean=sent.unclean,
        rate=round(sent.rate, 3),
        seconds=round(sent.seconds, 6),
        connections=sum(each["opened"] for each in received),
        reset=sum(each["reset"] for each in received),
        cpu=outcome.cpu,
        counters=outcome.counters,
        hardworker_stack=outcome.stack,
    )


def _watch(
    triangle: _Triangle,
    observer: Observer,
    settings: Settings,
    audience: Audience,
    stop: Callable[[], bool],
) -> None:
    """Return when all sensors have ended well. Raises LabError if a program fails or nothing moves."""
    patience = max(STALL_TIMEOUT, 3 / settings.rate if settings.rate else 0)
    newest, moved = -1.0, time.monotonic()
    stopping = False
    while triangle.senders.running:
        if stop() and not stopping:
            stopping = True
            audience.stage("stopping the sensors")
            triangle.senders.stop()
        triangle.senders.feed()
        _check(triangle)
        view = observer.look()
        audience.watch(view)
        if view.totals.messages > newest:
            newest, moved = view.totals.messages, time.monotonic()
        elif time.monotonic() - moved > patience:
            raise LabError(
                f"no message has arrived for {patience:.0f} s, after {newest:.0f}; packets so far: "
                f"{observer.counters() or 'see /proc/net/dev on the hosts'}"
            )
        time.sleep(POLL)
    _check(triangle)


def _check(triangle: _Triangle) -> None:
    """Raise LabError if a program has failed."""
    try:
        triangle.senders.check()
    finally:
        # A sensor fails when another has gone: what went first is what is raised.
        for one in triangle.applications:
            one.check()
        triangle.logger.check()


def _await_ready(unready: Callable[[], list[str]], stop: Callable[[], bool], programs: int = 0) -> None:
    patience = READY_TIMEOUT + READY_TIMEOUT_EACH * programs
    deadline = time.monotonic() + patience
    while waiting := unready():
        _refuse_if(stop)
        if time.monotonic() > deadline:
            raise LabError(f"{', '.join(waiting)}: not ready within {patience:g} s")
        time.sleep(POLL / 2)


def _await_destination(built: Lab, stop: Callable[[], bool]) -> None:
    """What connects before the daemon has heard of the logger may go to the spool, and is handed back."""
    deadline = time.monotonic() + READY_TIMEOUT
    while not daemons.is_logger_taken(built):
        _refuse_if(stop)
        if time.monotonic() > deadline:
            told = daemons.state(built, "hardworker") or {}
            raise LabError(
                f"the hardworker's daemon does not send the data to the logger within {READY_TIMEOUT:g} s: "
                f"{told.get('destination_reason') or told.get('reason') or 'it no longer answers'}"
            )
        time.sleep(POLL / 2)


def _await_drained(observer: Observer) -> None:
    """What remains in the ring after the time is up will be missing in the verdict."""
    deadline = time.monotonic() + DRAIN_TIMEOUT
    while not observer.drained and time.monotonic() < deadline:
        time.sleep(POLL / 10)


def _refuse_if(stop: Callable[[], bool]) -> None:
    if stop():
        raise LabError("stopped")


def _lab_settings(settings: Settings) -> dict[str, Any]:
    if settings.mix:
        messages: dict[str, Any] = {"stream": settings.mix.tables}
    else:
        messages = {"data": {"size": settings.size, "freq": settings.rate}}
    return messages | {
        "network": {"restore": settings.restore},
        "hardworker": {"receiver": settings.receiver},
        "logger": {"database": _absolute(settings.database)} if settings.database else {},
    }


def _absolute(database: str) -> str:
    """The URL with a relative SQLite path resolved here, and not in the folder that is removed at the end."""
    if is_nats(database):
        raise ConfigError(
            "--database nats://…: the demonstration reads the database back, which it can do with SQLite and "
            "PostgreSQL. What to do: name one of these, or run the logger with [logger] database in the lab"
        )
    try:
        check(database)
    except ValueError as error:
        raise ConfigError(
            f"--database {show(database)}: {error}; expected a URL such as sqlite:///demo.db"
        ) from error
    url = make_url(database)
    if url.get_backend_name() != "sqlite":
        if url.host:
            raise ConfigError(
                f"--database {url.render_as_string()}: the lab's logger is in a network of its own and does "
                f"not reach {url.host}. What to do: name the server by its Unix socket: "
                f"{url.drivername}:///{url.database or 'name'}?host=/var/run/postgresql"
            )
        return database
    if url.database in (None, "", ":memory:"):
        raise ConfigError(f"--database {database}: is gone when the logger ends; name a file")
    return url.set(database=str(absolute(Path(str(url.database))))).render_as_string(hide_password=False)


def _record(built: Lab, host: str) -> Path:
    return built.run_dir / f"{host}.record"
