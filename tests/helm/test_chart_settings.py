"""Every setting that the chart gives a process is one that the process has."""

from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings
from rendered_chart import ROOT, Helm, Manifest, RenderedChart

from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.security import ca_certificates
from hmi_control_plane.settings import DatabaseSettings, Part, Settings
from hmi_operator.settings import OperatorSettings, ReleaseSettings
from hmi_runtime.server.settings import RuntimeSettings

SETTINGS: dict[str, type[BaseSettings]] = {
    "operator": OperatorSettings,
    "release": ReleaseSettings,
    "migrate": DatabaseSettings,
    "wait-for-schema": DatabaseSettings,
    "control-plane": Settings,
    "gateway": Settings,
    "runtime": RuntimeSettings,
}
PREFIX = "HMI_"
READ_BEFORE_SETTINGS = {ca_certificates.VARIABLE}
FOUND_ONLY_IN_A_CLUSTER = "a-secret-or-a-field-of-the-pod"


def _environment(container: Manifest) -> dict[str, str]:
    return {entry["name"]: entry.get("value", FOUND_ONLY_IN_A_CLUSTER) for entry in container["env"]}


def _known(settings: type[BaseSettings]) -> set[str]:
    return {PREFIX + name.upper() for name in settings.model_fields}


def _containers(chart: RenderedChart) -> list[Manifest]:
    return [container for _, container in chart.containers() if container["name"] in SETTINGS]


def test_every_process_is_covered(trial: RenderedChart) -> None:
    assert {container["name"] for container in _containers(trial)} == set(SETTINGS)


def test_every_variable_is_a_setting(chart: RenderedChart) -> None:
    for container in _containers(chart):
        names = {name.split("__")[0] for name in _environment(container) if name.startswith(PREFIX)}
        assert names <= _known(SETTINGS[container["name"]]) | READ_BEFORE_SETTINGS, container["name"]


def test_every_process_accepts_its_settings(chart: RenderedChart, monkeypatch: pytest.MonkeyPatch) -> None:
    for container in _containers(chart):
        with monkeypatch.context() as patch:
            for name, value in _environment(container).items():
                patch.setenv(name, value)
            settings: Any = SETTINGS[container["name"]]()
        if isinstance(settings, Settings):
            assert settings.missing_for(Part(container["name"])) == []
            assert settings.token_review


def _pod_environment(chart: RenderedChart, component: str, number: int = 0) -> dict[str, str]:
    pods = [pod for found, pod in chart.pods() if found == component]
    return _environment(pods[number]["spec"]["containers"][0])


def test_each_component_is_identified_by_its_service_account(trial: RenderedChart) -> None:
    roles = {
        name: value for name, value in _pod_environment(trial, "control-plane").items() if "ROLES" in name
    }

    assert roles == {
        "HMI_ROLES__OPERATOR": "system:serviceaccount:hmi-system:hmi-operator",
        "HMI_ROLES__CONTROL_PLANE": "system:serviceaccount:hmi-system:hmi-control-plane",
        "HMI_ROLES__GATEWAY": "system:serviceaccount:hmi-system:hmi-gateway",
        "HMI_ROLES__RUNTIME": "system:serviceaccount:hmi-system:hmi-runtime",
    }
    accounts = {account["metadata"]["name"] for account in trial.of("ServiceAccount")}
    assert {value.rsplit(":", 1)[1] for value in roles.values()} == accounts


def test_gateways_bill_in_the_control_planes_currency(helm: Helm) -> None:
    done = helm.template("--set", "controlPlane.currency=EUR")
    assert done.returncode == 0, done.stderr
    chart = RenderedChart("currency", tuple(one for one in yaml.safe_load_all(done.stdout) if one))
    for component in ("control-plane", "gateway"):
        assert _pod_environment(chart, component)["HMI_CURRENCY"] == "EUR"


