"""Reasons made by rule: what the rule is, how texts are read and judged, and a run that gives them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from qpeft.applications.predict import predict
from qpeft.applications.preparation import reasons
from qpeft.applications.preparation.own_table import own_data
from qpeft.applications.preparation.prepare import prepare, read_part, read_task
from qpeft.applications.scoring.evaluate_task import BASE, evaluate_task, greedy_answers, label_probabilities
from qpeft.applications.scoring.reasons import score_all, score_reasons
from qpeft.applications.tabular import data_frame, logistic_regression
from qpeft.applications.task import BECAUSE
from qpeft.cli import app
from qpeft.errors import DataError
from qpeft.evaluation.generate import user_turn
from qpeft.training.data.examples import Conversation, Message
from qpeft.training.data.tokenization import encode_prompt
from qpeft.training.loop.loaded_run import load_run
from qpeft.training.loop.run import train
from qpeft.training.recipe.config import load_recipe
from tests.applications.clinic import clinic_rows, write_csv


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clinic's table with two reasons an answer; the smoker column tells groups apart."""
    folder = tmp_path_factory.mktemp("explained")
    rows = [row | {"pulse": str(60 + int(row["visit_age"]) % 7)} for row in clinic_rows(120)]
    file = write_csv(folder / "clinic.csv", rows)
    prepare(own_data(file, "ill", drop=("note",), group="patient", groups=("smoker",), reasons=2), folder / "prepared")
    return folder / "prepared"


def test_the_rule_is_how_far_a_column_moves_the_log_odds_from_their_mean(explained: Path) -> None:
    task, rows = read_task(explained), read_part(explained, "test")
    fields = reasons.reason_fields(task)
    assert [f.name for f in fields] == ["visit_age", "Glucose", "pulse"]  # the group's column is no reason, and is not read
    known = data_frame(fields, [row["values"] for row in read_part(explained, "train")])
    model = logistic_regression(fields, exact=True).fit(known, [row["label"] == "yes" for row in read_part(explained, "train")])
    for row in rows[:6]:
        [here] = data_frame(fields, [row["values"]]).to_dict("records")
        whole = model.decision_function(known.assign(**here))[0]
        # what the log-odds lose when a column is as it was in the training rows, one after another, on average
        moves = {f.name: whole - model.decision_function(known.assign(**here | {f.name: known[f.name]})).mean() for f in fields}
        assert row["reasons"]["yes"] == sorted(moves, key=lambda name: -moves[name])[:2]
        assert row["reasons"]["no"] == sorted(moves, key=lambda name: moves[name])[:2]


def test_texts_of_the_form_and_others(explained: Path) -> None:
    task = read_task(explained)
    for row in read_part(explained, "test"):
        text = row["messages"][1]["content"]
        assert task.parse(text) == (row["label"], row["reasons"][row["label"]])
    assert task.parse("yes, because of visit age; glucose.") == ("yes", ["visit_age", "Glucose"])
    for text in (
        "yes",
        "",
        "perhaps, because of visit age; glucose",
        "yes, because of visit age",
        "yes, because of visit age; visit age",
        "yes, because of visit age; the moon",
        "yes, because of visit age; glucose; smoker",
    ):
        assert task.parse(text) is None


def test_judging(explained: Path) -> None:
    task, rows = read_task(explained), read_part(explained, "test")
    perfect = [row["messages"][1]["content"] for row in rows]
    assert score_reasons(task, rows, perfect) == {"parses": 1, "reasons_agree": 1, "first_agrees": 1}
    swapped = [task.explained(row["label"], row["reasons"][row["label"]][::-1]) for row in rows]
    assert score_reasons(task, rows, swapped) == {"parses": 1, "reasons_agree": 1, "first_agrees": 0}
    other = {"yes": "no", "no": "yes"}  # the reasons of the label that the text gives count, right or wrong
    wrong = [task.explained(other[row["label"]], row["reasons"][other[row["label"]]]) for row in rows]
    assert score_reasons(task, rows, [*wrong[1:], "so it is"][-1:] + wrong[1:])["parses"] == 1 - 1 / len(rows)
    found = score_all(task, read_part(explained, "train"), rows, {"mine": perfect})
    assert found["mine"]["first_agrees"] == 1 > found["the label's commonest reasons"]["reasons_agree"] > 0


