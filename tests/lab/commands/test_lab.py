"""A lab that is up: its packets, what a host sees, what runs on it, and who used the CPU."""

import contextlib
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types
from pyroute2.ethtool.ioctl import IoctlEthtool  # type: ignore[import-untyped]  # likewise

from midstream import config, network
from midstream.ebpf import loader
from midstream.errors import LabError
from midstream.lab import Lab, Meter, cpu, links, status

Ping = Callable[[str], bool]

PORT = 40000
HOSTS = ("sensor", "sensor-2", "hardworker", "logger")


# packets


@pytest.mark.parametrize(("source", "target"), [*itertools.permutations(HOSTS, 2)])
def test_every_host_reaches_every_other(lab: Lab, ping: Ping, source: str, target: str) -> None:
    assert lab.call(source, ping, str(lab.host(target).ip))


@pytest.mark.parametrize(("client", "server"), [("sensor", "hardworker"), ("sensor-2", "logger")])
def test_tcp_across(lab: Lab, client: str, server: str) -> None:
    data = os.urandom(3_000_000)
    with tcp_server(lab, server) as received:
        lab.call(client, tcp_send, str(lab.host(server).ip), data)
    assert received[0] == data


def test_frames_leave_finished(lab: Lab) -> None:
    """Each frame holds one segment with a right checksum: nothing is left to a card that does not exist."""
    data = os.urandom(200_000)
    with tcp_server(lab, "hardworker"):
        frames = lab.call("sensor", captured_tcp_send, str(lab.host("hardworker").ip), data)
    assert len(frames) > 200_000 // 1460
    assert max(map(len, frames)) <= 14 + 1500
    assert [frame for frame in frames if tcp_checksum(frame) != 0] == []


@pytest.mark.parametrize("host", HOSTS)
def test_offloads_are_off_on_both_ends(lab: Lab, host: str) -> None:
    for flags in (lab.call(host, offload_flags, "eth0"), lab.call("switch", offload_flags, host)):
        assert not flags["tx-checksumming"]
        assert not flags["tcp-segmentation-offload"]
        assert not flags["generic-segmentation-offload"]
        assert flags["generic-receive-offload"]


@pytest.mark.slow
def test_a_feature_that_comes_back_is_noticed(lab: Lab) -> None:
    lab.call("sensor", set_feature, "eth0", "tx-checksum-ip-generic", True)
    try:
        assert any("tx-checksum-ip-generic" in problem for problem in status().problems)
    finally:
        lab.call("sensor", links.set_offloads, "eth0")
    assert status().problems == ()


def test_neighbours_are_permanent_and_complete(lab: Lab) -> None:
    for name in HOSTS:
        others = {(str(host.ip), host.mac) for host in lab.hosts if host.name != name}
        assert lab.call(name, permanent_neighbours) == others


def test_hosts_are_silent(lab: Lab) -> None:
    """No IPv6, no multicast, no ARP: a quiet lab moves no packet."""
    before = {name: lab.call(name, packets) for name in HOSTS}
    time.sleep(0.5)
    assert {name: lab.call(name, packets) for name in HOSTS} == before
    assert not lab.call("sensor", has_ipv6)


def test_addresses_are_those_of_the_files(lab: Lab) -> None:
    topology = network.load(lab.const)
    assert [str(host.ip) for host in topology.sensors] == ["10.83.0.11", "10.83.0.12"]
    assert (str(topology.hardworker.ip), str(topology.logger.ip)) == ("10.83.0.2", "10.83.0.3")
    for host, described in zip(lab.sensors, topology.sensors, strict=True):
        assert lab.call(host.name, mac_address) == host.mac == described.mac
    assert config.load(lab.config).network.pins == "/sys/fs/bpf/midstream-lab"
    assert lab.call("sensor", network.find_interface, topology.hardworker.ip) == "eth0"


# what a host sees, and what runs on it


def test_sysfs_is_the_hosts(lab: Lab) -> None:
    assert sorted(lab.call("hardworker", os.listdir, "/sys/class/net")) == ["eth0", "lo"]
    listed = lab.run("switch", ["ls", "/sys/class/net"], capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) == {"lo", "br0", *HOSTS}


