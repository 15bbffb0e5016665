"""Devices as the API knows them: limits reported by workers, and cost estimates of jobs."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from qpeft.errors import ServiceError
from qpeft.service.scheduling.submission import StoredProgram
from qpeft.service.workers.messages import DeviceInfo

UNKNOWN = DeviceInfo(max_qubits=1024, exact=True, program_s=1e-3)
"""Until the first worker of a device has come: the worker refuses what the device cannot do."""
MAX_COST_S = 1e9
LEARNING = 0.2


@dataclass
class DeviceCatalog:
    """Limits and costs by device. `ratio` is what jobs lately took over what was estimated, learned as they end."""

    info: dict[str, DeviceInfo] = field(default_factory=dict)
    ratio: dict[str, float] = field(default_factory=dict)

    def load(self, device: str, data: bytes | None) -> None:
        """Set limits and costs from a worker's report.

        Args:
            device: name of the device.
            data: `DeviceInfo` in JSON; None changes nothing.
        """
        if data is not None:
            self.info[device] = msgspec.json.decode(data, type=DeviceInfo)

    def check(self, device: str, program: StoredProgram, shots: int | None, output: str, max_shots: int) -> None:
        """Refuse what the device cannot do, before anything is stored.

        Args:
            device: name of the device.
            program: the program.
            shots: repetitions; None for exact outcomes.
            output: "counts", "probabilities" or "expectations".
            max_shots: the service's own bound on shots.

        Raises:
            ServiceError: 422, too many qubits or shots, or exact outcomes that the device does not have.
        """
        info = self.info.get(device, UNKNOWN)
        if program.n_qubits > info.max_qubits:
            raise ServiceError(
                f"{device} has too few qubits",
                status=422,
                code="qubits",
                value=program.n_qubits,
                bound=f"at most {info.max_qubits}",
            )
        bound = min(max_shots, info.max_shots or max_shots)
        if shots is not None and shots > bound:
            raise ServiceError(
                "too many shots",
                status=422,
                code="shots",
                value=shots,
                bound=f"at most {bound}",
                hint="split them over several jobs",
            )
        if shots is None and (output == "counts" or not info.exact):
            what = "counts need shots" if output == "counts" else f"{device} has no exact outcomes"
            raise ServiceError(what, status=422, code="shots", value="shots: null", hint="give a number of shots")

    def estimate(self, device: str, program: StoredProgram, rows: int, shots: int | None, learned: bool = True) -> float:
        """Device seconds that a job will take, by the device's model of cost.

        Args:
            device: name of the device.
            program: the program.
            rows: rows of parameters.
            shots: repetitions of each row; None counts as 0.
            learned: multiply by the ratio that past jobs of the device took.
        """
        info = self.info.get(device, UNKNOWN)
        one = info.program_s + (shots or 0) * info.shot_s
        if info.gate_s:
            one += program.n_ops * info.gate_s * info.base ** min(program.n_qubits, 64)
        return min(rows * one * (self.ratio.get(device, 1.0) if learned else 1.0), MAX_COST_S)

    def is_exact_model(self, device: str) -> bool:
        """Whether the estimate is what a state vector costs, and not the bound of a chip that may be emulated in cheaper ways."""
        info = self.info.get(device, UNKNOWN)
        return info.exact and info.gate_s > 0 and not info.chip

    def lease_budget_s(self, device: str, default: float) -> float:
        """Device seconds to give out in one lease.

        Args:
            device: name of the device.
            default: seconds for a device that names none.
        """
        return self.info.get(device, UNKNOWN).lease_s or default

    def rows(self, device: str, default: int) -> int:
        """Bound on the number of circuits in one job.

        Args:
            device: name of the device.
            default: the service's own bound.
        """
        return min(self.info.get(device, UNKNOWN).max_rows or default, default)

    def learn(self, device: str, estimated_s: float, actual_s: float) -> None:
        """Move the device's ratio towards what jobs took, by little: a job that lies far off must not spoil others' estimates.

        Args:
            device: name of the device.
            estimated_s: device seconds that were estimated.
            actual_s: device seconds that the jobs took.
        """
        if estimated_s > 0 and actual_s > 0:
            old = self.ratio.get(device, 1.0)
            surprise = min(max(actual_s / estimated_s, 0.5), 2.0)
            self.ratio[device] = min(max(old * (1 + LEARNING * (surprise - 1)), 0.1), 10.0)
