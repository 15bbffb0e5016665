"""Two real processes under torchrun (gloo) train as one process does at the same global batch: DDP and FSDP2, every method."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.golden.make_adapters import CASES
from tests.peers import peer_python

from qpeft.errors import ConfigError, MissingDependencyError, RunError
from qpeft.records import RunRecord
from qpeft.training.loop import sharding
from qpeft.training.loop.run import train
from qpeft.training.loop.run_dir import read_record
from qpeft.training.processes import Processes, start_processes
from qpeft.training.recipe.config import load_recipe

ROOT = Path(__file__).parents[2]
GLOBAL = ["training.gradient_accumulation_steps=1", "training.global_batch_size=4", "training.logging_steps=1"]
Job = tuple[Path, list[str], Path, int | None]


def torchrun(
    jobs: list[Job], folder: Path, *, processes: int = 2, kill: str = "", python: str = sys.executable, **environment: str
) -> None:
    """Train the recipes in two processes; `kill` is RANK:STEP of one that dies."""
    file = folder / "jobs.json"
    file.write_text(json.dumps([[str(recipe), settings, str(place), until] for recipe, settings, place, until in jobs]))
    command = [python, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "tests.training.several_processes", str(file)]
    here = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "KILL": kill}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | here | environment, capture_output=True, text=True)
    told = [path.read_text() for _, _, place, _ in jobs if (path := Path(f"{place}.error")).exists()]
    assert done.returncode == 0, "\n".join(told) or done.stderr[-4000:]


def assert_same_training(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    first, second = read_record(one), read_record(other)
    losses = [[point.loss for point in record.train_curve] for record in (first, second)]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    assert len(losses[0]) == first.steps == second.steps
    assert first.metrics == pytest.approx(second.metrics, rel=tolerance)
    assert first.metrics_before == pytest.approx(second.metrics_before, rel=tolerance)
    assert (first.train_tokens, first.trainable_parameters) == (second.train_tokens, second.trainable_parameters)
    weights = [load_file(place / "adapter" / "adapter_model.safetensors") for place in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4, msg=name)


def adapter(name: str, fields: dict[str, Any]) -> str:
    return f"adapter={json.dumps({'peft_type': name, 'target_modules': ['q_proj', 'v_proj'], **fields})}"


METHODS = {
    "lora": ("LORA", {"r": 2, "lora_alpha": 8}),
    **{name: case for name, case in CASES.items() if name not in ("qtha-stored", "qcore-core-stored")},
    "qtha-by-layer": ("QTHA", {"r": 2, "hidden_size": 8, "bond_dim": 2, "share_circuit": "layer"}),
}
SHARDS = pytest.mark.skipif(not sharding.trains_what_is_sharded(), reason="this transformers trains no sharded parameters")
FSDP2 = pytest.param("fsdp2", marks=SHARDS)
FEW = ("lora", "qtha-shared", "qcore-side")


@pytest.mark.parametrize("strategy", ["ddp", FSDP2])
@pytest.mark.parametrize("names", [FEW, pytest.param(tuple(METHODS), marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_two_processes_train_as_one(recipe: Path, tmp_path: Path, strategy: str, names: tuple[str, ...]) -> None:
    chosen = {name: [*GLOBAL, adapter(*METHODS[name]), "training.max_steps=3"] for name in names}
    more = [f"training.distributed={strategy}"]
    torchrun([(recipe, [*settings, *more], tmp_path / "two" / name, None) for name, settings in chosen.items()], tmp_path)
    for name, settings in chosen.items():
        train(load_recipe(recipe, settings), tmp_path / "one" / name)
        assert_same_training(tmp_path / "one" / name, tmp_path / "two" / name)


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), FSDP2])
def test_checkpoints_load_on_another_number_of_processes(recipe: Path, tmp_path: Path, strategy: str) -> None:
    settings = ["adapter.dropout=0.0", *GLOBAL, "training.global_batch_size=8", f"training.distributed={strategy}"]
    config = load_recipe(recipe, settings)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "then-two", until=5)
    torchrun([(recipe, settings, tmp_path / "then-two", None), (recipe, settings, tmp_path / "then-one", 5)], tmp_path)
    train(config, tmp_path / "then-one")
    for name in ("then-two", "then-one"):
        found = read_record(tmp_path / name)
        assert found.metrics == pytest.approx(read_record(tmp_path / "whole").metrics, rel=1e-5), name
        assert [p.loss for p in found.train_curve] == pytest.approx(
            [p.loss for p in read_record(tmp_path / "whole").train_curve], rel=1e-5
        )


@pytest.mark.parametrize(
    ("strategy", "killed", "back"),
    [
        ("ddp", "1:7", 2),
        pytest.param("fsdp2", "0:7", 2, marks=[pytest.mark.slow, SHARDS]),
        pytest.param("fsdp2", "1:6", 1, marks=[pytest.mark.slow, SHARDS]),
    ],
)
def test_a_run_whose_rank_was_killed_ends_as_if_it_had_not(
    recipe: Path, tmp_path: Path, strategy: str, killed: str, back: int
) -> None:
    settings = ["adapter.dropout=0.0", *GLOBAL, f"training.distributed={strategy}", "training.seed=11"]
    dying = tmp_path / "dying"
    with pytest.raises(AssertionError, match=r"SIGKILL|Signal 9"):
        torchrun([(recipe, settings, dying, None)], tmp_path, kill=killed)
    assert not (dying / "record.json").exists()
    assert (dying / "checkpoints" / "checkpoint-4" / "whole.json").exists()
    torchrun([(recipe, settings, dying, None)], tmp_path, processes=back)
    train(load_recipe(recipe, settings), tmp_path / "whole")
    assert_same_training(tmp_path / "whole", dying)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", FSDP2])
def test_four_processes_train_as_one(recipe: Path, tmp_path: Path, strategy: str) -> None:
    settings = ["training.gradient_accumulation_steps=1", "training.global_batch_size=8", "training.logging_steps=1"]
    settings += ["training.max_steps=4", "training.seed=23", "adapter.dropout=0.0", "adapter.share_circuit=model"]
    four = [*settings, f"training.distributed={strategy}", "training.per_device_train_batch_size=2"]
    torchrun([(recipe, four, tmp_path / "four", None)], tmp_path, processes=4)
    train(load_recipe(recipe, settings), tmp_path / "one")
    assert_same_training(tmp_path / "one", tmp_path / "four")


NEEDS = ("einops", "hjson", "ninja", "py-cpuinfo", "msgpack")  # of DeepSpeed, besides what qpeft brings


@pytest.fixture(scope="session")
def deepspeed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Python with DeepSpeed for `torchrun`, and what `accelerate launch` sets; DeepSpeed compiles its communication once."""
    python = peer_python("deepspeed", *NEEDS, bare=("deepspeed>=0.17",))
    return {"python": python, "TORCH_EXTENSIONS_DIR": str(tmp_path_factory.mktemp("compiled")), "ACCELERATE_USE_DEEPSPEED": "true"}


