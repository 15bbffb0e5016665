"""`report_to` and `push_to_hub`: wandb offline and trackio write what a run logs; a stand-in of the Hub takes the adapter."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.loopback import Loopback

from qpeft.errors import ConfigError, MissingDependencyError
from qpeft.training.loop import trainer as module
from qpeft.training.recipe.config import load_recipe

ROOT = Path(__file__).parents[3]
SHORT = ["training.max_steps=4", "training.logging_steps=1", "training.save_strategy=no"]


def train(recipe: Path, folder: Path, *settings: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`qpeft train` in a process of its own: these libraries hold threads and files of the process that imports them."""
    command = [sys.executable, "-m", "qpeft.cli", "train", str(recipe), "--output", str(folder)]
    command += [part for setting in (*SHORT, *settings) for part in ("--set", setting)]
    here = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=os.environ | here, capture_output=True, text=True, cwd=folder.parent)


def losses(folder: Path) -> list[float]:
    return [point["loss"] for point in json.loads((folder / "record.json").read_text())["train_curve"]]


def test_wandb_offline(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    place = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_PROJECT": "tiny", "WANDB_SILENT": "true"}
    done = train(recipe, tmp_path / "run", "training.report_to=[wandb]", "training.run_name=first", **place)
    assert done.returncode == 0, done.stderr
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    written = file.read_bytes()
    assert b"first" in written
    assert written.count(b"train/loss") >= 4
    for loss in losses(tmp_path / "run"):
        assert repr(loss).encode() in written


def test_trackio(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    done = train(
        recipe, tmp_path / "run", "training.report_to=[trackio]", "training.run_name=first", TRACKIO_DIR=str(tmp_path / "t")
    )
    assert done.returncode == 0, done.stderr
    code = (
        "import json\nfrom trackio.sqlite_storage import SQLiteStorage as S\n"
        "print(json.dumps([S.get_logs(p, r) for p in S.get_projects() for r in S.get_runs(p)]))"
    )
    read = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TRACKIO_DIR": str(tmp_path / "t")}, capture_output=True, text=True
    )
    assert read.returncode == 0, read.stderr
    [logs] = json.loads(read.stdout.splitlines()[-1])
    assert [entry["train/loss"] for entry in logs if "train/loss" in entry] == losses(tmp_path / "run")


def test_reporters_that_are_unknown_or_not_installed(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"report_to: got .wandbb., did you mean .wandb"):
        load_recipe(recipe, ["training.report_to=wandbb"])
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(MissingDependencyError, match=r"qpeft\[reporters\]"):
        module.demand_reporters(load_recipe(recipe, ["training.report_to=wandb"]).training)


class Hub(Loopback):
    """As much of the Hub's HTTP API as an upload needs: repositories, commits, and large files by git LFS."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.repositories: list[dict[str, Any]] = []
        self.refused = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def answer(self, found: Any, status: int = 200) -> None:
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                if hub.refused:
                    self.answer({"error": "Invalid username or password."}, 401)
                elif self.path.startswith("/api/whoami"):
                    self.answer({"name": "someone", "type": "user"})
                else:
                    self.answer({"id": "someone/tiny", "sha": "0" * 40, "siblings": [], "private": True})

            def do_PUT(self) -> None:
                hub.objects[self.path.rpartition("/")[2]] = self.body()
                self.answer({})

            def do_POST(self) -> None:
                data = self.body()
                if hub.refused or "authorization" not in self.headers:
                    self.answer({"error": "Invalid username or password."}, 401)
                elif self.path == "/api/repos/create":
                    hub.repositories.append(json.loads(data))
                    self.answer({"url": f"{hub.url}/someone/tiny", "name": "someone/tiny"})
                elif "/preupload/" in self.path:
                    files = [
                        {"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in json.loads(data)["files"]
                    ]
                    self.answer({"files": files})
                elif self.path.endswith("/info/lfs/objects/batch"):
                    wanted = json.loads(data)["objects"]
                    there = [{**o, "actions": {"upload": {"href": f"{hub.url}/store/{o['oid']}"}}} for o in wanted]
                    self.answer({"transfer": "basic", "objects": there})
                elif "/commit/" in self.path:
                    hub.commit([json.loads(line) for line in data.splitlines()])
                    self.answer({"commitUrl": f"{hub.url}/someone/tiny/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True})
                else:
                    self.answer({})

        def mode(path: str) -> str:
            return "lfs" if path.endswith(".safetensors") else "regular"

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                self.files[value["path"]] = content


def test_push_to_hub(recipe: Path, tmp_path: Path) -> None:
    wanted = ["training.push_to_hub=true", "training.hub_model_id=someone/tiny", "training.hub_private_repo=true"]
    quiet = {"HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with Hub() as hub:
        done = train(recipe, tmp_path / "run", *wanted, HF_ENDPOINT=hub.url, **quiet)
        assert done.returncode == 0, done.stderr
        assert [(r["name"], r.get("private") or r.get("visibility")) for r in hub.repositories] in (
            [("tiny", True)],
            [("tiny", "private")],
        )
        written = {path.name: path.read_bytes() for path in (tmp_path / "run" / "adapter").iterdir() if path.is_file()}
        assert {"adapter_config.json", "adapter_model.safetensors"} <= hub.files.keys()
        assert {name: hub.files[name] for name in written} == written
        hub.refused = True
        refused = train(recipe, tmp_path / "other", *wanted, HF_ENDPOINT=hub.url, **quiet)
        assert refused.returncode != 0
        assert not (tmp_path / "other" / "record.json").exists()  # refused before training
        assert re.search(r"error: the hub's repository cannot be made: .*hf auth login", refused.stderr + refused.stdout)
        assert "Traceback" not in refused.stderr
