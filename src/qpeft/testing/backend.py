"""The contract suite of backends; its rules are in backend_rules.py."""

from __future__ import annotations

from collections.abc import Callable, Collection

from qpeft.backends.base import Backend
from qpeft.errors import BackendError
from qpeft.testing.backend_rules import BACKEND_RULES, BackendSubject


def check_backend(
    make: Callable[[], Backend],
    *,
    noisy: bool = False,
    seeded: bool | None = None,
    shots: int = 2000,
    seed: int = 0,
    only: Collection[str] = tuple(BACKEND_RULES),
    skip: Collection[str] = (),
) -> None:
    """Hold a backend to the contract of `qpeft.backends.base`.

    Args:
        make: returns the backend; called once.
        noisy: outcomes follow another distribution than the noiseless circuit's. Rules then compare with the backend's own exact
            probabilities where it has them, and test bit order by the likeliest outcome.
        seeded: equal seeds give equal outcomes; default: where the backend is simulated.
        shots: of every run. Statistical bounds are 6 standard deviations of the multinomial, whatever the shots: a right backend
            fails one comparison in 5e8.
        seed: of the circuits' parameters and of the first run.
        only, skip: names of rules, keys of `BACKEND_RULES`.

    Raises:
        AssertionError: rules that are broken, each by name, with what was off and by how much.
        BackendError: `only` or `skip` names a rule that does not exist.
    """
    unknown = {*only, *skip} - BACKEND_RULES.keys()
    if unknown:
        raise BackendError("unknown rules", value=sorted(unknown), bound=", ".join(BACKEND_RULES))
    backend = make()
    subject = BackendSubject(backend, noisy, backend.simulated if seeded is None else seeded, shots, seed)
    broken = []
    for name, rule in BACKEND_RULES.items():
        if name in only and name not in skip:
            try:
                rule(subject)
            except Exception as error:
                broken.append((f"{name}: {'' if isinstance(error, AssertionError) else type(error).__name__ + ': '}{error}", error))
    if broken:
        raise AssertionError("\n".join(line for line, _ in broken)) from broken[0][1]