@pytest.mark.peer
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", ["2", "3"])
def test_deepspeed_trains_as_one_process(recipe: Path, tmp_path: Path, deepspeed: dict[str, str], stage: str) -> None:
    chosen = {name: [*GLOBAL, adapter(*METHODS[name]), "training.max_steps=3"] for name in FEW}
    jobs = [(recipe, settings, tmp_path / "two" / name, None) for name, settings in chosen.items()]
    torchrun(jobs, tmp_path, ACCELERATE_DEEPSPEED_ZERO_STAGE=stage, **deepspeed)
    for name, settings in chosen.items():
        train(load_recipe(recipe, settings), tmp_path / "one" / name)
        assert_same_training(tmp_path / "one" / name, tmp_path / "two" / name)


@pytest.mark.peer
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", ["2", "3"])
def test_a_run_of_deepspeed_goes_on_after_a_kill(recipe: Path, tmp_path: Path, deepspeed: dict[str, str], stage: str) -> None:
    settings = ["adapter.dropout=0.0", *GLOBAL, "training.seed=5"]
    dying, zero = tmp_path / "dying", {"ACCELERATE_DEEPSPEED_ZERO_STAGE": stage, **deepspeed}
    with pytest.raises(AssertionError, match=r"SIGKILL|Signal 9"):
        torchrun([(recipe, settings, dying, None)], tmp_path, kill="1:7", **zero)
    with pytest.raises(RunError, match=r"DeepSpeed continues its own checkpoints.*2 processes under DeepSpeed"):
        train(load_recipe(recipe, settings), dying)
    torchrun([(recipe, settings, dying, None)], tmp_path, **zero)
    train(load_recipe(recipe, settings), tmp_path / "whole")
    assert_same_training(tmp_path / "whole", dying)


