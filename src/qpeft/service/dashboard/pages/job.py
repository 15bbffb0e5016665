"""One job: its circuit drawn, its counts with the ideal next to them, what became of it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from starlette.responses import Response

from qpeft.circuits.ir import Circuit, Observable
from qpeft.errors import QpeftError
from qpeft.service.dashboard import ideal
from qpeft.service.dashboard.site import Page, PageContext, see
from qpeft.service.messages import Term, unpack_result
from qpeft.service.store import lifecycle
from qpeft.service.store.schema import TERMINAL, Row
from qpeft.service.workers.programs import circuit_of
from qpeft.web.charts import outcome_bars
from qpeft.web.circuit_svg import circuit_svg

BARS, LISTED, VALUES = 32, 64, 32


async def job_page(context: PageContext) -> Response:
    """A job of the user's."""
    queries, name = context.listings, context.path("id")
    row = await context.ask(queries.job, context.owner, name)
    view = await context.ask(queries.job_view, context.owner, name)
    shown = await context.ask(_details, context, row)
    return context.render("job", job=view, ended=row.state in TERMINAL, **shown)


def _details(context: PageContext, row: Row) -> dict[str, Any]:
    """What is drawn of a job: circuit, outcomes, values; on a thread."""
    found: dict[str, Any] = {
        "circuit": None,
        "whole": True,
        "gates": None,
        "outcomes": None,
        "values": None,
        "chip": {},
        "dropped": 0,
    }
    circuit, bits, params = _program(context, row)
    if circuit is not None:
        bound = circuit.bind(params) if len(params) == circuit.n_params else circuit
        label = context.t("Circuit of {qubits} qubits and {gates} gates", qubits=circuit.n_qubits, gates=len(circuit.ops))
        found["circuit"], found["whole"] = circuit_svg(bound, label)
    if row.state == "succeeded":
        result = unpack_result(context.listings.result(row))
        found["chip"] = {} if result.qubits is None else {"qubits": result.qubits, "tenants": result.tenants}
        small = circuit is not None and ideal.is_small(circuit) and len(params) == circuit.n_params
        if result.kind == "expectations":
            found["values"] = _values(row, result.public()["expectations"], circuit if small else None, params)
        else:
            found |= _outcomes(context, result, ideal.probabilities(circuit, params, bits) if circuit and small else None)
    return found


def _program(context: PageContext, row: Row) -> tuple[Circuit | None, tuple[int, ...] | None, list[float]]:
    """The circuit, which qubits are measured, and the first row of parameters; no circuit where the program was deleted."""
    stored = context.listings.program(row.program)
    params = np.frombuffer(row.params, "<f8").reshape(row.rows, -1)
    first = [float(value) for value in params[0]] if params.size else []
    if stored is None:
        return None, None, first
    try:
        circuit, bits, _ = circuit_of(stored.format, bytes(stored.text))
    except QpeftError:
        return None, None, first
    return circuit, bits, first


def _outcomes(context: PageContext, result: Any, exact: dict[str, float] | None) -> dict[str, Any]:
    """Outcomes of the first row as bars and as a list, most frequent first, and their distance from the ideal."""
    public = result.public()
    if result.kind == "counts":
        counts = public["counts"][0]
    else:
        row = public["probabilities"][0]
        width = max((len(row) - 1).bit_length(), 1)
        counts = {format(k, f"0{width}b"): value for k, value in enumerate(row) if value > 0}
    total = sum(counts.values()) or 1
    seen = {word: n / total for word, n in counts.items()}
    words = sorted({*seen, *(exact or {})}, key=lambda word: (-max(seen.get(word, 0.0), (exact or {}).get(word, 0.0)), word))
    rows = [(word, seen.get(word, 0.0), None if exact is None else exact.get(word, 0.0)) for word in words]
    bars = sorted(rows[:BARS])
    label = context.t("Relative frequency of each outcome")
    names = {"ideal_name": context.t("ideal"), "seen_name": context.t("measured")}
    distance = None
    if exact is not None:
        distance = 0.5 * sum(abs(seen.get(word, 0.0) - exact.get(word, 0.0)) for word in {*seen, *exact})
    return {
        "outcomes": {
            "svg": outcome_bars(bars, label=label, **names),
            "rows": [(word, counts.get(word, 0), frequency, probability) for word, frequency, probability in rows[:LISTED]],
            "counts": result.kind == "counts",
            "ideal": exact is not None,
            "distance": distance,
        },
        "dropped": max(len(rows) - LISTED, 0),
    }


def _values(row: Row, values: list[list[float]], circuit: Circuit | None, params: list[float]) -> dict[str, Any]:
    """Expectation values of the first rows, with the ideal ones of the first."""
    observables = None
    if row.observables is not None:
        terms = msgspec.json.decode(row.observables, type=list[list[Term]])
        observables = [Observable(tuple((c, tuple((q, p) for q, p in word)) for c, word in term)) for term in terms]
    exact = None if circuit is None else ideal.expectations(circuit, params, observables)
    names = [f"Z{q}" for q in range(len(values[0]))] if observables is None else [_term(one) for one in observables]
    return {"rows": values[:10], "names": names[:VALUES], "ideal": exact and exact[:VALUES], "all": len(values)}


def _term(observable: Observable) -> str:
    parts = []
    for coefficient, string in observable.terms[:3]:
        word = " ".join(f"{letter}{qubit}" for qubit, letter in string) or "1"
        parts.append(word if coefficient == 1 else f"{coefficient:g} {word}")
    return " + ".join(parts) + (" …" if len(observable.terms) > 3 else "")


async def cancel_job(context: PageContext) -> Response:
    """Cancel a job, then show it."""
    name = context.path("id")
    await context.service.writer.call(lifecycle.cancel, lifecycle.Target("job", name, context.owner))
    return see(f"/jobs/{name}")


async def delete_job(context: PageContext) -> Response:
    """Delete a job that has ended, with its result, then show the list."""
    await context.service.writer.call(lifecycle.delete, lifecycle.Target("job", context.path("id"), context.owner))
    return see("/jobs")


PAGES = [
    Page("/jobs/{id}", job_page),
    Page("/jobs/{id}/cancel", cancel_job, scope="submit", method="POST"),
    Page("/jobs/{id}/delete", delete_job, scope="submit", method="POST"),
]
