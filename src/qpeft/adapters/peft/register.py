"""Each method of the registry entered into PEFT's public mappings: a config class, a tuner class and a layer class."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import sys
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from qpeft.adapters.base import AdapterConfig
from qpeft.adapters.peft import model_card
from qpeft.adapters.peft.layer import DeltaLayer
from qpeft.adapters.peft.tuner import DeltaTuner
from qpeft.adapters.registry import METHODS, Method, listeners
from qpeft.errors import AdapterError, MissingDependencyError

MINIMUM_PEFT = (0, 21)
HOME = __package__  # where the classes that are made stand, so that they pickle


class MethodName(str):
    """A PEFT type that is not a member of PEFT's enum but is used like one."""

    @property
    def value(self) -> str:
        """The name as a plain string, as members of `peft.PeftType` have it."""
        return str(self)


def _make_config(method: Method, name: MethodName) -> type[PeftConfig]:
    """A dataclass that is both the method's settings and a PeftConfig."""
    settings = method.config

    def post_init(self: Any) -> None:
        PeftConfig.__post_init__(self)
        self.peft_type = name
        self.from_file = bool(self.inference_mode)  # save_pretrained writes inference_mode=True
        for attribute in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, attribute), list):
                setattr(self, attribute, set(getattr(self, attribute)))
        self.check()

    def to_dict(self: Any) -> dict[str, Any]:
        return {**PeftConfig.to_dict(self), **self.to_save()}

    def save_pretrained(self: Any, save_directory: str, **kwargs: Any) -> None:
        PeftConfig.save_pretrained(self, save_directory, **kwargs)
        model_card.write(save_directory, method.name)

    bases = (settings, PeftConfig)
    fields = [("inference_mode", bool, dataclasses.field(default=False, metadata={"help": "Whether to freeze the adapter."}))]
    inherited = {f.name for f in dataclasses.fields(PeftConfig)}
    made = dataclasses.make_dataclass(
        settings.__name__,
        [f for f in fields if f[0] not in inherited],
        bases=bases,
        namespace={
            "__post_init__": post_init,
            "to_dict": to_dict,
            "save_pretrained": save_pretrained,
            "__doc__": settings.__doc__,
        },
    )
    made.__module__ = HOME  # from Python 3.12 on make_dataclass sets its caller's, where pickle does not find the class
    if settings.renamed:
        made.__init__ = _taking_former_names(made.__init__, settings)  # type: ignore[misc]
    return made


def _taking_former_names(init: Any, settings: type[AdapterConfig]) -> Any:
    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **current_names(settings, kwargs))

    return __init__


def current_names(settings: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of an adapter's settings with former names replaced by today's.

    Args:
        settings: a config class, ours or PEFT's.
        fields: values by name.
    """
    renamed = getattr(settings, "renamed", {})
    return {renamed.get(name, name): value for name, value in fields.items()}


def _register(method: Method) -> None:
    """Enter a method into PEFT's mappings, once."""
    name = MethodName(method.name)
    if (known := PEFT_TYPE_TO_TUNER_MAPPING.get(name)) is not None:
        if not issubclass(known, DeltaTuner):
            raise AdapterError("PEFT has a method of this name", value=method.name, hint="another name")
        return
    prefix = f"{method.name.lower()}_"
    config = _make_config(method, name)
    deltas = f"{prefix}delta"
    names = {"deltas_name": deltas, "adapter_layer_names": (deltas,), "__module__": HOME}
    layer = type(f"{method.name}Layer", (DeltaLayer,), names)
    tuner = type(f"{method.name}Tuner", (DeltaTuner,), {"prefix": prefix, "tuner_layer_cls": layer, "__module__": HOME})
    for made in (config, layer, tuner):
        setattr(sys.modules[HOME], made.__name__, made)
    PEFT_TYPE_TO_CONFIG_MAPPING[name] = config
    PEFT_TYPE_TO_TUNER_MAPPING[name] = tuner
    PEFT_TYPE_TO_PREFIX_MAPPING[name] = prefix


def register_all() -> None:
    """Make every method of the registry a PEFT method; called on import and safe to call again.

    Raises:
        MissingDependencyError: PEFT is older than `MINIMUM_PEFT`.
    """
    version = importlib.metadata.version("peft")
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_PEFT:
        raise MissingDependencyError("peft>=0.21", "", f"qpeft with peft {version}")
    for method in METHODS.values():
        _register(method)
    if _register not in listeners:
        listeners.append(_register)


def config_class(peft_type: str) -> type[PeftConfig]:
    """The config class of a method of ours or of PEFT's own, by its type name in any case.

    Raises:
        AdapterError: no such method.
    """
    register_all()
    found = PEFT_TYPE_TO_CONFIG_MAPPING.get(str(peft_type).upper())
    if found is None:
        known = ", ".join(sorted(str(getattr(key, "value", key)) for key in PEFT_TYPE_TO_CONFIG_MAPPING))
        raise AdapterError("unknown peft_type", value=peft_type, bound=known)
    return found  # type: ignore[no-any-return]
