"""What is told of a verifier's log, for logs as kernels wrote them, each of a program with one fault."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from midstream.ebpf.refusal import BEGIN, END, explain

LOGS = sorted(Path(__file__).with_name("refusals").glob("*.txt"))
"""The ends of logs, a file for each kernel, each log under the name of its fault."""

WRONG = {
    "beyond_value": "R0 max value is outside of the allowed memory range",
    "copy_of_1024": "R5 unbounded memory access",
    "ctx_field": "invalid bpf_context access off=60 size=4",
    "ctx_write": "invalid bpf_context access off=12 size=4",
    "endless": "infinite loop detected at insn 9",
    "function_bad": "invalid access to packet, off=0 size=1",
    "gpl": "cannot call GPL-restricted function",
    "leaked_record": "Unreleased reference id=2",
    "lock_held": "function calls are not allowed while holding a lock",
    "lock_kept": "bpf_spin_unlock is missing|cannot be used inside bpf_spin_lock-ed region",
    "no_helper": "invalid func unknown#9999",
    "null_value": "R0 invalid mem access 'map_value_or_null'",
    "packet_bounds": "invalid access to packet, off=12 size=1",
    "stack_large": r"combined stack size of 2 calls is \d+. Too large",
    "stack_unset": "invalid read from stack R10 off=-64 size=4",
    "two_programs": "invalid access to packet, off=12 size=1",
    "unbounded_index": "R0 unbounded memory access",
    "uninitialised": "R7 !read_ok",
    "wrong_type_helper": "unknown func bpf_skb_load_bytes|program of this type cannot use helper",
    "zero_length": "invalid zero-sized read",
}


def logs() -> Iterator[tuple[str, str, str]]:
    for path in LOGS:
        for part in path.read_text().split("#### ")[1:]:
            fault, _, log = part.partition("\n")
            yield path.stem, fault, log


@pytest.mark.parametrize(("kernel", "fault", "log"), list(logs()), ids=lambda value: value[:20].strip())
def test_what_is_wrong_is_told(kernel: str, fault: str, log: str) -> None:
    told = explain(log)
    assert any(re.search(WRONG[fault], line) for line in told), told
    assert len(told) <= 10
    assert not re.search(
        r"processed \d|Suggestion|Instruction context|failed to load|libbpf", "\n".join(told)
    )


def test_each_kernel_has_its_logs() -> None:
    assert {path.stem for path in LOGS} >= {"linux-6.1", "linux-6.18", "linux-7.3"}
    assert {fault for _, fault, _ in logs()} == set(WRONG)


def test_the_place_is_told() -> None:
    """The line of the source and the instruction, and with a report its reason."""
    (log,) = (log for kernel, fault, log in logs() if (kernel, fault) == ("linux-7.3", "copy_of_1024"))
    source, instruction, wrong, *report = explain(log)
    assert source == "copy.h:58: *to = word;"
    assert instruction == "989: (7b) *(u64 *)(r5 +96) = r6"
    assert wrong == "R5 unbounded memory access, make sure to bounds check any such access"
    assert report[0] == "Verification failed: Memory Safety: Access outside bounds"
    assert report[-1].endswith("object_size is 1056.")


@pytest.mark.parametrize(
    "said",
    [
        "libbpf: map 'ring': failed to create: Invalid argument(-22)",
        f"libbpf: prog 'prog': {BEGIN}\n{END}",
        f"libbpf: prog 'prog': {BEGIN}\n8: (0f) r1 += r3    ; R1_w=4368783180717252750\n; for (__u32 i",
    ],
    ids=["no log", "an empty log", "a log that was cut off"],
)
def test_where_nothing_is_wrong_nothing_is_told(said: str) -> None:
    assert explain(said) == []