def test_tokens_have_the_audience_that_is_checked(chart: RenderedChart) -> None:
    audience = _pod_environment(chart, "control-plane")["HMI_TOKEN_AUDIENCE"]
    for component in ("operator", "control-plane", "gateway", "runtime"):
        pod = chart.pod(component)["spec"]
        (source,) = [
            item for volume in pod["volumes"] for item in volume.get("projected", {}).get("sources", [])
        ]
        assert source["serviceAccountToken"]["audience"] == audience


def _operator(chart: RenderedChart, monkeypatch: pytest.MonkeyPatch) -> OperatorSettings:
    for name, value in _pod_environment(chart, "operator").items():
        monkeypatch.setenv(name, value)
    return OperatorSettings()  # type: ignore[call-arg]  # the rest is in the environment


def test_the_charts_defaults_are_the_operators(trial: RenderedChart, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, fields = _operator(trial, monkeypatch), OperatorSettings.model_fields
    assert settings.limits() == AdapterLimits()
    assert settings.lease_seconds == fields["lease_seconds"].default
    assert settings.trainer_ttl_seconds == fields["trainer_ttl_seconds"].default
    assert settings.trainer_succeeded_ttl_seconds == fields["trainer_succeeded_ttl_seconds"].default
    assert settings.trainer_deadline_seconds == fields["trainer_deadline_seconds"].default
    assert settings.trainer_checkpoint_size == fields["trainer_checkpoint_size"].default


def test_system_namespaces_and_the_releases_own_are_excluded_unless_they_are_named(
    trial: RenderedChart, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _operator(trial, monkeypatch)
    monkeypatch.setenv("HMI_NAMESPACE", "press")
    assert settings.excluded_namespaces == OperatorSettings.model_fields["excluded_namespaces"].default
    monkeypatch.setenv("HMI_WATCH_NAMESPACES", '["kube-public", "shop"]')
    excluded = OperatorSettings().environment().excluded  # type: ignore[call-arg]  # as above
    assert excluded == {"kube-system", "kube-node-lease", "press"}


def test_the_operator_admits_what_every_pool_can_load(helm: Helm, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter may be placed on any of them."""
    pools = "runtime.pools"
    done = helm.template(
        *("--set", "runtime.defaults.slots.maxRank=64"),
        *("--set", f"{pools}.small.slots.maxRank=48", "--set", f"{pools}.small.slots.maxBottleneck=0"),
        *("--set", f"{pools}.large.slots.maxLabels=1000"),
        *("--set", f"{pools}.off.enabled=false", "--set", f"{pools}.off.slots.maxRank=8"),
    )
    assert done.returncode == 0, done.stderr
    chart = RenderedChart("pools", tuple(one for one in yaml.safe_load_all(done.stdout) if one))
    limits = _operator(chart, monkeypatch).limits()
    assert (limits.max_rank, limits.max_bottleneck, limits.max_labels) == (48, 0, 256)
    assert _operator(chart, monkeypatch).environment().limits == limits


def test_training_jobs_carry_the_releases_labels(helm: Helm, monkeypatch: pytest.MonkeyPatch) -> None:
    chart = helm.render("single-node", release="press")
    assert _operator(chart, monkeypatch).trainer_instance == "press"
    assert chart.pod("operator")["metadata"]["labels"]["app.kubernetes.io/instance"] == "press"


def test_the_values_of_the_cluster_tests_fit_the_chart(helm: Helm) -> None:
    cluster = ROOT / "tests" / "cluster"
    files = ("--values", str(cluster / "values.yaml"), "--values", str(cluster / "values-variant.yaml"))
    done = helm.template(*files)
    assert done.returncode == 0, done.stderr
    chart = RenderedChart("variant", tuple(one for one in yaml.safe_load_all(done.stdout) if one))
    for component in ("control-plane", "runtime"):
        settings = _pod_environment(chart, component)
        assert (settings["HMI_ARTIFACTS"], settings["AWS_ENDPOINT_URL"]) == (
            "s3://hmi/e2e",
            "http://s3.hmi-s3.svc:7070",
        )
    assert _pod_environment(chart, "operator")["HMI_WATCH_NAMESPACES"] == '["faults"]'


def test_a_gateways_spool_fits_its_volume(trial: RenderedChart) -> None:
    (volume,) = trial.one("StatefulSet", "hmi-gateway")["spec"]["volumeClaimTemplates"]
    limit = int(_pod_environment(trial, "gateway")["HMI_USAGE_SPOOL_LIMIT_BYTES"])

    assert volume["spec"]["resources"]["requests"]["storage"] == "1Gi"
    assert 0.5 * (1 << 30) < limit < (1 << 30) - 16 * 2**20


def test_budgets_are_bytes(helm: Helm) -> None:
    gpu = _pod_environment(helm.render("production"), "runtime", number=1)

    assert gpu["HMI_DEVICE"] == "cuda"
    assert gpu["HMI_DEVICE_BUDGET"] == str(16 << 30)
    assert gpu["HMI_DISK_BUDGET"] == str(200 << 30)


def test_budgets_in_memory_fit_the_pod(trial: RenderedChart) -> None:
    settings = _pod_environment(trial, "runtime")
    in_memory = sum(int(settings[f"HMI_{name}_BUDGET"]) for name in ("DEVICE", "HOST", "TABLE"))
    limit = trial.pod("runtime")["spec"]["containers"][0]["resources"]["limits"]["memory"]

    assert limit.endswith("Gi")
    assert in_memory < int(limit.removesuffix("Gi")) * (1 << 30) * 0.6, (
        "the model and its batches need the rest"
    )


def test_a_pool_inherits_the_defaults(helm: Helm) -> None:
    chart = helm.render("production")
    pools = {
        item["metadata"]["labels"]["hmi.dev/pool"]: item
        for item in chart.of("StatefulSet")
        if "hmi.dev/pool" in item["metadata"]["labels"]
    }

    assert set(pools) == {"cpu", "gpu"}
    images = {
        name: pool["spec"]["template"]["spec"]["containers"][0]["image"] for name, pool in pools.items()
    }
    assert images == {
        "cpu": "registry.example.com/ml/hmi-runtime:0.1.0",
        "gpu": "registry.example.com/ml/hmi-runtime-cuda:0.1.0",
    }
    assert _pod_environment(chart, "runtime", number=0)["HMI_PRECISION"] == "int8"
    assert _pod_environment(chart, "runtime", number=1)["HMI_MAX_RANK"] == "32"
    assert "volumeClaimTemplates" in pools["gpu"]["spec"]


def test_a_pool_s_precision_is_measured_unless_it_is_set(helm: Helm) -> None:
    chart = helm.render("production")
    assert [_pod_environment(chart, "runtime", number=n)["HMI_PRECISION"] for n in (0, 1)] == ["int8", "auto"]
    assert [_pod_environment(chart, "runtime", number=n)["HMI_POOL"] for n in (0, 1)] == ["cpu", "gpu"]


def test_int8_is_refused_for_a_pool_of_gpus(helm: Helm) -> None:
    refused = helm.template("--set", "runtime.pools.gpu.device=cuda,runtime.defaults.precision=int8")
    assert refused.returncode != 0
    assert "runtime.pools.gpu: precision int8 runs on CPUs only, and the device is cuda" in refused.stderr


def test_training_pods_get_what_the_values_set(helm: Helm) -> None:
    settings = _pod_environment(helm.render("production"), "operator")

    assert settings["HMI_TRAINER_IMAGE"] == "registry.example.com/ml/hmi-runtime:0.1.0"
    assert settings["HMI_TRAINER_NODE_SELECTOR"] == '{"example.com/pool":"training"}'
    assert settings["HMI_TRAINER_IMAGE_PULL_SECRETS"] == '["registry"]'


def test_object_store_credentials_reach_only_components_that_read_it(helm: Helm) -> None:
    chart = helm.render("production")
    holding = {
        component
        for component, container in chart.containers()
        if any(entry["name"] == "AWS_SECRET_ACCESS_KEY" for entry in container.get("env", []))
    }

    assert holding == {"control-plane", "runtime"}
    assert not chart.of("PersistentVolumeClaim")
