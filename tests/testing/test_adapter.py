"""The contract suite itself: a third party's method in one file, sizes drawn from a seed, rules that cannot run here."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from peft import LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from typer.testing import CliRunner

from qpeft.adapters.registry import METHODS
from qpeft.cli import app
from qpeft.testing import SLOW, check_adapter
from qpeft.testing.tools import SIZES, odd_sizes

QUANTISED = "learns_beside_a_quantised_base"


@pytest.fixture(scope="module")
def sine() -> Iterator[type[PeftConfig]]:
    """The third party's config class; the registry forgets it at the end."""
    importlib.import_module("tests.adapters.third_party")
    yield PEFT_TYPE_TO_CONFIG_MAPPING["SINE"]
    METHODS.unregister("SINE")
    for mapping in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
        del mapping["SINE"]
    del sys.modules["tests.adapters.third_party"]


def test_a_third_partys_file_keeps_the_contract(sine: type[PeftConfig]) -> None:
    check_adapter(lambda **settings: sine(r=3, **settings), skip=SLOW)


@pytest.mark.slow
def test_a_third_partys_file_compiles(sine: type[PeftConfig]) -> None:
    check_adapter(lambda **settings: sine(r=3, **settings), only=SLOW)


def test_a_third_partys_method_is_listed_and_counted(sine: type[PeftConfig]) -> None:
    listed = CliRunner().invoke(app, ["methods", "--rank", "4", "--json"])
    (row,) = [row for row in json.loads(listed.stdout)["methods"] if row["method"] == "SINE"]
    assert row["parameters"] == 4 * (1536 + 1536)
    assert row["linear"] is False


def test_odd_sizes_are_drawn_from_the_seed() -> None:
    assert odd_sizes(3) == odd_sizes(3) != odd_sizes(4)
    for seed in range(50):
        (p, q), *others = odd_sizes(seed)
        assert all(n % k for n in (p, q) for k in range(2, n))
        assert len({(p, q), *others} - set(SIZES)) == 4
        assert any(d_out > 50 * d_in for d_in, d_out in others)
        assert all(d_in % 2 for d_in, _ in others)


@pytest.mark.parametrize("seed", [1, 2])
def test_sizes_come_from_the_seed_unless_given(sine: type[PeftConfig], seed: int) -> None:
    built: list[tuple[int, int]] = []
    delta = METHODS["SINE"].delta
    start = delta.__init__

    def record(self: Any, d_in: int, d_out: int, *rest: Any) -> None:
        built.append((d_in, d_out))
        start(self, d_in, d_out, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "__init__", record)
        check_adapter(sine, only=["takes_any_size_and_shape"], seed=seed)
        assert set(built) == {*SIZES, *odd_sizes(seed)}
        built.clear()
        check_adapter(sine, only=["takes_any_size_and_shape"], sizes=[(4, 3)])
        assert set(built) == {(4, 3)}


def test_lora_beside_a_quantised_base() -> None:
    """The yardstick; PEFT's LoRA also merges into quantised weights, rounding them again."""
    if reasons := check_adapter(lambda **settings: LoraConfig(r=4, **settings), only=[QUANTISED]):
        pytest.skip(reasons[QUANTISED])


def test_where_bitsandbytes_does_not_import(sine: type[PeftConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    skipped = check_adapter(sine, only=[QUANTISED, "starts_as_no_op"])
    assert skipped.keys() == {QUANTISED}
    assert "bitsandbytes does not import" in skipped[QUANTISED]
