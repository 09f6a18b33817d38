"""Values that customise pods, Services and routes."""

import json
from typing import Any

import pytest
import yaml
from rendered_chart import NAMESPACE, Helm, Manifest, RenderedChart

from hmi_operator.settings import OperatorSettings
from hmi_runtime.server.metrics import RuntimeMetrics

LONGEST_STATEFUL_SET = 52
"""Its pods' label controller-revision-hash is the name and eleven more letters; a label has at most 63."""
PARTS = ("operator", "control-plane", "gateway", "runtime")


@pytest.fixture(scope="module")
def customised(helm: Helm) -> RenderedChart:
    return helm.render("customised")


def _environment(pod: Manifest) -> dict[str, Any]:
    return {entry["name"]: entry for entry in pod["spec"]["containers"][0]["env"]}


@pytest.mark.parametrize("part", PARTS)
def test_every_component_takes_all_pod_settings(customised: RenderedChart, part: str) -> None:
    pods = [pod for component, pod in customised.pods() if component == part]

    assert pods
    for pod in pods:
        spec, metadata = pod["spec"], pod["metadata"]
        assert spec["nodeSelector"] == {"example.com/pool": "platform"}
        assert "podAntiAffinity" in spec["affinity"]
        assert [item["topologyKey"] for item in spec["topologySpreadConstraints"]] == ["example.com/rack"]
        assert (spec["priorityClassName"], spec["runtimeClassName"]) == ("platform", "gvisor")
        assert metadata["labels"]["example.com/tier"] == "own", "a part's labels win over those of all pods"
        assert metadata["labels"]["example.com/cost-centre"] == "42"
        assert metadata["labels"]["example.com/team"] == "platform"
        assert metadata["annotations"]["example.com/scrape"] == "true"
        assert _environment(pod)["EXTRA"]["value"] == "more"
        assert {"name": "models", "configMap": {"name": "models"}} in spec["volumes"]
        mounts = spec["containers"][0]["volumeMounts"]
        assert {"name": "models", "mountPath": "/models", "readOnly": True} in mounts


def test_init_containers_have_the_extra_volumes_and_variables_too(customised: RenderedChart) -> None:
    """The database may need a certificate or a password file from them."""
    for part in ("control-plane", "gateway"):
        (container,) = customised.pod(part)["spec"]["initContainers"]
        assert {"name": "EXTRA", "value": "more"} in container["env"]
        assert any(mount["name"] == "models" for mount in container["volumeMounts"])


def test_service_accounts_named_in_values_are_used_everywhere(customised: RenderedChart) -> None:
    named = {part: customised.pod(part)["spec"]["serviceAccountName"] for part in PARTS}
    roles = _environment(customised.pod("control-plane"))

    assert named == {part: f"platform-{part}" for part in PARTS}
    assert [item["metadata"]["name"] for item in customised.of("ServiceAccount")] == [
        "platform-control-plane"
    ]
    for part, account in named.items():
        variable = roles[f"HMI_ROLES__{part.replace('-', '_').upper()}"]
        assert variable["value"] == f"system:serviceaccount:{NAMESPACE}:{account}"
    bound = {
        subject["name"]
        for binding in customised.of("ClusterRoleBinding") + customised.of("RoleBinding")
        for subject in binding["subjects"]
    }
    assert bound <= set(named.values())


def test_every_object_carries_the_common_labels(customised: RenderedChart) -> None:
    for item in customised.objects:
        if item["kind"] != "CustomResourceDefinition":
            assert item["metadata"]["labels"].get("example.com/team") == "platform", item["metadata"]["name"]


def test_services_take_their_fields(customised: RenderedChart) -> None:
    gateway = customised.one("Service", "hmi-production-europe-west-gateway")["spec"]
    control_plane = customised.one("Service", "hmi-production-europe-west-control-plane")

    assert (gateway["type"], gateway["loadBalancerClass"]) == ("LoadBalancer", "example.com/lb")
    assert gateway["loadBalancerSourceRanges"] == ["2001:db8::/32", "203.0.113.0/24"]
    assert (gateway["externalTrafficPolicy"], gateway["ipFamilyPolicy"]) == ("Local", "PreferDualStack")
    assert gateway["ports"][0] | {"targetPort": "http"} == gateway["ports"][0]
    assert (gateway["ports"][0]["port"], gateway["ports"][0]["nodePort"]) == (8443, 30443)
    assert control_plane["spec"]["ipFamilies"] == ["IPv4"]
    assert control_plane["metadata"]["labels"]["example.com/lb"] == "internal"


