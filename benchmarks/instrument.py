"""Is the verdict right where the answer is known? `python -m benchmarks.instrument [--page FILE.md]`.

A small language model whose activations hold two numbers, and a task whose labels a circuit of two qubits makes from them.

* Positive control: the circuit without its CNOT, whose outputs are cosines of the scaled inputs, against LoRA and an MLP of equal
  size. The verdict must find it ahead.
* The circuit itself, against the same and its unentangled control.
* Negative control: the circuit's outputs dealt to other rows of the batch (`qnn: shuffled`). The verdict must not find it ahead.

The labels come from a circuit, so they favour one: this tests the instrument and says nothing about language. Records go to
`--records`; what is there is not run again. The page is made from the records alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from qpeft import Angle, Circuit, Op
from qpeft.adapters.circuit_setting import save_circuit
from qpeft.study.page import difference_table, table
from qpeft.study.plan import StudyPlan
from qpeft.study.records import StudyRecords
from qpeft.study.runner import StudyRunner
from qpeft.study.verdict import LEVEL, Subject, findings, sentence, verdict_plan
from qpeft.study.verdict_page import write_verdict

HIDDEN, ROWS, TEST, VALIDATION = 24, 2500, 400, 200
SCALE = 3.5  # rad per unit of the numbers, which lie in -1..1
PHASES = (0.4, 0.9)
STEPS, BATCH = 300, 128
TASK = "labels of a circuit"


def circuit() -> Circuit:
    """RY of each input, scaled, RY of an angle, CNOT, RY of an angle: `<Z>` of the second qubit holds a product of cosines."""
    ops = [Op("ry", (q,), Angle(q, 2.0)) for q in range(2)] + [Op("ry", (q,), Angle(2 + q)) for q in range(2)]
    ops += [Op("cx", (0, 1)), *(Op("ry", (q,), Angle(4 + q)) for q in range(2))]
    return Circuit(2, tuple(ops), n_inputs=2, n_params=6)


def make_task(folder: Path) -> None:
    """The model in `folder/model` and the rows in `folder/data`: a prompt is a start token and a token, its label `yes` or `no`.

    The numbers x of a token are two coordinates of its embedding, in a random rotation. The label is `yes` where
    `cos(3.5 x_1 + 0.4) cos(3.5 x_2 + 0.9) > 0`, which is `<Z>` of the circuit's second qubit for the right angles.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [f"w{k}" for k in range(ROWS)]
    core = Tokenizer(models.WordLevel({word: k for k, word in enumerate([*words, "no", "yes", "pad", "bos"])}, unk_token="pad"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="bos $A", special_tokens=[("bos", ROWS + 3)])
    names = {"pad_token": "pad", "unk_token": "pad", "bos_token": "bos"}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder / "model")
    x = np.random.default_rng(0).uniform(-1, 1, (ROWS, 2))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=ROWS + 4,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=False,
        pad_token_id=ROWS + 2,
        bos_token_id=ROWS + 3,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    rotation, _ = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN))
    with torch.no_grad():
        embedding = torch.zeros(ROWS + 4, HIDDEN)
        embedding[:ROWS, :2] = torch.as_tensor(x)
        embedding[:ROWS, 2] = torch.as_tensor(np.sqrt(3 - (x**2).sum(1)))  # equal norms, which the model's own norm divides by
        embedding[ROWS:, 3] = 1
        model.model.embed_tokens.weight.copy_(embedding @ rotation)
        model.lm_head.weight[ROWS : ROWS + 2] *= 5  # the answers stand out, so that the loss is about which of them
    model.save_pretrained(folder / "model")
    label = np.cos(SCALE * x + np.array(PHASES)).prod(1) > 0
    rows = [{"prompt": word, "completion": f" {'yes' if yes else 'no'}"} for word, yes in zip(words, label, strict=True)]
    parts = {"test": rows[:TEST], "validation": rows[TEST : TEST + VALIDATION], "train": rows[TEST + VALIDATION :]}
    (folder / "data").mkdir()
    for part, own in parts.items():
        (folder / "data" / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")


def protocol(folder: Path) -> StudyPlan:
    """Tuning, seeds and tests of the standard protocol, on this task."""
    lora: dict[str, Any] = {"peft_type": "LORA", "target_modules": ["v_proj"]}
    plan = {
        "name": "instrument",
        "model": {"model_name_or_path": str(folder / "model"), "dtype": "float32"},
        "training": {
            "max_steps": STEPS,
            "per_device_train_batch_size": BATCH,
            "per_device_eval_batch_size": 256,
            "warmup_steps": 10,
            "lr_scheduler_type": "cosine",
            "logging_steps": 100,
        },
        "tuning": {"learning_rates": [3e-3, 1e-2, 3e-2], "extend": 8},
        "seeds": [0, 1, 2, 3, 4],
        "tasks": [{"name": TASK, "folder": str(folder / "data"), "max_length": 8}],
        "arms": [{"label": f"LoRA r={r}", "kind": "lora", "adapter": {**lora, "r": r, "lora_alpha": 2 * r}} for r in (8, 1)],
    }
    return StudyPlan.model_validate_json(json.dumps(plan))


def plans(folder: Path) -> dict[str, StudyPlan]:
    """The verdicts by subject. Controls of both are the same runs."""
    adapter = {
        "peft_type": "QTHA",
        "circuit": save_circuit(circuit()),
        "tensor": False,
        "alpha": 16,
        "target_modules": ["v_proj"],
    }
    subjects = [
        Subject("rotations alone", {**adapter, "qnn": "product"}),
        Subject("circuit", adapter),
        Subject("shuffled circuit", {**adapter, "qnn": "shuffled"}),
    ]
    return {s.name: verdict_plan(s, protocol(folder)).model_copy(update={"name": "instrument"}) for s in subjects}


def page(folder: Path, records: StudyRecords) -> str:
    """Both verdicts as Markdown, from the records."""
    out = [
        "# Is the verdict right where the answer is known?",
        "",
        "`qpeft verdict` on a constructed task, whose labels a circuit of two qubits computes. After this page you know "
        "what a verdict finds there, and what it misses ([what this means](../verdict.md#test-with-a-known-answer)).",
        "",
        f"* Task: the activations of a model with {HIDDEN} hidden units hold two numbers. The label is the sign of "
        "`cos(3.5 x_1 + 0.4) cos(3.5 x_2 + 0.9)`. This says nothing about language.",
        f"* Training: {STEPS} steps of {BATCH} rows, {ROWS - TEST - VALIDATION} training rows, {TEST} test rows, five seeds.",
        "* `rotations alone`: the circuit without its CNOT. `shuffled circuit`: its outputs are given to other rows.",
        f"* Made by `python -m benchmarks.instrument` from the records in `{records.folder.name}/`.",
        "",
    ]
    for subject, plan in plans(folder).items():
        found = findings(plan, records, subject)
        out += [f"## {subject[0].upper()}{subject[1:]}", "", f"> {sentence(found, subject)}", ""]
        for finding in found:
            everyone = sorted([finding.subject, *finding.others.values()], key=lambda result: result.loss.mean)
            rows = [
                [r.arm.label, f"{r.parameters:,}", f"{r.loss.mean:.3f} ± {r.loss.half_width or 0:.3f}", f"{_accuracy(r):.2f}"]
                for r in everyone
            ]
            out += table(["adapter", "trainable parameters", "test loss, nats/token", "test accuracy"], rows)
            out += difference_table(sorted(finding.rows.values(), key=lambda row: row.difference.mean), "loss")
            least, most = min(finding.visible.values()), max(finding.visible.values())
            size = f"{least:.3f} to {most:.3f} nats/token"
            told = f"Smallest true difference that five seeds show with probability 0.8, at level {LEVEL} over all comparisons"
            out += [f"{told}: {size}.", ""]
    return "\n".join(out).rstrip() + "\n"


def _accuracy(result: Any) -> float:
    values = result.values("token_accuracy")
    return sum(values) / len(values) if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instrument", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/instrument"), help="of the model, the rows and unfinished runs")
    parser.add_argument("--records", type=Path, default=Path("docs/benchmarks/instrument"))
    parser.add_argument("--page", type=Path, help="write this Markdown page")
    parser.add_argument("--html", type=Path, help="write the pages of the verdicts into this folder")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    if not options.report and not (options.folder / "data").exists():
        make_task(options.folder)
    records = StudyRecords(options.records, "instrument")
    for subject, plan in plans(options.folder).items():
        if not options.report:
            for record in StudyRunner(plan, records, options.folder / "runs").work(plan.tasks, plan.arms):
                print(f"{record.label}, seed {record.seed}: {record.metrics.get('loss', record.error)}", flush=True)
        if options.html:
            write_verdict(plan, records, subject, options.html / f"{subject.replace(' ', '-')}.html")
    if options.page:
        options.page.write_text(page(options.folder, records), encoding="utf-8")


if __name__ == "__main__":
    main()
