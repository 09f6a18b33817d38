"""NetworkPolicies, Services, budgets and volumes name existing objects."""

import itertools
import json
from ipaddress import ip_network
from typing import Any

import pytest
import yaml
from kube_models import as_json
from rendered_chart import NAMESPACE, Helm, RenderedChart, selects

from hmi_api.internal.runs import DomainRunSpec, RunView
from hmi_operator.kubernetes.jobs.naming import labels_of
from hmi_operator.kubernetes.jobs.network import build_network_policy
from hmi_operator.settings import OperatorSettings

SPEAKS_TO = {
    "operator": {"control-plane"},
    "control-plane": {"postgresql"},
    "gateway": {"control-plane", "postgresql", "runtime"},
    "runtime": {"control-plane"},
    "postgresql": set(),
    "release": set(),
}


def _labels(chart: RenderedChart) -> list[tuple[str, dict[str, str]]]:
    return [(component, pod["metadata"]["labels"]) for component, pod in chart.pods()]


def _ports(chart: RenderedChart, component: str) -> set[str]:
    containers = chart.pod(component)["spec"]["containers"]
    return {port["name"] for port in itertools.chain(*(item.get("ports", []) for item in containers))}


def _reached(chart: RenderedChart, selector: dict[str, Any]) -> set[str]:
    return {component for component, labels in _labels(chart) if selects(selector, labels)}


def _policies(chart: RenderedChart) -> dict[str, dict[str, Any]]:
    """Return the policies' specs by the one component that each is for."""
    found = {}
    for policy in chart.of("NetworkPolicy"):
        (component,) = _reached(chart, policy["spec"]["podSelector"])
        found[component] = policy["spec"]
    return found


def test_every_long_running_pod_has_one_ingress_and_egress_policy(helm: Helm) -> None:
    for values in ("trial", "production", "own-namespaces"):
        chart = helm.render(values)
        policies = _policies(chart)
        assert set(policies) == {component for component, _ in _labels(chart)} - {"test"}
        assert len(policies) == len(chart.of("NetworkPolicy"))
        for policy in policies.values():
            assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_each_component_may_connect_only_to_what_it_needs(trial: RenderedChart) -> None:
    for component, policy in _policies(trial).items():
        peers = [peer for rule in policy["egress"] for peer in rule.get("to", []) if "podSelector" in peer]
        reached = set().union(*(_reached(trial, peer["podSelector"]) for peer in peers))
        assert reached == SPEAKS_TO[component], component


def test_every_allowed_egress_is_an_allowed_ingress(trial: RenderedChart) -> None:
    policies = _policies(trial)
    for source, targets in SPEAKS_TO.items():
        for target in targets:
            let_in = set()
            for rule in policies[target]["ingress"]:
                for peer in rule.get("from", []):
                    if "namespaceSelector" not in peer:
                        let_in |= _reached(trial, peer["podSelector"])
            assert source in let_in, f"{source} to {target}"


def test_ports_of_policies_exist_in_the_pods(chart: RenderedChart) -> None:
    for component, policy in _policies(chart).items():
        for rule in policy["ingress"]:
            assert {port["port"] for port in rule["ports"]} <= _ports(chart, component)
        for rule in policy["egress"]:
            for peer in rule.get("to", []):
                if "podSelector" in peer:
                    (target,) = _reached(chart, peer["podSelector"])
                    assert {port["port"] for port in rule["ports"]} <= _ports(chart, target)


def test_training_pods_of_any_namespace_reach_the_control_plane(trial: RenderedChart) -> None:
    spec = DomainRunSpec.model_construct(kind="domain", namespace="shop", name="orders")
    training_labels = labels_of(RunView.model_construct(id="run", uid="uid", spec=spec), "hmi")
    peers = [peer for rule in _policies(trial)["control-plane"]["ingress"] for peer in rule.get("from", [])]

    assert any(
        peer.get("namespaceSelector") == {} and selects(peer["podSelector"], training_labels)
        for peer in peers
    )


def test_access_to_the_gateway_can_be_limited_by_values(helm: Helm) -> None:
    rules = _policies(helm.render("production"))["gateway"]["ingress"]

    assert all(rule.get("from") for rule in rules)


def test_services_select_one_component_and_name_its_ports(chart: RenderedChart) -> None:
    for service in chart.of("Service"):
        (component,) = _reached(chart, {"matchLabels": service["spec"]["selector"]})
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= _ports(chart, component)
    for kind in ("Deployment", "StatefulSet"):
        for item in chart.of(kind):
            labels = item["spec"]["template"]["metadata"]["labels"]
            assert selects(item["spec"]["selector"], labels)
            if kind == "StatefulSet":
                service = chart.one("Service", item["spec"]["serviceName"])
                assert selects({"matchLabels": service["spec"]["selector"]}, labels)


def test_disruption_budgets_select_existing_pods_and_never_block_a_drain(trial: RenderedChart) -> None:
    budgets = trial.of("PodDisruptionBudget")

    assert len(budgets) == 4
    for budget in budgets:
        assert len(_reached(trial, budget["spec"]["selector"])) == 1
        assert budget["spec"]["maxUnavailable"] == 1


def test_addresses_name_services_that_exist(chart: RenderedChart) -> None:
    services = {service["metadata"]["name"] for service in chart.of("Service")}
    for component, container in chart.containers():
        for entry in container.get("env", []):
            address = entry.get("value", "")
            if address.endswith(f".{NAMESPACE}.svc"):
                assert address.removeprefix("http://").split(".")[0] in services, component
    for webhooks in chart.of("ValidatingWebhookConfiguration"):
        for webhook in webhooks["webhooks"]:
            assert webhook["clientConfig"]["service"]["name"] in services


