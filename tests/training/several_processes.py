"""Trains recipes in every process of torchrun: `torchrun --nproc-per-node 2 -m tests.training.several_processes FILE`.

FILE is JSON: a list of [recipe, settings, folder, until]. Errors are written to `FOLDER.error` and end the program.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from qpeft.training.loop.run import train
from qpeft.training.recipe.config import load_recipe


def main() -> None:
    for recipe, settings, folder, until in json.loads(Path(sys.argv[1]).read_text()):
        try:
            train(load_recipe(recipe, settings), Path(folder), until=until)
        except Exception:
            Path(f"{folder}.error").write_text(traceback.format_exc())
            raise


if __name__ == "__main__":
    main()
