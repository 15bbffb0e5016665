"""Runs one after another, each in a process forked from one that has imported the libraries, loaded the model and cut the rows.

`python -m qpeft.training.prefork REPLIES` reads one line of JSON for each run, `[recipe, folder, baseline]`. It answers on the file
descriptor REPLIES: `ready` once, or `cold` and ends, where it cannot fork; then for each run `pid N` and `exit CODE`, the code
negative for a signal. A run's memory is its own: what it changes of the base model is copied when it changes it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from qpeft.training import __main__ as one_run
from qpeft.training.environment import quiet_libraries

PLAIN = (".jsonl", ".json", ".csv", ".tsv", ".txt")  # read without libraries that start threads, which no fork survives


def serve(replies: int) -> int:
    """Fork a process for each line of the standard input; returns the exit code of this process, or in a fork that of its run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asked decides; a run takes it as always
    quiet_libraries()
    logging.disable(logging.WARNING)
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a thread pool would not survive the fork
    if sys.platform != "linux" or torch.cuda.is_available():
        _answer(replies, "cold")
        return 0
    import qpeft.training.loop.run
    import qpeft.training.loop.trainer  # noqa: F401

    _answer(replies, "ready")
    for line in sys.stdin:
        arguments = json.loads(line)
        with contextlib.suppress(Exception):  # the run says what is wrong
            _keep_model_and_rows(Path(arguments[0]))
        if threading.active_count() > 1:
            _answer(replies, "cold")
            return 0
        child = os.fork()
        if child == 0:
            os.close(replies)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            logging.disable(logging.NOTSET)
            torch.set_num_threads(threads)
            return one_run.main(arguments)
        _answer(replies, f"pid {child}")
        _, status = os.waitpid(child, 0)
        _answer(replies, f"exit {os.waitstatus_to_exitcode(status)}")
    return 0


def _answer(replies: int, line: str) -> None:
    os.write(replies, f"{line}\n".encode())


def _keep_model_and_rows(recipe: Path) -> None:
    from qpeft.training.data import run_data
    from qpeft.training.model import loading
    from qpeft.training.recipe.config import load_recipe

    config = load_recipe(recipe)
    if config.model.quantization is not None:
        return
    loading.keep(config.model)
    if Path(config.data.train).suffix in PLAIN and Path(config.data.train).is_file():
        run_data.keep(config.data, loading.load_tokenizer(config.model))


if __name__ == "__main__":
    sys.exit(serve(int(sys.argv[1])))