@pytest.mark.parametrize(
    "gradient",
    [
        "surrogate-shift",
        pytest.param("direct-shift", marks=pytest.mark.slow),
        pytest.param("emulator-autograd", marks=pytest.mark.slow),
    ],
)
def test_a_chip_is_asked_once_for_all_processes(recipe: Path, tmp_path: Path, gradient: str) -> None:
    exact = gradient == "emulator-autograd"
    backend = {"name": "emulator:wukong-72" if exact else "simulator", "shots": None, "gradient": gradient}
    qtha = {"r": 2, "hidden_size": 8, "bond_dim": 2, "n_layers": 1, "share_circuit": "model"}
    settings = [*GLOBAL, adapter("QTHA", qtha), f"backend={json.dumps(backend)}", "training.max_steps=2"]
    torchrun([(recipe, settings, tmp_path / "two", None)], tmp_path)
    one, two = train(load_recipe(recipe, settings), tmp_path / "one"), read_record(tmp_path / "two")
    assert_same_training(tmp_path / "one", tmp_path / "two")
    assert two.backend["exact_loss"] == pytest.approx(one.backend["exact_loss"], rel=1e-5)
    if gradient == "surrogate-shift":
        assert two.backend["circuits"] == one.backend["circuits"] > 0  # not once for each process


@pytest.mark.slow
def test_a_budget_that_ends_stops_every_process(recipe: Path, tmp_path: Path) -> None:
    backend = {"name": "simulator", "shots": 10, "gradient": "surrogate-shift", "budget": {"circuits": 500}}
    qtha = {"r": 2, "hidden_size": 8, "bond_dim": 2, "n_layers": 1, "share_circuit": "model"}
    settings = [*GLOBAL, adapter("QTHA", qtha), f"backend={json.dumps(backend)}", "training.max_steps=20"]
    with pytest.raises(AssertionError, match=r"BudgetError: .*stopped after step 2"):
        torchrun([(recipe, settings, tmp_path / "two", None)], tmp_path)
    larger = [*settings, "backend.budget.circuits=null", "training.max_steps=20"]
    record = train(load_recipe(recipe, larger), tmp_path / "two")  # from the checkpoint of two processes, in one
    assert isinstance(record, RunRecord)
    assert record.steps == 20


def test_data_parallel_is_refused_with_the_right_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert start_processes() == Processes(0, 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RunError, match=r"torchrun --nproc-per-node 2 -m qpeft.cli train"):
        start_processes()


def test_settings_of_accelerate_that_would_be_ignored_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        "fsdp_version: 1": {"ACCELERATE_USE_FSDP": "true"},
        "FSDP_OFFLOAD_PARAMS": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
        "gradient_checkpointing": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
    }
    for words, variables in cases.items():
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with pytest.raises(RunError, match=words):
                start_processes()


def test_deepspeed_needs_its_package_and_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"qpeft\[deepspeed\]"):
        start_processes()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(RunError, match=r"DeepSpeed is for several processes.*num_processes: 2"):
        start_processes()


CONFIGURATIONS = sorted((ROOT / "deploy" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda file: file.stem)
def test_accelerate_reads_the_shipped_configurations(file: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(file))
    assert found.num_processes == 2
    assert str(found.distributed_type.value) == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(file.stem, "DEEPSPEED")


@SHARDS
@pytest.mark.slow
@pytest.mark.parametrize("shared", ["none", "model"])
def test_accelerate_launch_with_fsdp2_trains_as_one_process(recipe: Path, tmp_path: Path, shared: str) -> None:
    qtha = {"r": 2, "hidden_size": 8, "bond_dim": 2, "share_circuit": shared}
    settings = [*GLOBAL, adapter("QTHA", qtha), "training.max_steps=3"]
    one, two = tmp_path / "one", tmp_path / "two"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "deploy/accelerate/fsdp2.yaml")]
    command += ["--main_process_port", "0", "-m", "qpeft.cli", "train", str(recipe), "--output", str(two)]
    command += [part for setting in settings for part in ("--set", setting)]
    here = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    train(load_recipe(recipe, settings), one)
    assert_same_training(one, two)


def test_a_global_batch_divides_among_the_processes(recipe: Path) -> None:
    section = load_recipe(recipe, GLOBAL).training
    assert [section.accumulation(processes) for processes in (1, 2)] == [2, 1]
    with pytest.raises(ConfigError, match="a multiple of 6"):
        section.accumulation(3)
    with pytest.raises(ConfigError, match="one of the two"):
        load_recipe(recipe, ["training.global_batch_size=4"])
    with pytest.raises(ConfigError, match="a multiple of per_device_train_batch_size"):
        load_recipe(recipe, [*GLOBAL, "training.global_batch_size=5"])
