"""QuanTA against its gates written out on the whole space, and the published parameter counts."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import qpeft
from qpeft.adapters.inspection import count_parameters
from qpeft.adapters.methods.quanta import QuanTA, QuanTAConfig, choose_axes, parameter_count
from qpeft.errors import AdapterError
from qpeft.testing import SLOW, check_adapter
from tests.adapters.compare_controls import assert_differ_in_one_part
from tests.adapters.derivatives import gradcheck

DOUBLE = torch.float64
AXES = [3, 2, 4]
SIZES = [(896, 128), (576, 192), (1536, 256), (31, 17), (257, 5), (3, 300)]


def build(d_in: int = 24, d_out: int = 24, **settings: Any) -> QuanTA:
    return QuanTA(d_in, d_out, QuanTAConfig(**{"init_weights": False, "axes": AXES, **settings}), {}).to(DOUBLE)


def on_axes(gate: np.ndarray, axes: list[int], m: int, n: int) -> np.ndarray:
    """A gate on axes m and n as a matrix on the whole space, an entry at a time."""
    size = math.prod(axes)
    matrix = np.zeros((size, size))
    for row, out in enumerate(np.ndindex(*axes)):
        for column, into in enumerate(np.ndindex(*axes)):
            if all(out[k] == into[k] for k in range(len(axes)) if k not in (m, n)):
                matrix[row, column] = gate[out[m] * axes[n] + out[n], into[m] * axes[n] + into[n]]
    return matrix


def operators(delta: QuanTA, axes: list[int], wiring: str) -> tuple[np.ndarray, np.ndarray]:
    """T and S, gates in the order of pairs from the last axis on."""
    t = s = np.eye(math.prod(axes))
    for index, (m, n) in enumerate(itertools.combinations(range(len(axes) - 1, -1, -1), 2)):
        frozen, trained = delta.get_buffer(f"frozen_{index}").numpy(), delta.gates[index].detach().numpy()
        embed = partial(on_axes, axes=axes, m=m, n=n)
        if wiring == "blocks":
            embed = partial(np.kron, np.eye(math.prod(axes) // (axes[m] * axes[n])))
        t, s = embed(frozen + trained) @ t, embed(frozen) @ s
    return t, s


def test_contract() -> None:
    check_adapter(qpeft.QuanTAConfig, sizes=SIZES, skip=SLOW)
    only = ["starts_as_no_op", "takes_any_size_and_shape"]
    check_adapter(partial(qpeft.QuanTAConfig, wiring="blocks", n_axes=3), sizes=SIZES, only=only)


@pytest.mark.slow
def test_contract_compiled() -> None:
    check_adapter(qpeft.QuanTAConfig, only=SLOW)


@pytest.mark.parametrize("wiring", ["pairs", "blocks"])
@pytest.mark.parametrize("axes", [[3, 2], [3, 2, 4], [2, 1, 3, 2]], ids=str)
@pytest.mark.parametrize("sizes", ["full", "narrow", "wide"])
def test_gates_written_out(axes: list[int], sizes: str, wiring: str) -> None:
    size = math.prod(axes)
    d_in, d_out = {"full": (size, size), "narrow": (size - 1, 2), "wide": (3, size - 2)}[sizes]
    delta = build(d_in, d_out, axes=axes, wiring=wiring)
    t, s = operators(delta, axes, wiring)
    np.testing.assert_allclose(delta.weight().detach().numpy(), (t - s)[:d_out, :d_in], atol=1e-12)
    assert np.abs(t - s)[:d_out, :d_in].max() > 1e-2


def test_published_parameters() -> None:
    """16-8-8-4 on 4096: 43,008 a layer, 2.75M on q_proj and v_proj of LLaMA-7B's shape."""
    assert parameter_count((16, 8, 8, 4)) == 43_008
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(num_hidden_layers=32, hidden_size=4096, intermediate_size=8, num_attention_heads=32)
        )
    config = qpeft.QuanTAConfig(axes=[16, 8, 8, 4], target_modules=["q_proj", "v_proj"])
    assert count_parameters(model, config)["trainable"] == 64 * 43_008 == 2_752_512


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_axes_for_every_size(count: int) -> None:
    for size in range(1, 1200):
        axes = choose_axes(size, count)
        assert len(axes) == count
        assert math.prod(axes) >= size
        least = math.comb(count, 2) * math.prod(axes) ** (4 / count)
        assert least * (1 - 1e-9) <= parameter_count(axes) <= 2 * least
        assert math.prod(axes) <= 1.5 * size


