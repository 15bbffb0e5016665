"""Export of one module's circuit with its trained angles, and the expectation values that it must give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qpeft.circuits.ir import Circuit, Observable
from qpeft.circuits.text.qiskit import write_qpy
from qpeft.errors import RunError
from qpeft.export.models import open_adapter
from qpeft.files import replace_folder
from qpeft.training import environment
from qpeft.training.data.examples import Conversation, Message
from qpeft.training.data.tokenization import encode_prompt

FILES = {"qasm3": "circuit.qasm", "qasm2": "circuit.qasm", "originir": "circuit.originir", "qiskit": "circuit.qpy"}
NUMBERS_ALONE = ("qasm2", "originir")
EXPECTED = "expected.json"
PROBES = 3  # inputs at which a circuit with free inputs is given values


def export_circuit(
    folder: Path,
    output: Path,
    to: str,
    module: str,
    *,
    text: str | None = None,
    token: int = -1,
    adapter: str = "default",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a finished run's circuit of one module to `output`: the circuit in the format, and `expected.json`.

    Args:
        folder: of the run.
        output: folder to write; an earlier export there is replaced with `overwrite`.
        to: one of FILES.
        module: name of the adapted module in the base model, or the end of a name that fits one module alone.
        text: a prompt; the circuit's inputs become those that the module has when the adapted model reads it, written
            as training writes a question. Default: inputs stay free.
        token: which token's inputs; -1 is the last.
        adapter: its name, where the run has several.
        overwrite: replace an earlier export.

    Returns:
        What `expected.json` holds: `module`, `circuit_id`, `qubits`, `observables` (Pauli strings with coefficients), `angles`, and
        `values`: a list of `inputs` and the exact `expectations` there, in radians.

    Raises:
        RunError: no finished run, no such module, token or format, free inputs where the format has numbers alone, or an output in
            use.
        AdapterError: the adapter has no circuits.
    """
    import torch

    from qpeft.adapters.trained_circuits import circuit_inputs, circuits_of

    if to not in FILES:
        raise RunError("unknown format of a circuit", value=to, bound=", ".join(FILES))
    if output.exists() and (not overwrite or not (output / EXPECTED).is_file()):
        raise RunError("the output exists", value=str(output), hint="another --output, or --overwrite for an earlier export")
    config, model, tokenizer = open_adapter(folder, adapter)
    circuits = circuits_of(model, adapter)
    name = _find(module, list(circuits))
    found = circuits[name]
    n = found.circuit.n_inputs
    if n and text is None and to in NUMBERS_ALONE:
        raise RunError(f"{to} has no free parameters, and the circuit has {n} inputs", hint="--text PROMPT, or --to qasm3")
    report: dict[str, Any] = {}
    if n and text is not None:
        system = config.data.system
        turns = [*([Message("system", system)] if system else []), Message("user", text), Message("assistant", "")]
        ids = encode_prompt(Conversation(tuple(turns), 0, "--text"), tokenizer)[0]
        if not -len(ids) <= token < len(ids):
            raise RunError("the prompt has no such token", value=token, bound=f"{-len(ids)}..{len(ids) - 1}")
        batch = torch.tensor([ids], device=model.device)
        inputs = circuit_inputs(model, adapter, input_ids=batch, use_cache=False)[name][0, token].double().cpu()
        circuit, points = found.bound(inputs), [inputs.tolist()]
        shown = tokenizer.convert_ids_to_tokens(ids[token])
        report = {"text": text, "token": token % len(ids), "token_text": shown, "tokens": len(ids)}
    else:
        circuit, points = (
            found.trained,
            [[]] if not n else [[round(0.3 + 0.7 * k + 0.2 * j, 3) for j in range(n)] for k in range(PROBES)],
        )
    report |= {
        "module": name,
        "format": to,
        "file": FILES[to],
        "circuit_id": circuit.id,
        "qubits": circuit.n_qubits,
        "free_inputs": circuit.n_inputs,
        "observables": [_written(observable, circuit.n_qubits) for observable in found.observables],
        "angles": found.angles.tolist(),
        "values": [{"inputs": point, "expectations": found.expectations(point).tolist()} for point in points],
        "qubit_order": "a letter for each qubit, qubit 0 first",
        "run": str(folder.resolve()),
        "adapter": adapter,
        "versions": environment.versions(),
        "created_at": environment.now(),
    }
    with replace_folder(output) as scratch:
        _write(circuit, to, scratch / FILES[to])
        (scratch / EXPECTED).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _find(wanted: str, names: Sequence[str]) -> str:
    if wanted in names:
        return wanted
    ends = [name for name in names if name.endswith(f".{wanted}")]
    if len(ends) == 1:
        return ends[0]
    shown = ", ".join((ends or names)[:4]) + (f", .. ({len(ends or names)} in all)" if len(ends or names) > 4 else "")
    raise RunError("several modules end so" if ends else "no circuit in a module of this name", value=wanted, bound=shown)


def _written(observable: Observable, n_qubits: int) -> list[list[Any]]:
    """`[[coefficient, "ZZI"], ..]`, a letter for each qubit, qubit 0 first."""
    return [
        [coefficient, "".join(dict(string).get(qubit, "I") for qubit in range(n_qubits))]
        for coefficient, string in observable.terms
    ]


def _write(circuit: Circuit, to: str, file: Path) -> None:
    if to == "qiskit":
        with file.open("wb") as stream:
            write_qpy(circuit, stream)
        return
    text = {"qasm3": circuit.to_qasm3, "qasm2": circuit.to_qasm2, "originir": circuit.to_originir}[to]()
    file.write_text(text, encoding="utf-8")
