"""Export: a run becomes a LoRA that stock PEFT loads, a plain merged model, a GGUF adapter, plain PyTorch, or an adapter whose
circuits were measured.

The folder is written whole or not at all. Its `export.json` says what was lost, measured on what the folder holds when it is
loaded again, and all but the measured adapter are loaded without qpeft's layers.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qpeft.adapters.low_rank import LowRank, delta_weight, exact, truncated
from qpeft.adapters.peft.layer import DeltaLayer, layer_shape
from qpeft.errors import AdapterError, MergeError, RunError
from qpeft.export.distill import distance, fit_layers, train_towards
from qpeft.export.gguf import gguf_names, write_gguf_lora
from qpeft.export.models import AdaptedRun, lora_model, open_run, write_merged
from qpeft.files import replace_folder
from qpeft.training import environment
from qpeft.training.loop.loaded_run import copy_sharing_weights
from qpeft.training.model.held_out_loss import evaluate

FORMATS = ("lora", "merged", "gguf-lora", "torch", "torch-model", "surrogate")
MEASURES = ("surrogate", "torch", "torch-model")  # formats whose circuits may come from a backend
SURROGATES = ("auto", "grid", "sparse", "regression")
REPORT = "export.json"
GGUF = "adapter.gguf"
TOLERANCE = 0.01
FIT_ROWS, TRAIN_ROWS = 64, 256


@dataclass(frozen=True)
class Options:
    """Options of an export.

    Attributes:
        to: one of FORMATS.
        adapter: its name, where the run's adapter folder holds several.
        rank: of every module; default the exact one, the least one within `tolerance`, or (fitted) the adapter's own r.
        tolerance: bound on `|delta - LoRA|_F / |delta|_F` of each module, for linear adapters that are not of low rank.
        calibration: a data file to fit on; default the recipe's training rows. `calibration_rows` of it are used; 0 stands for
            FIT_ROWS to fit a LoRA, and TRAIN_ROWS to train it by `steps` or to measure on activations.
        steps, learning_rate, seed: of training the fitted LoRA towards the adapter's logits.
        lora_bias: fit a constant to each module as well. Stock PEFT loads it; other programs may not.
        via_lora: merge the LoRA instead of the adapter, for adapters that cannot be merged.
        backend, shots: where circuits are measured, and with how many shots each (None: exact probabilities). For `torch` without
            a backend the circuits are the exact ones.
        error, surrogate: root mean square error of the stored values, default 0.05; and what is measured: "auto", "grid", "sparse"
            or "regression" (on the activations of the calibration rows).
    """

    to: str = "lora"
    adapter: str = "default"
    rank: int | None = None
    tolerance: float | None = None
    calibration: str | None = None
    calibration_rows: int = 0
    steps: int = 0
    learning_rate: float = 1e-3
    seed: int = 0
    lora_bias: bool = False
    via_lora: bool = False
    backend: str | None = None
    shots: int | None = None
    error: float | None = None
    surrogate: str | None = None

    @property
    def as_lora(self) -> bool:
        """Whether the adapter becomes a LoRA on the way."""
        return self.to in ("lora", "gguf-lora") or self.via_lora

    def __post_init__(self) -> None:
        if self.to == "lattice":  # its name in version 0.1
            object.__setattr__(self, "to", "surrogate")
        if self.calibration_rows == 0:
            object.__setattr__(self, "calibration_rows", FIT_ROWS if self.as_lora and not self.steps else TRAIN_ROWS)
        if self.to not in FORMATS:
            raise RunError("unknown format of export", value=self.to, bound=", ".join(FORMATS))
        if self.via_lora and self.to != "merged":
            raise RunError("via_lora does nothing here", value=self.to, bound="merged")
        if not self.as_lora and (self.rank or self.steps or self.lora_bias or self.tolerance is not None):
            raise RunError(f"{self.to}: no rank, tolerance, steps or constants here", hint="leave them out, or --via-lora")
        if self.to == "surrogate" and self.backend is None:
            raise RunError("--to surrogate runs on a backend", hint="--to surrogate --backend NAME --shots N")
        if self.backend is not None and self.to not in MEASURES:
            raise RunError("circuits are measured for none of the others", value=self.to, bound=", ".join(MEASURES))
        for name in ("shots", "error", "surrogate"):
            if getattr(self, name) is not None and self.backend is None:
                raise RunError(f"{name} is of a measurement", value=getattr(self, name), hint="--backend NAME")
        if self.surrogate not in (None, *SURROGATES):
            raise RunError("unknown surrogate", value=self.surrogate, bound=", ".join(SURROGATES))
        if self.error is not None and not 0 < self.error <= 1:
            raise RunError("the error of an expectation value", value=self.error, bound="above 0, at most 1")
        if self.lora_bias and self.to != "lora":
            raise RunError("constants go into a LoRA of PEFT's alone", value=self.to, bound="lora", hint="leave out --lora-bias")
        if self.rank is not None and self.tolerance is not None:
            raise RunError("rank and tolerance exclude each other", value=(self.rank, self.tolerance), bound="one of the two")


def export(folder: Path, output: Path, options: Options, *, overwrite: bool = False) -> dict[str, Any]:
    """Export the adapter of a finished run.

    Args:
        folder: the run's folder.
        output: folder that is written.
        options: what to export, and how.
        overwrite: replace the output folder if it exists.

    Returns:
        The report, which is also the output's `export.json`.

    Raises:
        RunError: no finished run, an output folder in use, or an option that does nothing here.
        AdapterError, MergeError: an adapter, or a part of it, that the format cannot hold.
        DataError: an adapter that has to be fitted, and no rows to fit on.
    """
    _check_output(output, overwrite)
    run = open_run(folder, options.adapter, calibration=options.calibration, calibration_rows=options.calibration_rows)
    _check_adapter(run, options)
    with replace_folder(output) as scratch:
        if options.to == "surrogate":
            found = _surrogate(run, scratch, folder, options)
        elif options.to in ("torch", "torch-model"):
            found = _plain(run, scratch, folder, options)
        else:
            found = _export_lora(run, scratch, options) if options.as_lora else _merge(run, scratch)
        report = {
            "run": str(folder.resolve()),
            "format": options.to,
            "adapter": options.adapter,
            "method": str(run.settings.peft_type.value),
            "model": run.config.model.model_name_or_path,
            "dtype": str(run.base.dtype).removeprefix("torch."),
            "options": asdict(options),
            **found,
            "held_out_rows": len(run.held_out),
            "versions": environment.versions(),
            "created_at": environment.now(),
        }
        (scratch / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _check_adapter(run: AdaptedRun, options: Options) -> None:
    """Refuse what would be lost without a word."""
    settings = run.settings
    for field in ("trainable_token_indices", "target_parameters", "use_dora"):
        if getattr(settings, field, None) and options.as_lora:
            raise AdapterError(f"the adapter has {field}, which a plain LoRA cannot hold", hint="--to merged")
    start = getattr(settings, "init_lora_weights", True)
    if start not in (True, False, "gaussian", "eva", "orthogonal"):
        raise AdapterError(
            "the adapter changed the base weights when it began, so nothing equals it on the original base model",
            value=f"init_lora_weights={start}",
            hint="PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)",
        )
    if options.to == "gguf-lora" and (settings.modules_to_save or run.bias != "none"):
        raise AdapterError(
            "a GGUF adapter holds low-rank matrices alone",
            value=f"modules_to_save={settings.modules_to_save}, bias={run.bias}",
            hint="--to merged (a linear adapter, or with --via-lora) and llama.cpp's convert_hf_to_gguf.py",
        )


# -- LoRA ----------------------------------------------------------------------------------------------------------------------


def _export_lora(run: AdaptedRun, scratch: Path, options: Options) -> dict[str, Any]:
    """Write a LoRA, or with it a GGUF adapter or a merged model; returns the report's part."""
    from peft import PeftModel

    if options.to == "gguf-lora":
        gguf_names(run.layers(), run.base.config)  # refuses before the work
    factors = _factors(run, options)
    ways = Counter(low.way for low in factors.values())
    if options.steps and set(ways) == {"exact"}:
        raise RunError(
            "this export is exact, so there is nothing to train", value=f"steps={options.steps}", hint="leave out --steps"
        )
    student = lora_model(run, factors)
    found: dict[str, Any] = {"how": dict(ways), "lossless": set(ways) == {"exact"}, "measured": {}}
    reference = _reference(run)
    if options.steps:
        found["measured"]["fitted"] = _measure(run, student)
        losses = train_towards(
            student,
            run.model,
            run.rows_to_fit(),
            run.tokenizer,
            steps=options.steps,
            learning_rate=options.learning_rate,
            batch_size=run.config.training.per_device_train_batch_size,
            seed=options.seed,
        )
        found["distillation"] = {"first_kl": losses[0], "last_kl": losses[-1]}
        factors = _trained(student, factors)
    found["modules"] = {
        name: {"rank": low.rank, "how": low.way, "relative_error": low.relative_error} for name, low in factors.items()
    }
    found["parameters"] = sum(low.up.numel() + low.down.numel() for low in factors.values())
    if options.to == "merged":
        exported = write_merged(run, copy.deepcopy(student), "default", scratch)
    elif options.to == "gguf-lora":
        write_gguf_lora(scratch / GGUF, factors, run.base.config)
        exported = student
    else:
        student.save_pretrained(str(scratch), save_embedding_layers=False)
        exported = PeftModel.from_pretrained(copy_sharing_weights(run.base), str(scratch)).eval()
    found["measured"] |= reference | {"exported": _measure(run, exported)}
    found["check"] = _check_values(run, exported)
    return found


