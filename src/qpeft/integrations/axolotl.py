"""A plug-in of axolotl (0.20 or later): `adapter:` takes each method of qpeft by its name in lower case.

plugins: [qpeft.integrations.axolotl.QpeftPlugin]
adapter: qtha
qpeft: {r: 8}
lora_target_modules: [q_proj, v_proj]

The section `qpeft` holds the fields of the method's config class (`qpeft methods`).
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import AdapterCapabilities, BasePlugin
from peft import PeftModel, get_peft_model
from pydantic import BaseModel

import qpeft  # noqa: F401  # registers
from qpeft.adapters.registry import METHODS
from qpeft.errors import ConfigError
from qpeft.training.recipe.adapter_section import read_adapter

OF_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_parameters", "peft_use_dora", "peft_use_rslora")


class QpeftArgs(BaseModel):
    """The keys that the plug-in adds to axolotl's configuration."""

    qpeft: dict[str, Any] | None = None


class QpeftPlugin(BasePlugin):  # type: ignore[misc]
    """Puts a qpeft adapter on the model where `adapter:` names one of qpeft's methods."""

    def get_input_args(self) -> str:
        """The class that holds the plug-in's keys."""
        return f"{__name__}.{QpeftArgs.__name__}"

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        """Names that `adapter:` may have."""
        return [AdapterCapabilities(name=name.lower()) for name in METHODS]

    def load_adapter(self, model: Any, cfg: Any, inference: bool = False, config_only: bool = False) -> tuple[Any, Any] | None:
        """The model with its adapter and the adapter's config; None for an adapter that is not qpeft's.

        Args:
            model: the base model.
            cfg: axolotl's configuration.
            inference: the adapter is loaded to be used, not trained.
            config_only: the config alone is wanted; the model comes back as None (TRL's trainers apply the adapter themselves).

        Raises:
            ConfigError: settings that the method does not have, all at once.
        """
        if str(cfg.adapter or "").upper() not in METHODS:
            return None
        config = self._config(model, cfg)
        if config_only:
            return None, config
        if cfg.lora_model_dir:
            loaded = PeftModel.from_pretrained(model, cfg.lora_model_dir, is_trainable=not inference)
            return loaded, loaded.peft_config[loaded.active_adapter]
        cast = {} if cfg.peft_autocast_adapter_dtype is None else {"autocast_adapter_dtype": cfg.peft_autocast_adapter_dtype}
        return get_peft_model(model, config, **cast), config

    def _config(self, model: Any, cfg: Any) -> Any:
        fields: dict[str, Any] = {"peft_type": str(cfg.adapter).upper(), **dict(cfg.qpeft or {})}
        unused = [name for name in OF_LORA if cfg[name]]
        if unused:
            raise ConfigError(
                f"{cfg.adapter} does not read {', '.join(unused)}", field=unused[0], hint="write the section qpeft: {r: 8}"
            )
        if cfg.lora_target_linear:
            fields.setdefault("target_modules", "all-linear")
        for ours, theirs in (
            ("target_modules", "lora_target_modules"),
            ("exclude_modules", "lora_exclude_modules"),
            ("modules_to_save", "lora_modules_to_save"),
            ("layers_to_transform", "peft_layers_to_transform"),
            ("layers_pattern", "peft_layers_pattern"),
        ):
            if value := cfg[theirs]:
                fields.setdefault(ours, value if isinstance(value, (str, int)) else list(value))
        if "SequenceClassification" in type(model).__name__:
            fields.setdefault("task_type", "SEQ_CLS")
        config, problems = read_adapter(fields)
        if problems:
            raise ConfigError.collect(
                [
                    ConfigError(one.what, field=".".join(map(str, ("qpeft", *one.path))), expected=one.expected, hint=one.hint)
                    for one in problems
                ]
            )
        return config
