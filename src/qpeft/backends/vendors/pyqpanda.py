"""Origin Quantum through pyqpanda3: its simulators on this machine, and the chips in its cloud.

    get_backend("pyqpanda:CPUQVM"), get_backend("pyqpanda:DensityMatrix")
    get_backend("pyqpanda:WK_C180", journal="jobs.jsonl", budget=Budget(shots=100_000))

pyqpanda3 puts qubit 0 in the lowest bit; outcomes are reversed here. The cloud has been driven against a server on loopback
that speaks its protocol, never against the live service: nobody gave this project a key.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from qpeft.backends.base import Backend, CompiledCircuit, Counts, FloatArray, Limits, check_circuit, check_run, sample
from qpeft.backends.emulator.chip_formats import from_chip_info
from qpeft.backends.folding import check_scale, folded
from qpeft.backends.spending.budget import Budget
from qpeft.backends.spending.journal import Journal
from qpeft.backends.spending.paid import SECONDS_PER_SHOT, PaidDevice, open_journal
from qpeft.backends.vendors.keys import Secret, find_key, warn_if_unencrypted
from qpeft.backends.vendors.pyqpanda_client import SdkClient, sdk
from qpeft.circuits.ir import Circuit
from qpeft.circuits.text.originir import to_originir
from qpeft.errors import BackendError, ConfigError, MissingDependencyError, QpeftError

logger = logging.getLogger(__name__)

LOCAL = {"CPUQVM": 20, "DensityMatrix": 10}  # simulators on this machine and the qubits that fit well
MAX_CIRCUITS_PER_JOB = 200
KEY_VARIABLES = ("PYQPANDA_API_KEY", "ORIGIN_API_KEY", "ORIGINQ_API_KEY")  # ours, qBraid's, and what scripts use
URL_VARIABLE = "PYQPANDA_URL"
DEFAULT_ADDRESS = "http://pyqpanda3's default address"  # which is not encrypted


def open_backend(name: str, **options: Any) -> Backend:
    """A simulator on this machine by its name (keys of `LOCAL`), else a chip of the cloud with the options of `Cloud`."""
    return LocalSimulator(name, **options) if name in LOCAL else Cloud(name, **options)


class LocalSimulator(Backend):
    """pyqpanda3's state-vector or density-matrix simulator. It gives the probabilities; shots are drawn from them with numpy, so
    that seeds repeat (its own sampling takes no seed). OMP_NUM_THREADS=1 is the fast setting for small circuits."""

    def __init__(self, kind: str) -> None:
        try:
            core, compiler = sdk("core"), sdk("intermediate_compiler")
        except ImportError as error:
            raise MissingDependencyError("pyqpanda3", "pyqpanda", f"the backend pyqpanda:{kind}") from error
        self.kind, self.name, self._core = kind, f"pyqpanda:{kind}", core
        self._read = compiler.convert_originir_string_to_qprog
        self.limits = Limits(LOCAL[kind], exact=True)

    def with_noise_scale(self, scale: int) -> LocalSimulator:
        """This backend itself, which has no noise. Raises BackendError for a `scale` that is not 1, 3, 5, ..."""
        check_scale(scale)
        return self  # there is no noise

    def compile(self, circuit: Circuit) -> CompiledLocal:
        """See `Backend.compile`. Raises BackendError for more qubits than `LOCAL` lists for this simulator."""
        check_circuit(self.name, self.limits, circuit)
        return CompiledLocal(self, circuit)

    def probabilities(self, text: str, n_qubits: int) -> FloatArray:
        """Probabilities of all outcomes of a program.

        Args:
            text: the program, OriginIR without measurements.
            n_qubits: number of qubits, each touched by a gate.

        Returns:
            `(2^n,)` float64, qubit 0 as the most significant bit.
        """
        program = self._read(text)
        if self.kind == "CPUQVM":
            machine = self._core.CPUQVM()
            machine.run(program, 1)
            values = np.abs(np.asarray(machine.result().get_state_vector())) ** 2
        else:
            machine = self._core.DensityMatrixSimulator()
            machine.run(program)
            values = np.asarray(machine.state_probs(), dtype=np.float64)
        turned: FloatArray = values.reshape((2,) * n_qubits).transpose(range(n_qubits)[::-1]).reshape(-1)
        return turned


class CompiledLocal(CompiledCircuit):
    """A circuit on one of pyqpanda3's simulators."""

    def __init__(self, backend: LocalSimulator, circuit: Circuit) -> None:
        self.backend, self.circuit = backend, circuit

    def run(self, params: FloatArray, shots: int | None, seed: int | None = None) -> Counts:
        """See `CompiledCircuit.run`: one simulation per row. Shots are drawn with numpy, so equal seeds give equal counts."""
        rows = check_run(self.backend.name, self.backend.limits, self.circuit, params, shots)
        n = self.circuit.n_qubits
        table = np.empty((len(rows), 2**n))
        for i, row in enumerate(rows):
            lines = to_originir(self.circuit, row.tolist()).splitlines()
            gates = [line for line in lines[2:] if not line.startswith("MEASURE")]
            touched = [f"I q[{q}]" for q in range(n)]  # the simulators leave out qubits that no gate touches
            table[i] = self.backend.probabilities("\n".join([*lines[:2], *touched, *gates]) + "\n", n)
        return Counts.dense(table, None) if shots is None else sample(table, shots, seed)


