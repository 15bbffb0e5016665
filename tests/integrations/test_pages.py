"""The examples of docs/integrations, in the client's own environment against a running service."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import entry_points, peer_python, run_peer
from tests.service.iqm_server import iqm_server
from tests.service.processes import Server

pytestmark = pytest.mark.timeout(1800)  # the first run installs

PAGES = Path(__file__).parents[2] / "docs" / "integrations"
CLIENTS = {
    "iqm-client": ("iqm-client[qiskit,cirq]>=36",),
    "pennylane-iqm": ("pennylane-iqm>=0.7",),
    "iqm-qdmi": ("iqm-qdmi[qiskit]>=1.5",),
}


def blocks(page: str, language: str, marked: str = "") -> list[str]:
    """The fenced blocks of a page in this language, with this in the comment above them."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    found = re.finditer(rf"(?:<!-- (?P<mark>[^\n]+) -->\n)?```{language}\n(?P<text>.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [match["text"] for match in found if marked in (match["mark"] or "")]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with iqm_server(tmp_path_factory.mktemp("doors")) as server:
        yield server


def variables(cloud: Server, user: str) -> dict[str, str]:
    return {"IQM_SERVER_URL": cloud.url, "IQM_QUANTUM_COMPUTER": "wukong72", "IQM_TOKEN": cloud.new_key(user)}


@pytest.mark.peer
@pytest.mark.parametrize("name", CLIENTS)
def test_the_page_s_examples(cloud: Server, name: str) -> None:
    python = peer_python(name, *CLIENTS[name], ours=False)
    found = blocks(name, "python", "tests/integrations/test_pages.py")
    assert found
    told = variables(cloud, name)
    if name == "pennylane-iqm":  # which takes the chip from the address alone
        told["IQM_SERVER_URL"] += "/" + told.pop("IQM_QUANTUM_COMPUTER")
    for block in found:
        run_peer(python, block, **told)


@pytest.mark.peer
def test_two_tenants_of_iqm_client(cloud: Server) -> None:
    """One tenant's job is not there for another, through the client too."""
    python = peer_python("iqm-client", *CLIENTS["iqm-client"], ours=False)
    mine = """
import os
from iqm.qiskit_iqm import IQMProvider
from qiskit import QuantumCircuit, transpile
backend = IQMProvider(os.environ["IQM_SERVER_URL"]).get_backend()
circuit = QuantumCircuit(1)
circuit.x(0)
circuit.measure_all()
job = backend.run(transpile(circuit, backend), shots=10)
job.result()
print(job.job_id())
"""
    job = run_peer(python, mine, **variables(cloud, "first tenant")).split()[-1]
    theirs = f"""
import os
from iqm.qiskit_iqm import IQMProvider
backend = IQMProvider(os.environ["IQM_SERVER_URL"]).get_backend()
try:
    print(backend.retrieve_job({job!r}).result().get_counts())
except Exception as error:
    print("refused:", error)
"""
    assert "refused: " in run_peer(python, theirs, **variables(cloud, "second tenant"))


@pytest.mark.peer
def test_qrmi_s_task_runner_with_slurm_s_variables(cloud: Server, tmp_path: Path) -> None:
    python = peer_python("qrmi", "qrmi>=0.26", ours=False)
    task = next(text for text in blocks("qrmi", "json") if "iqmjson" in text)
    (tmp_path / "task.json").write_text(task)
    environment = os.environ | {
        "QRMI_JOB_QPU_RESOURCES": "wukong72",
        "QRMI_JOB_QPU_TYPES": "iqm-server",
        "wukong72_QRMI_IQM_ISA_ENDPOINT": cloud.url,
        "wukong72_QRMI_IQM_ISA_TOKEN": cloud.new_key("qrmi"),
    }
    runner = Path(python).parent / "task_runner"
    command = [runner, "wukong72", tmp_path / "task.json", tmp_path / "result.json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "result.json").read_text()
    shots = next(one for one in _lists_under(json.loads(text), "m") if len(one) == 500)
    assert sum(a == b for a, b in shots) > 300  # a Bell pair, with noise


def _lists_under(found: object, key: str) -> Iterator[list[list[int]]]:
    """Every value of this key, however deep."""
    for one in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from _lists_under(one, key)
    if isinstance(found, dict) and isinstance(found.get(key), list):
        yield found[key]


def test_cuda_q_s_requests_by_hand(cloud: Server) -> None:
    (block,) = blocks("cuda-q", "python", "tests/integrations/test_pages.py")
    done = subprocess.run(
        [sys.executable, "-c", block],
        env=os.environ | variables(cloud, "cuda-q"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.peer
def test_qbraid(tmp_path: Path) -> None:
    python = peer_python("qbraid", "qbraid>=0.13")
    (block,) = blocks("qbraid", "python", "tests/integrations/test_pages.py")
    run_peer(python, block, PYTHONPATH=str(entry_points(tmp_path / "site")))


LM_EVAL = """
task: counting
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: label
"""


@pytest.mark.peer
def test_lm_eval_s_own_command(tmp_path: Path, tiny_model: Path) -> None:
    """`qpeft exec lm_eval`: the harness's command, unchanged, on an adapter of ours and a task of files."""
    pure = ("pytablewriter", "sacrebleu", "sqlitedict", "word2number", "more_itertools")
    python = peer_python("lm-eval", *pure, bare=("lm-eval>=0.4.13", "evaluate"))
    make = f"""
import qpeft
from peft import get_peft_model
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tiny_model)!r})
config = qpeft.QTHAConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
get_peft_model(model, config).save_pretrained({str(tmp_path / "adapter")!r})
"""
    run_peer(python, make)
    rows = [{"question": f"Is {k} even?", "label": k % 2} for k in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "counting.yaml").write_text(LM_EVAL.format(file=tmp_path / "rows.jsonl", cache=tmp_path / "cache"))
    command = f"""
import sys
from qpeft.cli import main
sys.argv = ["qpeft", "exec", {str(Path(python).parent / "lm_eval")!r}, "run", "--model", "hf", "--tasks", "counting"]
sys.argv += ["--device", "cpu", "--include_path", {str(tmp_path)!r}]
sys.argv += ["--model_args", "pretrained={tiny_model},peft={tmp_path / "adapter"}"]
main()
"""
    found = run_peer(python, command, HF_HUB_OFFLINE="1", PYTHONPATH=str(entry_points(tmp_path / "site")))
    assert "counting" in found
    assert "acc" in found
