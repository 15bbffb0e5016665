"""Names of backends: what is refused, what needs permission, what is missing, and what other packages bring."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qpeft import plugins
from qpeft.backends.registry import BACKENDS, get_backend, is_origin_chip, is_paid, known_names, planned_limits
from qpeft.backends.vendors.pennylane import ANALYTIC
from qpeft.backends.vendors.pyqpanda import LOCAL, MAX_CIRCUITS_PER_JOB
from qpeft.errors import BackendError, MissingDependencyError, PluginError


@pytest.mark.parametrize(
    "name", ["", "nothing", "simulator:x", "emulator", "emulator:", ":x", "qiskit:nothing", "qiskit:no_module:x"]
)
def test_names_that_are_none(name: str) -> None:
    options = {}
    if name.startswith("qiskit"):
        pytest.importorskip("qiskit")
        options = {"allow_import": True}
    with pytest.raises(BackendError):
        get_backend(name, **options)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("pyqpanda:CPUQVM", "pyqpanda3.core", "pyqpanda"),
        ("qiskit:aer", "qiskit_aer", "aer"),
        ("pennylane:default.qubit", "pennylane", "pennylane"),
    ],
)
def test_a_missing_package_is_named_with_its_pip_line(name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf'pip install "qpeft\[{extra}\]"'):
        get_backend(name)


def test_registry_is_complete() -> None:
    assert known_names()[0] == "simulator"
    assert set(BACKENDS) >= {"simulator", "emulator", "pyqpanda", "qiskit", "pennylane"}
    with pytest.raises(BackendError, match="no such option"):
        get_backend("simulator", colour="red")


def test_a_name_imports_no_code_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(plugins.ALLOW, raising=False)
    for options in ({}, {"allow_import": False}):
        with pytest.raises(PluginError, match=r"imports code.*--allow-plugins.*QPEFT_ALLOW_PLUGINS=1.*allow_import=True"):
            get_backend("qiskit:hostile:thing", **options)
    monkeypatch.setenv(plugins.ALLOW, "1")
    with pytest.raises(PluginError, match="imports code"):
        get_backend("qiskit:hostile:thing", allow_import=False)
    assert not (tmp_path / "ran").exists()
    assert planned_limits("qiskit:hostile:thing") is not None  # a plan imports nothing
    with pytest.raises(BackendError, match="no such Qiskit backend"):
        get_backend("qiskit:hostile:thing")
    assert (tmp_path / "ran").exists()


def test_a_recipe_cannot_allow_it(tmp_path: Path) -> None:
    """`qpeft train` with a recipe that names a module, in a process of its own."""
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from pathlib import Path
from qpeft.errors import PluginError
from qpeft.training.on_chip.session import open_backend
try:
    open_backend("qiskit:hostile:thing", Path({str(tmp_path)!r}))
except PluginError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert "--allow-plugins" in done.stdout, done.stderr
    assert not (tmp_path / "ran").exists()


def test_what_is_paid_and_what_runs_here() -> None:
    assert set(BACKENDS["pyqpanda"].free) == set(LOCAL)
    assert set(BACKENDS["pennylane"].free) == set(ANALYTIC)
    for name in ("simulator", "emulator:wukong-72", "pyqpanda:CPUQVM", "qiskit:aer", "pennylane:default.qubit"):
        assert not is_paid(name)
        assert planned_limits(name) is None
    for name in ("pyqpanda:WK_C180", "qiskit:my:backend", "pennylane:qiskit.remote", "remote:http://127.0.0.1:1"):
        assert is_paid(name)
    limits = planned_limits("pyqpanda:WK_C180")
    assert limits is not None
    assert limits.max_circuits_per_job == MAX_CIRCUITS_PER_JOB
    assert is_origin_chip("pyqpanda:WK_C180")
    assert not is_origin_chip("pyqpanda:CPUQVM")
    assert not is_origin_chip("emulator:wukong-72")
