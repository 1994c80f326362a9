"""Loads compiled programs into the kernel that this runs on, one after another, and says how each fared.

    python tests/vm/load.py FILE

FILE and what is printed are JSON, a line for each program: {"object": path, "sections": {name: hexadecimal}}
there, {"refused": the reason, or ""} here. It imports little, because a virtual machine is slow.
"""

import json
import sys
from pathlib import Path

from midstream.ebpf import libbpf
from midstream.errors import KernelError


def load(path: Path, sections: dict[str, str]) -> str:
    """The reason why the kernel refuses an object, or nothing."""
    with libbpf.Object(path) as program:
        try:
            for name, value in sections.items():
                program.set_initial_value(name, bytes.fromhex(value))
            program.load()
        except KernelError as error:
            return str(error)
    return ""


def main(path: str) -> None:
    for line in Path(path).read_text().splitlines():
        asked = json.loads(line)
        refused = load(Path(asked["object"]), asked["sections"])
        print(json.dumps({"refused": refused}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
