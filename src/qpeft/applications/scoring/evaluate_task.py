"""A run judged on its task: the untouched base model, the adapter, and plain baselines, on the same held-out rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qpeft.applications.preparation.prepare import read_part
from qpeft.applications.scoring import model_card
from qpeft.applications.scoring.baselines import baselines
from qpeft.applications.scoring.reasons import score_all
from qpeft.applications.task import FILE, Task, group_order
from qpeft.errors import DataError, RunError
from qpeft.evaluation import metrics
from qpeft.evaluation.classify import label_log_likelihoods, probabilities
from qpeft.evaluation.generate import encode_messages, generate, user_turn
from qpeft.files import atomic_write
from qpeft.training import environment
from qpeft.training.data.examples import Conversation, Example, Message, load_examples
from qpeft.training.data.tokenization import tokenize_all
from qpeft.training.loop.loaded_run import load_run
from qpeft.training.loop.run_dir import read_record, run_recipe
from qpeft.training.model.held_out_loss import evaluate
from qpeft.training.recipe.config import RunConfig

RESULT = "task-evaluation.json"
BASE, ADAPTER = "base model", "adapter"
MAX_NEW_TOKENS, MAX_REASON = 320, 48  # of an answer in words, and of a label with its reasons


def find_task(run: Path, folder: Path | None = None) -> tuple[Task, Path]:
    """The run's task and the folder of its rows: `folder`, else where the recipe's training rows are. The run keeps a copy of the
    task, so that it predicts without the rows.
    """
    place = folder or Path(run_recipe(run).data.train).parent
    if folder is None and (run / FILE).exists():
        return Task.read(run / FILE), place
    task = Task.read(place / FILE)
    task.write(run)
    return task, place


def evaluate_task(
    run: Path,
    *,
    folder: Path | None = None,
    part: str = "test",
    limit: int | None = None,
    batch_size: int = 8,
    unrelated: str | None = None,
    base: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate a finished run on its task; write RUN/task-evaluation.json and RUN/MODEL_CARD.md.

    Labels are scored by their likelihoods. For the other kinds of task greedy answers are scored, and the perplexity of the true
    ones.

    Args:
        run: folder of the run.
        folder: folder of the prepared data; default the one in the recipe.
        part: "train", "validation" or "test".
        limit: the first rows only; default all.
        batch_size: rows in a batch.
        unrelated: file of other text, on which the rise of the loss over the base model's is measured (forgetting).
        base: file with the base model's answers, which runs on the same model and rows share.
        progress: show bars.

    Returns:
        What task-evaluation.json holds. `models`: measures by model. `intervals`: 95% bootstrap interval over rows of each measure,
        for the adapter and the base model. `difference` (classification): accuracy of the adapter minus that of each other model,
        with the 95% bootstrap interval over rows. `groups` (classification): measures by group, value and model. `reliability`
        (classification): curve by model. `reasons` (where answers have reasons): measures of `score_reasons` by model. `unrelated`:
        loss by model, nats/token. The other keys identify the run and the rows.
    """
    task, place = find_task(run, folder)
    rows: list[Any] = (
        read_part(place, part)[:limit]
        if task.kind == "classification"
        else load_examples(str(place / f"{part}.jsonl"), limit=limit)
    )
    record = read_record(run)
    config, model, tokenizer = load_run(run)
    found: dict[str, Any] = {
        "task": task.name,
        "part": part,
        "rows": len(rows),
        "rows_sha256": hashlib.sha256((place / f"{part}.jsonl").read_bytes()).hexdigest(),
        "record": record.id,
        "label": record.label,
        "method": record.method,
        "model": record.model,
        "seed": record.seed,
        "trainable_parameters": record.trainable_parameters,
        "train_rows_limit": config.data.max_train_rows,
        "versions": environment.versions(),
        "created_at": environment.now(),
    }
    both = _Both(model, base, [record.hashes["model"], config.model.dtype, config.data.system, config.data.max_length])
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    rows_key = [found["rows_sha256"], len(rows)]
    if task.kind == "classification":
        train = read_part(place, "train")[: config.data.max_train_rows]
        prompts = [row["messages"][0]["content"] for row in rows]
        system = config.data.system
        told = both(
            "answers", rows_key, lambda: label_probabilities(model, tokenizer, task, prompts, system=system, **options).tolist()
        )
        found |= _classification(task, train, rows, told)
        if task.reasons:
            asked = [user_turn(prompt, system) for prompt in prompts]
            said = both("reasons", rows_key, lambda: greedy_answers(model, tokenizer, asked, max_new_tokens=MAX_REASON, **options))
            found["reasons"] = score_all(task, train, rows, said)
    else:
        measured = both("measures of rows", rows_key, lambda: _generation(task, rows, model, tokenizer, config, **options))
        found["models"] = {name: told["measures"] for name, told in measured.items()}
        found["intervals"] = {name: _intervals(told["rows"]) for name, told in measured.items()}
    if unrelated:
        texts = tokenize_all(load_examples(unrelated)[:limit], tokenizer, config.data.max_length).rows
        key = [hashlib.sha256(Path(unrelated).read_bytes()).hexdigest(), len(texts)]
        found["unrelated"] = both("unrelated", key, lambda: evaluate(model, texts, tokenizer, batch_size=batch_size)["loss"])
    (run / RESULT).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (run / model_card.FILE).write_text(model_card.model_card(task, record, found), encoding="utf-8")
    return found


