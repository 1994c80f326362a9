"""midstream compile."""

from pathlib import Path
from typing import Annotated, Any

import typer

from midstream import network
from midstream.cli.options import Json, find_role, say, show
from midstream.ebpf import compiler
from midstream.errors import ConfigError

app = typer.Typer()


@app.command("compile")
def compile_(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="sensor, hardworker or logger.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The object, PATH.o; or a folder, for all that such a host attaches.",
        ),
    ],
    const: Annotated[Path, typer.Option("--const", metavar="FILE", help="The topology.")] = Path(
        "const.toml"
    ),
    as_json: Json = False,
) -> None:
    """Compile a host's eBPF program from const.toml. That needs no root, and no Linux."""
    role, topology = find_role(role), network.load(const)
    to_folder = output.suffix != ".o"
    needed = compiler.programs(role, topology)
    if not to_folder:
        needed = [each for each in needed if each[0] == role]
        if len(needed) > 1:
            raise ConfigError(
                f"{output}: each of {len(needed)} streams has an object; name a folder for them"
            )
    written: list[dict[str, Any]] = []
    made = [compiler.compile_program(*each) for each in needed]
    for each in made:
        target = output / each.name if to_folder else output
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(each.read_bytes())
        except OSError as error:
            raise ConfigError(f"{target}: cannot be written ({error.strerror}); name another file") from error
        written.append({"file": str(target), "bytes": target.stat().st_size})
    if as_json:
        show({"objects": written} if to_folder else written[0], as_json)
        return
    for one in written:
        say(f"{one['file']}: {one['bytes']} bytes")
