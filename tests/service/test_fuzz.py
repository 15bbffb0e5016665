"""schemathesis asks everything that the served description allows, and much that it does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service.processes import Server

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "negative_data_rejection,missing_required_header,unsupported_method,ignored_auth,use_after_free"
)


@pytest.mark.slow
@pytest.mark.parametrize("scopes", [("submit", "read", "admin"), ("worker",)], ids="-".join)
def test_schemathesis(fresh_server: Callable[..., Server], tmp_path: Path, scopes: tuple[str, ...]) -> None:
    """`positive_data_acceptance` is left out: a schema cannot say that a program is one, that a device exists, that quotas hold.
    Keys are not deleted, or the key that asks would be."""
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("schemathesis is not installed")
    quick = {"QPEFT_SERVICE_RATE_PER_S": "100000", "QPEFT_SERVICE_BAD_KEY_RATE_PER_S": "100000"}
    server = fresh_server(environment=quick, devices=("simulator", "emulator:wukong-72"))
    paths = (
        ["--include-path-regex", "^/v1/worker/"]
        if scopes == ("worker",)
        else ["--exclude-path-regex", "^/v1/(worker|events|keys/)"]
    )
    done = subprocess.run(
        [
            program, "run", f"{server.url}/openapi.json", "-H", f"Authorization: Bearer {server.new_key('fuzz', *scopes)}",
            "--phases", "coverage,fuzzing", "--checks", CHECKS, "--max-time", os.environ.get("QPEFT_FUZZ_S", "40"),
            "--seed", "1", "--no-color", *paths,
        ],
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.service.fuzz_hooks", "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:]
    assert "failed on this request" not in server.output()
