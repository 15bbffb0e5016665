"""A finished run opened for export: its adapted model, its base model, and the models that an adapter can become."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpeft.adapters.low_rank import LowRank
from qpeft.adapters.saved import CONFIG, check_saved
from qpeft.errors import DataError, MergeError, RunError
from qpeft.plugins import load_plugins
from qpeft.training.data.examples import load_data, load_examples
from qpeft.training.data.tokenization import tokenize_all
from qpeft.training.loop.loaded_run import copy_sharing_weights
from qpeft.training.loop.run_dir import ADAPTER, RECIPE, run_recipe
from qpeft.training.model import loading
from qpeft.training.model.held_out_loss import Rows
from qpeft.training.recipe.config import RunConfig

logger = logging.getLogger(__name__)

NO_ROWS = "-"  # data.train of an adapter that was saved without a run


@dataclass(frozen=True)
class AdaptedRun:
    """The models share their weight matrices; `calibration` rows are for fitting, `held_out` rows for measuring."""

    config: RunConfig
    adapter: str
    model: Any
    base: Any
    tokenizer: Any
    calibration: Rows
    held_out: Rows

    @property
    def settings(self) -> Any:
        """The adapter's PEFT config."""
        return self.model.peft_config[self.adapter]

    @property
    def bias(self) -> str:
        """Which biases were trained, as PEFT says it."""
        return str(getattr(self.settings, "bias", "none"))

    @property
    def batch_size(self) -> int:
        """Rows per forward pass of an evaluation: `training.per_device_eval_batch_size` of the recipe."""
        return self.config.training.per_device_eval_batch_size

    def layers(self) -> dict[str, Any]:
        """The adapted layers by their name in the base model."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        return {name: m for name, m in self.model.get_base_model().named_modules() if isinstance(m, BaseTunerLayer)}

    def rows_to_fit(self) -> Rows:
        """The calibration rows, tokenised.

        Raises:
            DataError: there are none.
        """
        if not self.calibration:
            raise DataError("this adapter has to be fitted, and there is no text to fit it on", hint="--calibration FILE")
        return self.calibration

    def probe(self) -> Rows:
        """The rows on which logits are compared: held-out ones, else those to fit on, else made-up tokens."""
        if self.held_out or self.calibration:
            return self.held_out or self.calibration
        size = int(self.base.config.vocab_size)
        made_up = [[(7919 * (i + 1) + 31 * i * i) % size for i in range(start, start + 16)] for start in range(0, 64, 16)]
        return [{"input_ids": ids, "labels": ids} for ids in made_up]


def open_run(folder: Path, adapter: str, *, calibration: str | None, calibration_rows: int) -> AdaptedRun:
    """Load a finished run's base model with the adapter of this name, in evaluation mode.

    An adapter that is not "default" lies in a folder of its name inside `adapter/`, where PEFT puts it. Data files that are
    gone are a warning: an exact export needs none.

    Args:
        folder: the run's folder.
        adapter: name of the adapter; "default" for a run's only one.
        calibration: data file with rows to fit on; default the recipe's training rows.
        calibration_rows: the most of these rows.

    Raises:
        RunError: no finished run, or no adapter of this name.
        DataError, ModelError: as loading says.
    """
    from qpeft.adapters.peft.load import load_saved

    config, source = find_adapter(folder, adapter)
    tokenizer = loading.load_tokenizer(config.model)
    fit, held_out = _rows(config, tokenizer, calibration, calibration_rows)
    model = loading.load_model(config.model).eval()
    base = copy_sharing_weights(model)
    model = load_saved(model, source, adapter_name=adapter)
    return AdaptedRun(config, adapter, model, base, tokenizer, fit, held_out)


def open_adapter(folder: Path, adapter: str) -> tuple[RunConfig, Any, Any]:
    """Load the adapted model of a finished run, without its data.

    Args:
        folder: the run's folder.
        adapter: name of the adapter.

    Returns:
        The recipe, the adapted model in evaluation mode, and the tokenizer.

    Raises:
        RunError: no finished run, or no adapter of this name.
    """
    from qpeft.adapters.peft.load import load_saved

    config, source = find_adapter(folder, adapter)
    model = load_saved(loading.load_model(config.model).eval(), source, adapter_name=adapter)
    return config, model, loading.load_tokenizer(config.model)


def find_adapter(folder: Path, adapter: str) -> tuple[RunConfig, Path]:
    """The recipe of a finished run and the folder of its adapter of this name; its methods and plug-ins are known afterwards.

    A folder that `save_pretrained` wrote has no recipe: its base model is the one that its config names, and it has no rows.

    Raises:
        RunError: neither a finished run nor a saved adapter, or no adapter of this name.
        AdapterError: a damaged file.
    """
    import qpeft.adapters.peft  # noqa: F401  (makes the methods known)

    if not (folder / RECIPE).exists() and (folder / CONFIG).exists():
        check_saved(folder)
        return _recipe_of_saved(folder), folder
    source = folder / ADAPTER if adapter == "default" else folder / ADAPTER / adapter
    if not (folder / RECIPE).exists() or not (folder / ADAPTER).exists():
        raise RunError(
            "not a finished run", value=str(folder), bound=f"a folder with {RECIPE} and {ADAPTER}/, or of save_pretrained"
        )
    if not (source / "adapter_config.json").exists():
        found = sorted(path.parent.name for path in (folder / ADAPTER).glob("*/adapter_config.json"))
        default = ["default"] if (folder / ADAPTER / "adapter_config.json").exists() else []
        raise RunError("the run has no such adapter", value=adapter, bound=", ".join([*default, *found]) or "none")
    config = run_recipe(folder)
    load_plugins(config.plugins)
    check_saved(source)
    return config, source


def _recipe_of_saved(folder: Path) -> RunConfig:
    """A recipe that loads the base model of a saved adapter. RunError where its config names none."""
    saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    base = saved.get("base_model_name_or_path")
    if not base:
        raise RunError("the adapter's config names no base model", value=str(folder / CONFIG), hint="base_model_name_or_path in it")
    model = {"model_name_or_path": str(base), "revision": saved.get("revision")}
    return RunConfig.from_resolved(
        {"name": folder.name, "model": model, "adapter": {"peft_type": saved["peft_type"]}, "data": {"train": NO_ROWS}}
    )


def _rows(config: RunConfig, tokenizer: Any, calibration: str | None, limit: int) -> tuple[Rows, Rows]:
    """(rows to fit on, rows to measure on), tokenised."""
    section = config.data
    if section.train == NO_ROWS:
        fit = load_examples(calibration)[:limit] if calibration else []
        return tokenize_all(fit, tokenizer, section.max_length).rows if fit else [], []
    try:
        fit, held_out = load_data(section)
    except DataError as error:
        logger.warning("the recipe's data cannot be read, so no held-out loss is measured: %s", error)
        fit, held_out = [], []
    if calibration:
        fit = load_examples(calibration, format=section.format, system=section.system)
    fit = fit[:limit]
    return (
        tokenize_all(fit, tokenizer, section.max_length).rows if fit else [],
        tokenize_all(held_out, tokenizer, section.max_length).rows if held_out else [],
    )


def lora_model(run: AdaptedRun, factors: Mapping[str, LowRank]) -> Any:
    """The base model with stock PEFT's LoRA of these factors, scale 1, and the modules and biases that were trained whole.

    Args:
        run: the run.
        factors: the factors by module.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    (rank, _), *_ = Counter(low.rank for low in factors.values()).most_common(1)
    pattern = {name: low.rank for name, low in factors.items() if low.rank != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        target_modules=list(factors),
        modules_to_save=run.settings.modules_to_save,
        bias="none" if run.bias == "none" else "all",
        lora_bias=any(low.bias is not None for low in factors.values()),
        fan_in_fan_out=any(isinstance(layer.get_base_layer(), Conv1D) for layer in run.layers().values()),
        task_type=run.settings.task_type,
    )
    student = get_peft_model(copy_sharing_weights(run.base), config).eval()
    trained = dict(run.model.get_base_model().named_parameters())
    with torch.no_grad():
        for name, parameter in student.get_base_model().named_parameters():
            if "lora_" not in name and (".modules_to_save." in name or name.endswith("bias")):
                parameter.copy_(trained[name.replace("modules_to_save.default.", f"modules_to_save.{run.adapter}.")])
        for name, low in factors.items():
            layer = student.get_base_model().get_submodule(name)
            up, down = layer.lora_B["default"], layer.lora_A["default"]
            down.weight.copy_(low.down)
            up.weight.copy_(low.up)
            if up.bias is not None:
                up.bias.copy_(torch.zeros_like(up.bias) if low.bias is None else low.bias)
    return student


def write_merged(run: AdaptedRun, adapted: Any, adapter: str, folder: Path) -> Any:
    """Merge an adapter, write the model as a plain transformers folder, and load that.

    Args:
        run: the run.
        adapted: model with the adapter, whose matrices are its own; changed in place.
        adapter: name of the adapter in it.
        folder: where the model is written.

    Returns:
        The model as loaded from the folder, in evaluation mode.

    Raises:
        MergeError: an adapted weight is tied to another module's.
    """
    from transformers import AutoModelForCausalLM

    users = Counter(id(p) for module in run.base.modules() for p in module._parameters.values() if p is not None)
    for name in run.layers():
        if users[id(run.base.get_submodule(name).weight)] > 1:
            raise MergeError(
                "the module's weight is tied to another's, which would change as well",
                value=name,
                hint="export --to lora, or train without this module",
            )
    merged = adapted.merge_and_unload(safe_merge=True, adapter_names=[adapter])
    merged.save_pretrained(str(folder))
    run.tokenizer.save_pretrained(str(folder))
    loaded = AutoModelForCausalLM.from_pretrained(str(folder), dtype=run.base.dtype)
    return loaded.to(run.model.device).eval()
