"""Fixtures of the simulator's tests: which variant of the compiled kernel runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from qpeft.circuits.simulator.c_engine import expectations, library


@pytest.fixture
def choose_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Chooses a variant of the compiled kernel for the rest of a test: `off` for none, an empty name for the best."""

    def forget() -> None:
        library._choice.cache_clear()
        expectations.calls.cache_clear()

    def choose(wanted: str) -> None:
        monkeypatch.setenv("QPEFT_KERNEL", wanted)
        forget()

    yield choose
    forget()


@pytest.fixture(params=library.variants() or ["none"])
def variant(request: pytest.FixtureRequest, choose_kernel: Callable[[str], None]) -> str:
    """Each variant of the compiled kernel that this machine runs, in turn."""
    if request.param == "none":
        pytest.skip("the compiled kernel is not built here")
    choose_kernel(request.param)
    return str(request.param)
