"""The contract suite of adapter methods; its rules are in adapter_rules.py."""

from __future__ import annotations

import unittest
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from qpeft.errors import AdapterError
from qpeft.testing.adapter_rules import RULES
from qpeft.testing.tools import SIZES, MethodUnderTest, odd_sizes

# Warnings that PEFT and transformers give on correct use, so that the suite runs under "warnings are errors".
THIRD_PARTY_WARNINGS = (
    ".*gradient_checkpointing.*deprecated",
    "Already found a `peft_config` attribute",
    "Adapter .* was active which is now deleted",
    "fan_in_fan_out is set to False but the target module is `Conv1D`",
    "`torch.jit.script(_method)?` is deprecated",
    "Merge lora module to .-bit linear may get different generations",
)


@contextmanager
def _conditions() -> Iterator[None]:
    """One thread (these models are too small for more), the caller's random state kept, third parties' warnings silent."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            for message in THIRD_PARTY_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        torch.set_num_threads(threads)


def check_adapter(
    config_factory: Callable[..., Any],
    *,
    additive: bool = True,
    dead: str | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    seed: int = 0,
    only: Collection[str] = tuple(RULES),
    skip: Collection[str] = (),
) -> dict[str, str]:
    """Hold an adapter method to the contract.

    Args:
        config_factory: `config_factory(**settings)` returns a PEFT config of the method. Settings are `target_modules`, and
            `modules_to_save`, `layers_to_transform` or `bias` in the rules about them.
        additive: two active adapters change a layer by the sum of their deltas. So do our multiplicative methods, before and
            after a layer: `W0 (I + D1 + D2)` and `(I + D1 + D2) W0`. False for methods that apply one adapter after another.
        dead: regular expression of the names of parameters that may never have a gradient.
        sizes: the `(d_in, d_out)` the method must take; default `SIZES` and four odd ones drawn from `seed`.
        seed: of these; the figures of a failure name the sizes.
        only, skip: names of rules, keys of `RULES`. Those in `SLOW` take some ten seconds.

    Returns:
        Rules that cannot be checked on this machine, each with the reason: the quantised ones, where bitsandbytes does not run.

    Raises:
        AssertionError: rules that are broken, each by name, with what was off and by how much.
        AdapterError: `only` or `skip` names a rule that does not exist.
    """
    unknown = {*only, *skip} - RULES.keys()
    if unknown:
        raise AdapterError("unknown rules", value=sorted(unknown), bound=", ".join(RULES))
    sizes = (*SIZES, *odd_sizes(seed)) if sizes is None else tuple(sizes)
    subject, broken, skipped = MethodUnderTest(config_factory, additive, dead, sizes), [], dict[str, str]()
    for name in RULES:
        if name in only and name not in skip:
            try:
                with _conditions():
                    RULES[name](subject)
            except unittest.SkipTest as reason:
                skipped[name] = str(reason)
            except Exception as error:
                broken.append((f"{name}: {'' if isinstance(error, AssertionError) else type(error).__name__ + ': '}{error}", error))
    if broken:
        raise AssertionError("\n".join(line for line, _ in broken)) from broken[0][1]
    return skipped