def test_mounts_below_sys_stay(lab: Lab) -> None:
    assert lab.call("sensor", submounts) == submounts()
    assert lab.call("sensor", os.listdir, "/sys/fs/cgroup") == os.listdir("/sys/fs/cgroup")


def test_bpffs_is_the_machines(lab: Lab) -> None:
    folder = Path("/sys/fs/bpf/midstream-lab-test")
    folder.mkdir()
    try:
        assert "midstream-lab-test" in lab.call("hardworker", os.listdir, "/sys/fs/bpf")
        lab.call("sensor", os.mkdir, folder / "inside")
        assert (folder / "inside").is_dir()
        (folder / "inside").rmdir()
    finally:
        folder.rmdir()


def test_nothing_of_a_host_leaks_out(lab: Lab) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    lab.run("sensor", ["true"], check=True)
    assert Path("/proc/self/mountinfo").read_text() == before


@pytest.mark.parametrize("code", [0, 1, 77])
def test_exit_code(lab: Lab, code: int) -> None:
    assert lab.run("sensor", ["sh", "-c", f"exit {code}"]).returncode == code


def test_command_that_cannot_be_executed(lab: Lab) -> None:
    missing = lab.run("sensor", ["/no/such"], capture_output=True, text=True)
    assert (missing.returncode, missing.stderr) == (
        127,
        "midstream lab: /no/such: No such file or directory\n",
    )
    assert lab.run("sensor", ["/etc/passwd"], capture_output=True).returncode == 126


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_the_command(lab: Lab, number: signal.Signals) -> None:
    with lab.popen("sensor", ["sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(5) == -number


def test_no_signal_is_ignored(lab: Lab) -> None:
    """But those that whoever started the tests ignores: Python's own two are given back."""
    show = ["grep", "SigIgn", "/proc/self/status"]
    given = subprocess.run(show, capture_output=True, text=True, check=True)
    shown = lab.run("sensor", show, capture_output=True, text=True)
    assert shown.stdout == given.stdout


def test_environment_directory_and_pipes(lab: Lab, tmp_path: Path) -> None:
    done = lab.run(
        "sensor", ["sh", "-c", 'cat; echo "$A"; pwd'], input="in\n", env={"A": "1", "PATH": "/bin:/usr/bin"},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["in", "1", str(tmp_path)]


@pytest.mark.slow
def test_command_dies_with_who_started_it(lab: Lab) -> None:
    code = "from midstream.lab import find; import time; p = find().popen('sensor', ['sleep', '60']); "
    code += "time.sleep(0.5); print(p.pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout
        pid = int(starter.stdout.readline())
        assert pid in [process.pid for process in status().processes]
        starter.kill()
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_exec_replaces_the_process(lab: Lab) -> None:
    code = "from midstream.lab import find; "
    code += "find().exec('sensor', ['sh', '-c', 'echo $$; ls /sys/class/net; exit 7'])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        output = process.communicate()[0].split()
    assert (process.returncode, output) == (7, [str(process.pid), "eth0", "lo"])


def test_call_returns_results_and_raises_exceptions(lab: Lab) -> None:
    assert lab.call("sensor", divmod, 7, 3) == (2, 1)
    assert lab.call("logger", sorted, [1, 2], reverse=True) == [2, 1]
    with pytest.raises(ZeroDivisionError) as caught:
        lab.call("sensor", divmod, 1, 0)
    assert "divmod in ms-sensor" in caught.value.__notes__[0]
    with pytest.raises(LabError, match=r"without an answer \(exit 3\)"):
        lab.call("sensor", os._exit, 3)
    with pytest.raises(LabError, match="cannot be pickled"):
        lab.call("sensor", raise_unpicklable)


def test_calls_can_nest_and_overlap(lab: Lab) -> None:
    assert lab.call("sensor", lambda: lab.call("hardworker", mac_address)) == lab.host("hardworker").mac
    slow = threading.Thread(target=lab.call, args=("logger", time.sleep, 0.6))
    slow.start()
    started = time.monotonic()
    lab.call("sensor", os.getpid)
    assert time.monotonic() - started < 0.5
    slow.join()


def test_unknown_host(lab: Lab) -> None:
    with pytest.raises(
        LabError, match="no host sensor-3 in the lab; there are: hardworker, logger, sensor, sensor-2"
    ):
        lab.run("sensor-3", ["true"])


# CPU


def test_napi_threads_are_found_and_pinned(lab: Lab) -> None:
    for host in lab.hosts:
        assert cpu.thread_name(host.napi).startswith("napi/eth0-")
        assert cpu.thread_name(host.switch_napi).startswith(f"napi/{host.name}-")
        assert os.sched_getaffinity(host.napi) == set(host.cpus)
        assert os.sched_getaffinity(host.switch_napi) == set(lab.host("logger").cpus)
    assert len({host.napi for host in lab.hosts} | {host.switch_napi for host in lab.hosts}) == 2 * len(
        lab.hosts
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTS)
def test_the_thread_of_a_host_does_its_receive_work(lab: Lab, name: str) -> None:
    """Traffic to a host costs its own thread CPU time, and the threads of uninvolved hosts none."""
    source = "sensor-2" if name == "sensor" else "sensor"
    before = {host.name: cpu.cpu_time_ns(host.napi) for host in lab.hosts}
    lab.call(source, udp_burst, str(lab.host(name).ip), 2000)
    used = {host.name: cpu.cpu_time_ns(host.napi) - before[host.name] for host in lab.hosts}
    assert used[name] > 100_000
    assert all(used[other] == 0 for other in used if other not in (name, source))


@pytest.mark.slow
def test_threads_stay_when_programs_come_and_go(lab: Lab) -> None:
    topology = network.load(lab.const)
    napi = lab.hardworker_napi
    lab.call("hardworker", loader.attach_pass, "eth0", topology)
    try:
        assert status().problems == ()
        before = cpu.cpu_time_ns(napi)
        lab.call("sensor", udp_burst, str(lab.host("hardworker").ip), 1000)
        assert cpu.cpu_time_ns(napi) > before
    finally:
        lab.call("hardworker", detach_xdp, "eth0")
    assert status().problems == ()


def test_hosts_have_their_cores(lab: Lab) -> None:
    hardworker, others = cpu.cores()
    assert lab.call("hardworker", os.sched_getaffinity, 0) == set(hardworker)
    for host in ("sensor", "logger", "switch"):
        assert lab.call(host, os.sched_getaffinity, 0) == set(others)
    shown = lab.run(
        "hardworker", ["grep", "Cpus_allowed_list", "/proc/self/status"], capture_output=True, text=True
    )
    assert shown.stdout.split()[1] == str(hardworker[0])


def test_meter_counts_what_wait_counts(lab: Lab) -> None:
    """Compared with the kernel's other account, the resource usage of wait4; ended threads count too."""
    burn = "import threading, time\ndef f():\n while time.process_time() < 0.3: pass\n"
    burn += "input(); t = threading.Thread(target=f); t.start(); t.join(); print(flush=True); input()"
    with lab.popen(
        "hardworker", [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        with Meter(lab, [process.pid]) as meter:
            process.stdin.write("\n")
            process.stdin.flush()
            process.stdout.readline()
        process.stdin.close()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    measured = meter.usage().application_us / 1e6
    assert 0.25 < measured <= usage.ru_utime + usage.ru_stime + 0.001
    assert meter.usage().lost == ()


def test_meter_agrees_with_schedstat(lab: Lab) -> None:
    napi = lab.hardworker_napi
    before = int(Path(f"/proc/{napi}/schedstat").read_text().split()[0])
    with Meter(lab) as meter:
        lab.call("sensor", udp_burst, str(lab.host("hardworker").ip), 2000)
        time.sleep(
            0.1
        )  # until the thread sleeps: schedstat is brought up to date when a process leaves the core
    after = int(Path(f"/proc/{napi}/schedstat").read_text().split()[0])
    assert meter.usage().napi_us == pytest.approx((after - before) / 1000)
    assert meter.usage().total_us == meter.usage().napi_us > 0


def test_meter_keeps_the_last_sample_of_a_process_that_ended(lab: Lab) -> None:
    with lab.popen("hardworker", ["sh", "-c", "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; read x"],
                   stdin=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdin
        meter = Meter(lab, [process.pid])
        meter.start()
        assert wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "S")
        meter.sample()
        sampled = meter.usage().application_us
        process.stdin.close()
    meter.stop()
    assert (meter.usage().application_us, meter.usage().lost) == (sampled, (process.pid,))
    with pytest.raises(LabError, match=f"process {process.pid} is not there"):
        Meter(lab, [process.pid]).start()


# run on the hosts


@contextlib.contextmanager
def tcp_server(lab: Lab, host: str) -> Iterator[list[bytes]]:
    """A server on a host that takes one connection; the list has its bytes when the context ends."""
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.append(lab.call(host, tcp_receive)))
    thread.start()
    try:
        yield received
    finally:
        thread.join()


def tcp_receive() -> bytes:
    with socket.create_server(("", PORT)) as listener:
        listener.settimeout(10)
        connection, _ = listener.accept()
        with connection:
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def tcp_send(address: str, data: bytes) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            with socket.create_connection((address, PORT), timeout=5) as connection:
                return connection.sendall(data)
        except ConnectionRefusedError:  # the server has not got as far as to listen
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def captured_tcp_send(address: str, data: bytes) -> list[bytes]:
    """The frames that leave eth0 while `data` is sent."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as capture:
        capture.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        capture.bind(("eth0", 3))
        capture.setblocking(False)
        tcp_send(address, data)
        time.sleep(0.2)
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, (_, _, kind, *_) = capture.recvfrom(1 << 17)
                if (
                    kind == socket.PACKET_OUTGOING
                    and frame[12:14] == b"\x08\0"
                    and frame[23] == socket.IPPROTO_TCP
                ):
                    frames.append(frame)
        return frames


def udp_burst(address: str, count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(bytes(1000), (address, 9))
    time.sleep(0.2)


def offload_flags(interface: str) -> dict[str, bool]:
    ethtool = IoctlEthtool(interface)
    try:
        return dict(ethtool.get_offload_flags())
    finally:
        ethtool.close()


def set_feature(interface: str, name: str, value: bool) -> None:
    ethtool = IoctlEthtool(interface)
    features = ethtool.get_features()
    features[name] = value
    ethtool.set_features(features)
    ethtool.close()


def permanent_neighbours() -> set[tuple[str, str]]:
    with IPRoute() as ipr:
        return {
            (n.get("dst"), n.get("lladdr"))
            for n in ipr.get_neighbours(family=socket.AF_INET)
            if n["state"] == 0x80
        }


def detach_xdp(interface: str) -> None:
    with IPRoute() as ipr:
        ipr.link("set", index=socket.if_nametoindex(interface), xdp_fd=-1)


def packets() -> tuple[str, str]:
    counters = Path("/sys/class/net/eth0/statistics")
    return (counters / "rx_packets").read_text(), (counters / "tx_packets").read_text()


def has_ipv6() -> bool:
    addresses = Path("/proc/net/if_inet6")
    return addresses.exists() and addresses.read_text() != ""


def mac_address() -> str:
    return Path("/sys/class/net/eth0/address").read_text().strip()


def submounts() -> set[str]:
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return {mount.split()[4] for mount in mounts if mount.split()[4].startswith("/sys/")}


def raise_unpicklable() -> None:
    class LocalError(Exception):
        pass

    raise LocalError("local")


# helpers


def internet_checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp_checksum(frame: bytes) -> int:
    """Zero if the TCP checksum of an Ethernet frame is right (RFC 9293, section 3.1)."""
    length = struct.unpack("!H", frame[16:18])[0]
    segment = frame[34 : 14 + length]
    return internet_checksum(
        frame[26:34] + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(segment)) + segment
    )


def wait_until(condition: Callable[[], bool], seconds: float = 3.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
