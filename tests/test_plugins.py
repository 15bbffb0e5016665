"""Packages, files and modules that add things to qpeft: found by name, loaded when asked for, and never without permission."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from qpeft import plugins
from qpeft.errors import PluginError
from qpeft.plugins import Registry, load_plugins

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution with one module and entry points of the group `qpeft.tests` where Python looks for packages."""

    def put(package: str, module: str, **entry_points: str) -> Path:
        folder = tmp_path / package
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[qpeft.tests]", *lines]))
        (folder / f"{package}.py").write_text(textwrap.dedent(module))
        monkeypatch.syspath_prepend(str(folder))
        return folder

    return put


def test_a_package_is_imported_when_its_name_is_asked_for(install: Install) -> None:
    install("packaged", "THING = 7", SEVEN="packaged:THING")
    registry: Registry[int] = Registry("qpeft.tests", {"ONE": 1}, int)
    assert "SEVEN" in registry
    assert "packaged" not in sys.modules
    assert registry["SEVEN"] == 7
    assert dict(registry) == {"ONE": 1, "SEVEN": 7}
    assert len(registry) == 2


def test_what_is_built_in_needs_no_look_at_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[int] = Registry("qpeft.tests", {"ONE": 1})
    monkeypatch.setattr(plugins.importlib.metadata, "entry_points", lambda **_: pytest.fail("packages were read"))
    assert registry["ONE"] == 1


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("import not_there", "packaged.*qpeft.tests.*cannot be loaded: ModuleNotFoundError.*not_there.*uninstall"),
        ("THING = 'text'", "packaged.*is no int; got 'str'"),
        ("", "packaged.*cannot be loaded: AttributeError"),
        ("THING = type('Named', (int,), {'name': 'SIX'})()", "another name; got 'SIX'; allowed: SEVEN"),
    ],
)
def test_a_broken_package_is_named_and_leaves_the_others_alone(install: Install, module: str, words: str) -> None:
    sys.modules.pop("packaged", None)
    install("packaged", module, SEVEN="packaged:THING")
    registry: Registry[int] = Registry("qpeft.tests", {"ONE": 1}, int)
    with pytest.warns(UserWarning, match=words):
        assert list(registry) == ["ONE"]
    assert list(registry) == ["ONE"]  # said once
    with pytest.raises(PluginError, match=words):
        registry["SEVEN"]
    with pytest.raises(KeyError):
        registry["NOBODY"]


def test_nobody_replaces_what_is_there(install: Install) -> None:
    install("first", "THING = 7", ONE="first:THING", SEVEN="first:THING")
    install("second", "THING = 8", SEVEN="second:THING")
    registry: Registry[int] = Registry("qpeft.tests", {"ONE": 1})
    with pytest.warns(UserWarning, match="brings already: ignored") as told:
        assert registry["SEVEN"] == 8  # what comes first in sys.path
    assert [str(warning.message).partition(": ")[0] for warning in told] == [
        "the package first brings 'ONE' to qpeft.tests, which qpeft itself brings already",
        "the package first brings 'SEVEN' to qpeft.tests, which second brings already",
    ]
    assert registry["ONE"] == 1
    with pytest.raises(PluginError, match="has this name already; got 'ONE'"):
        registry.register("ONE", 2)
    registry.register("TWO", 2)
    assert registry["TWO"] == 2
    registry.unregister("TWO")
    assert "TWO" not in registry


def test_a_recipes_code_needs_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"with open({str(tmp_path / 'ran')!r}, 'a') as ran: ran.write('x')")
    monkeypatch.delenv(plugins.ALLOW, raising=False)
    load_plugins([])
    with pytest.raises(PluginError, match=r"loads code.*mine\.py.*--allow-plugins.*QPEFT_ALLOW_PLUGINS=1"):
        load_plugins([str(file)])
    monkeypatch.setenv(plugins.ALLOW, "0")
    with pytest.raises(PluginError, match="loads code"):
        load_plugins([str(file)])
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv(plugins.ALLOW, "1")
    load_plugins([str(file)])
    load_plugins([str(file)])
    assert (tmp_path / "ran").read_text() == "x"


def test_modules_by_their_name(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("by_name", "")
    monkeypatch.setenv(plugins.ALLOW, "1")
    load_plugins(["by_name"])
    assert "by_name" in sys.modules


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        ("nowhere.py", "no such plug-in file"),
        ("not a name", "not a plug-in.*dotted name"),
        ("qpeft.nowhere", "cannot be imported: ModuleNotFoundError"),
        ("broken.py", r"broken\.py cannot be loaded: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin: str, words: str) -> None:
    monkeypatch.setenv(plugins.ALLOW, "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(PluginError, match=words):
        load_plugins([plugin])


RECIPE = """
name: mine
plugins: [mine.py]
model: {model_name_or_path: MODEL}
adapter: {peft_type: SWISH, r: 2}
data: {train: rows.jsonl}
"""


def test_a_recipes_plugin_is_found_beside_it(tmp_path: Path) -> None:
    """In a process of its own, since a plug-in stays in the process that loads it."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(RECIPE.replace("MODEL", str(tmp_path / "model")))
    (tmp_path / "recipes" / "rows.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "recipes" / "mine.py").write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        from qpeft.adapters.methods.cayley import CayleyConfig, CayleyUnitary
        from qpeft.adapters.registry import Method, register

        @dataclass
        class SwishConfig(CayleyConfig):
            r: int = 1

        register(Method("SWISH", SwishConfig, CayleyUnitary, "nowhere", "a test"))
        """)
    )
    program = textwrap.dedent("""
        from qpeft.training.recipe.config import load_recipe
        config = load_recipe("recipes/mine.yaml")
        print(config.adapter, *config.plugins)
    """)

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, cwd=tmp_path, env={**plugins.os.environ, **environment}, capture_output=True, text=True)

    told = run(**{plugins.ALLOW: "1"})
    assert told.stdout.split("}")[1].strip() == str(tmp_path / "recipes" / "mine.py"), told.stderr
    refused = run(**{plugins.ALLOW: ""})
    assert refused.returncode == 1
    assert "mine.yaml:3: plugins.0: the recipe loads code" in refused.stderr
