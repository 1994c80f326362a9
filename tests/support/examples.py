"""How many examples a property is tried with."""

import os

_TIMES = int(os.environ.get("MIDSTREAM_EXAMPLES", "1"))


def examples(usual: int) -> int:
    """So many in the default run; more if the environment variable MIDSTREAM_EXAMPLES is a factor."""
    return usual * _TIMES