def test_more_reasons_than_columns(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", clinic_rows(60))
    with pytest.raises(DataError, match="9 reasons"):
        prepare(own_data(file, "ill", drop=("note",), reasons=9), tmp_path / "out")


@pytest.mark.slow
def test_a_run_gives_reasons(explained: Path, tiny_model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"""
model: {{model_name_or_path: {tiny_model}, dtype: float32}}
adapter:
  {{peft_type: LORA, r: 16, lora_alpha: 16, target_modules: all-linear, modules_to_save: [embed_tokens], ensure_weight_tying: true}}
data: {{train: {explained}/train.jsonl, max_length: 512}}
training: {{max_steps: 300, per_device_train_batch_size: 4, learning_rate: 1.5e-2, disable_tqdm: true, save_strategy: "no"}}
"""
    )
    run = tmp_path / "run"
    train(load_recipe(recipe), run)
    found = evaluate_task(run, limit=6, batch_size=4, base=tmp_path / "base.json")
    kept = json.loads((tmp_path / "base.json").read_text())
    kept["reasons"]["value"] = [row["messages"][1]["content"] for row in read_part(explained, "test")[:6]]
    (tmp_path / "base.json").write_text(json.dumps(kept))
    assert evaluate_task(run, limit=6, base=tmp_path / "base.json")["reasons"][BASE]["parses"] == 1  # the file was believed
    assert evaluate_task(run, limit=2, base=tmp_path / "base.json")["reasons"][BASE]["parses"] == 0  # but not for other rows
    assert set(found["reasons"]) == {"adapter", BASE, "the label's commonest reasons"}
    assert found["reasons"][BASE]["parses"] == 0
    assert found["reasons"]["adapter"]["parses"] > 0.5

    said = CliRunner().invoke(app, ["evaluate-task", str(run), "--limit", "1"])
    assert "the label's commonest reasons" in said.output, said.output

    _, model, tokenizer = load_run(run)
    task, rows = read_task(explained), read_part(explained, "test")
    prompts = [row["messages"][0]["content"] for row in rows]
    told = label_probabilities(model, tokenizer, task, prompts, batch_size=3)
    for prompt, p in zip(prompts[:4], told, strict=False):  # the label's tokens count, and not what follows
        scores = []
        for answer in task.answers:
            start = encode_prompt(Conversation((Message("user", prompt), Message("assistant", ""))), tokenizer)[0]
            ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([[*start, *ids]])).logits[0].log_softmax(-1)
            scores.append(sum(logits[len(start) - 1 + k, token].item() for k, token in enumerate(ids)))
        assert math.log(p[0] / p[1]) == pytest.approx(scores[0] - scores[1], abs=1e-3)

    asked = [user_turn(prompt, None) for prompt in prompts]
    texts = greedy_answers(model, tokenizer, asked, max_new_tokens=30, batch_size=5)
    alone = [greedy_answers(model, tokenizer, [turns], max_new_tokens=30)[0] for turns in asked[:4]]
    assert texts[:4] == alone  # padding on the left changes nothing

    source = write_csv(tmp_path / "in.csv", [row["values"] for row in rows])
    predict(run, source, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as stream:
        out = list(csv.DictReader(stream))
    labels = [task.answers[k] for k in np.asarray(told).argmax(1)]
    assert [row["label"] for row in out] == ["" if row["refused"] else label for row, label in zip(out, labels, strict=True)]
    given = [row for row in out if row["reasons"]]
    assert len(given) > len(out) / 2
    assert all(task.parse(row["label"] + BECAUSE + row["reasons"]) is not None for row in given)
