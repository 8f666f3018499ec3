"""deploy/prometheus and deploy/grafana as files: valid, tested, in step with each other, the code and the documents."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.prometheus_server import CONFIG, DASHBOARDS, RULES, conditions, find_program, panels, rules
from tests.running import ROOT
from tests.unit.test_docs import anchors

from stoker.config import load
from stoker.errors import OperatorError, StokerError
from stoker.http import app
from stoker.observability.live import FIGURES
from stoker.observability.metrics import Metrics

GRAFANA = ROOT / "deploy" / "grafana"
UNIT_TESTS = RULES.with_name("stoker.rules.test.yml")
ALERTS = [rule for rule in rules() if "alert" in rule]
NAME = re.compile(r"\b(?:stoker|gen_ai|process|python)_[a-z0-9_]+\b(?=[{\[\s)<>=]|$)")
FOREIGN = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"}
FOREIGN |= {"python_gc_collections_total"}
NO_SERIES = {"gen_ai_request_model", "gen_ai_operation_name"}

every_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
every_alert = pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])


def promtool(*words: str) -> str:
    """What promtool says when it succeeds; a failed test otherwise."""
    done = subprocess.run([find_program("promtool"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def expressions() -> Iterator[str]:
    """Every expression of rules and dashboards."""
    yield from (rule["expr"] for rule in rules())
    for dashboard in DASHBOARDS:
        yield from (target["expr"] for panel in panels(dashboard) for target in panel["targets"])


def known_series() -> set[str]:
    """What Stoker exports, by its own declarations, and what the rules record."""
    found = FOREIGN | {figure.name for figure in FIGURES}
    for family in Metrics().families:
        ends = ("_bucket", "_count", "_sum") if family.kind == "histogram" else ("",)
        found |= {family.name + end for end in ends}
    return found


def error_codes() -> tuple[set[str], set[str]]:
    """The codes of errors that requests may end with: the server's, and all others."""
    assert app  # brings in every room that a request passes through
    kinds, server, others = [StokerError], set(), set()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        ours = kind.__module__.startswith("stoker.") and not kind.__module__.startswith("stoker.cli.")
        if ours and not issubclass(kind, OperatorError):
            (server if kind.status >= 500 else others).add(kind.code)
    return server, others - server


class TestRules:
    def test_promtool_finds_them_valid(self) -> None:
        assert "SUCCESS" in promtool("check", "rules", str(RULES))

    def test_promtool_finds_the_configuration_valid(self) -> None:
        said = promtool("check", "config", str(CONFIG))
        assert f"{len(rules())} rules found" in said

    def test_they_do_what_their_own_tests_say(self) -> None:
        assert "SUCCESS" in promtool("test", "rules", str(UNIT_TESTS))

    def test_every_one_is_tested(self) -> None:
        """Each alert both firing and not; each recorded series by its value, save for windows that differ in length."""
        text = UNIT_TESTS.read_text(encoding="utf-8")
        tests = yaml.safe_load(text)["tests"]
        cases = [case for test in tests for case in test.get("alert_rule_test", ())]
        for rule in ALERTS:
            quiet = [not case["exp_alerts"] for case in cases if case["alertname"] == rule["alert"]]
            assert set(quiet) == {True, False}, rule["alert"]
        asked = " ".join(case["expr"] for test in tests for case in test.get("promql_expr_test", ()))
        recorded = {rule["record"] for rule in rules() if "record" in rule}
        untested = {name for name in recorded if not re.search(rf"{re.escape(name)}\b", asked)}
        assert untested == {
            "job:gen_ai_server_requests_failed:ratio_rate6h",
            "job:gen_ai_server_requests_failed:ratio_rate1d",
            "job:gen_ai_server_requests_failed:ratio_rate3d",
            "job_model_le:gen_ai_server_time_to_first_token_seconds_bucket:rate5m",
        }

    def test_recorded_names_say_level_metric_and_operations(self) -> None:
        for rule in rules():
            if "record" in rule:
                assert re.fullmatch(r"job(_instance|_model|_model_le)?:[a-z0-9_]+:[a-z0-9_]+", rule["record"])

    @every_alert
    def test_an_alert_says_how_bad_it_is_and_what_to_do(self, rule: dict[str, Any]) -> None:
        assert re.fullmatch(r"\d+[smh]", rule["for"])
        assert rule["labels"]["severity"] in {"page", "ticket"}
        texts = rule["annotations"]
        assert set(texts) == {"summary", "description", "runbook"}
        page, _, anchor = texts["runbook"].partition("#")
        assert anchor == rule["alert"].lower()
        assert anchor in anchors(ROOT / page)

    def test_the_runbook_is_about_alerts_that_there_are(self) -> None:
        page = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
        named = re.findall(r"^## (Stoker\w+)$", page, re.MULTILINE)
        assert sorted(named) == sorted(rule["alert"] for rule in ALERTS)
        for rule in ALERTS:
            section = page.split(f"## {rule['alert']}\n")[1].split("\n## ")[0]
            for word in ("Means.", "Look", "Do.") if "Look and do." not in section else ("Means.",):
                assert f"**{word}" in section, rule["alert"]


