"""Security of the chart's pods: restricted everywhere, listed permissions, no secret with a default."""

import re
from typing import Any

import pytest
import yaml
from rendered_chart import CHART, NAMESPACE, VALUES, Helm, RenderedChart

Rules = set[tuple[str, str, str]]

TYPES = {
    ("hmi.dev", "domains taskadapters", "get list patch watch"),
    ("hmi.dev", "domains/status taskadapters/status", "get patch"),
    ("hmi.dev", "domains/finalizers taskadapters/finalizers", "update"),
}
TRAINING = {
    ("batch", "jobs", "create delete get list patch watch"),
    ("", "persistentvolumeclaims", "create delete get list patch watch"),
    ("", "pods", "get list watch"),
    ("", "events", "list"),
    ("events.k8s.io", "events", "create patch"),
    ("networking.k8s.io", "networkpolicies", "create get update"),
}
NAMESPACES = {("", "namespaces", "get list watch")}
LEASE = {("coordination.k8s.io", "leases", "create"), ("coordination.k8s.io", "leases", "get update")}
TOKEN_REVIEW = {("authentication.k8s.io", "tokenreviews", "create")}
EVERYWHERE, OWN = "*", NAMESPACE
RIGHTS: dict[str, dict[str, Rules]] = {
    "operator": {EVERYWHERE: TYPES | TRAINING | NAMESPACES, OWN: LEASE},
    "control-plane": {EVERYWHERE: TOKEN_REVIEW},
    "runtime": {EVERYWHERE: TOKEN_REVIEW},
    "gateway": {},
}
RIGHTS_IN_OWN_NAMESPACES = RIGHTS | {
    # A namespace that is deleted takes its Role along, and what is in it waits for the operator.
    "operator": {EVERYWHERE: TYPES | NAMESPACES, OWN: LEASE, "team-a": TRAINING, "team-b": TRAINING}
}

FINAL_SECONDS = ("HMI_DRAIN_DELAY_SECONDS", "HMI_MOVE_SECONDS", "HMI_DRAIN_SECONDS")


def _rules(role: dict[str, Any]) -> Rules:
    def words(names: list[str]) -> str:
        return " ".join(sorted(names))

    return {
        (words(rule["apiGroups"]), words(rule["resources"]), words(rule["verbs"])) for rule in role["rules"]
    }


def _granted(chart: RenderedChart, account: str) -> dict[str, Rules]:
    """Return what a service account may do, by namespace."""
    found: dict[str, Rules] = {}
    for binding in chart.of("RoleBinding") + chart.of("ClusterRoleBinding"):
        if any(subject["name"] == account for subject in binding["subjects"]):
            role = chart.one(binding["roleRef"]["kind"], binding["roleRef"]["name"])
            where = binding["metadata"].get("namespace", EVERYWHERE)
            found.setdefault(where, set()).update(_rules(role))
    return found


@pytest.mark.parametrize("component", RIGHTS)
def test_each_component_has_the_listed_permissions_and_no_others(
    trial: RenderedChart, component: str
) -> None:
    assert _granted(trial, f"hmi-{component}") == RIGHTS[component]


@pytest.mark.parametrize("component", RIGHTS)
def test_permissions_are_limited_to_watched_namespaces(helm: Helm, component: str) -> None:
    chart = helm.render("own-namespaces")
    roles = {role["metadata"]["name"]: role for role in chart.of("Role")}

    assert set(roles) == {"models-operator", "models-operator-lease"}
    found: dict[str, Rules] = {}
    for binding in chart.of("RoleBinding"):
        if any(subject["name"] == f"models-{component}" for subject in binding["subjects"]):
            where = binding["metadata"]["namespace"]
            found[where] = _rules(roles[binding["roleRef"]["name"]])
    for binding in chart.of("ClusterRoleBinding"):
        if any(subject["name"] == f"models-{component}" for subject in binding["subjects"]):
            found[EVERYWHERE] = _rules(chart.one("ClusterRole", binding["roleRef"]["name"]))
    assert found == RIGHTS_IN_OWN_NAMESPACES[component]


