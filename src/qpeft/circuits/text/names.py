"""Which parameters of a foreign circuit are data and which are trained, and in what order."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qpeft.errors import CircuitError

INPUTS, ANGLES = "in", "theta"  # how our own writers call the vectors of inputs and of angles
_ELEMENT = re.compile(r"(?P<name>.+?)\[(?P<index>\d+)\]|_(?P<escaped>.+?)_(?P<number>\d+)_|(?P<plain>.+?)_(?P<suffix>\d+)")


def split_name(name: str) -> tuple[str, int | None]:
    """The vector and the place in it that a name tells: `x[3]`, `x_3`, and `_x_3_`, as Qiskit's exporter writes `x[3]`.

    A name of another form is its own vector, without a place.
    """
    match = _ELEMENT.fullmatch(name)
    if match is None:
        return name, None
    vector = match["name"] or match["escaped"] or match["plain"]
    return vector, int(match["index"] or match["number"] or match["suffix"])


def in_natural_order(names: Sequence[str]) -> list[str]:
    """Names with the elements of each vector together, by number (`x_2` before `x_10`), vectors in the order of appearance."""
    first: dict[str, int] = {}
    for position, name in enumerate(names):
        first.setdefault(split_name(name)[0], position)
    return sorted(names, key=lambda name: (first[split_name(name)[0]], -1 if (k := split_name(name)[1]) is None else k))


def order_parameters(names: Sequence[str], inputs: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Split a circuit's parameters into inputs and angles, each in natural order.

    Args:
        names: all parameters, in the order of declaration.
        inputs: names of those that are data, or of their vectors, in the order in which the circuit takes them; None for the
            vector `in`, and then every other one must belong to `theta`.

    Raises:
        CircuitError: a name of `inputs` that the circuit does not have, or, without `inputs`, a parameter that is neither.
    """
    ordered = in_natural_order(names)
    if inputs is None:
        data = [name for name in ordered if split_name(name)[0] == INPUTS]
        unknown = [name for name in ordered if split_name(name)[0] not in (INPUTS, ANGLES)]
        if unknown:
            raise CircuitError(
                "are these parameters data or trained angles?",
                value=", ".join(unknown[:8]),
                hint="name the data: inputs=[...]; inputs=[] if all of them are trained",
            )
    else:
        if isinstance(inputs, str):
            inputs = [inputs]
        data = []
        for wanted in inputs:
            own = [name for name in ordered if wanted in (name, split_name(name)[0])]
            if not own:
                raise CircuitError(
                    "the circuit has no parameter of this name", value=wanted, bound=", ".join(ordered[:12]) or "no parameters"
                )
            data += [name for name in own if name not in data]
    return data, [name for name in ordered if name not in set(data)]