class Cloud(Backend):
    """A chip in the vendor's cloud.

    Args:
        chip: its name in the vendor's list (`origin_wukong` is no chip: it stands for a retired one).
        journal: the file in which this piece of work is kept; see journal.py. A fresh file asks everything afresh.
        api_key: default one of the environment variables KEY_VARIABLES, else the keyring.
        url: default the environment variable PYQPANDA_URL, else the vendor's.
        budget: checked, with what the journal says was spent, before anything is sent.
        readout_correction: "server" has the vendor correct readout errors; qpeft.backends.mitigation then refuses to
            correct them again.
        mapping, optimization: let the vendor's compiler place and shorten circuits. `block` names the qubits to use.
        client: a connection to share, in the place of api_key, url and call_timeout_s.
        call_timeout_s: of one call to the vendor. poll_s, patience_s, timeout_s: see `JobRunner`.
    """

    simulated = False
    noise_scale = 1
    journal: Journal

    def __init__(
        self,
        chip: str,
        *,
        journal: str | os.PathLike[str] | Journal | None = None,
        api_key: str | None = None,
        url: str | None = None,
        budget: Budget | None = None,
        readout_correction: Literal["none", "server"] = "none",
        mapping: bool = True,
        optimization: bool = True,
        block: tuple[int, ...] = (),
        call_timeout_s: float = 60.0,
        poll_s: float = 1.0,
        patience_s: float = 600.0,
        timeout_s: float = 24 * 3600.0,
        client: SdkClient | None = None,
    ) -> None:
        if readout_correction not in ("none", "server"):
            raise BackendError("unknown readout correction", value=readout_correction, bound="none, server")
        self.name, self.chip_name = f"pyqpanda:{chip}", chip
        if journal is None:
            open_journal(self.name, journal)  # refused before anybody is asked
        self.corrects_readout = readout_correction == "server"
        if client is None:
            key = Secret(api_key) if api_key is not None else find_key(KEY_VARIABLES, "pyqpanda")
            url = url or os.environ.get(URL_VARIABLE) or None
            warn_if_unencrypted(DEFAULT_ADDRESS if url is None else url)
            client = SdkClient(key, url, call_timeout_s)
        self.client = client
        try:
            self._check_name()
            info = self._snapshot()
        except QpeftError:
            self.client.close()
            raise
        except Exception as error:
            self.client.close()
            raise BackendError(f"{self.name} cannot be reached", value=str(error), hint="check the address and the key") from error
        self.journal = open_journal(self.name, journal)
        self.device = PaidDevice(
            self.client,
            self.journal,
            budget,
            per_job=MAX_CIRCUITS_PER_JOB,
            seconds=self.estimate,
            poll_s=poll_s,
            patience_s=patience_s,
            timeout_s=timeout_s,
        )
        self.settings = {"amend": self.corrects_readout, "mapping": mapping, "optimization": optimization, "block": list(block)}
        self.limits = Limits(len(info["AvailableQubits"]), None, MAX_CIRCUITS_PER_JOB)

    def _check_name(self) -> None:
        online = self.client.backends()
        if self.chip_name not in online:
            raise BackendError("the vendor has no such chip", value=self.chip_name, bound=", ".join(sorted(online)))
        if not online[self.chip_name]:
            raise BackendError(
                "the chip is offline", value=self.chip_name, bound=", ".join(sorted(n for n, on in online.items() if on))
            )

    def _snapshot(self) -> dict[str, Any]:
        """The chip's calibration now; `calibration` is its hash."""
        info = self.client.chip_info(self.chip_name)
        self.chip_info = info
        try:
            self.chip = from_chip_info(info, name=self.chip_name)
        except ConfigError as error:
            logger.warning("%s: its calibration cannot be read as a chip: %s", self.name, error)
            self.chip = None
        settings = "server-corrected" if self.corrects_readout else "raw"
        self.calibration = f"{settings}:{hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()}"
        return info

    def __repr__(self) -> str:
        return f"Cloud({self.chip_name!r}, journal={str(self.journal.path)!r})"

    def compile(self, circuit: Circuit) -> CompiledCloud:
        """See `Backend.compile`; nothing is sent yet. Raises BackendError for more qubits than the chip has available."""
        check_circuit(self.name, self.limits, circuit)
        return CompiledCloud(self, circuit)

    def with_noise_scale(self, scale: int) -> Cloud:
        """Folded programs. The vendor's optimisation must be off; whether its mapping keeps them is the vendor's to say."""
        check_scale(scale)
        if self.settings["optimization"]:
            raise BackendError("the vendor's optimisation takes the added noise away again", hint="optimization=False")
        other = copy.copy(self)
        other.noise_scale = scale * self.noise_scale
        return other

    def begin(self, sample: str) -> None:
        """Jobs from here on belong to this sample, such as a step of a training: the journal keeps them apart from equal ones."""
        self.device.sample = sample

    def estimate(self, programs: int, shots: int) -> float:
        """Seconds of chip time: `programs * shots * SECONDS_PER_SHOT`, for any circuit."""
        return programs * shots * SECONDS_PER_SHOT

    def cancel(self) -> list[str]:
        """Cancel the jobs under way; ids of those that could be."""
        return self.device.cancel()

    def close(self) -> None:
        """End the client's process and let go of the journal."""
        self.client.close()
        self.device.close()

    def run(self, texts: list[str], n_qubits: int, shots: int) -> Counts:
        """Run programs on the chip.

        Args:
            texts: OriginIR programs, one circuit each.
            n_qubits: number of qubits of each program.
            shots: repetitions of each program.

        Returns:
            One row per program. The weights are no whole numbers where the server corrects readout.

        Raises:
            BudgetError, JobError: see `PaidDevice.run`.
        """
        name, factor = ("probabilities", shots) if self.corrects_readout else ("counts", 1)
        head = {"chip": self.chip_name, **self.settings}
        found = self.device.run(head, texts, shots, extract=lambda result: result[name], snapshot=self._snapshot)
        return counts_of([{bits: value * factor for bits, value in row.items()} for row in found], n_qubits, shots)


