"""Alert rules and the Grafana board: expressions are PromQL over metrics that there are, and alerts fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from qpeft.service import metrics

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
BOARD = json.loads((FOLDER / "grafana.json").read_text())


def known() -> set[str]:
    """Names of the service's series, with the suffixes that counters and histograms have."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    names = {family.name for family in families if family.name.startswith("qpeft_")}
    return names | {name + suffix for name in names for suffix in ("_total", "_bucket", "_count", "_sum")}


def selectors(expression: Any) -> Iterator[Any]:
    """Every vector selector of a parsed expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
    for name in ("vector_selector", "expr", "lhs", "rhs", "args", "param"):
        child = getattr(expression, name, None)
        for one in child if isinstance(child, list) else [child] if child is not None and not isinstance(child, str) else []:
            yield from selectors(one)


def check(text: str) -> None:
    found = {selector.name for selector in selectors(promql_parser.parse(text))}
    assert found, text
    assert found <= known() | {"up"}, (text, found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_rules_ask_for_metrics_that_there_are(rule: dict[str, Any]) -> None:
    check(rule["expr"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]


def test_every_panel_of_the_board_asks_for_metrics_that_there_are() -> None:
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= 24 - place["w"]
        for target in panel["targets"]:
            check(target["expr"].replace("$instance", "a"))
            assert re.fullmatch("[A-Z]", target["refId"])
    taken = [(x, y) for p in (panel["gridPos"] for panel in panels) for x in range(p["x"], p["x"] + p["w"])
             for y in range(p["y"], p["y"] + p["h"])]  # fmt: skip
    assert len(set(taken)) == len(taken)  # no panel lies on another


def test_the_board_is_what_grafanas_own_library_reads() -> None:
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    board = models.Dashboard.from_json(BOARD)
    assert board.title == "qpeft task service"
    assert len(board.panels) == len(BOARD["panels"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)")
@pytest.mark.parametrize("arguments", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")], ids="-".join)
def test_prometheus_takes_the_rules(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
