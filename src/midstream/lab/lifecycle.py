"""Build the lab, take it down, look at it. A machine has one lab at a time: its namespaces are named ms-…"""

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from midstream import config, network, streams
from midstream.ebpf import pins
from midstream.errors import LabError
from midstream.lab import cpu, daemons, enter, faults, hosts, links, namespaces, needs, state
from midstream.lab.faults import ImpairedLeg
from midstream.lab.hosts import SWITCH, LabHost, namespace
from midstream.lab.lab import Lab
from midstream.lab.namespaces import Process
from midstream.lab.state import RUN_DIR, LabState
from midstream.network import Topology

BPFFS = Path("/sys/fs/bpf")
PINS = BPFFS / "midstream-lab"


@dataclass(frozen=True)
class LabStatus:
    """What there is of a lab. `up`: complete, as it was built; `problems`: what is missing or was changed.

    `impaired`: the legs that `impair` made bad, which is no problem.
    """

    up: bool
    run_dir: Path
    hosts: tuple[LabHost, ...]
    problems: tuple[str, ...]
    processes: tuple[Process, ...]
    impaired: tuple[ImpairedLeg, ...] = ()


def up(
    sensors: int = 1,
    run_dir: Path = RUN_DIR,
    *,
    tos: int = 104,
    port: int = 12345,
    mtu: int = 1500,
    bare: bool = False,
    **settings: object,
) -> Lab:
    """Build the lab, or keep the one that is up if it is complete and was built with the same arguments.

    bare: addresses only, no neighbours and no const.toml: what daemons start from (daemons.py).
    `settings` go to config.toml: a key's value, or a table as a mapping, as in `data={"size": 256}`.
    A lab that is broken or was built with other arguments is rebuilt; the other files in its run directory
    stay. Raises LabError, ConfigError (a setting that is not allowed), CompileError, KernelError.
    """
    needs.check("up")
    run_dir = Path(os.path.abspath(run_dir))
    hardworker_cpus, other_cpus = cpu.cores()
    planned = hosts.plan(sensors, hardworker_cpus, other_cpus)
    settings = _with_defaults(settings, network={"pins": str(PINS)})
    if bare:  # what `midstream status` asks
        settings = _with_defaults(settings, daemon={"socket": str(run_dir / "hardworker" / "daemon.sock")})
    configuration = config.parse(state.toml(settings), run_dir / "config.toml")
    topology = hosts.topology(
        planned,
        tos=tos,
        port=port,
        mtu=mtu,
        size=configuration.data.size or streams.DEFAULT_SIZE,
        streams=streams.decide(configuration, ()),
    )
    parameters = {
        "sensors": sensors,
        "tos": tos,
        "port": port,
        "mtu": mtu,
        "settings": settings,
        "bare": bare,
    }
    state.check_files(settings, topology)
    with state.locked():
        found = state.load()
        if found and (found.run_dir, found.parameters) == (run_dir, parameters) and not _problems(found):
            return Lab(run_dir, found.hosts)
        _refuse_foreign_namespaces([SWITCH, *(host.name for host in planned)])
        state.refuse_foreign_files(run_dir)
        _tear_down(found, keep=found is not None and found.run_dir == run_dir)
        existed = run_dir.exists()
        owns = run_dir == RUN_DIR or not existed
        if found and found.run_dir == run_dir:
            owns = found.owns_run_dir
        building = LabState(run_dir, owns, parameters)
        building.save()
        try:
            _mount_bpffs()
            state.write_files(run_dir, settings, topology, bare=bare)
            built = replace(building, hosts=_build(planned, topology, () if bare else planned))
            built.save()
        except BaseException:
            _tear_down(building, keep=True)
            state.remove_files(run_dir, whole=not existed)
            raise
        return Lab(run_dir, built.hosts, kept=False)


def configure(lab: Lab, settings: Mapping[str, object]) -> None:
    """Give a lab that is up another config.toml; `settings` as of `up`, those not named get their defaults.

    What is attached stays as it is. Raises ConfigError (and changes nothing), LabError.
    """
    settings = _with_defaults(settings, network={"pins": str(PINS)})
    topology = network.load(lab.const)
    state.check_files(settings, topology)
    state.write_files(lab.run_dir, settings, topology)


def down(*, keep: bool = False) -> None:
    """Remove whatever there is of a lab: processes (SIGTERM, then SIGKILL), namespaces, pins, run directory.

    `keep` leaves the run directory as it is. A run directory that existed before `up` loses only the two
    files that `up` wrote. Namespaces that are not the lab's are left alone. Raises LabError if a process
    cannot be killed.
    """
    needs.check("down")
    with state.locked():
        _tear_down(state.load(), keep=keep)


