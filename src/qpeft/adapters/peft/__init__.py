"""The bridge to PEFT: every method of the registry becomes a PEFT method.

A config class, a tuner and a layer class are made from each method and entered into PEFT's public mappings, without a fork. Their
key is a `str` subclass that has `.value`, as members of `peft.PeftType` do. What is the same for all methods lives here, once:
several adapters, dtypes and devices, dropping into `nn.Linear` and `Conv1D`, merging, sharing between modules, saving.
docs/methods/peft.md says which of PEFT's functions are supported.
"""

from qpeft.adapters.peft.layer import DeltaLayer, layer_shape
from qpeft.adapters.peft.register import MethodName, config_class, current_names, register_all
from qpeft.adapters.peft.tuner import DeltaTuner

__all__ = ["DeltaLayer", "DeltaTuner", "MethodName", "config_class", "current_names", "layer_shape", "register_all"]

register_all()
