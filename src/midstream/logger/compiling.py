"""Compiles programs for the hosts of the network that have no compiler (daemon/objects.py).

A question is {"kind": "compile", "program": NAME, "key": KEY, "const": TEXT}, the answer
{"compiler": VERSION} and the object.
"""

import threading

from midstream import network
from midstream.ebpf import compiler
from midstream.errors import CompileError
from midstream.line import Head, Line

_turn = threading.Lock()  # all hosts ask for the same at the same moment, after a power failure


def answer(line: Line, asked: Head) -> None:
    """Compile what is asked for. Raises CompileError, and ConfigError for a const.toml that is none."""
    name, wanted = asked.get("program"), asked.get("key")
    if name not in compiler.PROGRAMS:
        raise CompileError(f"there is no program {name!r}")
    topology = network.loads(str(asked.get("const")), "const.toml of the host that asks")
    if wanted != compiler.key(name, topology):
        raise CompileError(
            "the logger's host has another version of midstream; install the same on all hosts"
        )
    with _turn:
        made = compiler.compile_program(name, topology)
    line.send({"compiler": compiler.made_by(made)}, [made.read_bytes()])