def test_nobody_may_read_secrets_or_do_everything(chart: RenderedChart) -> None:
    for role in chart.of("Role") + chart.of("ClusterRole"):
        for rule in role["rules"]:
            assert "secrets" not in rule["resources"]
            assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]


def test_permissions_are_bound_to_service_accounts_that_exist(chart: RenderedChart) -> None:
    accounts = {account["metadata"]["name"] for account in chart.of("ServiceAccount")}
    if chart.values == "customised":
        accounts |= {"platform-operator", "platform-gateway", "platform-runtime"}  # the platform's own

    for binding in chart.of("RoleBinding") + chart.of("ClusterRoleBinding"):
        for subject in binding["subjects"]:
            assert subject["name"] in accounts
            assert subject["namespace"] == NAMESPACE
    for component, pod in chart.pods():
        assert pod["spec"].get("serviceAccountName", "default") in accounts | {"default"}, component


def test_only_clients_of_the_api_server_have_a_token_for_it(chart: RenderedChart) -> None:
    asking = {component for component, pod in chart.pods() if pod["spec"]["automountServiceAccountToken"]}

    assert asking - {"release"} == {"operator", "control-plane", "runtime"}


def test_every_pod_is_restricted(chart: RenderedChart) -> None:
    for component, pod in chart.pods():
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True, component
        assert security["runAsUser"] == 65532, component
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, component
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"]), component
        assert not any("hostPath" in volume for volume in pod["spec"].get("volumes", [])), component
    for component, container in chart.containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, component


def test_every_container_has_resource_requests(chart: RenderedChart) -> None:
    for component, container in chart.containers():
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), component
        assert "memory" in container["resources"]["limits"], component


def test_every_server_is_probed(chart: RenderedChart) -> None:
    for component, container in chart.containers():
        if component not in ("test", "release") and container.get("ports"):
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert container[probe].get("httpGet", {}).get("port", min(ports)) in ports, component


def test_termination_grace_is_longer_than_requests_take(chart: RenderedChart) -> None:
    for component in ("gateway", "runtime"):
        pod = chart.pod(component)["spec"]
        env = {entry["name"]: entry.get("value", "0") for entry in pod["containers"][0]["env"]}
        needed = sum(float(value) for name, value in env.items() if name in FINAL_SECONDS)
        assert pod["terminationGracePeriodSeconds"] > needed, component


def test_secrets_are_random_and_never_have_a_default(helm: Helm) -> None:
    values = (CHART / "values.yaml").read_text()
    one, other = (_secrets(helm.template("--values", str(VALUES / "trial.yaml")).stdout) for _ in range(2))

    assert set(one) == {"hmi-admin", "hmi-postgresql", "hmi-webhook"}
    for name, data in one.items():
        for key, value in data.items():
            assert value, f"{name} {key}"
            assert value != other[name][key], f"{name} {key} is the same in every installation"
    assert "password:" not in values
    assert "token:" not in values


def test_no_secret_is_created_where_values_name_an_existing_one(helm: Helm) -> None:
    assert helm.render("production").of("Secret") == []


def test_secrets_are_never_written_into_a_pod(chart: RenderedChart) -> None:
    telling = re.compile(r"(KEY|KEY_ID|PASSWORD|TOKEN|DATABASE_URL)$")
    for component, container in chart.containers():
        for entry in container.get("env", []):
            if telling.search(entry["name"]):
                assert "secretKeyRef" in entry["valueFrom"], f"{component} {entry['name']}"


def test_the_password_of_a_kept_volume_is_kept(trial: RenderedChart) -> None:
    keep = {"helm.sh/resource-policy": "keep"}

    assert trial.one("Secret", "hmi-postgresql")["metadata"]["annotations"] == keep
    assert trial.one("PersistentVolumeClaim", "hmi-artifacts")["metadata"]["annotations"] == keep


def _secrets(text: str) -> dict[str, dict[str, str]]:
    found = [item for item in yaml.safe_load_all(text) if item and item["kind"] == "Secret"]
    return {item["metadata"]["name"]: item["data"] for item in found}