def status() -> LabStatus:
    """What there is of a lab; asks every host. Raises LabError."""
    needs.check("status")
    with state.locked():  # half a lab, while it is being built or taken down, is not a broken one
        found = state.load()
        owned, _ = namespaces.ours(hosts.is_ours)
        running = tuple(namespaces.processes(owned))
        if found is None:
            strays = tuple(f"namespace {name} is a leftover: run `midstream lab down`" for name in owned)
            return LabStatus(False, RUN_DIR, (), strays, running)
        problems = tuple(_problems(found))
        impaired = () if problems else tuple(faults.impairments(Lab(found.run_dir, found.hosts)))
    return LabStatus(not problems, found.run_dir, found.hosts, problems, running, impaired)


def find() -> Lab:
    """The lab that is up. Raises LabError if there is none. Does not ask the hosts; see `status`."""
    found = state.load()
    if found is None or not found.hosts or _missing(found):
        raise LabError("no lab is up; build it with `midstream lab up`")
    return Lab(found.run_dir, found.hosts)


def _build(
    planned: tuple[LabHost, ...], topology: Topology, neighbours: tuple[LabHost, ...]
) -> tuple[LabHost, ...]:
    others = planned[-1].cpus
    switch = namespace(SWITCH)
    namespaces.create([switch, *(host.namespace for host in planned)])
    namespaces.call(switch, others, links.wire, planned, topology.mtu)
    napi = [
        namespaces.call(host.namespace, host.cpus, links.start_host, host, neighbours) for host in planned
    ]
    switch_napi = namespaces.call(switch, others, links.start_switch, planned, others, topology)
    return tuple(
        replace(host, napi=own, switch_napi=switchs)
        for host, own, switchs in zip(planned, napi, switch_napi, strict=True)
    )


def _tear_down(found: LabState | None, *, keep: bool) -> None:
    owned, _ = namespaces.ours(hosts.is_ours)
    while running := namespaces.processes(owned):  # one that ends may start another
        namespaces.end(running)
    if namespace(SWITCH) in owned:
        namespaces.call(namespace(SWITCH), (), links.unwire)
    namespaces.remove(owned)
    namespaces.remove_unfinished(hosts.is_ours)
    shutil.rmtree(PINS, ignore_errors=True)
    if found and not (keep or found.owns_run_dir):
        daemons.remove(found.run_dir, [host.name for host in found.hosts])
    if not keep:
        if found:
            state.remove_files(found.run_dir, whole=found.owns_run_dir)
        else:
            state.remove_files(RUN_DIR, whole=True)
    state.STATE.unlink(missing_ok=True)


def _problems(found: LabState) -> list[str]:
    if not found.hosts:
        return ["the lab was not built to its end"]
    if missing := _missing(found):
        return missing
    impaired = faults.impairments(Lab(found.run_dir, found.hosts))
    ports = {one.leg.source for one in impaired}
    wrong = namespaces.call(namespace(SWITCH), (), links.check_switch, found.hosts, ports)
    wrong += faults.problems(impaired)
    for host in found.hosts:
        wrong += namespaces.call(host.namespace, (), links.check_host, host)
    return wrong


def _missing(found: LabState) -> list[str]:
    names = [namespace(name) for name in (SWITCH, *(host.name for host in found.hosts))]
    missing = [f"namespace {name} is missing" for name in names if not Path(enter.NAMESPACES, name).exists()]
    files = [found.run_dir / name for name in ("config.toml", "const.toml")]
    if found.parameters.get("bare"):  # const.toml is the daemons'
        files.pop()
    return missing + [f"{path} is missing" for path in files if not path.exists()]


def _with_defaults(settings: Mapping[str, object], **tables: dict[str, object]) -> dict[str, object]:
    """The settings, and of these tables the keys that they do not have."""
    found = dict(settings)
    for name, defaults in tables.items():
        given = found.get(name, {})
        found[name] = defaults | dict(given) if isinstance(given, Mapping) else given
    return found


def _refuse_foreign_namespaces(names: list[str]) -> None:
    wanted = {namespace(name) for name in names}
    _, foreign = namespaces.ours(wanted.__contains__)
    if foreign:
        raise LabError(
            f"namespace {', '.join(foreign)} exists and was not made by the lab; "
            f"remove or rename it (`ip netns del {foreign[0]}`)"
        )


def _mount_bpffs() -> None:
    """Mount a bpffs where it belongs, as systemd does. It stays: the machine has it now, not only the lab."""
    if pins.is_bpffs(BPFFS):
        return
    try:
        enter.mount("bpf", str(BPFFS), "bpf", data="mode=0700")
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise LabError(f"{error}; the lab needs a kernel with CONFIG_BPF_SYSCALL") from None
        raise LabError(needs.explain(error)) from None
