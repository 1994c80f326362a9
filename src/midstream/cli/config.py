"""midstream config: the user's file, looked at."""

import json

import typer

from midstream import config as configuration
from midstream import fields, network, streams
from midstream.cli.options import DEFAULT_CONFIG, Config, Json

app = typer.Typer(help="Look at config.toml.", no_args_is_help=True)


@app.command()
def check(path: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Say whether config.toml, and const.toml beside it, can be used; each fault on a line of its own.

    Exits with 2 if something is wrong. A const.toml that is not there yet is no fault: the daemon writes it.
    """
    config = configuration.load(path)
    found = {str(config.path): "right"}
    if config.const_path.exists():
        topology = network.load(config.const_path)
        for stream in streams.resolved(config, topology).values():
            fields.layout(stream.config, stream.config.message_size(stream.topology.size))
        found[str(config.const_path)] = "right, and fits"
    else:
        found[str(config.const_path)] = "not there yet"
    if as_json:
        print(json.dumps(found))
    else:
        print(*(f"{name}: {state}" for name, state in found.items()), sep="\n")


@app.command()
def schema() -> None:
    """Print the JSON Schema of config.toml, by which editors complete and check it."""
    print(json.dumps(configuration.schema(), indent=2, ensure_ascii=False))
