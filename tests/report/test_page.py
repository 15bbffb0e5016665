"""The report as files: complete, self-contained, escaped, deterministic."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from qpeft.errors import MissingDependencyError, RunError
from qpeft.records import RunRecord, append_record, read_records
from qpeft.report import Built, build
from qpeft.report.page import _fenced, markdown_text

Record = Callable[..., RunRecord]
HOSTILE = "<script>alert(1)</script> a|b `c` *d* [e](f) $g$ \\ & \"'"


class Page(HTMLParser):
    """Tags, text and tables of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(text)
        self.rows = [[cell.strip() for cell in row] for row in self.rows]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "srcset", "href"}]
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in {"td", "th"}

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "style":
            return
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def eight(eight_by_five: list[RunRecord], tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(eight_by_five, tmp_path_factory.mktemp("eight"))


@pytest.fixture(scope="module")
def hostile(record: Record, tmp_path_factory: pytest.TempPathFactory) -> Built:
    runs = [record(label=label, seed=seed, group=HOSTILE, model=HOSTILE) for label in (HOSTILE, "plain") for seed in (0, 1)]
    runs.append(
        record(
            label="broken",
            group=HOSTILE,
            model=HOSTILE,
            status="failed",
            error=f"line 1\n{HOSTILE}",
            metrics={},
            config={HOSTILE: "```\n</pre><script>"},
            machine={"cpu": HOSTILE},
        )
    )
    return build(runs, tmp_path_factory.mktemp("hostile"), title=HOSTILE)


def rendered(markdown: Path) -> Page:
    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown.read_text(encoding="utf-8")))


def test_files(eight: Built) -> None:
    folder = eight.html.parent
    assert {path.name for path in folder.iterdir()} == {"report.md", "report.html", "hero.png", "curves.png", "tradeoff.png"}
    assert eight.hero == folder / "hero.png"
    assert eight.plots == (folder / "hero.png", folder / "curves.png", folder / "tradeoff.png")


@pytest.mark.parametrize("kind", ["html", "markdown"])
def test_what_the_page_says(eight: Built, kind: str) -> None:
    page = Page(eight.html.read_text(encoding="utf-8")) if kind == "html" else rendered(eight.markdown)
    for text in (
        "no quantum advantage is claimed",
        "Circuits simulated exactly: QTHA r=8, Quantum-PEFT L=3",
        "134,515,008 parameters",
        "train 3f3f3f3f3f3f3f3f",
        "200 steps, 204,800 tokens per run",
        "0, 1, 2, 3, 4",
        "torch 2.6.0",
        "cpu Example CPU",
        "39 finished, 1 failed",
        "loss is not finite at step 12",
        "QTHA without entanglement (4 of 5)",
        "Share of LoRA r=8",
        "does not separate it from",
        "Paired differences in held-out loss from LoRA r=8",
        "corrected by Holm over 7 comparisons",
        "Fewer than 5 paired seeds prove nothing",
        "learning_rate: 0.001",
    ):
        assert text in page.text, text
    row = next(row for row in page.rows if row[0] == "QTHA r=8")
    assert row[1:4] == ["5", "52,110", "11.3%"]
    assert "2.2189 ± 0.0086" in row[4]
    assert "3.4120" in row[4]


def test_every_run_is_listed(eight: Built, eight_by_five: list[RunRecord]) -> None:
    for page in (Page(eight.html.read_text(encoding="utf-8")), rendered(eight.markdown)):
        listed = {(row[0], row[1], row[2], row[3]) for row in page.rows if len(row) > 3}
        assert {(run.id[:12], run.label, str(run.seed), run.status) for run in eight_by_five} <= listed


def test_runs_that_differ_in_seed_alone_share_their_settings(eight: Built) -> None:
    text = eight.html.read_text(encoding="utf-8")
    assert "Settings 8 (" in text
    assert "Settings 9 (" not in text


def test_html_needs_no_network_and_runs_its_own_script_alone(eight: Built) -> None:
    text = eight.html.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"link", "iframe", "object", "img"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"url\((?!#)|src=|href=\"(?!#)", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert text.count('<div class="plot"') == 2  # curves and trade-off
    assert len(text) < 1_000_000


def test_a_row_picks_its_arm_out_of_the_plots(eight: Built) -> None:
    text = eight.html.read_text(encoding="utf-8")
    numbers = re.findall(r'<tr data-arm="(\d+)">', text)
    assert numbers == [str(number) for number in range(8)]
    for number in numbers:
        assert f'class="arm arm-{number}"' in text
        assert f"tr[data-arm='{number}']:hover) .arm-{number}" in text


def test_markdown_links_to_the_plots(eight: Built) -> None:
    links = rendered(eight.markdown).links
    assert links == ["curves.png", "tradeoff.png"]


def test_equal_records_give_equal_files(two_by_two: list[RunRecord], tmp_path: Path) -> None:
    first, second = build(two_by_two, tmp_path / "a"), build(iter(two_by_two), tmp_path / "b")
    for name in ("report.md", "report.html", *(path.name for path in first.plots)):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert [path.name for path in first.plots] == [path.name for path in second.plots]


