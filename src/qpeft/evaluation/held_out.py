"""`evaluate_run`: held-out loss of finished runs, with the adapter and without, and with its circuits on a backend."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qpeft.backends.spending.budget import Budget
from qpeft.errors import RunError
from qpeft.training.data.examples import load_data, load_examples
from qpeft.training.data.tokenization import tokenize_all
from qpeft.training.loop.loaded_run import load_run
from qpeft.training.loop.run_dir import RECORD
from qpeft.training.model.held_out_loss import Rows, evaluate
from qpeft.training.recipe.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """Where the circuits run as well, and what that may cost; exact where `shots` is None."""

    name: str
    shots: int | None = None
    budget: Budget = field(default_factory=Budget)
    cache: Path | None = None
    seed: int = 0


def finished_runs(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else the finished runs of the comparison in it; RunError where there is none."""
    if (folder / RECORD).exists():
        return [folder]
    found = sorted(record.parent for record in folder.glob(f"runs/*/*/{RECORD}"))
    if not found:
        raise RunError(
            "not a finished run",
            value=str(folder),
            bound=f"a folder of qpeft train with {RECORD}, or of qpeft compare with such runs",
        )
    return found


def evaluate_run(
    run: Path,
    *,
    data: str | None = None,
    limit: int | None = None,
    backend: BackendOptions | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Held-out metrics of a finished run.

    Args:
        run: folder of the run.
        data: file of rows; default the recipe's held-out rows.
        limit: the first rows only; default all.
        backend: run the circuits on this backend as well.
        progress: show bars.

    Returns:
        `rows`: how many. `adapter`, `base`: metrics as `held_out_loss.evaluate` gives them. With `backend` also `backend`: its
        `name`, `shots`, `metrics` and what `evaluate_on_backend` says of costs.

    Raises:
        RunError: no finished run, no held-out rows, or no circuit for the backend.
        BudgetError: the backend would cost more than its options allow.
    """
    where = _open(backend, run) if backend else None
    config, model, tokenizer = load_run(run)
    rows = _rows(config, run, tokenizer, data, limit)
    options: dict[str, Any] = {"batch_size": config.training.per_device_eval_batch_size, "progress": progress}
    on_backend: dict[str, Any] = {}
    if backend is None:
        adapter = evaluate(model, rows, tokenizer, **options)
    else:
        found = _on_backend(backend, where, model, rows, tokenizer, options)
        adapter = found.pop("exact")
        on_backend = {"backend": {"name": backend.name, "shots": backend.shots, "metrics": found.pop("backend"), **found}}
    with model.disable_adapter():
        base = evaluate(model, rows, tokenizer, **options)
    return {"rows": len(rows), "adapter": adapter, "base": base, **on_backend}


def _rows(config: RunConfig, run: Path, tokenizer: Any, data: str | None, limit: int | None) -> Rows:
    section = config.data
    examples = load_examples(data, format=section.format, system=section.system) if data else load_data(section)[1]
    if not examples:
        raise RunError("the recipe names no held-out rows", value=str(run), hint="--data FILE")
    return tokenize_all(examples[:limit], tokenizer, section.max_length).rows


def _open(options: BackendOptions, run: Path) -> Any:
    """The backend; one that is paid for has its journal in the run's folder."""
    from qpeft.training.on_chip.session import open_backend

    return open_backend(options.name, run)


def _on_backend(
    backend: BackendOptions, where: Any, model: Any, rows: Rows, tokenizer: Any, options: dict[str, Any]
) -> dict[str, Any]:
    from qpeft.backends.spending.cache import ResultCache
    from qpeft.evaluation.on_backend import evaluate_on_backend

    cache = ResultCache(backend.cache) if backend.cache else None
    try:
        return evaluate_on_backend(
            model, rows, tokenizer, where, backend.shots, seed=backend.seed, budget=backend.budget, cache=cache, **options
        )
    finally:
        where.close()
