"""Exam questions of medicine and finance through lm-evaluation-harness."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qpeft.evaluation.lm_eval import SUITES, spell_suites


def test_suites_are_spelled_out_after_tasks_alone() -> None:
    given = ["--tasks", "medical,arc_easy", "--output_path", "financial"]
    assert spell_suites(given) == ["--tasks", "multimedqa,arc_easy", "--output_path", "financial"]
    assert spell_suites(["--tasks=financial"]) == [f"--tasks={','.join(SUITES['financial'])}"]
    assert spell_suites(["-t", "medical", "--limit", "3"]) == ["-t", "multimedqa", "--limit", "3"]


@pytest.mark.slow
def test_suites_name_tasks_of_the_harness() -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    known = set(tasks.TaskManager().all_tasks)
    assert not set(SUITES) & known  # no name of ours hides one of the harness's
    for suite in SUITES.values():
        assert set(suite) <= known


LOCAL = """
include: {include}
task: {name}
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
training_split: null
validation_split: null
fewshot_split: null
tag: null
"""
MEDQA = [
    {"id": f"q{i}", "sent1": f"A patient of {i} years coughs. Which is likeliest?", "sent2": "", "label": i % 4}
    | {f"ending{k}": f"illness {k}" for k in range(4)}
    for i in range(5)
]
MMLU = [{"question": f"What is {i} per cent of 100?", "subject": "x", "choices": list("1234"), "answer": i % 4} for i in range(5)]


@pytest.mark.slow
def test_the_harness_s_prompts_on_files_of_the_same_shape(run: Path, tmp_path: Path) -> None:
    package = Path(pytest.importorskip("lm_eval").__file__).parent / "tasks"
    for name, include, rows in (
        ("medqa_local", "medqa/medqa.yaml", MEDQA),
        ("accounting_local", "mmlu/default/mmlu_professional_accounting.yaml", MMLU),
    ):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = LOCAL.format(include=package / include, name=name, file=file, cache=tmp_path / "cache")
        (tmp_path / f"{name}.yaml").write_text(task)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "qpeft.cli", "lm-eval", str(run), "--tasks", "medqa_local,accounting_local", "--device", "cpu"]
    command += ["--include_path", str(tmp_path), "--log_samples", "--output_path", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    [results] = out.rglob("results_*.json")
    found = json.loads(results.read_text())["results"]
    assert {name: found[name]["sample_len"] for name in found} == {"medqa_local": 5, "accounting_local": 5}
    [samples] = out.rglob("samples_medqa_local_*.jsonl")
    first = json.loads(samples.read_text().splitlines()[0])
    assert first["arguments"]["gen_args_0"]["arg_0"].endswith("A. illness 0\nB. illness 1\nC. illness 2\nD. illness 3\nAnswer:")
