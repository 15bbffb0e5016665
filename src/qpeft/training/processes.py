"""The processes of one run: their ranks, what one does for all, and sums over all.

`torchrun` and `accelerate launch` start several processes of one command. Each trains on its own share of every batch; the first
one (rank 0) locks the folder, talks to chips and writes.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from qpeft.errors import BackendError, BudgetError, MissingDependencyError, QpeftError, RunError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """`count` processes, of which this one has the given `rank`, 0 to `count - 1`.

    `shard`: the launcher asks that parameters are sharded among them, as `training.distributed: fsdp2` does. `deepspeed`: the
    launcher asks for DeepSpeed, whose engine then shares out what its ZeRO stage says.
    """

    rank: int = 0
    count: int = 1
    shard: bool = False
    deepspeed: bool = False

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

    `accelerate launch` with an FSDP2 configuration shards parameters as `training.distributed: fsdp2` does. Its own wrapping
    is switched off: it knows nothing of circuits that layers share.

    Raises:
        RunError: one process sees several GPUs: transformers would train it with `DataParallel`, which copies modules without
            their parameters; settings of accelerate that would be ignored; DeepSpeed with one process.
        MissingDependencyError: the launcher asks for DeepSpeed, which is not installed.
    """
    import torch

    deepspeed = _switched_on("ACCELERATE_USE_DEEPSPEED")
    shard = _asks_for_fsdp2()
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if deepspeed:
        _demand_deepspeed(count)
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
    from accelerate.state import AcceleratorState

    if deepspeed:
        AcceleratorState._reset_state()  # an earlier run in this process had an engine of its own
    on_cpu = not torch.accelerator.is_available()
    if on_cpu and deepspeed:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        state = PartialState(backend="gloo")  # accelerate chooses no backend for DeepSpeed on CPUs
    else:
        if on_cpu:
            os.environ["ACCELERATE_USE_CPU"] = "true"  # else accelerate trains every process by itself
        state = PartialState(cpu=on_cpu)
        if on_cpu:
            _load_to_numbered_cpus()
    return Processes(int(state.process_index), int(state.num_processes), shard, deepspeed)


@functools.cache  # torch 2.6 cannot sort two packages of one priority
def _load_to_numbered_cpus() -> None:
    """transformers before 5 load an optimizer's state to "cpu:0", which `torch.load` does not know."""
    import torch

    torch.serialization.register_package(11, lambda _: None, lambda obj, place: obj if place.startswith("cpu:") else None)


def _demand_deepspeed(count: int) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingDependencyError("deepspeed", "deepspeed", "a DeepSpeed configuration of accelerate")
    if count == 1:
        raise RunError("DeepSpeed is for several processes", value="1 process", hint="num_processes: 2 or more")


def _switched_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true")


def _asks_for_fsdp2() -> bool:
    """Whether accelerate was launched with an FSDP2 configuration, which is then ours to follow; RunError for what is not done."""
    if not _switched_on("ACCELERATE_USE_FSDP"):
        return False
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise RunError("adapters are sharded by FSDP2 alone", value=f"fsdp_version: {version}", hint="fsdp_version: 2")
    others = {
        "FSDP_OFFLOAD_PARAMS": "parameters stay on their devices; fsdp_offload_params: false",
        "FSDP_ACTIVATION_CHECKPOINTING": "training.gradient_checkpointing: true in the recipe",
    }
    for variable, hint in others.items():
        if _switched_on(variable):
            raise RunError("this setting of accelerate's FSDP is the recipe's, or not done", value=variable, hint=hint)
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    return True