def _factors(run: AdaptedRun, options: Options) -> dict[str, LowRank]:
    """The low-rank stand-in of every adapted layer."""
    found: dict[str, LowRank] = {}
    nonlinear: dict[str, Any] = {}
    for name, layer in run.layers().items():
        try:
            layer_shape(layer.get_base_layer())
        except TypeError as error:
            raise AdapterError("only adapters of linear layers become a LoRA here", value=name, hint="--to merged") from error
        low = exact(layer, run.adapter)
        if low is not None and (options.rank is None or low.rank <= options.rank) and options.tolerance is None:
            found[name] = low
        elif (weight := low.up @ low.down if low is not None else delta_weight(layer, run.adapter)) is not None:
            tolerance = TOLERANCE if options.tolerance is None else options.tolerance
            best = truncated(weight, rank=options.rank, tolerance=tolerance)
            found[name] = best if low is None else replace(best, bias=low.bias)
        else:
            nonlinear[name] = layer
    if nonlinear:
        if options.tolerance is not None:
            raise RunError("a tolerance is for linear adapters; this one is fitted to text", hint="--rank")
        rank = options.rank or getattr(run.settings, "r", None) or 8
        found |= fit_layers(
            run.model,
            nonlinear,
            run.adapter,
            run.rows_to_fit(),
            run.tokenizer,
            rank=rank,
            bias=options.lora_bias,
            batch_size=run.batch_size,
        )
    elif options.lora_bias:
        raise RunError("a linear adapter adds no constant", value="lora_bias", hint="leave it out")
    return {name: found[name] for name in run.layers()}


