"""The page of the special jobs says what the results say."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import applications
from benchmarks import applications_page as page
from tests.applications.published import skip_unless_fetched

ROOT = Path(__file__).parents[2]

CURVE = [{"confidence": 0.6, "accuracy": 0.5, "count": 4.0}, {"confidence": 0.9, "accuracy": 1.0, "count": 6.0}]
PLAIN = {"base model": 0.5, "logistic regression": 0.8, "most frequent": 0.5}


def result(label: str, seed: int, value: float, task: str = "loans") -> dict[str, Any]:
    models = {name: {"accuracy": v, "balanced_accuracy": v, "auroc": v, "ece": 0.1} for name, v in PLAIN.items()}
    models["adapter"] = {"accuracy": value, "balanced_accuracy": value, "auroc": value, "ece": 0.2}
    cells = {name: {"accuracy": 0.5, "true_positive_rate": 0.25} for name in models}
    return {
        "task": task,
        "model": "small",
        "label": label,
        "seed": seed,
        "rows": 10,
        "part": "test",
        "rows_sha256": "ab" * 32,
        "trainable_parameters": 1234,
        "training": {"max_steps": 3, "per_device_train_batch_size": 2, "max_length": 64},
        "models": models,
        "groups": {"age": {"old": {"rows": 4, **cells}, "young": {"rows": 6, **cells}}},
        "reliability": dict.fromkeys(models, CURVE),
        "unrelated": {"adapter": 2.5, "base model": 2.0},
    }


@pytest.fixture
def results() -> list[dict[str, Any]]:
    return [
        result("one", 0, 0.6),
        result("two", 0, 0.5),
        result("one", 1, 0.8),
        result("two", 1, 0.6),
        result("one", 0, 0.7, "news"),
    ]


def test_means_intervals_and_differences(results: list[dict[str, Any]]) -> None:
    text = "\n".join(page.page(results))
    quantile = math.tan(math.pi / 2 * 0.95)  # of Student's t with one degree of freedom
    half = quantile * math.sqrt(0.02) / math.sqrt(2)
    assert f"| one | 1,234 | 2 | 0.700 ± {half:.3f} |" in text
    assert "| logistic regression | - | - | 0.800 | 0.800 | 0.800 | 0.100 | - |" in text
    row = re.search(r"\| one − two \| 2 \| (\S+) ± (\S+) \| (\S+) \|", text)
    assert row is not None
    assert float(row[1]) == pytest.approx(0.15)
    assert float(row[2]) == pytest.approx(quantile * math.sqrt(0.005) / math.sqrt(2), abs=1e-3)
    assert float(row[3]) == pytest.approx(2 * math.atan(1 / 3) / math.pi, abs=0.01)  # t = 3
    assert "| one | 1,234 | 1 | 0.700 | 0.700 | 0.700 | 0.200 | 0.500 |" in text  # one seed has no interval
    assert "| old | 4 | 0.50 (0.25) |" in text


def test_what_stands_above_the_mark_stays(results: list[dict[str, Any]], tmp_path: Path) -> None:
    file, picture = tmp_path / "page.md", tmp_path / "page.png"
    file.write_text(f"By hand.\n\n{page.MARK}\n\nold\n")
    page.write(results, file, picture)
    text = file.read_text()
    assert text.startswith(f"By hand.\n\n{page.MARK}\n\n## loans, small")
    assert "old\n" not in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    page.write(results, file, picture)
    assert file.read_text() == text


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    told = (ROOT / applications.PAGE).read_text(encoding="utf-8").partition(page.MARK)[2]
    if results := applications.read(ROOT):
        assert told == "\n\n" + "\n".join(page.page(results)) + "\n", "run: python -m benchmarks.applications"


@pytest.mark.slow
def test_a_result_is_made_once(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    skip_unless_fetched("pima-diabetes")
    monkeypatch.chdir(tmp_path)
    for name in ("RECIPES", "UNRELATED"):
        monkeypatch.setattr(applications, name, ROOT / getattr(applications, name))
    for folder in ("docs/benchmarks", "docs/images"):
        (tmp_path / folder).mkdir(parents=True)
    applications.PAGE.write_text("By hand.\n")
    given = [
        "pima-diabetes",
        "--seeds",
        "1",
        "--arms",
        "LoRA r=1",
        "--limit",
        "12",
        "--called",
        "tiny",
        "--set",
        "training.max_steps=1",
    ]
    given += [
        "--set",
        f"model.model_name_or_path={tiny_model}",
        "--set",
        "training.disable_tqdm=true",
        "--set",
        "data.max_length=1024",
    ]
    applications.main(given)
    text = applications.RESULTS.read_text()
    [result] = applications.read()
    assert (result["model"], result["label"], result["seed"], result["rows"]) == ("tiny", "LoRA r=1", 0, 12)
    assert "## pima-diabetes, tiny" in applications.PAGE.read_text()
    assert applications.PICTURE.read_bytes().startswith(b"\x89PNG")
    shutil.rmtree(tmp_path / "runs")
    applications.main(given)  # known: neither trained nor judged again, though the run is gone
    assert applications.RESULTS.read_text() == text
    assert not list((tmp_path / "runs").rglob("adapter"))
    applications.main([*given, "--seeds", "2"])
    assert [r["seed"] for r in applications.read()] == [0, 1]
