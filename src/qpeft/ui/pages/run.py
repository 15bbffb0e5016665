"""One run: live numbers and curves, its parameters and circuits, samples, a chat, settings; pause and resume."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from qpeft.circuits.ir import Circuit
from qpeft.errors import QpeftError
from qpeft.report.sections import flat
from qpeft.ui.pages.compare import curves
from qpeft.ui.runs import TrainingRun, samples, tensor_sizes
from qpeft.ui.site import Address, Visit
from qpeft.web import http
from qpeft.web.charts import bar
from qpeft.web.circuit_svg import circuit_svg
from qpeft.web.language import translate_message

LAYER = re.compile(r"\.(?:layers|h|blocks|layer)\.(\d+)\.")
SHOWN_CIRCUITS = 6


async def page(visit: Visit) -> Response:
    """The run `?name=`."""
    run = visit.run()
    return visit.render("run", run=run, **await run_in_threadpool(_details, visit, run))


def _details(visit: Visit, run: TrainingRun) -> dict[str, Any]:
    done, planned = run.steps
    return {
        "done": done,
        "planned": planned,
        "curves": curves(visit, [run]),
        "budget": run.budget_left(),
        "parameters": _parameters(run),
        "settings": [(key, json.dumps(value)) for key, value in sorted(flat(run.config).items()) if value not in (None, {}, [])],
        "samples": samples(run),
        "log": visit.studio.control.log_of(run) if run.state in ("failed", "new") else "",
        "link": f"/run?name={quote(run.name)}",
    }


def _parameters(run: TrainingRun) -> dict[str, Any]:
    """Numbers of the adapter's file by layer and by module, with bars."""
    sizes = tensor_sizes(run)
    by_module: dict[str, int] = {}
    by_layer: dict[str, int] = {}
    for name, size in sizes.items():
        plain = name.removeprefix("base_model.model.")
        layer = LAYER.search("." + plain)
        kind = LAYER.sub(".", "." + plain).strip(".").removeprefix("model.")
        by_module[kind] = by_module.get(kind, 0) + size
        place = f"{int(layer[1])}" if layer else ""
        by_layer[place] = by_layer.get(place, 0) + size
    total = sum(sizes.values())
    layers = sorted(by_layer.items(), key=lambda one: (one[0] == "", int(one[0] or 0)))
    return {
        "total": total,
        "modules": [(kind, size, bar(size / total)) for kind, size in sorted(by_module.items(), key=lambda one: -one[1])[:40]],
        "layers": [(place, size, bar(size / max(by_layer.values()))) for place, size in layers],
    }


async def circuits(visit: Visit) -> Response:
    """The adapter's circuits with their trained angles; loads the model, so the page asks for it by a button."""
    run = visit.run()
    found = await run_in_threadpool(visit.studio.model.ask, run.folder, do="circuits")
    drawn = []
    for one in found["circuits"][:SHOWN_CIRCUITS]:
        circuit = Circuit.from_json(json.dumps(one["circuit"]))
        label = visit.t("Circuit of {qubits} qubits and {gates} gates", qubits=circuit.n_qubits, gates=len(circuit.ops))
        svg, whole = circuit_svg(circuit, label, one["angles"])
        drawn.append({"svg": svg, "whole": whole, "label": label, "places": one["places"], "angles": one["angles"]})
    return visit.render("circuits", run=run, circuits=drawn, total=len(found["circuits"]))


async def chat(visit: Visit) -> Response:
    """What the adapter and the base model say, as JSON for the page's script."""
    run, prompt = visit.run(), visit.form.get("prompt", "")[:8000].strip()
    if not prompt:
        return _json({"error": visit.t("Write a prompt first.")})
    length = visit.form.get("max_new_tokens", "64")
    tokens = int(length) if length.isdigit() and len(length) < 5 else 64
    try:
        found = await run_in_threadpool(visit.studio.model.ask, run.folder, do="chat", prompt=prompt, max_new_tokens=max(1, tokens))
    except QpeftError as error:
        found = {"error": translate_message(http.language_of(visit.request), str(error))}
    return _json(found)


def _json(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content), media_type="application/json")


async def make_samples(visit: Visit) -> Response:
    """Generate samples of the run, then show it."""
    run = visit.run()
    await run_in_threadpool(visit.studio.model.ask, run.folder, do="samples")
    return visit.see(f"/run?name={quote(run.name)}#samples")


async def pause(visit: Visit) -> Response:
    """Ask the run to pause."""
    run = visit.run()
    visit.studio.control.pause(run)
    return visit.see(f"/run?name={quote(run.name)}")


async def resume(visit: Visit) -> Response:
    """Go on with the run."""
    run = visit.run()
    visit.studio.control.resume(run)
    return visit.see(f"/run?name={quote(run.name)}")


ADDRESSES = [
    Address("/run", page),
    Address("/circuits", circuits),
    Address("/chat", chat, method="POST"),
    Address("/samples", make_samples, method="POST"),
    Address("/pause", pause, method="POST"),
    Address("/resume", resume, method="POST"),
]
