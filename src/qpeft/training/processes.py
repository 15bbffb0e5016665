"""The processes of one run: their ranks, what one does for all, and sums over all.

`torchrun` and `accelerate launch` start several processes of one command. Each trains on its own share of every batch; the first
one (rank 0) locks the folder, talks to chips and writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from qpeft.errors import BackendError, BudgetError, QpeftError, RunError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """`count` processes, of which this one has the given `rank`, 0 to `count - 1`."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def on_first(self, do: Callable[[], Result]) -> Result:
        """Run `do` in the first process and return its result, which must pickle, in every process.

        An error of the first process is raised in every process: budgets and backends as their own kind, others as RunError.
        """
        if self.count == 1:
            return do()
        import torch.distributed as dist

        box: list[Any] = [None]
        if not self.first:
            dist.broadcast_object_list(box, src=0)
            result, error = box[0]
            if error is not None:
                raise _same_kind(*error)
            return result  # type: ignore[no-any-return]
        try:
            box = [(do(), None)]
        except Exception as error:
            dist.broadcast_object_list([(None, (type(error).__name__, str(error)))], src=0)
            raise
        dist.broadcast_object_list(box, src=0)
        return box[0][0]  # type: ignore[no-any-return]

    def gather(self, value: Result) -> list[Result]:
        """The value of every process, by rank, in every process; values must pickle."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Until every process has come here."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()


def _same_kind(kind: str, message: str) -> QpeftError:
    kinds: dict[str, type[QpeftError]] = {"BudgetError": BudgetError, "BackendError": BackendError, "JobError": BackendError}
    return kinds.get(kind, RunError)(message)


def start_processes() -> Processes:
    """Join the processes that a launcher started, each on its own device; one process without a launcher.

    Raises RunError for one process that sees several GPUs: transformers would train it with `DataParallel`, which copies modules
    without their parameters; and for accelerate's own FSDP and DeepSpeed, whose checkpoints this trainer does not write.
    """
    import torch

    for variable, what in (("ACCELERATE_USE_FSDP", "accelerate's FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "").lower() in ("1", "true"):
            hint = "launch plain processes (torchrun, or accelerate launch --multi_gpu) with training.distributed: fsdp2"
            raise RunError(f"qpeft train shards parameters itself, without {what}", value=variable, hint=hint)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    gpus = torch.cuda.device_count()
    if count == 1:
        if gpus > 1:
            raise RunError(
                "one process sees several GPUs, and adapters do not train under DataParallel",
                value=f"{gpus} GPUs",
                hint=f"torchrun --nproc-per-node {gpus} -m qpeft.cli train RECIPE, or CUDA_VISIBLE_DEVICES=0 for one GPU",
            )
        return Processes()
    from accelerate import PartialState

    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # else accelerate trains every process by itself
    state = PartialState(cpu=on_cpu)
    return Processes(int(state.process_index), int(state.num_processes))
