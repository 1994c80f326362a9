"""Programs that only a benchmark needs: the floor, and what deals a virtual machine's packets out."""

from pathlib import Path

from midstream.ebpf import compiler
from midstream.network import Topology

PROGRAMS = ("floor", "steer")
_FOLDER = Path(__file__).parent


def compile_program(name: str, topology: Topology) -> Path:
    """The object of one of these programs, as midstream's compiler makes and keeps it; see there."""
    return compiler.compile_program(name, topology, _FOLDER)
