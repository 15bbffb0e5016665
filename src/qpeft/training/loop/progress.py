"""The progress of a training run on one line: step, loss, tokens/s, time left."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any, TextIO

from transformers import TrainerCallback

from qpeft.training.recipe.training_section import TrainingSection

EVERY_S = 30.0  # between lines where nobody watches: a file or a pipe


class ProgressLine(TrainerCallback):  # type: ignore[misc]
    """One line that updates on a terminal; elsewhere a line now and then, and one for each evaluation.

    Args:
        name: of the run, which the line begins with; "" for none.
        stream: where to write, by default the errors.
    """

    def __init__(self, section: TrainingSection, name: str = "", stream: TextIO | None = None) -> None:
        self.name, self.stream = name, stream or sys.stderr
        self.live = self.stream.isatty()
        self.shown: dict[str, Any] = {}
        self.began_s, self.began_step, self.last_s = 0.0, 0, 0.0
        self.section = section

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock and the count of steps from which the time left is estimated."""
        self.began_s = self.last_s = time.monotonic()
        self.began_step = int(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the line: after each step on a terminal, elsewhere every `EVERY_S` seconds and after the last step."""
        now = time.monotonic()
        if self.live or now - self.last_s > EVERY_S or state.global_step >= state.max_steps:
            self.last_s = now
            self._write(self.line(int(state.global_step), int(state.max_steps), now))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Remember the numbers of a log entry, `logs`, for the next line."""
        self.shown |= {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any) -> None:
        """Write a line with the held-out loss in nats/token, if the metrics have `eval_loss`."""
        if metrics and "eval_loss" in metrics and not self.live:
            line = f"step {state.global_step:,}: held-out loss {metrics['eval_loss']:.4f} nats/token"
            self._write(line, ends=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Clear the line on a terminal."""
        if self.live:
            self._write("", ends=False)

    def line(self, step: int, steps: int, now: float) -> str:
        """The line after a step, at the monotonic time `now`."""
        parts = [(f"{self.name}: " if self.name else "") + f"step {step:,}/{steps:,}"]
        if "loss" in self.shown:
            parts.append(f"loss {self.shown['loss']:.4f}")
        if "eval_loss" in self.shown:
            parts.append(f"held-out {self.shown['eval_loss']:.4f}")
        if "tokens_per_s" in self.shown:
            parts.append(f"{self.shown['tokens_per_s']:,.0f} tokens/s")
        if "circuits" in self.shown:
            parts.append(f"{self.shown['circuits']:,} circuits, {self.shown['chip_s']:,.0f} s of chip time")
        done = step - self.began_step
        if done > 0:
            parts.append(f"{_duration((now - self.began_s) / done * (steps - step))} left")
        return ", ".join(parts)

    def _write(self, line: str, *, ends: bool = False) -> None:
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            shown = line if len(line) <= width else line[: width - 1] + "…"
            self.stream.write(f"\r\x1b[K{shown}" + ("\n" if ends else ""))
        elif line:
            self.stream.write(line + "\n")
        self.stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
