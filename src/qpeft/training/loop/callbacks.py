"""Trainer callbacks, one class per concern."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from qpeft.training import environment
from qpeft.training.loop.checkpoints import mark_whole
from qpeft.training.loop.progress_log import PAUSE, tell
from qpeft.training.on_chip.session import CircuitSession
from qpeft.training.processes import Processes


class TrainingTimer:
    """Training time over all sessions of a run, evaluation during training included."""

    def __init__(self) -> None:
        self.earlier_s, self._started = 0.0, time.monotonic()

    def start(self) -> None:
        """Begin this session's time."""
        self._started = time.monotonic()

    def elapsed_s(self) -> float:
        """Seconds of this session and those before it."""
        return self.earlier_s + time.monotonic() - self._started


class LogSpeed(TrainerCallback):  # type: ignore[misc]
    """Adds tokens/s since the last log, peak memory and what the circuits spent to each log entry that has a loss."""

    def __init__(self, clock: TrainingTimer, circuits: CircuitSession) -> None:
        self.clock, self.circuits = clock, circuits
        self.seen_s, self.seen_tokens = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock, and count time and tokens from here."""
        self.clock.start()
        self.seen_s, self.seen_tokens = time.monotonic(), int(state.num_input_tokens_seen)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Add `tokens_per_s`, the session's costs and `peak_memory_gib` (GiB) to `logs` in place, if it has a `loss`."""
        if logs is None or "loss" not in logs:
            return
        now, tokens = time.monotonic(), int(state.num_input_tokens_seen)
        logs["tokens_per_s"] = round((tokens - self.seen_tokens) / max(now - self.seen_s, 1e-9), 1)
        logs |= self.circuits.shown()
        logs["peak_memory_gib"] = round(environment.peak_memory_bytes() / 2**30, 2)
        self.seen_s, self.seen_tokens = now, tokens


class CircuitSteps(TrainerCallback):  # type: ignore[misc]
    """Tells the circuits when an optimizer step begins."""

    def __init__(self, circuits: CircuitSession) -> None:
        self.circuits = circuits

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Call `begin_step` of the circuits' session; BudgetError if the step would break the budget."""
        self.circuits.begin_step(int(state.global_step))


class EvaluateLastStep(TrainerCallback):  # type: ignore[misc]
    """Evaluates after the last step with `eval_strategy: steps`, as transformers does from version 5 on."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After the last step, ask the trainer to evaluate, `eval_delay` permitting."""
        if args.eval_strategy == "steps" and max(args.eval_delay, state.max_steps) <= state.global_step:
            control.should_evaluate = True


class PauseAfter(TrainerCallback):  # type: ignore[misc]
    """Evaluates, writes a checkpoint and stops after a step; the schedule stays that of the whole run."""

    def __init__(self, step: int, evaluates: bool) -> None:
        self.step, self.evaluates = step, evaluates

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """From step `step` on, ask the trainer to save and stop, and to evaluate only with `evaluates`."""
        if state.global_step >= self.step:
            control.should_training_stop = control.should_save = True
            control.should_evaluate = self.evaluates


@dataclass
class LastStep:
    """The last step that was done, and the state of the generators after it."""

    step: int = -1
    tokens: int = 0
    python: Any = None
    numpy: Any = None
    torch: Any = None


class RememberStep(TrainerCallback):  # type: ignore[misc]
    """Remembers the random generators after each step, for a checkpoint of a step that fails in the middle."""

    def __init__(self) -> None:
        self.last = LastStep()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set `last` to this step, its tokens and the states of Python's, NumPy's and torch's CPU generators."""
        import numpy as np
        import torch

        generators = (random.getstate(), np.random.get_state(), torch.get_rng_state())
        self.last = LastStep(int(state.global_step), state.num_input_tokens_seen, *generators)


class MarkCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint as whole once every process has written its part."""

    def __init__(self, clock: TrainingTimer, processes: Processes) -> None:
        self.clock, self.processes = clock, processes

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait for every process, then mark the step's checkpoint as whole in the first one."""
        self.processes.wait()
        if self.processes.first:
            mark_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}", wall_s=self.clock.elapsed_s())
        self.processes.wait()


class TellProgress(TrainerCallback):  # type: ignore[misc]
    """Adds a line for each log entry, and saves and stops after the step in which `pause` appeared in the folder."""

    def __init__(self, folder: Path, pauses: bool) -> None:
        self.folder, self.pauses = folder, pauses

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Add the entry's numbers with the step."""
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        tell(self.folder, "log", step=int(state.global_step), steps=int(state.max_steps), **numbers)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop with a checkpoint where that was asked for."""
        if self.pauses and (self.folder / PAUSE).exists():
            control.should_training_stop = control.should_save = True