def test_callers_use_a_changed_port(customised: RenderedChart, trial: RenderedChart) -> None:
    url = "http://hmi-production-europe-west-control-plane.hmi-system.svc:8000"

    assert _environment(customised.pod("runtime"))["HMI_CONTROL_PLANE_URL"]["value"] == url
    assert _environment(customised.pod("operator"))["HMI_TRAINER_CONTROL_PLANE_URL"]["value"] == url
    assert _environment(trial.pod("runtime"))["HMI_CONTROL_PLANE_URL"]["value"].endswith(".svc")


def test_routes_lead_to_the_gateway_and_expose_no_internal_path(customised: RenderedChart) -> None:
    name = "hmi-production-europe-west-gateway"
    ingress, route = customised.one("Ingress", name)["spec"], customised.one("HTTPRoute", name)["spec"]
    entries = ingress["rules"][0]["http"]["paths"]
    matches = route["rules"][0]["matches"]

    assert {entry["backend"]["service"]["name"] for entry in entries} == {name}
    assert {entry["backend"]["service"]["port"]["number"] for entry in entries} == {8443}
    assert route["rules"][0]["backendRefs"] == [{"name": name, "port": 8443}]
    paths = [entry["path"] for entry in entries]
    assert paths == [match["path"]["value"] for match in matches]
    for inner in ("/metrics", "/internal/v1/infer", "/admin/v1/tenants", "/healthz", "/readyz"):
        assert not any(inner.startswith(path) for path in paths)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["gateway.ingress.enabled=true"], "gateway.ingress.hosts"),
        (["gateway.httpRoute.enabled=true"], "gateway.httpRoute.parentRefs"),
        (["customCA.certificates=nothing"], "customCA.certificates"),
        (["controlPlane.service.port=0"], "controlPlane.service.port"),
        (["trainer.extraVolumes[0].configMap.name=a"], "trainer.extraVolumes"),
    ],
)
def test_a_missing_value_is_refused_by_name(helm: Helm, arguments: list[str], complaint: str) -> None:
    done = helm.template(*(f"--set={argument}" for argument in arguments))

    assert done.returncode != 0
    assert complaint in done.stderr


def test_stateful_set_names_fit_the_labels_of_their_pods(helm: Helm, customised: RenderedChart) -> None:
    names = [item["metadata"]["name"] for item in customised.of("StatefulSet")]
    services = {item["metadata"]["name"] for item in customised.of("Service")}

    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= LONGEST_STATEFUL_SET
    for item in customised.of("StatefulSet"):
        assert item["spec"]["serviceName"] in services
    for scaler in customised.of("HorizontalPodAutoscaler"):
        assert scaler["spec"]["scaleTargetRef"]["name"] in names
    longest = helm.template(
        "--set=fullnameOverride=" + "n" * 60, "--set=runtime.pools.a2345678901234567890.replicas=1"
    )
    assert longest.returncode == 0, longest.stderr
    for item in yaml.safe_load_all(longest.stdout):
        if item and item["kind"] == "StatefulSet":
            assert len(item["metadata"]["name"]) <= LONGEST_STATEFUL_SET
        if item and item["kind"] == "Service":
            assert len(item["metadata"]["name"]) <= 63


def test_short_names_are_not_changed(trial: RenderedChart) -> None:
    assert "hmi-runtime-cpu" in [item["metadata"]["name"] for item in trial.of("StatefulSet")]


def test_runtimes_scale_on_a_metric_that_they_export(customised: RenderedChart) -> None:
    scaler = customised.one("HorizontalPodAutoscaler", "hmi-production-europe-west-runtime-cpu")["spec"]
    pool = customised.one("StatefulSet", "hmi-production-europe-west-runtime-cpu")["spec"]
    (metric,) = scaler["metrics"]

    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 8)
    assert "replicas" not in pool, "an upgrade would set back what the autoscaler chose"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "24"}
    assert metric["pods"]["metric"]["name"] in {found.name for found in RuntimeMetrics().registry.collect()}


