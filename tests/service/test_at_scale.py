"""The model of docs/service-at-scale.md against queueing theory, and the page against the model."""

from __future__ import annotations

import pytest

from benchmarks import service_at_scale as model


def test_waits_are_erlangs_where_the_writer_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "MEASURED", dict.fromkeys(model.MEASURED, 1e-9))
    waits: list[float] = []
    monkeypatch.setattr(model, "_percentile", lambda values, q: waits.append(sum(values) / len(values)) or 0.0)
    model.Cell(rate=8.0, chips=10, run_s=1.0, seed=3).run(20_000.0)
    assert waits[-1] == pytest.approx(model.erlang_wait(8.0, 10, 1.0), rel=0.1)
    assert model.erlang_wait(8.0, 10, 1.0) == pytest.approx(0.2046, rel=1e-3)  # Erlang C(10, 8) = 0.4092, published tables


def test_the_page_is_the_models() -> None:
    assert model.PAGE.read_text() == model.page(), "run: python -m benchmarks.service_at_scale --write"