def test_the_way_through_a_file_changes_nothing(two_by_two: list[RunRecord], tmp_path: Path) -> None:
    runs = [dataclasses.replace(run, train_curve=(), eval_curve=()) for run in two_by_two]
    for run in runs:
        append_record(tmp_path / "records.jsonl", run)
    direct, read = build(runs, tmp_path / "a"), build(read_records(tmp_path / "records.jsonl"), tmp_path / "b")
    assert direct.markdown.read_bytes() == read.markdown.read_bytes()


def test_html_shows_hostile_text_as_text(hostile: Built) -> None:
    page = Page(hostile.html.read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1  # its own
    assert "alert" in page.text
    names = [row[0] for row in page.rows]
    assert HOSTILE in names
    assert f"{HOSTILE}: {HOSTILE}" in page.text


def test_markdown_shows_hostile_text_as_text(hostile: Built) -> None:
    page = rendered(hostile.markdown)
    assert "script" not in page.tags
    assert {"em", "a"} & set(page.tags) == set()
    results = [row for row in page.rows if row[0] == HOSTILE]
    assert results, [row[0] for row in page.rows]
    header = next(row for row in page.rows if row[0] == "Arm")
    assert all(len(row) == len(header) for row in page.rows if row[0] in {HOSTILE, "plain", "broken"} and len(row) > 6)
    assert "```\n" in page.text  # the settings that hold a fence stay inside their own
    assert page.text.rstrip().endswith("steps: 200") or "</pre><script>" in page.text


def test_sections_are_apart(record: Record, tmp_path: Path) -> None:
    runs = [record(label=label, group=group) for group in ("one", "two") for label in "ab"]
    built = build(runs, tmp_path)
    assert [path.name for path in built.plots] == [
        *("hero.png", "curves.png", "tradeoff.png"),
        *("hero-2.png", "curves-2.png", "tradeoff-2.png"),
    ]
    page = Page(built.html.read_text(encoding="utf-8"))
    assert [link for link in page.links if link.startswith("#")] == ["#section-1", "#section-2"]
    assert "one: SmolLM2-135M" in page.text
    assert "two: SmolLM2-135M" in page.text
    assert rendered(built.markdown).links == ["curves.png", "tradeoff.png", "curves-2.png", "tradeoff-2.png"]


def test_no_circuits_no_claim_about_them(record: Record, tmp_path: Path) -> None:
    text = build([record(train_curve=(), eval_curve=())], tmp_path).html.read_text(encoding="utf-8")
    assert "advantage" not in text
    assert "Circuits" not in text


def test_only_failed_runs(record: Record, tmp_path: Path) -> None:
    failed = record(status="failed", error="out of memory", metrics={}, trainable_parameters=0)
    built = build([failed], tmp_path)
    assert (built.plots, built.hero) == ((), None)
    for page in (Page(built.html.read_text(encoding="utf-8")), rendered(built.markdown)):
        assert "out of memory" in page.text
        assert "0 finished, 1 failed" in page.text


def test_superseded_runs_are_listed(record: Record, tmp_path: Path) -> None:
    old = record(created_at="2024-01-01T00:00:00+00:00", train_curve=(), eval_curve=())
    built = build([old, record(train_curve=(), eval_curve=())], tmp_path)
    assert [old.id[:12], "superseded (ok)"] in [[row[0], row[3]] for row in rendered(built.markdown).rows if len(row) > 3]


def test_title(record: Record, tmp_path: Path) -> None:
    run = record(train_curve=(), eval_curve=())
    assert build([run], tmp_path).markdown.read_text(encoding="utf-8").startswith("# Fine-tuning report: dolly-small\n")
    assert build([run], tmp_path, title="My  title").markdown.read_text(encoding="utf-8").startswith("# My title\n")


def test_nothing_to_report(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").touch()
    with pytest.raises(RunError, match=r"no records.*hint"):
        build(read_records(tmp_path / "records.jsonl"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_folder_is_a_file(record: Record, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(RunError, match="hint"):
        build([record()], tmp_path / "out")


def test_jinja_missing(monkeypatch: pytest.MonkeyPatch, record: Record, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match=r"qpeft\[report\]"):
        build([record(train_curve=(), eval_curve=())], tmp_path)


def test_import_loads_no_optional_package_and_no_training() -> None:
    code = "import sys, qpeft.report; print(sorted({m.split('.')[0] for m in sys.modules} | set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("matplotlib", "scipy", "jinja2", "torch", "qpeft.training", "qpeft.adapters"):
        assert f"'{name}'" not in loaded
    assert "'qpeft.report'" in loaded


@pytest.mark.parametrize("text", [HOSTILE, "a\n\n# b", "__x__ and snake_case", "- item", "~~x~~ ![i](j)", "&lt; <b> &amp;"])
def test_markdown_text_renders_as_itself(text: str) -> None:
    page = Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(f"| h |\n| - |\n| {markdown_text(text)} |\n"))
    assert page.rows[-1] == [" ".join(text.split())]
    assert set(page.tags) == {"table", "thead", "tbody", "tr", "th", "td"}


def test_a_fence_is_longer_than_those_inside() -> None:
    assert _fenced("a ``` b ````` c").startswith("``````yaml\n")
    assert _fenced("a").startswith("```yaml\n")