def counts_of(rows: Sequence[Mapping[str, float]], n_qubits: int, shots: int) -> Counts:
    """Counts from the vendor's bit strings.

    Args:
        rows: for each program, the count of each bit string, qubit 0 rightmost; leading zeros may be missing.
        n_qubits: number of qubits.
        shots: repetitions of each program.
    """
    reversed_rows = [{bits.zfill(n_qubits)[::-1]: value for bits, value in row.items()} for row in rows]
    return Counts.from_strings(n_qubits, reversed_rows, shots)


class CompiledCloud(CompiledCircuit):
    """A circuit as OriginIR programs of a cloud's chip."""

    def __init__(self, backend: Cloud, circuit: Circuit) -> None:
        self.backend, self.circuit = backend, circuit

    def run(self, params: FloatArray, shots: int | None, seed: int | None = None) -> Counts:
        """See `CompiledCircuit.run`: one OriginIR program per row, sent as paid jobs. `shots` is required, `seed` is ignored.

        Raises:
            BudgetError, JobError: see `PaidDevice.run`.
        """
        rows = check_run(self.backend.name, self.backend.limits, self.circuit, params, shots)
        assert shots is not None  # the limits require them
        program = folded(self.circuit, self.backend.noise_scale)
        texts = [to_originir(program, row.tolist()) for row in rows]
        return self.backend.run(texts, self.circuit.n_qubits, shots)
