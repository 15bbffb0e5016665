"""Trains one recipe in this process: `python -m qpeft.training RECIPE FOLDER [BASELINE [same-rows]]`, for programs that start runs.

`same-rows`: a run before this one has read the same rows, and told the warnings about them.
Exit codes: 0 done, 2 an error made on purpose (its message on stderr and in FOLDER/failure.json), 130 an interrupt.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from qpeft.errors import QpeftError
from qpeft.training.environment import quiet_libraries


def main(arguments: list[str]) -> int:
    """Train; returns the exit code."""
    quiet_libraries()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("qpeft").setLevel(logging.INFO)
    from qpeft.training.loop.run import train
    from qpeft.training.recipe.config import load_recipe

    recipe, folder, baseline, same_rows = (*arguments, *[None] * 4)[:4]
    if same_rows:
        logging.getLogger("qpeft.training.data").setLevel(logging.ERROR)
    try:
        train(load_recipe(Path(str(recipe))), Path(str(folder)), baseline=Path(baseline) if baseline else None)
    except QpeftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