def test_tenants_roles_are_aggregated(trial: RenderedChart, helm: Helm) -> None:
    label = "rbac.authorization.k8s.io/aggregate-to-"
    found = {
        role["metadata"]["name"]: (
            {name.removeprefix(label) for name in role["metadata"]["labels"] if name.startswith(label)},
            {
                (resource, verb)
                for rule in role["rules"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            },
        )
        for role in trial.of("ClusterRole")
        if any(name.startswith(label) for name in role["metadata"]["labels"])
    }

    roles, may = found["hmi-system-hmi-edit"]
    assert roles == {"edit", "admin"}
    assert ("taskadapters", "create") in may
    assert not {verb for resource, verb in may if resource.endswith("/status")} - {"get", "list", "watch"}
    roles, may = found["hmi-system-hmi-view"]
    assert roles == {"view"}
    assert {verb for _, verb in may} == {"get", "list", "watch"}
    none = helm.template("--set=rbac.aggregateToDefaultRoles=false")
    assert label not in none.stdout


def test_training_pods_get_all_their_settings(
    customised: RenderedChart, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, entry in _environment(customised.pod("operator")).items():
        monkeypatch.setenv(name, entry.get("value", "from-elsewhere"))

    settings = OperatorSettings()  # type: ignore[call-arg]  # the rest is in the environment

    assert "podAntiAffinity" in settings.trainer_affinity
    assert (settings.trainer_priority_class_name, settings.trainer_runtime_class_name) == ("batch", "gvisor")
    assert settings.trainer_pod_labels == {"example.com/kind": "training"}
    assert settings.trainer_pod_annotations == {"example.com/scrape": "false"}
    assert settings.trainer_extra_env == ({"name": "EXTRA", "value": "more"},)
    assert settings.trainer_extra_volumes == (
        {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
    )
    assert settings.trainer_extra_volume_mounts == (
        {"name": "models", "mountPath": "/models", "readOnly": True},
    )
    assert settings.ca_certificates == "from-elsewhere"


def test_custom_certificate_authorities_reach_every_component_that_connects_outside(
    customised: RenderedChart, helm: Helm
) -> None:
    wanted = {"configMapKeyRef": {"name": "platform-authorities", "key": "bundle.pem"}}
    for part in ("operator", "control-plane", "runtime"):
        assert _environment(customised.pod(part))["HMI_CA_CERTIFICATES"]["valueFrom"] == wanted
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    inline = helm.template("--set-json", f"customCA.certificates={json.dumps(pem)}")
    values = [
        entry["value"]
        for item in yaml.safe_load_all(inline.stdout)
        if item and item["kind"] in ("Deployment", "StatefulSet")
        for entry in item["spec"]["template"]["spec"]["containers"][0]["env"]
        if entry["name"] == "HMI_CA_CERTIFICATES"
    ]
    assert values == [pem] * 3


def test_private_images_are_pulled_with_the_charts_secret(customised: RenderedChart) -> None:
    secret = customised.one("Secret", "hmi-production-europe-west-images")

    assert secret["type"] == "kubernetes.io/dockerconfigjson"
    for _, pod in customised.pods():
        assert pod["spec"]["imagePullSecrets"] == [{"name": "hmi-production-europe-west-images"}]


def test_policies_name_both_address_families(chart: RenderedChart) -> None:
    for policy in chart.of("NetworkPolicy"):
        for rule in policy["spec"]["egress"]:
            blocks = {peer["ipBlock"]["cidr"] for peer in rule.get("to", []) if "ipBlock" in peer}
            assert ("0.0.0.0/0" in blocks) == ("::/0" in blocks), policy["metadata"]["name"]


def test_the_admin_key_is_kept_after_uninstalling(trial: RenderedChart) -> None:
    """The database does, and so do the keys that it knows."""
    for name in ("hmi-admin", "hmi-postgresql"):
        annotations = trial.one("Secret", name)["metadata"]["annotations"]
        assert annotations["helm.sh/resource-policy"] == "keep"
