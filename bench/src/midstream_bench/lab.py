"""One run in the lab: a receiver on the hardworker, a load on the sensors, and exact readings between."""

import os
import signal
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from midstream import config as configuration
from midstream import lab as midstream_lab
from midstream import network
from midstream.errors import LabError, MidstreamError
from midstream.lab import Impairment, Lab, Meter
from midstream.lab.enter import NAMESPACES
from midstream.load import Load, Sink
from midstream.load.mix import Sending, connections, joint_plan
from midstream_bench import observe
from midstream_bench.receiver import Receiver, Setting
from midstream_bench.run import Observation, Run, judge
from midstream_bench.scenario import Scenario
from midstream_bench.traffic import STOP_TIMEOUT, MiddlewareTraffic, Program, TcpTraffic, Traffic, conclude

SETTLE = 1.0  # seconds of load before the window begins
VERIFY = 0.6  # seconds of load after it, in which every byte is verified


def build(scenario: Scenario, cpus: Collection[int]) -> Lab:
    """The lab of a scenario, on these cores; one that is up and fits is kept.

    This process then leaves the hardworker's core: it stays where all others are.
    """
    os.sched_setaffinity(0, cpus)  # the lab shares out the cores that it may use
    built = midstream_lab.up(sensors=scenario.hosts, **_streams(scenario))
    os.sched_setaffinity(0, built.host("logger").cpus)
    return built


def _streams(scenario: Scenario) -> dict[str, Any]:
    """What const.toml has to say of the messages."""
    return dict(scenario.tables) if scenario.mix else {"data": {"size": scenario.size}}


def measure(built: Lab, receiver: Receiver, scenario: Scenario, repetition: int, seconds: float) -> Run:
    """One run of `seconds`. A run that fails is a run with a problem; nothing of it is left in the lab."""
    try:
        with ExitStack() as stack:
            seen = _observe(built, receiver, scenario, repetition, seconds, stack)
    except (MidstreamError, OSError, ValueError) as error:  # ValueError: what it said is no JSON
        midstream_lab.down()  # who knows what it has left there
        return Run(receiver.name, scenario.name, repetition, problems=(str(error),))
    return judge(receiver, scenario, repetition, seen)


def _observe(
    built: Lab, receiver: Receiver, scenario: Scenario, repetition: int, seconds: float, stack: ExitStack
) -> Observation:
    setting = _prepare(built, receiver, scenario, repetition, stack)
    sendings = scenario.sendings(SETTLE + seconds + VERIFY, setting.incoming[0].port)
    # The receiver last: the others' start would be the disturbance of its beginning.
    if receiver.partner:
        partner = stack.enter_context(Program(built, "logger", receiver.partner(setting)))
        program = _program(built, receiver, setting, stack)
        plan = joint_plan(sendings)
        traffic: Traffic = stack.enter_context(MiddlewareTraffic(built, receiver, setting, plan, partner))
    else:
        launch = partial(built.popen, "logger")
        logger = Sink(setting.logger, setting.incoming, joined=receiver.joined, launch=launch)
        sink = stack.enter_context(logger)
        program = _program(built, receiver, setting, stack)
        traffic = TcpTraffic(stack.enter_context(_load(built, setting, sendings)), sink)
    core = built.host("hardworker").cpus[0]
    pids = program.pids if program else []
    own = [built.hardworker_napi, *pids]
    meter = Meter(built, pids)

    start = traffic.start()
    begin, stop = start + round(SETTLE * 1e9), start + round((SETTLE + seconds) * 1e9)
    _wait(traffic, begin - 20_000_000)  # what takes a while is read before the window
    before_tasks = observe.tasks(core)
    _wait(traffic, begin)
    if program:
        program.signal(signal.SIGUSR1)
    before = observe.read(core, own)
    first = traffic.sent
    meter.start()
    _wait(traffic, stop)
    meter.stop()
    after = observe.read(core, own)
    sent = traffic.sent - first if first >= 0 else -1
    if program:
        program.signal(signal.SIGUSR2)
    activity = observe.between(before, after)
    foreign = observe.foreign(before_tasks, observe.tasks(core), own)
    memory = observe.memory(pids)

    ended = conclude(traffic, VERIFY + STOP_TIMEOUT)
    received = program.finish() if program else None
    usage = meter.usage()
    return Observation(
        seconds=activity.seconds,
        sent=sent if sent >= 0 else round(ended.total / ended.seconds * activity.seconds),
        due=round(scenario.sensors * scenario.rate * activity.seconds),
        total_sent=ended.total,
        napi_ns=round(usage.napi_us * 1e3),
        application_ns=round(usage.application_us * 1e3),
        busy_ns=activity.busy_ns,
        interrupts=activity.interrupts,
        voluntary=activity.voluntary,
        involuntary=activity.involuntary,
        forks=activity.forks,
        foreign=foreign,
        received=received,
        logged=ended.logged,
        logged_wrong=ended.wrong,
        late_p99_us=ended.late_p99_us,
        memory=memory,
    )


def _prepare(
    built: Lab, receiver: Receiver, scenario: Scenario, repetition: int, stack: ExitStack
) -> Setting:
    """The lab as this receiver needs it, until the stack ends."""
    midstream_lab.configure(built, {**scenario.tables, **receiver.tables})
    topology = network.load(configuration.load(built.config).const_path)
    if receiver.attach:
        stack.callback(receiver.attach(built))
    if scenario.loss:
        midstream_lab.impair(built, "all", Impairment(drop=scenario.loss, seed=repetition))
        stack.callback(midstream_lab.clear, built)
    return Setting(
        config=built.config,
        const=built.const,
        sensors=scenario.sensors,
        incoming=scenario.incoming(topology.port),
        address=str(topology.hardworker.ip),
        logger=str(topology.logger.ip),
        sensor=str(topology.sensors[0].ip),
    )


def _program(built: Lab, receiver: Receiver, setting: Setting, stack: ExitStack) -> Program | None:
    if receiver.command is None:
        return None
    return stack.enter_context(Program(built, "hardworker", receiver.command(setting)))


def _load(built: Lab, setting: Setting, sendings: Sequence[Sending]) -> Load:
    """From each sensor its own connections, out of its own namespace."""
    topology = network.load(setting.const)
    namespaces = [f"{NAMESPACES}/{host.namespace}" for host in built.sensors]
    to_hardworker = connections(sendings, setting.address, topology.tos, namespaces)
    return Load(joint_plan(sendings), to_hardworker, launch=partial(built.popen, "sensor"))


def _wait(traffic: Traffic, until: int) -> None:
    """Sleep until time.monotonic_ns() is `until`, and keep the load fed. Raises what the load died of."""
    while (left := until - time.monotonic_ns()) > 0:
        traffic.feed()
        if not traffic.running:
            traffic.result()
            raise LabError("the load ended before the window did")
        time.sleep(min(left / 1e9, 0.5))
