"""Dashboard, alerts and monitors use metrics, labels and ports that exist."""

import json
import re
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from rendered_chart import CHART, Helm, RenderedChart

from hmi_control_plane.gateway.inference import GatewayMetrics
from hmi_control_plane.http.middleware import HttpMetrics
from hmi_control_plane.metering.flusher import MeteringMetrics
from hmi_operator.kubernetes.observability import OperatorMetrics
from hmi_runtime.server.metrics import RuntimeMetrics

DASHBOARD = (CHART / "files" / "dashboard.json").read_text()
ALERTS = (CHART / "files" / "alerts.yaml").read_text()


@pytest.fixture(scope="module")
def metrics() -> dict[str, set[str]]:
    """Every metric by the name that Prometheus stores, with the labels that its process gives it."""
    served = CollectorRegistry()
    for kind in (GatewayMetrics, MeteringMetrics, HttpMetrics):
        kind(served)
    found: dict[str, set[str]] = {}
    for registry in (served, OperatorMetrics().registry, RuntimeMetrics().registry):
        for collector, names in registry._collector_to_names.items():
            labels = set(getattr(collector, "_labelnames", ()))
            for name in names:
                found.setdefault(name, set()).update(labels)
    return found


def _expressions() -> list[str]:
    panels = json.loads(DASHBOARD)["panels"]
    shown = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return shown + [rule["expr"] for rule in yaml.safe_load(ALERTS)]


def test_every_metric_exists(metrics: dict[str, set[str]]) -> None:
    used = {name for text in _expressions() for name in re.findall(r"\bhmi_\w+", text)}

    assert len(used) > 20
    assert used <= set(metrics)


def test_every_label_exists(metrics: dict[str, set[str]]) -> None:
    of_the_target = {"namespace", "pod", "container"}
    for text in _expressions():
        for name, matchers in re.findall(r"\b(hmi_\w+)\{([^}]*)\}", text):
            labels = set(re.findall(r"(\w+)\s*=~?", matchers))
            assert labels <= metrics[name] | of_the_target, text
        grouped = {word.strip() for group in re.findall(r"by \(([^)]*)\)", text) for word in group.split(",")}
        known = set().union(*(metrics[name] for name in re.findall(r"\bhmi_\w+", text)))
        assert grouped <= known | of_the_target | {"le"}, text


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD)["panels"]:
        at: dict[str, Any] = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_alerts_select_this_release_and_have_a_description(helm: Helm) -> None:
    (rules,) = helm.render("production").of("PrometheusRule")

    for rule in rules["spec"]["groups"][0]["rules"]:
        assert 'namespace="hmi-system"' in rule["expr"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")


def test_a_full_spool_has_its_own_alert(helm: Helm) -> None:
    (rules,) = helm.render("production").of("PrometheusRule")
    (rule,) = [rule for rule in rules["spec"]["groups"][0]["rules"] if "spool_full" in rule["expr"]]

    assert (rule["alert"], rule["labels"]["severity"]) == ("HmiUsageSpoolFull", "critical")


def test_each_pod_is_scraped_once(helm: Helm) -> None:
    chart = helm.render("production")
    (monitor,) = chart.of("ServiceMonitor")
    (choice,) = monitor["spec"]["selector"]["matchExpressions"]
    ports = {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]}
    scraped = [
        service["spec"]["selector"]
        for service in chart.of("Service")
        if service["metadata"]["labels"][choice["key"]] in choice["values"]
        for port in service["spec"]["ports"]
        if port["name"] in ports
    ]

    assert len(scraped) == len({str(selector) for selector in scraped})
    assert {selector["app.kubernetes.io/component"] for selector in scraped} == set(choice["values"])


def test_the_installed_dashboard_is_the_file_of_the_repository(helm: Helm) -> None:
    (item,) = helm.render("production").of("ConfigMap")

    assert json.loads(item["data"]["hmi.json"]) == json.loads(DASHBOARD)
    assert item["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_monitoring_is_off_by_default(trial: RenderedChart) -> None:
    assert not trial.of("ServiceMonitor") + trial.of("PrometheusRule") + trial.of("ConfigMap")
