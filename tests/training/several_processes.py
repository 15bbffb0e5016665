"""Trains recipes in every process of torchrun: `torchrun --nproc-per-node 2 -m tests.training.several_processes FILE`.

FILE is JSON: a list of [recipe, settings, folder, until]. Errors are written to `FOLDER.error` and end the program. With
`KILL=RANK:STEP` in the environment the process of that rank kills itself (SIGKILL) in the middle of the step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from qpeft.training.loop.run import train
from qpeft.training.loop.trainer import AdapterTrainer
from qpeft.training.recipe.config import load_recipe


def die_in_step(rank: int, step: int) -> None:
    """Let the process of a rank be killed between the backward pass and the optimizer of a step."""
    before = AdapterTrainer.training_step

    def training_step(self: AdapterTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = before(self, *args, **kwargs)
        if self.processes.rank == rank and self.state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    AdapterTrainer.training_step = training_step  # type: ignore[method-assign]


def main() -> None:
    if when := os.environ.get("KILL"):
        die_in_step(*map(int, when.split(":")))
    for recipe, settings, folder, until in json.loads(Path(sys.argv[1]).read_text()):
        try:
            train(load_recipe(recipe, settings), Path(folder), until=until)
        except Exception:
            Path(f"{folder}.error").write_text(traceback.format_exc())
            raise


if __name__ == "__main__":
    main()