def _trained(student: Any, factors: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """The student's factors after training; the errors stay those of the fit."""
    found = {}
    for name, low in factors.items():
        now = exact(student.get_base_model().get_submodule(name), "default")
        assert now is not None  # it is a LoRA
        found[name] = replace(low, up=now.up, down=now.down, bias=now.bias)
    return found


# -- merged --------------------------------------------------------------------------------------------------------------------


def _merge(run: AdaptedRun, scratch: Path) -> dict[str, Any]:
    """Write the merged model; returns the report's part."""
    for name, layer in run.layers().items():
        if isinstance(layer, DeltaLayer) and delta_weight(layer, run.adapter) is None:
            raise MergeError(
                f"{run.settings.peft_type.value} is not linear in its input, so no weight matrix equals it",
                value=name,
                hint="--via-lora, which fits a LoRA to it and merges that, or --to lora",
            )
    reference = _reference(run)
    merged = write_merged(run, copy.deepcopy(run.model), run.adapter, scratch)
    return {
        "how": {"merged": len(run.layers())},
        "lossless": False,  # the sum is rounded to the base's dtype
        "measured": reference | {"exported": _measure(run, merged)},
        "check": _check_values(run, merged),
    }


def _plain(run: AdaptedRun, scratch: Path, folder: Path, options: Options) -> dict[str, Any]:
    """Write plain tensors, or a model folder with remote code; returns the report's part."""
    from qpeft.export.plain import export_plain

    shown = run
    told: dict[str, Any] = {}
    if options.backend is not None:
        with tempfile.TemporaryDirectory() as between:
            stored, told = _measured_circuits(run, Path(between), folder, options)
        shown = replace(run, model=stored, adapter="default")
    exported, found = export_plain(shown, scratch, whole=options.to == "torch-model")
    lossless = {} if options.backend is None else {"lossless": False}
    measured = _reference(run) | {"exported": _measure(run, exported)}
    return {**found, **told, **lossless, "measured": measured, "check": _check_values(run, exported)}


def _measured_circuits(run: AdaptedRun, scratch: Path, folder: Path, options: Options) -> tuple[Any, dict[str, Any]]:
    """(the adapter with its circuits measured, the report's part); it is written to `scratch`."""
    from qpeft.export.surrogate import export_surrogate

    assert options.backend is not None  # checked with the options
    error, kind = options.error or 0.05, options.surrogate or "auto"
    found: tuple[Any, dict[str, Any]] = export_surrogate(
        run,
        scratch,
        folder,
        options.backend,
        options.shots,
        options.seed,
        error=error,
        surrogate=kind,  # type: ignore[arg-type]  # checked with the options
    )
    return found


def _surrogate(run: AdaptedRun, scratch: Path, folder: Path, options: Options) -> dict[str, Any]:
    """Write the adapter with its circuits measured; returns the report's part."""
    exported, found = _measured_circuits(run, scratch, folder, options)
    measured = _reference(run) | {"exported": _measure(run, exported)}
    return {"how": {"measured": found["surrogate"]["circuits"]}, "lossless": False, "measured": measured, **found} | {
        "check": _check_values(run, exported)
    }


# -- measuring -----------------------------------------------------------------------------------------------------------------


def _reference(run: AdaptedRun) -> dict[str, Any]:
    """Held-out metrics of the base model and of the adapter."""
    return {name: _metrics(run, model) for name, model in (("base", run.base), ("adapter", run.model))}


def _metrics(run: AdaptedRun, model: Any) -> dict[str, float]:
    if not run.held_out:
        return {}
    measured = evaluate(model, run.held_out, run.tokenizer, batch_size=run.batch_size, progress=True)
    return {name: value for name, value in measured.items() if name != "tokens"}


def _measure(run: AdaptedRun, exported: Any) -> dict[str, float]:
    """Held-out metrics of an exported model, and how far its logits are from the adapter's."""
    return _metrics(run, exported) | distance(run.model, exported, run.probe(), run.tokenizer, batch_size=run.batch_size)


def _check_values(run: AdaptedRun, exported: Any) -> dict[str, Any]:
    """Some logits of what was exported, by which whoever loads it can tell that it is whole."""
    import torch

    ids = run.probe()[0]["input_ids"][:32]
    with torch.inference_mode():
        logits = exported(input_ids=torch.tensor([ids], device=exported.device), use_cache=False).logits[0, -1].float()
    top = logits.topk(5)
    return {"input_ids": ids, "last_logits": {str(int(i)): float(v) for i, v in zip(top.indices, top.values, strict=True)}}


# -- the folder ----------------------------------------------------------------------------------------------------------------


def _check_output(output: Path, overwrite: bool) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not overwrite:
            raise RunError("the output exists", value=str(output), hint="another --output, or --overwrite")
        if not (output / REPORT).is_file():
            raise RunError("the output is not a former export, so it is not replaced", value=str(output), hint="another --output")