class TestInStep:
    def test_every_series_is_one_that_stoker_has(self) -> None:
        known = known_series()
        asked = {name for expr in expressions() for name in NAME.findall(re.sub(r'"[^"]*"|\b\w+:[\w:]+', "", expr))}
        assert len(asked) > 40
        assert asked - NO_SERIES <= known

    def test_the_error_codes_are_those_of_the_code(self) -> None:
        server, others = error_codes()
        lists = [found for expr in expressions() for found in re.findall(r'error_type=~"\|?([a-z_|]+)"', expr)]
        assert len(lists) > 5
        for found in lists:
            codes = set(found.split("|"))
            assert codes == server
            assert not codes & others

    def test_the_configured_target_is_the_stacks_monitor_address(self) -> None:
        monitor = load(ROOT / "deploy" / "compose" / "stoker.yaml").monitor
        (scrape,) = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["scrape_configs"]
        assert scrape["job_name"] == "stoker"
        assert scrape["static_configs"] == [{"targets": [f"stoker:{monitor.port}"]}]

    def test_grafana_finds_prometheus_and_the_dashboards_where_the_stack_has_them(self) -> None:
        services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))["services"]
        mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
        (source,) = _provisioned("datasources", "prometheus")["datasources"]
        (provider,) = _provisioned("dashboards", "stoker")["providers"]
        assert re.fullmatch(r"http://(\w+):9090", source["url"])[1] in services
        assert source["jsonData"]["timeInterval"] == yaml.safe_load(CONFIG.read_text())["global"]["scrape_interval"]
        assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
        assert mounts["./grafana/dashboards"] == provider["options"]["path"]


class TestDashboards:
    def test_they_are_what_the_script_makes(self) -> None:
        script = str(GRAFANA / "make.py")
        done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert {"stoker-overview", "stoker-model", "stoker-engine"} <= {path.stem for path in DASHBOARDS}

    @every_dashboard
    def test_every_panel_tells_what_it_shows(self, dashboard: Path) -> None:
        for panel in panels(dashboard):
            assert panel["title"], panel["id"]
            assert panel["description"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"
            unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"].get("yAxis", {}).get("unit")
            assert unit or panel["type"] == "table", panel["title"]
            assert panel["targets"], panel["title"]

    @every_dashboard
    def test_numbers_are_unique_and_no_panel_covers_another(self, dashboard: Path) -> None:
        document = json.loads(dashboard.read_text(encoding="utf-8"))
        assert document["schemaVersion"] >= 39
        numbers = [panel["id"] for panel in document["panels"]]
        assert len(set(numbers)) == len(numbers)
        cells: set[tuple[int, int]] = set()
        for panel in document["panels"]:
            x, y, w, h = (panel["gridPos"][key] for key in "xywh")
            mine = {(column, row) for column in range(x, x + w) for row in range(y, y + h)}
            assert x + w <= 24
            assert not mine & cells, panel["title"]
            cells |= mine

    @every_dashboard
    def test_its_variables_are_those_that_it_uses(self, dashboard: Path) -> None:
        document = json.loads(dashboard.read_text(encoding="utf-8"))
        declared = {entry["name"] for entry in document["templating"]["list"]}
        text = json.dumps([document["panels"], document["templating"]])
        used = set(re.findall(r"\$\{?([a-z]\w*)", text))
        assert used == declared

    @every_dashboard
    def test_nothing_leads_outside(self, dashboard: Path) -> None:
        text = dashboard.read_text(encoding="utf-8")
        assert not re.search(r"https?://", text)
        assert [link["type"] for link in json.loads(text)["links"]] == ["dashboards"]


@pytest.mark.parametrize(
    ("expr", "found"),
    [
        ("up == 0 or absent(up)", ["up", "absent(up)"]),
        ("a / b > 0.5\nand\nsum by (job) (rate(c[1m])) > 0.1", ["a / b", "sum by (job) (rate(c[1m]))"]),
        ('((a > 1 and b{x="a or b > 1"} > 1) or (c))', ["a", 'b{x="a or b > 1"}', "c"]),
        ("(time() - (a > b or b) > 300) and d == 1 unless on (job) e > 0", ["time() - (a > b or b)", "d", "e"]),
        ("for_and_or:rate5m >= 5", ["for_and_or:rate5m"]),
    ],
)
def test_conditions_are_taken_apart(expr: str, found: list[str]) -> None:
    assert list(conditions(expr)) == found


def _provisioned(kind: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((GRAFANA / "provisioning" / kind / f"{name}.yaml").read_text(encoding="utf-8"))