def label_probabilities(model: Any, tokenizer: Any, task: Task, prompts: Sequence[str], **options: Any) -> Any:
    """How probable the model finds each answer to each prompt.

    Args:
        model: the language model.
        tokenizer: its tokenizer.
        task: the task, with its answers.
        prompts: the user's messages.
        **options: options of `label_log_likelihoods`.

    Returns:
        `(prompts, task.answers)`; each row sums to 1.
    """
    scores = label_log_likelihoods(model, tokenizer, prompts, task.beginnings, goes_on=bool(task.reasons), **options)
    return probabilities(scores)


def greedy_answers(model: Any, tokenizer: Any, conversations: Sequence[Sequence[Message]], **options: Any) -> list[str]:
    """The most likely next turn after each conversation.

    Args:
        model: the language model.
        tokenizer: its tokenizer.
        conversations: the turns so far of each conversation.
        **options: options of `generate`.
    """
    found = generate(model, tokenizer, [encode_messages(turns, tokenizer) for turns in conversations], **options)
    return [answer.text for answer in found]


class _Both:
    """Answers of the adapter and of the base model; the base model's answers are kept in a file, if there is one, by what decides
    them: `same` and a key of each question.
    """

    def __init__(self, model: Any, file: Path | None, same: Sequence[Any]) -> None:
        self.model, self.file, self.same = model, file, same

    def __call__(self, name: str, key: Sequence[Any], ask: Callable[[], Any]) -> dict[str, Any]:
        told = {ADAPTER: ask()}
        kept = json.loads(self.file.read_text(encoding="utf-8")) if self.file is not None and self.file.exists() else {}
        if kept.get(name, {}).get("key") != [*self.same, *key]:
            with self.model.disable_adapter():
                kept[name] = {"key": [*self.same, *key], "value": ask()}
            if self.file is not None:
                atomic_write(self.file, json.dumps(kept))
        return told | {BASE: kept[name]["value"]}


