"""The progress of a training run on one line: step, loss, tokens/s, time left."""

from __future__ import annotations

import time
from typing import Any, TextIO

from transformers import TrainerCallback

from qpeft.progress import StatusLine, duration


class ProgressLine(TrainerCallback):  # type: ignore[misc]
    """One line that updates on a terminal; elsewhere a line now and then, and one for each evaluation.

    Args:
        name: of the run, which the line begins with; "" for none.
        stream: where to write, by default the errors.
    """

    def __init__(self, name: str = "", stream: TextIO | None = None) -> None:
        self.name, self.status = name, StatusLine(stream)
        self.shown: dict[str, Any] = {}
        self.began_s, self.began_step = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock and the count of steps from which the time left is estimated."""
        self.began_s = time.monotonic()
        self.began_step = int(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the line when it is due, and after the last step."""
        if self.status.due() or state.global_step >= state.max_steps:
            self.status.write(self.line(int(state.global_step), int(state.max_steps), time.monotonic()))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Remember the numbers of a log entry, `logs`, for the next line."""
        self.shown |= {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any) -> None:
        """Write a line with the held-out loss in nats/token, if the metrics have `eval_loss`."""
        if metrics and "eval_loss" in metrics and not self.status.live:
            named = f"{self.name}: " if self.name else ""
            self.status.write(f"{named}step {state.global_step:,}: held-out loss {metrics['eval_loss']:.4f} nats/token")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Clear the line on a terminal."""
        self.status.clear()

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
        if "money" in self.shown:
            parts.append(f"{self.shown['money']:,.2f} spent")
        done = step - self.began_step
        if done > 0:
            parts.append(f"{duration((now - self.began_s) / done * (steps - step))} left")
        return ", ".join(parts)