def test_volumes_are_mounted_and_mounts_have_volumes(chart: RenderedChart) -> None:
    claims = {
        template["metadata"]["labels"]["app.kubernetes.io/component"]: {
            claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])
        }
        for item in chart.of("StatefulSet")
        for template in [item["spec"]["template"]]
    }
    for component, pod in chart.pods():
        spec = pod["spec"]
        volumes = {volume["name"] for volume in spec.get("volumes", [])} | claims.get(component, set())
        mounted = {
            mount["name"]
            for container in spec.get("initContainers", []) + spec["containers"]
            for mount in container.get("volumeMounts", [])
        }
        if component != "runtime":  # pools differ in where their cache is
            assert mounted == volumes, component
        assert mounted - {"cache"} == volumes - {"cache"}, component


def _operator_settings(chart: RenderedChart, monkeypatch: pytest.MonkeyPatch) -> OperatorSettings:
    (container,) = chart.pod("operator")["spec"]["containers"]
    for entry in container["env"]:
        monkeypatch.setenv(entry["name"], entry.get("value", "of-the-pod"))
    return OperatorSettings()  # type: ignore[call-arg] # from the environment


def test_training_pods_reach_the_control_plane_of_the_chart(
    trial: RenderedChart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMI_NAMESPACE", NAMESPACE)
    settings = _operator_settings(trial, monkeypatch)
    settings = settings.model_copy(update={"namespace": NAMESPACE})
    (_, rule, *_) = as_json(build_network_policy("shop", settings))["spec"]["egress"]
    (peer,) = rule["to"]

    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": NAMESPACE}
    assert _reached(trial, peer["podSelector"]) == {"control-plane"}
    assert {port["port"] for port in rule["ports"]} <= _ports(trial, "control-plane")


def test_without_network_policies_training_pods_have_none(
    helm: Helm, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = helm.template("--set", "networkPolicy.enabled=false")
    chart = RenderedChart("none", tuple(item for item in yaml.safe_load_all(done.stdout) if item))

    assert not chart.of("NetworkPolicy")
    assert not _operator_settings(chart, monkeypatch).trainer_network_policy


def test_data_rules_and_proxies_reach_every_component_that_connects_outside(
    helm: Helm, monkeypatch: pytest.MonkeyPatch
) -> None:
    chart = helm.render("proxied")
    settings = _operator_settings(chart, monkeypatch)

    assert settings.trainer_https_proxy == settings.trainer_http_proxy == "http://proxy.corp.example:3128"
    assert settings.trainer_no_proxy == ".corp.example,10.0.0.0/8"
    assert settings.address_policy().allowed_hosts == ("minio.storage.svc", ".corp.example")
    assert settings.data_allowed_networks == (ip_network("10.7.0.0/16"),)
    egress = as_json(build_network_policy("shop", settings))["spec"]["egress"]
    assert {"to": [{"podSelector": {"matchLabels": {"app": "minio"}}}]} in egress
    for component, container in chart.containers():
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        outside = container["name"] in ("runtime", "control-plane")
        assert (environment.get("HTTPS_PROXY") is not None) == outside, container["name"]
        if component == "runtime":
            assert environment["HMI_DATA_ADDRESSES"] == "cluster"
            assert json.loads(environment["HMI_DATA_ALLOWED_HOSTS"]) == ["minio.storage.svc", ".corp.example"]
    to_proxy = {"to": [{"ipBlock": {"cidr": "10.9.0.1/32"}}], "ports": [{"port": 3128, "protocol": "TCP"}]}
    assert to_proxy in egress
    for component in ("runtime", "control-plane"):
        assert to_proxy in _policies(chart)[component]["egress"]
    assert to_proxy not in _policies(chart)["gateway"]["egress"]


@pytest.mark.parametrize(
    "setting",
    [
        "proxy.httpsProxy=socks5h://proxy:1080",
        "proxy.httpsProxy=http://user:password@proxy:3128",
        "data.allowedNetworks={10.0.0.1}",
        "data.allowedHosts={http://minio}",
    ],
)
def test_wrong_proxies_and_addresses_are_refused(helm: Helm, setting: str) -> None:
    assert helm.template("--set", setting).returncode != 0


def test_only_prometheus_reaches_metrics(chart: RenderedChart) -> None:
    for component, policy in _policies(chart).items():
        readers = [rule for rule in policy["ingress"] if {"port": "metrics"} in rule["ports"]]
        serves = "metrics" in _ports(chart, component)
        assert bool(readers) == serves, component
        for rule in readers:
            assert rule["ports"] == [{"port": "metrics"}]
            assert rule["from"] == [
                {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
            ]
    for service in chart.of("Service"):
        names = {port["name"] for port in service["spec"]["ports"]}
        if "metrics" in names:
            headless = service["spec"].get("clusterIP") == "None"
            assert headless or names == {"webhook", "metrics"}, service["metadata"]["name"]


def test_the_api_and_its_metrics_have_different_ports(chart: RenderedChart) -> None:
    for component, container in chart.containers():
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        ports = {port["name"]: str(port["containerPort"]) for port in container.get("ports", [])}
        if "http" in ports:
            assert environment["HMI_METRICS_PORT"] == ports["metrics"] != ports["http"], component
            if component != "runtime":
                assert environment["HMI_OPENAPI_IS_PUBLIC"] == "false"