def _classification(
    task: Task, train: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The result's part on labels; `given` are the models' probabilities (name -> (rows, answers))."""
    import numpy as np

    truth = np.array([task.answers.index(row["label"]) for row in rows])
    told = {name: np.array(p) for name, p in given.items()} | baselines(task, train, rows)

    def measure(inside: np.ndarray) -> dict[str, dict[str, float]]:
        return {
            name: metrics.classification(p[inside], truth[inside], task.answers, positive=task.positive, cost=task.cost)
            for name, p in told.items()
        }

    right = {name: (p.argmax(axis=1) == truth).astype(float) for name, p in told.items()}
    difference = {}
    for name in right:
        if name == ADAPTER:
            continue
        gap = right[ADAPTER] - right[name]
        low, high = metrics.interval(gap)
        difference[name] = {"accuracy": float(gap.mean()), "low": low, "high": high}
    return {
        "models": measure(np.ones(len(rows), dtype=bool)),
        "intervals": {
            name: metrics.intervals(
                lambda chosen, p=p: metrics.classification(  # type: ignore[misc]
                    p[chosen], truth[chosen], task.answers, positive=task.positive, cost=task.cost
                ),
                len(rows),
            )
            for name, p in told.items()
            if name in (ADAPTER, BASE)
        },
        "difference": difference,
        "groups": subgroups(task, rows, told, truth),
        "reliability": {name: metrics.reliability(p, truth) for name, p in told.items()},
    }


def subgroups(task: Task, rows: Sequence[Mapping[str, Any]], told: Mapping[str, Any], truth: Any) -> dict[str, Any]:
    """Measures of each model on subgroups of the rows.

    A model's measures are its accuracy and, where the task has a positive answer, how often it predicts it (`said`), of the truly
    positive (`true_positive_rate`) and of the truly negative (`false_positive_rate`); a rate over no rows is left out.

    Args:
        task: the task, with its groups.
        rows: the rows, with `values` by column.
        told: by model `(rows, answers)`, the probabilities of the answers.
        truth: `(rows,)`, index of the right answer.

    Returns:
        By group and value: `rows`, `positive` (share of positive labels) and each model's measures.
    """
    import numpy as np

    found: dict[str, Any] = {}
    positive = task.answers.index(task.positive) if task.positive else None
    for group in task.groups:
        values = np.array([group.of(row["values"]) for row in rows])
        found[group.name] = {}
        for value in sorted(set(values.tolist()), key=group_order):
            inside = values == value
            true = truth[inside]
            cell: dict[str, Any] = {"rows": int(inside.sum())}
            if positive is not None:
                cell["positive"] = float((true == positive).mean())
            for name, p in told.items():
                said = p[inside].argmax(axis=1)
                measured = {"accuracy": float((said == true).mean())}
                if positive is not None:
                    measured["said"] = float((said == positive).mean())
                    for rate, among in (("true_positive_rate", true == positive), ("false_positive_rate", true != positive)):
                        if among.any():
                            measured[rate] = float((said[among] == positive).mean())
                cell[name] = measured
            found[group.name][value] = cell
    return found


def _generation(
    task: Task, rows: Sequence[Example], model: Any, tokenizer: Any, config: RunConfig, *, batch_size: int, progress: bool
) -> dict[str, Any]:
    """Greedy answers to the last turn of each conversation against the true one, and the perplexity of the true turns.

    Returns `measures`, and `rows`: those of each row that a mean is taken of.
    """
    talks = []
    for row in rows:
        if not isinstance(row, Conversation):
            raise DataError("a row is no conversation", file=row.place, expected="messages")
        talks.append(row.messages)
    asked, truths = [turns[:-1] for turns in talks], [turns[-1].content for turns in talks]
    said = greedy_answers(model, tokenizer, asked, max_new_tokens=MAX_NEW_TOKENS, batch_size=batch_size, progress=progress)
    told = evaluate(model, tokenize_all(rows, tokenizer, config.data.max_length).rows, tokenizer, batch_size=batch_size)

    def measured(answers: Sequence[str], true: Sequence[str]) -> dict[str, float]:
        return {"exact_match": metrics.exact_match(answers, true)} if task.kind == "number" else metrics.rouge(answers, true)

    each = [measured([answer], [true]) for answer, true in zip(said, truths, strict=True)]
    return {"measures": {**measured(said, truths), "perplexity": told["perplexity"]}, "rows": each}


def _intervals(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Of measures that are means over rows."""
    import numpy as np

    return {name: list(metrics.interval(np.array([row[name] for row in rows]))) for name in rows[0]}


def read_result(run: Path) -> dict[str, Any]:
    """Result that `evaluate_task` wrote."""
    try:
        found: dict[str, Any] = json.loads((run / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError("no evaluation of the task here", value=str(run), hint=f"qpeft evaluate-task {run}") from error
    except ValueError as error:
        raise DataError(f"not JSON: {error}", file=str(run / RESULT)) from error
    return found
