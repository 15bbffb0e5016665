"""Likelihoods of answers, with the prompt computed once, against plain forward passes; and what a run is judged by."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from qpeft.applications.predict import predict
from qpeft.applications.preparation.prepare import read_part, read_task
from qpeft.applications.scoring.evaluate_task import BASE, evaluate_task, read_result
from qpeft.applications.scoring.model_card import NO_DEVICE
from qpeft.errors import DataError, RunError
from qpeft.evaluation.classify import label_log_likelihoods, probabilities
from qpeft.training.data.examples import Conversation, Message
from qpeft.training.data.tokenization import IGNORED, tokenize
from qpeft.training.loop.loaded_run import load_run
from qpeft.training.model.prefix_sharing import takes_trees
from tests.applications.clinic import write_csv


def one_by_one(model, tokenizer, prompts, answers, system=None):  # type: ignore[no-untyped-def]
    import torch

    start = (Message("system", system),) if system else ()
    scores = np.zeros((len(prompts), len(answers)))
    for i, prompt in enumerate(prompts):
        for j, answer in enumerate(answers):
            row = tokenize(Conversation((*start, Message("user", prompt), Message("assistant", answer))), tokenizer, 10**6)
            labels = torch.tensor(row["labels"][1:])
            with torch.inference_mode():
                told = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
            scores[i, j] = sum(told[t, label].item() for t, label in enumerate(labels) if label != IGNORED)
    return scores


def test_likelihoods_are_those_of_whole_passes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, tokenizer = load_run(run)
    prompts = ["Short?", "A prompt that is quite a bit longer than the other one.", "Mid length prompt?"]
    answers = ["good", "bad", "goodness", "b", "bed"]  # one begins with another; lengths differ
    assert takes_trees(model)
    for system in (None, "Be brief."):
        expected = one_by_one(model, tokenizer, prompts, answers, system)
        for size, trees in itertools.product((1, 2, 3), (True, False)):
            monkeypatch.setattr("qpeft.evaluation.classify.takes_trees", lambda _, trees=trees: trees)
            found = label_log_likelihoods(model, tokenizer, prompts, answers, system=system, batch_size=size)
            np.testing.assert_allclose(found, expected, atol=2e-4)
    p = probabilities(expected)
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_allclose(np.log(p[:, 0] / p[:, 1]), expected[:, 0] - expected[:, 1])
    with pytest.raises(DataError, match="same tokens"):
        label_log_likelihoods(model, tokenizer, prompts, ["a", "a"])


def test_a_run_is_judged_beside_base_and_baselines(run: Path, clinic: Path) -> None:
    unrelated = clinic.parent / "other.jsonl"
    unrelated.write_text("".join(json.dumps({"text": f"Rain falls on hill {i}."}) + "\n" for i in range(4)))
    found = evaluate_task(run, unrelated=str(unrelated))
    assert found == json.loads(json.dumps(read_result(run)))
    rows = read_part(clinic, "test")
    assert found["rows"] == len(rows)
    assert set(found["models"]) == {"adapter", BASE, "most frequent", "logistic regression", "gradient boosting"}
    assert found["models"]["logistic regression"]["auroc"] > 0.85  # the table is made to be learned
    _, model, tokenizer = load_run(run)
    truth = np.array([row["label"] == "yes" for row in rows])
    for name, given in (("adapter", model), (BASE, model.unload())):
        scores = one_by_one(given, tokenizer, [row["messages"][0]["content"] for row in rows], ["no", "yes"])
        assert found["models"][name]["accuracy"] == pytest.approx(((scores[:, 1] > scores[:, 0]) == truth).mean())
    assert found["unrelated"]["adapter"] != found["unrelated"][BASE]
    gap = found["difference"][BASE]
    assert gap["accuracy"] == pytest.approx(found["models"]["adapter"]["accuracy"] - found["models"][BASE]["accuracy"])
    assert gap["low"] <= gap["accuracy"] <= gap["high"]
    smokers = found["groups"]["smoker"]
    assert {v: cell["rows"] for v, cell in smokers.items()} == {v: sum(r["values"]["smoker"] == v for r in rows) for v in "ny"}
    whole = sum(cell["rows"] * cell["adapter"]["accuracy"] for cell in smokers.values()) / len(rows)
    assert whole == pytest.approx(found["models"]["adapter"]["accuracy"])
    assert sum(b["count"] for b in found["reliability"]["adapter"]) == len(rows)
    card = (run / "MODEL_CARD.md").read_text()
    for words in (NO_DEVICE, read_task(clinic).limits[0], found["rows_sha256"], f"{found['models'][BASE]['accuracy']:.3f}"):
        assert words in card


def test_predictions_and_refusals(run: Path, clinic: Path, tmp_path: Path) -> None:
    rows = read_part(clinic, "test")
    given = [{"id": str(i), **row["values"]} for i, row in enumerate(rows[:6])]
    given += [{**given[0], "id": "odd", "smoker": "cigar"}, {**given[0], "id": "odd", "smoker": "pipe", "visit_age": ""}]
    source, target = write_csv(tmp_path / "in.csv", given), tmp_path / "out.csv"
    assert predict(run, source, target) == {"rows": 8, "warned": 0, "refused": 2}
    with target.open(newline="") as stream:
        out = list(csv.DictReader(stream))
    assert [row["id"] for row in out] == [row["id"] for row in given]
    _, model, tokenizer = load_run(run)
    task = read_task(clinic)
    p = probabilities(one_by_one(model, tokenizer, [row["messages"][0]["content"] for row in rows[:6]], task.answers))
    assert [row["label"] for row in out[:6]] == [task.answers[k] for k in p.argmax(1)]
    np.testing.assert_allclose([float(row["probability"]) for row in out[:6]], p.max(1), atol=1e-4)
    assert all(row["refused"] == "" for row in out[:6])
    assert out[6]["label"] == out[6]["probability"] == ""
    assert "'cigar'" in out[6]["refused"]
    assert "'pipe'" in out[7]["refused"]
    assert "visit_age is missing" in out[7]["refused"]
    with pytest.raises(DataError, match="exists"):
        predict(run, source, target)
    with pytest.raises(DataError, match="Glucose"):
        predict(run, write_csv(tmp_path / "less.csv", [{"smoker": "y", "visit_age": "30"}]), tmp_path / "o.csv")
    with pytest.raises(RunError, match="not a run"):
        predict(tmp_path, source, tmp_path / "o.csv")


def test_rows_that_are_all_refused_need_no_model(run: Path, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", [{"visit_age": "30", "smoker": "no", "Glucose": "100"}])
    assert predict(run, source, tmp_path / "out.csv") == {"rows": 1, "warned": 0, "refused": 1}
