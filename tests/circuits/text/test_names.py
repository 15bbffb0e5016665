"""Names of parameters: which vector and place they tell, and natural order."""

from __future__ import annotations

import random

import pytest

from qpeft.circuits.text.names import in_natural_order, order_parameters, split_name
from qpeft.errors import CircuitError


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("x[3]", ("x", 3)), ("x_3", ("x", 3)), ("_x_3_", ("x", 3)), ("x", ("x", None)), ("my_gain", ("my_gain", None)),
        ("layer_2_w_10", ("layer_2_w", 10)), ("θ[0]", ("θ", 0)), ("_", ("_", None)), ("x3", ("x3", None)),
    ],
)  # fmt: skip
def test_a_name_tells_its_vector(name: str, parts: tuple[str, int | None]) -> None:
    assert split_name(name) == parts


def test_natural_order() -> None:
    wanted = ["b", *(f"x[{k}]" for k in range(25)), "a"]
    shuffled = wanted[1:-1]
    random.Random(1).shuffle(shuffled)
    assert in_natural_order(["b", *shuffled, "a"]) == wanted


def test_inputs_are_taken_in_the_order_given() -> None:
    names = ["w_0", "x_1", "x_0", "g", "w_1"]
    assert order_parameters(names, ["g", "x"]) == (["g", "x_0", "x_1"], ["w_0", "w_1"])
    assert order_parameters(names, ["x_1"]) == (["x_1"], ["w_0", "w_1", "x_0", "g"])
    assert order_parameters(["in_0", "theta_1"], None) == (["in_0"], ["theta_1"])
    assert order_parameters([], ()) == ([], [])
    with pytest.raises(CircuitError, match="data or trained"):
        order_parameters(names, None)
    with pytest.raises(CircuitError, match="no parameter of this name"):
        order_parameters(names, ["y"])
