"""A process with a finished run's model: it draws the circuits of the adapter, answers prompts, makes samples.

`python -m qpeft.ui.worker RUN` reads requests from its input and writes answers, a line of JSON each. `ModelProcess` is the
server's side: one process at a time, started when it is first asked and ended when another run is asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from qpeft.errors import QpeftError, RunError

ANSWER_S = 900.0
MAX_TOKENS = 512
SAMPLE_ROWS = 4


class ModelProcess:
    """Asks the process; one question at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._run: Path | None = None
        self._lock = threading.Lock()

    def ask(self, run: Path, **request: Any) -> dict[str, Any]:
        """The answer to a request about a run; RunError when the process says why there is none."""
        with self._lock:
            if self._process is None or self._run != run or self._process.poll() is not None:
                self._start(run)
            assert self._process is not None
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            timer = threading.Timer(ANSWER_S, self._process.kill)
            timer.start()
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except OSError:
                line = ""
            finally:
                timer.cancel()
            if not line:
                status = self._process.wait()
                self._process = None
                raise RunError("the model's process ended", value=f"status {status}", hint="is there enough memory for the model?")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RunError(answer["error"])
        return answer

    def _start(self, run: Path) -> None:
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qpeft.ui.worker", str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._run = run

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        self._process = None


class _Model:
    """A finished run's model, loaded when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: tuple[Any, Any, Any] | None = None

    def loaded(self) -> tuple[Any, Any, Any]:
        from qpeft.training.loop.loaded_run import load_run

        if self._loaded is None:
            self._loaded = load_run(self.folder)
        return self._loaded

    def circuits(self) -> list[dict[str, Any]]:
        """Each circuit of the adapter with its angles (radians) and the layers that use it; shared circuits once."""
        from qpeft.adapters.quantum_layer import CircuitLayer

        _, model, _ = self.loaded()
        found: dict[int, dict[str, Any]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            if isinstance(module, CircuitLayer):
                angles = [float(value) for value in module.angles.detach().reshape(-1)]
                entry = {"circuit": json.loads(module.circuit.to_json()), "angles": angles, "places": []}
                found.setdefault(id(module), entry)["places"].append(name.removeprefix("base_model.model."))
        return list(found.values())

    def answer(self, prompt: str, max_new_tokens: int) -> dict[str, str]:
        """What the adapter and the base model say to a prompt."""
        from qpeft.evaluation.generate import encode_messages, user_turn

        config, _, tokenizer = self.loaded()
        adapter, base = self._both([encode_messages(user_turn(prompt, config.data.system), tokenizer)], max_new_tokens)
        return {"adapter": adapter[0], "base": base[0]}

    def samples(self) -> list[dict[str, str]]:
        """Answers to the first held-out rows (training rows where there are none), with the expected ones."""
        from qpeft.training.data.run_data import load_run_data

        config, _, tokenizer = self.loaded()
        data = load_run_data(config.data, tokenizer, config.training.seed)
        rows = data.held_out or (data.train if isinstance(data.train, list) else [])
        prompts, expected = [], []
        for row in rows[:SAMPLE_ROWS]:
            first = next((k for k, label in enumerate(row["labels"]) if label >= 0), len(row["labels"]))
            prompts.append(list(row["input_ids"][:first]))
            expected.append(tokenizer.decode([t for t in row["labels"][first:] if t >= 0], skip_special_tokens=True))
        adapter, base = self._both(prompts, 64)
        questions = [tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts]
        columns = zip(questions, expected, base, adapter, strict=True)
        return [dict(zip(("prompt", "expected", "base", "adapter"), row, strict=True)) for row in columns]

    def _both(self, prompts: list[list[int]], max_new_tokens: int) -> tuple[list[str], list[str]]:
        from qpeft.evaluation.generate import generate

        _, model, tokenizer = self.loaded()
        most = min(max_new_tokens, MAX_TOKENS)
        adapter = [one.text for one in generate(model, tokenizer, prompts, max_new_tokens=most)]
        with model.disable_adapter():
            base = [one.text for one in generate(model, tokenizer, prompts, max_new_tokens=most)]
        return adapter, base


def main(folder: Path) -> None:
    """Answer requests until the input ends; what libraries print goes to the errors."""
    from qpeft.files import atomic_write
    from qpeft.training.environment import quiet_libraries
    from qpeft.training.loop.run_dir import SAMPLES

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    quiet_libraries()
    model = _Model(folder)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "circuits":
                answer: dict[str, Any] = {"circuits": model.circuits()}
            elif request["do"] == "samples":
                answer = {"samples": model.samples()}
                atomic_write(folder / SAMPLES, json.dumps(answer["samples"]))
            else:
                answer = model.answer(str(request["prompt"]), int(request["max_new_tokens"]))
        except QpeftError as error:
            answer = {"error": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