def test_axes_keep_a_size_that_divides_well() -> None:
    assert choose_axes(4096, 4) == (8, 8, 8, 8)
    assert choose_axes(576, 4) == (6, 6, 4, 4)
    assert choose_axes(896, 4) == (8, 7, 4, 4)
    assert choose_axes(20480, 4) == (16, 16, 10, 8)
    assert choose_axes(31, 4) == (4, 2, 2, 2), "a prime is padded"


def test_frozen_gates_come_from_the_seed_alone() -> None:
    made = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(global_seed)
        delta = build(seed=seed)
        assert not [name for name in delta.state_dict() if "frozen" in name], "the seed is saved, not what it draws"
        made.append([delta.get_buffer(f"frozen_{k}") for k in range(3)])
    assert all(torch.equal(a, b) for a, b in zip(made[0], made[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(made[0], made[2], strict=True))
    for gate in made[0]:  # kaiming-uniform with a = sqrt 5
        assert 0.8 / math.sqrt(len(gate)) < gate.abs().max() <= 1.0 / math.sqrt(len(gate))


def test_known_numbers_of_seed_zero() -> None:
    """The same on every machine and in every release: saved adapters depend on it."""
    first = build().get_buffer("frozen_0")[0, :3]
    want = torch.tensor([-0.002647, 0.1896614, -0.2909904], dtype=DOUBLE)
    torch.testing.assert_close(first, want, rtol=0, atol=1e-7)


def test_building_draws_nothing_from_the_global_state_at_the_start() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    build(init_weights=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_small_change_is_not_lost_between_two_large_numbers() -> None:
    """In float32 the delta of gates of 1e-6 is right to 1e-5 of its size, which T x - S x is not."""
    delta = build(axes=[4, 4, 4], d_in=64, d_out=64)
    with torch.no_grad():
        for gate in delta.gates:
            gate.mul_(1e-6)
    want, x = delta.weight(), torch.eye(64)
    error = (delta.float()(x).T.double() - want).abs().max() / want.abs().max()
    assert error < 1e-5


def test_the_control_differs_in_the_wiring_alone() -> None:
    method, other = assert_differ_in_one_part(build, {}, {"wiring": "blocks"})
    for mine, of_control in zip(method.buffers(), other.buffers(), strict=True):
        assert torch.equal(mine, of_control)


def test_dropout_acts_on_the_input_in_training_alone() -> None:
    torch.manual_seed(0)
    delta = build(dropout=0.5)
    x = torch.randn(3, 24, dtype=DOUBLE)
    weight = delta.weight()
    torch.testing.assert_close(delta.eval()(x), x @ weight.T)
    torch.manual_seed(1)
    dropped = torch.nn.functional.dropout(x, 0.5)
    torch.manual_seed(1)
    torch.testing.assert_close(delta.train()(x), dropped @ weight.T)


@pytest.mark.parametrize("wiring", ["pairs", "blocks"])
def test_gradients(wiring: str) -> None:
    delta = build(5, 6, axes=[2, 3, 1], wiring=wiring)
    assert gradcheck(delta, torch.randn(2, 5, dtype=DOUBLE))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axes": [4]}, "pairs of axes.*at least 2"),
        ({"axes": [4, 0]}, "each of axes must be"),
        ({"n_axes": 1}, "pairs of axes.*n_axes >= 2"),
        ({"n_axes": 2.0}, "n_axes must be"),
        ({"dropout": 1.0}, "dropout is a probability"),
        ({"seed": -1}, "seed is a whole number"),
        ({"wiring": "ring"}, "unknown wiring.*pairs, blocks"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        qpeft.QuanTAConfig(**settings)


def test_a_layer_of_one_number() -> None:
    delta = build(1, 1, axes=None)
    t, s = operators(delta, [1, 1, 1, 1], "pairs")
    assert delta.weight().item() == pytest.approx((t - s).item(), rel=1e-9) != 0


def test_axes_too_small_for_a_layer() -> None:
    with pytest.raises(AdapterError, match=r"too few entries for a 25 -> 3 layer.*3 x 2 x 4 = 24.*at least 25"):
        build(25, 3)


def test_balanced_gates_can_be_trained_behind_dozens_of_others() -> None:
    x = torch.randn(64, 576, generator=torch.Generator().manual_seed(0))
    sizes = {}
    for init in ("published", "balanced"):
        delta = QuanTA(576, 576, QuanTAConfig(init=init, n_axes=12), {})
        (delta(x) * x).mean().backward()
        sizes[init] = max(float(gate.grad.abs().max()) for gate in delta.gates if gate.grad is not None)
    assert sizes["published"] < 1e-12
    assert sizes["balanced"] > 1e-4
